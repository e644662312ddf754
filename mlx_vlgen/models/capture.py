"""Attention weights of a forward, computed apart from the fused kernels.

A layer keeps nothing of a request. Its attention passes the cache's offset to the rotary module, which records the
rotated queries there; keys are recorded as they go through the cache.
"""

from typing import Any

from .._runtime import mx, nn
from ..errors import UnsupportedError


class CapturedOffset:
    """An offset, and what was rotated by it: queries, then keys."""

    def __init__(self, offset: Any):
        self.offset = offset
        self.rotated: list[mx.array] = []


class CapturingRope(nn.Module):
    """Replaces a layer's rotary module, does the same, and records what it rotated."""

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope = rope

    def __call__(self, x: mx.array, *settings: Any, offset: Any = 0) -> mx.array:
        if not isinstance(offset, CapturedOffset):
            return self.rope(x, *settings, offset=offset)
        offset.rotated.append(self.rope(x, *settings, offset=offset.offset))
        return offset.rotated[-1]


class CapturingCache:
    """A layer's cache, with an offset that brings back what was rotated."""

    def __init__(self, cache: Any, offset: Any):
        self._cache, self.offset = cache, CapturedOffset(offset)
        self._keys = mx.zeros(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._keys, values = self._cache.update_and_fetch(keys, values)
        return self._keys, values

    def weights(self, attention: nn.Module, mask: mx.array | str | None) -> mx.array:
        """(B, H, L, T) float32. mask: that of the layer."""
        q, k = self.offset.rotated[0].astype(mx.float32), self._keys.astype(mx.float32)
        if "query_layernorm" in attention:  # Hunyuan's comes after the rotation
            q = attention.query_layernorm(q)
        batch, heads, length, size = q.shape
        grouped = (q * attention.scale).reshape(batch, k.shape[1], -1, length, size)
        scores = (grouped @ k[:, :, None].swapaxes(-1, -2)).reshape(batch, heads, length, -1)
        if (cap := getattr(attention, "softcap", None)) is not None:
            scores = mx.tanh(scores / cap) * cap
        if isinstance(mask, str):
            keys = scores.shape[-1]
            mask = mx.arange(keys) <= mx.arange(keys - length, keys)[:, None]
        if mask is not None:
            scores = mx.where(mask, scores, -mx.inf)
        weights = mx.softmax(scores, axis=-1, precise=True)
        # A sliding layer's cache writes over its oldest key; rolled, the newest is the last, as in every other.
        return mx.roll(weights, -self._cache.oldest, -1) if self._cache.oldest else weights


def capturing(layer: nn.Module, cache: Any, offset: Any) -> CapturingCache:
    """The cache for a layer whose attention weights are recorded. UnsupportedError for one without plain attention."""
    attention = layer.self_attn if "self_attn" in layer else None
    # Cohere 2's full-attention layers have a rotary module and do not use it.
    latent = attention is not None and "kv_a_layernorm" in attention
    if attention is None or latent or "rope" not in attention or not getattr(attention, "use_sliding_window", True):
        raise UnsupportedError("output_attentions: this model has layers without plain attention; leave it out")
    if not isinstance(attention.rope, CapturingRope):
        attention.rope = CapturingRope(attention.rope)  # it stays: it holds nothing of this request
    return CapturingCache(cache, offset)
