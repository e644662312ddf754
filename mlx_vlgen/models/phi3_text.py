"""Phi-3's text decoder: a Llama's with joined layers, and rotary positions of two kinds, by a row's length.

Source: Abdin et al. 2024 (arXiv 2404.14219); Ding et al. 2024 on LongRoPE (arXiv 2402.13753); transformers' Phi3Model,
whose names of parameters these are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._mlx_lm import KVCache, RotatingKVCache
from .._runtime import mx, nn
from . import refusals
from .attention import linear_without_bias, merge_heads, split_heads
from .backbone import TextDecoder
from .configuration import Arguments, BaseConfig, read_granite, rope_type
from .decoders import Decoder
from .layers import ACTIVATIONS
from .text_attention import text_attention


@dataclass(frozen=True)
class Phi3TextConfig(BaseConfig):
    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    sliding_window: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def window(self) -> int | None:
        """How many positions a token of a long row attends to; None for all."""
        slides = self.sliding_window is not None and self.sliding_window < self.max_position_embeddings
        return self.sliding_window if slides else None

    @property
    def switch(self) -> int | None:
        """Up to how many positions a row's frequencies are the short ones; None where they are always the same."""
        rope = self.rope_scaling or {}
        if rope_type(rope) == "default":
            return None
        original = self.original_max_position_embeddings
        longer = original < self.max_position_embeddings and rope["short_factor"] != rope["long_factor"]
        return original if longer else None

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """A layer of its attention and MLPs."""
        return linear_without_bias(inputs, outputs)


class Variant(NamedTuple):
    """What is computed otherwise for one row than for another. adapter: Phi-4's, its place in `phi4_text.ADAPTERS` from
    1 on, or 0."""

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

    def __init__(self, config: Phi3TextConfig):
        super().__init__()
        self._size = int(config.head_size * config.partial_rotary_factor)
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


def growth(config: Phi3TextConfig, rope: Mapping[str, Any]) -> float:
    """By how much rotated values grow."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = config.original_max_position_embeddings
    factor = rope.get("factor") or config.max_position_embeddings / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def through(layer: nn.Module, x: mx.array, variant: Variant) -> mx.array:
    """x through a layer of `Phi3TextConfig.linear`, which may have adapters (see phi4_text.py)."""
    y: mx.array = layer(x, variant) if "base_layer" in layer else layer(x)
    return y


class Attention(nn.Module):
    def __init__(self, config: Phi3TextConfig):
        super().__init__()
        hidden, size = config.hidden_size, config.head_size
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
        self.scale = size**-0.5
        self._ends = (self.heads * size, (self.heads + self.groups) * size)
        self.qkv_proj = config.linear(hidden, (self.heads + 2 * self.groups) * size)
        self.o_proj = config.linear(self.heads * size, hidden)
        self.rope = LongRope(config)

    def __call__(self, x: mx.array, variant: Variant, mask: mx.array | str | None, cache: Any) -> mx.array:
        q, k, v = mx.split(through(self.qkv_proj, x, variant), self._ends, axis=-1)
        q, k, v = split_heads(q, self.heads), split_heads(k, self.groups), split_heads(v, self.groups)
        q, k = (self.rope(part, variant.long, offset=cache.offset) for part in (q, k))
        k, v = cache.update_and_fetch(k, v)
        return through(self.o_proj, merge_heads(text_attention(q, k, v, cache, self.scale, mask)), variant)


class FeedForward(nn.Module):
    def __init__(self, config: Phi3TextConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj, self.down_proj = config.linear(hidden, 2 * inner), config.linear(inner, hidden)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array, variant: Variant) -> mx.array:
        gate, up = mx.split(through(self.gate_up_proj, x, variant), 2, axis=-1)
        return through(self.down_proj, self._activation(gate) * up, variant)


class Layer(nn.Module):
    def __init__(self, config: Phi3TextConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn, self.mlp = Attention(config), FeedForward(config)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)

    def __call__(self, x: mx.array, variant: Variant, mask: mx.array | str | None, cache: Any) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), variant, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x), variant)


class Body(nn.Module):
    def __init__(self, config: Phi3TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Phi3Text(TextDecoder):
    def __init__(self, config: Phi3TextConfig):
        super().__init__(config, Body(config), config.tie_word_embeddings)

    def make_cache(self) -> list[Any]:
        window = self.args.window
        return [RotatingKVCache(window) if window else KVCache() for _ in self.model.layers]


def _variant(args: Arguments, h: mx.array, offset: Any, variant: int) -> tuple[Variant]:
    return (Variant.read(variant),)


DECODER = Decoder(
    refusals.phi3,
    Phi3TextConfig.complete({}),
    read_granite,
    lambda args: Phi3Text(Phi3TextConfig.from_dict(args)),
    extra_inputs=_variant,
    switch=lambda args: Phi3TextConfig.from_dict(args).switch,
)
