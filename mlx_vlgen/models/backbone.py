"""mlx-lm's text decoders, driven layer by layer: rotary positions from outside, deepstack between layers, masks in
which some tokens see each other both ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._mlx_lm import (
    ArraysCache,
    KVCache,
    RotatingKVCache,
    create_attention_mask,
    create_ssm_mask,
    initialize_rope,
    make_prompt_cache,
)
from .._runtime import mx, nn
from .base import Embedded, Full, LayerKind, Opaque, Recurrent, Sliding
from .capture import capturing
from .layers import rotate


@dataclass
class Rotary:
    """cos and sin (B, 1, L, D / 2) for tokens whose three rotary positions differ."""

    cos: mx.array
    sin: mx.array


class MRope(nn.Module):
    """Stands in the place of mlx-lm's `self_attn.rope` and keeps no state: what to rotate by comes as the offset.

    An offset is an int or (B,) array where all three axes run on together (text, and every decoded token: there
    MLX's kernel does it), or a `Rotary` that the forward computed once for all layers.
    Source: Qwen3-VL's interleaved M-RoPE (transformers' Qwen3VLTextRotaryEmbedding): frequency i turns with
    time, except that of the first 3 * section[1] those with i % 3 == 1 turn with the row, and likewise the column.
    dims: how many of a head's values are rotated, the first ones.
    traditional: pairs are neighbours (GLM), as in mx.fast.rope; otherwise they are the two halves.
    yarn: settings of YaRN, as `configuration.yarn_settings` gives them.
    """

    def __init__(
        self,
        dims: int,
        base: float,
        section: Sequence[int],
        interleaved: bool = True,
        traditional: bool = False,
        yarn: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.dims, self.base, self.traditional = dims, base, traditional
        self._yarn = None if yarn is None else initialize_rope(dims, base, traditional, dict(yarn))
        half = np.arange(dims // 2)
        if interleaved:
            axes = np.where((half % 3 > 0) & (half < 3 * np.asarray(section)[half % 3]), half % 3, 0)
        else:
            axes = np.repeat(np.arange(3), section)
        self._axes = mx.array(axes)
        frequencies = mx.array(base ** -(half.astype(np.float32) * 2 / dims), dtype=mx.float32)
        self._frequencies = frequencies if self._yarn is None else 1 / self._yarn._freqs
        self._attention_scaling = 1.0 if self._yarn is None else self._yarn.mscale

    def angles(self, positions: mx.array) -> Rotary:
        """positions (3, B, L)."""
        selected = positions[self._axes].transpose(1, 2, 0).astype(mx.float32)  # (B, L, D / 2)
        angle = (selected * self._frequencies)[:, None]
        return Rotary(mx.cos(angle) * self._attention_scaling, mx.sin(angle) * self._attention_scaling)

    def __call__(self, x: mx.array, offset: "int | mx.array | Rotary" = 0) -> mx.array:
        if isinstance(offset, Rotary):
            if self.dims == x.shape[-1]:
                return rotate(x, offset.cos, offset.sin, self.traditional)
            first = rotate(x[..., : self.dims], offset.cos, offset.sin, self.traditional)
            return mx.concatenate([first, x[..., self.dims :]], axis=-1)
        if self._yarn is not None:
            rotated: mx.array = self._yarn(x, offset=offset)
            return rotated
        return mx.fast.rope(x, self.dims, traditional=self.traditional, base=self.base, scale=1.0, offset=offset)


class RotaryOffsetCache:
    """A layer's cache, with another offset: the one that its rotary module takes."""

    def __init__(self, cache: Any, offset: "int | mx.array | Rotary"):
        self._cache, self.offset = cache, offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def decode(
    body: nn.Module,
    inputs: Embedded,
    cache: Sequence[Any],
    rope: MRope | None = None,
    within_window: bool = True,
    extra_inputs: Sequence[Any] = (),
) -> mx.array:
    """Run the layers of `body`, an mlx-lm decoder with `embed_tokens` and `layers`: (B, L, d), before the last norm.

    rope: the rotary module of all its attention layers; None for mlx-lm's, which runs on from the cache.
    within_window: see `Masks`.
    extra_inputs: what its layers take between the states and the mask, the same for all.
    """
    h = body.embed_tokens(inputs.tokens) if inputs.embeds is None else inputs.embeds
    masks = Masks(h, inputs.two_way, within_window)
    offset: Any = None
    if rope is not None:
        first = next(layer_cache for layer_cache in cache if not isinstance(layer_cache, ArraysCache))
        offset = rope.angles(inputs.positions) if inputs.positions is not None else first.offset + inputs.delta
    capture = inputs.capture
    if capture is not None:
        capture.hidden_states.append(h)
    for index, (layer, layer_cache) in enumerate(zip(body.layers, cache, strict=True)):
        mask = masks(layer_cache)
        if capture is not None and capture.attentions:
            layer_offset = getattr(layer_cache, "offset", None) if offset is None else offset
            layer_cache = capturing(layer, layer_cache, layer_offset)
        elif offset is not None and not isinstance(layer_cache, ArraysCache):
            layer_cache = RotaryOffsetCache(layer_cache, offset)
        h = layer(h, *extra_inputs, mask, layer_cache)
        if capture is not None:
            capture.hidden_states.append(h)
            if capture.attentions:
                capture.weights.append(layer_cache.weights(layer.self_attn, mask))
        if index < len(inputs.deepstack):
            h = h + inputs.deepstack[index]
    return h


class Masks:
    """The mask that a layer's attention wants, by the kind of its cache; those of one kind are computed once a forward.

    two_way: see `Embedded`. Such tokens lie in one chunk, so they are among the last keys of the chunk that attends.
    within_window: whether a sliding layer's window hides those of them that lie far behind (Gemma 3), or hides other
    tokens only (PaliGemma 2).
    """

    def __init__(self, h: mx.array, two_way: mx.array | None = None, within_window: bool = True):
        self._h, self._two_way, self._within_window = h, two_way, within_window
        self._masks: dict[Any, Any] = {}

    def __call__(self, cache: Any) -> Any:
        kind = type(cache), getattr(cache, "max_size", None)
        if kind not in self._masks:
            self._masks[kind] = self._make(cache)
        return self._masks[kind]

    def _make(self, cache: Any) -> Any:
        if isinstance(cache, ArraysCache):
            return create_ssm_mask(self._h, cache)
        if self._two_way is None:
            return create_attention_mask(self._h, cache)
        mask = create_attention_mask(self._h, cache, return_array=True)
        if mask is None:  # a single token
            return None
        length = self._h.shape[1]
        same = (self._two_way[:, :, None] == self._two_way[:, None, :]) & (self._two_way > 0)[:, :, None]
        if self._within_window and (window := getattr(cache, "max_size", None)):
            index = mx.arange(length)
            same = same & (index > index[:, None] - window)
        mask = mx.broadcast_to(mask, (len(same), 1, *mask.shape[-2:]))
        return mx.concatenate([mask[..., :-length], mask[..., -length:] | same[:, None]], axis=-1)


def output_layer(text: nn.Module, h: mx.array) -> mx.array:
    """Logits (..., V) of normalised states (..., d), by the `lm_head` of an mlx-lm decoder or by its embeddings."""
    return text.lm_head(h) if "lm_head" in text else text.model.embed_tokens.as_linear(h)


def layer_kinds(decoder: Any) -> list[LayerKind]:
    """What caches an mlx-lm decoder makes for itself, as ours."""
    return [_layer_kind(decoder, index, cache) for index, cache in enumerate(make_prompt_cache(decoder))]


def _layer_kind(decoder: Any, index: int, cache: Any) -> LayerKind:
    if type(cache) is KVCache:
        return Full()
    if type(cache) is RotatingKVCache and cache.keep == 0:
        return Sliding(cache.max_size)
    if type(cache) is ArraysCache:
        return Recurrent(len(cache.cache))
    return Opaque(lambda: make_prompt_cache(decoder)[index])


def gather_last(h: mx.array, at: mx.array | None) -> mx.array:
    """h (B, L, d) -> position `at[b]` of each row, (B, d); all positions when `at` is None."""
    return h if at is None else h[mx.arange(h.shape[0]), at]
