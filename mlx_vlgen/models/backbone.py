"""mlx-lm's text decoders, driven layer by layer: rotary positions from outside, deepstack between layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._mlx_lm import create_attention_mask
from .._runtime import mx, nn
from .base import Embedded
from .layers import rotate


@dataclass
class Rotary:
    """cos and sin (B, 1, L, D / 2) for tokens whose three rotary positions differ."""

    cos: mx.array
    sin: mx.array


class MRope(nn.Module):
    """Stands in the place of mlx-lm's `self_attn.rope` and keeps no state: what to rotate by comes as the offset.

    An offset is an int or (B,) array where all three axes run on together (text, and every decoded token: there
    MLX's own kernel does it), or a `Rotary` that the forward computed once for all layers.
    Source: Qwen3-VL's interleaved M-RoPE (transformers' Qwen3VLTextRotaryEmbedding): frequency i turns with
    time, except that of the first 3 * section[1] those with i % 3 == 1 turn with the row, and likewise the column.
    """

    def __init__(self, dims: int, base: float, section: Sequence[int], interleaved: bool = True):
        super().__init__()
        self.dims, self.base = dims, base
        half = np.arange(dims // 2)
        if interleaved:
            axes = np.where((half % 3 > 0) & (half < 3 * np.asarray(section)[half % 3]), half % 3, 0)
        else:
            axes = np.repeat(np.arange(3), section)
        self._axes = mx.array(axes)
        self._frequencies = mx.array(base ** -(half.astype(np.float32) * 2 / dims), dtype=mx.float32)

    def angles(self, positions: mx.array) -> Rotary:
        """positions (3, B, L)."""
        chosen = positions[self._axes].transpose(1, 2, 0).astype(mx.float32)  # (B, L, D / 2)
        angle = (chosen * self._frequencies)[:, None]
        return Rotary(mx.cos(angle), mx.sin(angle))

    def __call__(self, x: mx.array, offset: "int | mx.array | Rotary" = 0) -> mx.array:
        if isinstance(offset, Rotary):
            return rotate(x, offset.cos, offset.sin)
        return mx.fast.rope(x, self.dims, traditional=False, base=self.base, scale=1.0, offset=offset)


class PlacedCache:
    """A layer's cache as its attention sees it: the same, but for an offset that says how to rotate."""

    def __init__(self, cache: Any, offset: "int | mx.array | Rotary"):
        self._cache, self.offset = cache, offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def decode(body: nn.Module, rope: MRope, inputs: Embedded, cache: Sequence[Any]) -> mx.array:
    """Run the layers of `body`, an mlx-lm decoder with `embed_tokens` and `layers`: (B, L, d), before the last norm."""
    h = body.embed_tokens(inputs.tokens) if inputs.embeds is None else inputs.embeds
    mask = create_attention_mask(h, cache[0])
    offset = rope.angles(inputs.positions) if inputs.positions is not None else cache[0].offset + inputs.delta
    for index, (layer, own) in enumerate(zip(body.layers, cache, strict=True)):
        h = layer(h, mask, PlacedCache(own, offset))
        if index < len(inputs.deepstack):
            h = h + inputs.deepstack[index]
    return h


def pick(h: mx.array, at: mx.array | None) -> mx.array:
    """Position `at[b]` of each row: (B, d); all of them when `at` is None."""
    return h if at is None else h[mx.arange(h.shape[0]), at]
