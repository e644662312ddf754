"""Phi-4 multimodal's text decoder: Phi-3's, with rotary positions of two kinds and low-rank adapters by modality.

Source: Abdin et al. 2024 (arXiv 2404.14219) and 2025 (arXiv 2503.01743); Ding et al. 2024 on LongRoPE (arXiv
2402.13753); Hu et al. 2021 on adapters (arXiv 2106.09685); transformers' Phi4MultimodalModel and PEFT's LoraModel,
whose names of parameters these are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._mlx_lm import KVCache
from .._runtime import mx, nn
from . import refusals
from .attention import linear_without_bias, merge_heads, split_heads
from .configuration import BaseConfig, rope_type
from .decoders import Decoder
from .layers import ACTIVATIONS
from .text_attention import text_attention

ADAPTERS = ("speech", "vision")
"""In the checkpoint's names. A row with a picture takes the second, one with sound alone the first."""


@dataclass(frozen=True)
class Phi4TextConfig(BaseConfig):
    vocab_size: int = 200064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    max_position_embeddings: int = 131072
    original_max_position_embeddings: int = 4096
    sliding_window: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False
    vision_lora: Mapping[str, Any] | None = None
    speech_lora: Mapping[str, Any] | None = None

    @property
    def switch(self) -> int | None:
        """Up to how many positions a row's frequencies are the short ones; None where they are always the same."""
        rope = self.rope_scaling or {}
        if rope_type(rope) == "default":
            return None
        original = rope.get("original_max_position_embeddings") or self.original_max_position_embeddings
        longer = original < self.max_position_embeddings and rope["short_factor"] != rope["long_factor"]
        return original if longer else None

    @property
    def adapters(self) -> dict[str, tuple[int, float]]:
        """Rank and scale of each adapter that the checkpoint has."""
        settings = zip(ADAPTERS, (self.speech_lora, self.vision_lora), strict=True)
        return {name: (lora["r"], lora["lora_alpha"] / lora["r"]) for name, lora in settings if lora}


class Variant(NamedTuple):
    """What is computed otherwise for one row than for another. adapter: its place in `ADAPTERS`, from 1 on, or 0."""

    long: bool
    adapter: int

    @classmethod
    def read(cls, code: int) -> "Variant":
        """See `Embedded.variant`."""
        return cls(bool(code & 1), code >> 1)

    @property
    def code(self) -> int:
        return self.adapter << 1 | self.long


class LongRope(nn.Module):
    """Source: transformers' `_compute_longrope_parameters`."""

    def __init__(self, config: Phi4TextConfig):
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self._size = int(head_size * config.partial_rotary_factor)
        frequencies = config.rope_theta ** (mx.arange(0, self._size, 2, dtype=mx.float32) / self._size)
        rope = config.rope_scaling or {}
        self._growth, self._frequencies = 1.0, (frequencies, frequencies)  # of short and of long rows
        if rope_type(rope) != "default":
            factors = (mx.array(rope[name], mx.float32) for name in ("short_factor", "long_factor"))
            short, long = (factor * frequencies for factor in factors)
            self._frequencies = short, long
            self._growth = growth(config, rope)

    def __call__(self, x: mx.array, long: bool = False, offset: Any = 0) -> mx.array:
        """x (B, H, L, D), of which the first part turns."""
        if self._growth != 1:
            turned = x[..., : self._size].astype(mx.float32) * self._growth  # in bfloat16 it is 0.2 % another number
            x = mx.concatenate([turned.astype(x.dtype), x[..., self._size :]], axis=-1)
        return mx.fast.rope(
            x, self._size, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._frequencies[long]
        )


def growth(config: Phi4TextConfig, rope: Mapping[str, Any]) -> float:
    """By how much rotated values grow."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    factor = rope.get("factor") or config.max_position_embeddings / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


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


def adapted(inputs: int, outputs: int, config: Phi4TextConfig) -> nn.Module:
    """A layer, with adapters where the checkpoint has some."""
    if config.adapters:
        return AdaptedLinear(inputs, outputs, config.adapters)
    return linear_without_bias(inputs, outputs)


def through(layer: nn.Module, x: mx.array, variant: Variant) -> mx.array:
    """x through a layer that `adapted` made."""
    y: mx.array = layer(x, variant) if isinstance(layer, AdaptedLinear) else layer(x)
    return y


class Attention(nn.Module):
    def __init__(self, config: Phi4TextConfig):
        super().__init__()
        hidden, self.heads, self.groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        size = hidden // self.heads
        self.scale = size**-0.5
        self._ends = (self.heads * size, (self.heads + self.groups) * size)
        self.qkv_proj = adapted(hidden, (self.heads + 2 * self.groups) * size, config)
        self.o_proj = adapted(self.heads * size, hidden, config)
        self.rope = LongRope(config)

    def __call__(self, x: mx.array, variant: Variant, mask: mx.array | str | None, cache: Any) -> mx.array:
        q, k, v = mx.split(through(self.qkv_proj, x, variant), self._ends, axis=-1)
        q, k, v = split_heads(q, self.heads), split_heads(k, self.groups), split_heads(v, self.groups)
        q, k = (self.rope(part, variant.long, offset=cache.offset) for part in (q, k))
        k, v = cache.update_and_fetch(k, v)
        return through(self.o_proj, merge_heads(text_attention(q, k, v, cache, self.scale, mask)), variant)


class FeedForward(nn.Module):
    def __init__(self, config: Phi4TextConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj, self.down_proj = adapted(hidden, 2 * inner, config), adapted(inner, hidden, config)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array, variant: Variant) -> mx.array:
        gate, up = mx.split(through(self.gate_up_proj, x, variant), 2, axis=-1)
        return through(self.down_proj, self._activation(gate) * up, variant)


class Layer(nn.Module):
    def __init__(self, config: Phi4TextConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn, self.mlp = Attention(config), FeedForward(config)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)

    def __call__(self, x: mx.array, variant: Variant, mask: mx.array | str | None, cache: Any) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), variant, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x), variant)


class Body(nn.Module):
    def __init__(self, config: Phi4TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Phi4Text(nn.Module):
    def __init__(self, args: Mapping[str, Any]):
        """args: as `decoders.text_arguments` gives them."""
        super().__init__()
        config = Phi4TextConfig.from_dict(args)
        self.model = Body(config)
        if not config.tie_word_embeddings:
            self.lm_head = linear_without_bias(config.hidden_size, config.vocab_size)

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def make_cache(self) -> list[Any]:
        return [KVCache() for _ in self.model.layers]


DECODER = Decoder(refusals.phi4, Phi4TextConfig.complete({}), network=Phi4Text)
