"""mlx-lm's text decoders, run layer by layer: rotary offsets from outside, deepstack between layers, masks in which
some tokens see each other both ways."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .._mlx_lm import (
    ArraysCache,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from .._runtime import mx, nn
from .base import Embedded, Full, LayerKind, Opaque, Recurrent, Sliding
from .building import building_only
from .capture import capturing
from .layers import pace


class RotaryOffsetCache:
    """A layer's cache, with another offset: the one that its rotary module takes."""

    def __init__(self, cache: Any, offset: Any):
        self._cache, self.offset = cache, offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


@dataclass
class Angles:
    """What a rotary module takes as offset where positions do not run on: cos and sin (B, 1, L, n)."""

    cos: mx.array
    sin: mx.array

    def at(self, places: mx.array) -> Self:
        """Those of position `places[b]` of each row."""
        return type(self)(row_at(self.cos, places), row_at(self.sin, places))


def decode(
    body: nn.Module,
    inputs: Embedded,
    cache: Sequence[Any],
    at: mx.array | None = None,
    offset: Any = None,
    within_window: bool = True,
    extra_inputs: Sequence[Any] = (),
    deepstack_layers: Sequence[int] | None = None,
    mask_arrays: bool = False,
) -> mx.array:
    """Run the layers of `body`, an mlx-lm decoder with `embed_tokens` and `layers`: (B, L, d), before the last norm.

    at: (B,) int32, the position of each row that is wanted: (B, d).
    offset: what the rotary modules of all layers take as offset, a number, (B,) or `Angles`; None for that of each
    layer's cache.
    within_window, mask_arrays: see `Masks`.
    extra_inputs: what its layers take between the states and the mask, the same for all.
    deepstack_layers: to which layers' output `inputs.deepstack` is added, -1 being the embeddings; None: to the first.
    """
    h = body.embed_tokens(inputs.tokens) if inputs.embeds is None else inputs.embeds
    deepstack, added = inputs.deepstack, dict[int, int]()
    if deepstack is not None:
        targets = range(len(deepstack)) if deepstack_layers is None else deepstack_layers
        added = dict(zip(targets, range(len(deepstack)), strict=True))
        h = deepstack.added(h, added[-1]) if -1 in added else h
    masks = Masks(h, inputs.two_way, within_window, mask_arrays)
    capture, last = inputs.capture, len(body.layers) - 1
    narrows = capture is None and not extra_inputs and last not in added and inputs.tokens.size >= MANY
    if capture is not None:
        capture.hidden_states.append(h)
    for index, (layer, layer_cache) in enumerate(zip(body.layers, cache, strict=True)):
        mask = masks(layer_cache)
        if index == last and at is not None and narrows and _attends(layer, layer_cache):
            return _layer_at(layer, h, mask, layer_cache, at, offset)
        if capture is not None and capture.attentions:
            layer_offset = getattr(layer_cache, "offset", None) if offset is None else offset
            layer_cache = capturing(layer, layer_cache, layer_offset)
        elif offset is not None and not isinstance(layer_cache, ArraysCache):
            layer_cache = RotaryOffsetCache(layer_cache, offset)
        before, h = h, layer(h, *extra_inputs, mask, layer_cache)
        if capture is not None:
            capture.hidden_states.append(h)
            if capture.attentions:
                capture.weights.append(layer_cache.weights(layer.self_attn, mask))
        if deepstack is not None and index in added:
            h = deepstack.added(h, added[index])
        if inputs.paced:
            pace(before, h)
    return gather_last(h, at)


MANY = 64
"""Tokens of a forward from which its last layer computes only what is wanted of it. Of fewer a GPU takes as long for
all as for one."""


def _attends(layer: nn.Module, cache: Any) -> bool:
    """Whether the layer is run here, and keeps nothing but keys and values."""
    return "self_attn" in layer and hasattr(cache, "reach")


def _layer_at(layer: nn.Module, h: mx.array, mask: Any, cache: Any, at: mx.array, offset: Any) -> mx.array:
    """What the last layer gives at position `at[b]` of each row of h (B, L, d): (B, d). Of the others it computes keys
    and values only: with 36 layers that saves a prompt a fortieth."""
    stored = _StoredOnce(cache, cache.offset if offset is None else offset)
    with building_only():
        layer(h, mask, stored)  # its keys and values are written; nobody reads what it gives, so MLX never computes it
    assert stored.fetched is not None
    keys = stored.fetched[0]
    count = (keys if isinstance(keys, mx.array) else keys[0]).shape[2]
    stored.offset = stored.offset.at(at) if isinstance(stored.offset, Angles) else stored.offset + at
    out: mx.array = layer(gather_last(h, at)[:, None], query_mask(mask, at, h.shape[1], count), stored)
    return out[:, 0]


class _StoredOnce(RotaryOffsetCache):
    """A cache to which a layer that is run twice adds its keys and values once."""

    fetched: tuple[Any, Any] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        if self.fetched is None:
            self.fetched = self._cache.update_and_fetch(keys, values)
        return self.fetched


def query_mask(mask: mx.array | str | None, at: mx.array, length: int, keys: int) -> mx.array | None:
    """The mask (B, 1, 1, K) of query `at[b]` of each row, of that of `length` queries; None where it sees all keys."""
    if mask is None:
        return None
    if isinstance(mask, mx.array):
        return row_at(mx.broadcast_to(mask, (len(at), 1, length, keys)), at)
    if (np.array(at) == length - 1).all():
        return None
    return mx.arange(keys) <= (at + keys - length)[:, None, None, None]


def row_at(x: mx.array, at: mx.array) -> mx.array:
    """x (B or 1, H, L, n) -> (B, H, 1, n), at position `at[b]` of each."""
    return mx.take_along_axis(mx.broadcast_to(x, (len(at), *x.shape[1:])), at[:, None, None, None], axis=2)


class Masks:
    """The mask of a layer's attention, by its cache's reach; one for each is computed once a forward.

    h: (B, L, d), the states that attend.
    two_way: (B, L) int32, see `Embedded`. Such tokens lie in one chunk, so they are among its last keys.
    within_window: whether a sliding layer's window hides such tokens that lie far behind (Gemma 3), or other tokens
    only (PaliGemma 2).
    arrays: whether layers take no name of a mask, "causal".
    """

    def __init__(self, h: mx.array, two_way: mx.array | None = None, within_window: bool = True, arrays: bool = False):
        self._h, self._two_way, self._within_window, self._arrays = h, two_way, within_window, arrays
        self._masks: dict[Any, Any] = {}

    def __call__(self, cache: Any) -> Any:
        reach = getattr(cache, "reach", None)
        if reach not in self._masks:
            self._masks[reach] = self._make(cache)
        return self._masks[reach]

    def _make(self, cache: Any) -> Any:
        length = self._h.shape[1]
        if isinstance(cache, ArraysCache):
            return cache.make_mask(length)
        mask = cache.make_mask(length, return_array=self._arrays or self._two_way is not None, window_size=None)
        if self._two_way is None or mask is None:  # None: a single token
            return mask
        same = (self._two_way[:, :, None] == self._two_way[:, None, :]) & (self._two_way > 0)[:, :, None]
        if self._within_window and cache.reach.window and not cache.reach.head:
            index = mx.arange(length)
            same = same & (index > index[:, None] - cache.reach.window)
        mask = mx.broadcast_to(mask, (len(same), 1, *mask.shape[-2:]))
        return mx.concatenate([mask[..., :-length], mask[..., -length:] | same[:, None]], axis=-1)


class TextDecoder(nn.Module):
    """What decoders written here are: `args`, their configuration; `model`, embeddings and layers; and `lm_head`, where
    the embeddings are not the output layer."""

    def __init__(self, config: Any, body: nn.Module, tied: bool):
        super().__init__()
        self.args, self.model = config, body
        if not tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers


def output_layer(text: nn.Module, h: mx.array) -> mx.array:
    """Logits (..., V) of normalised states (..., d), by the `lm_head` of an mlx-lm decoder or by its embeddings."""
    return text.lm_head(h) if "lm_head" in text else text.model.embed_tokens.as_linear(h)


def layer_kinds(decoder: Any) -> list[LayerKind]:
    """The kinds of the caches that an mlx-lm decoder makes for itself."""
    return [_layer_kind(decoder, index, cache) for index, cache in enumerate(make_prompt_cache(decoder))]


def _layer_kind(decoder: Any, index: int, cache: Any) -> LayerKind:
    if type(cache) is KVCache:
        return Full()
    if type(cache) is RotatingKVCache and cache.keep == 0:
        return Sliding(cache.max_size)
    if type(cache) is ChunkedKVCache:
        return Sliding(cache.chunk_size, chunked=True)
    if type(cache) is ArraysCache:
        return Recurrent(len(cache.cache))
    return Opaque(lambda: make_prompt_cache(decoder)[index])


def gather_last(h: mx.array, at: mx.array | None) -> mx.array:
    """h (B, L, d) -> position `at[b]` of each row, (B, d); all positions when `at` is None."""
    return h if at is None else h[mx.arange(h.shape[0]), at]


def last_of(history: mx.array, count: int, length: int, cache: Any) -> mx.array:
    """The last `count` of history (B, count + length, ...) before each row's padding, on the right of its tokens."""
    if cache.lengths is None:
        return mx.contiguous(history[:, length:])
    places = mx.clip(cache.lengths, 0, length)[:, None] + mx.arange(count)
    return mx.take_along_axis(history, places.reshape(*places.shape, *[1] * (history.ndim - 2)), axis=1)
