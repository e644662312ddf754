"""Gemma 4's audio tower: two convolutions, of which each takes every other frame and band, and a conformer.

Source: transformers' Gemma4AudioModel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from .._runtime import mx, nn
from ..errors import LoadError
from .layers import ClippedLinear
from .usm import ConformerConfig, ConformerLayer, run_layers


@dataclass(frozen=True)
class Gemma4AudioConfig(ConformerConfig):
    subsampling_conv_channels: Sequence[int] = (128, 32)
    use_clipped_linears: bool = True
    output_proj_dims: int = 1536

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """LoadError where positions see later ones, or are told apart by other distances than those that they see."""
        config = super().from_dict(values)
        chunk, left, right = (
            config.attention_chunk_size, config.attention_context_left, config.attention_context_right
        )  # fmt: skip
        if right or chunk != left - 1:
            raise LoadError(
                f"This checkpoint's audio tower has attention_chunk_size {chunk}, attention_context_left {left} and "
                f"attention_context_right {right}; computed is a chunk of attention_context_left - 1, without a right "
                "context."
            )
        return config


class Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, eps: float):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(outputs, eps, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.relu(self.norm(self.conv(x)))


class Subsampling(nn.Module):
    """The first convolution has as many channels as there are bands."""

    def __init__(self, config: Gemma4AudioConfig):
        super().__init__()
        first, second = config.subsampling_conv_channels
        self.layer0 = Convolution(1, first, config.rms_norm_eps)
        self.layer1 = Convolution(first, second, config.rms_norm_eps)
        self.input_proj_linear = nn.Linear(first // 4 * second, config.hidden_size, bias=False)

    def __call__(self, features: mx.array) -> mx.array:
        """(B, frames, bands) -> (B, frames / 4, d)."""
        x = features[..., None].astype(self.layer0.conv.weight.dtype)
        return self.input_proj_linear(self.layer1(self.layer0(x)).flatten(2))


class AudioTower(nn.Module):
    def __init__(self, config: Gemma4AudioConfig):
        super().__init__()
        self.subsample_conv_projection = Subsampling(config)
        linear = partial(ClippedLinear, clipped=config.use_clipped_linears)
        reach, key_scale = config.attention_context_left - 2, math.log(1 + math.e) / math.log(2)
        self.layers = [ConformerLayer(config, linear, reach, key_scale) for _ in range(config.num_hidden_layers)]
        self.output_proj = nn.Linear(config.hidden_size, config.output_proj_dims)

    def __call__(self, features: mx.array) -> mx.array:
        """Clips (B, frames, bands) without padding -> (B, frames / 4, output_proj_dims)."""
        return self.output_proj(run_layers(self.layers, self.subsample_conv_projection(features)))
