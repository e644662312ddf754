"""Phi-4 multimodal's text decoder: Phi-3's, with low-rank adapters by modality.

Source: Abdin et al. 2025 (arXiv 2503.01743); Hu et al. 2021 (arXiv 2106.09685); transformers' Phi4MultimodalModel and
PEFT's LoraModel, whose names of parameters these are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._runtime import mx, nn
from . import phi3_text, refusals
from .attention import linear_without_bias
from .phi3_text import Phi3Text, Phi3TextConfig, Variant

ADAPTERS = ("speech", "vision")
"""In the checkpoint's names. A row with a picture takes the second, one with sound alone the first."""


@dataclass(frozen=True)
class Phi4TextConfig(Phi3TextConfig):
    vocab_size: int = 200064
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    vision_lora: Mapping[str, Any] | None = None
    speech_lora: Mapping[str, Any] | None = None

    @property
    def adapters(self) -> dict[str, tuple[int, float]]:
        """Rank and scale of each adapter that the checkpoint has."""
        settings = zip(ADAPTERS, (self.speech_lora, self.vision_lora), strict=True)
        return {name: (lora["r"], lora["lora_alpha"] / lora["r"]) for name, lora in settings if lora}

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        return AdaptedLinear(inputs, outputs, self.adapters) if self.adapters else super().linear(inputs, outputs)


class Matrix(nn.Module):
    """A layer without bias that is never quantized."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = mx.zeros((outputs, inputs))

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight.T


class AdaptedLinear(nn.Module):
    """A layer, and the adapters of which a row takes one or none."""

    def __init__(self, inputs: int, outputs: int, adapters: Mapping[str, tuple[int, float]]):
        super().__init__()
        self.base_layer = linear_without_bias(inputs, outputs)
        self.lora_A, self.lora_B = nn.Module(), nn.Module()
        for name, (rank, _) in adapters.items():
            self.lora_A[name], self.lora_B[name] = Matrix(inputs, rank), Matrix(rank, outputs)
        self._scales = {name: scale for name, (_, scale) in adapters.items()}

    def __call__(self, x: mx.array, variant: Variant) -> mx.array:
        y = self.base_layer(x)
        name = ADAPTERS[variant.adapter - 1] if variant.adapter else None
        return y + self.lora_B[name](self.lora_A[name](x)) * self._scales[name] if name else y


DECODER = replace(
    phi3_text.DECODER,
    refusals=refusals.phi4,
    defaults=Phi4TextConfig.complete({}),
    network=lambda args: Phi3Text(Phi4TextConfig.from_dict(args)),
)
