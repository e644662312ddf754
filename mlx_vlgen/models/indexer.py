"""Sparse attention by blocks of keys: a small indexer says which blocks each token attends to.

A block counts from its row's first position, so that what is chosen depends on no chunk and no neighbour.
"""

from typing import Any

from .._runtime import mx


def chosen_keys(scores: mx.array, first: int | mx.array, size: int, count: int, keys: int) -> mx.array:
    """Which keys each of N tokens may attend to, (B, 1, N, keys) bool: those of the `count` best of its complete
    blocks, and those after these. What comes after a token is left to the mask of its attention.

    scores: (B, N, blocks) float32, of each whole block of `size` keys. first: the first token's position, or (B,).
    """
    blocks = mx.arange(scores.shape[-1])
    positions = mx.array(first).reshape(-1, 1) + mx.arange(scores.shape[1])
    complete = ((positions + 1) // size)[..., None]  # (B or 1, N, 1), how many
    scores = mx.where(blocks < complete, scores, mx.finfo(scores.dtype).min)
    chosen = best(scores, count) & (blocks < complete)
    rest = scores.shape[-1] * size
    chosen = mx.repeat(chosen, size, axis=-1)
    chosen = mx.pad(chosen, [(0, 0), (0, 0), (0, keys - rest)])
    return (chosen | (mx.arange(keys) >= complete * size))[:, None]


def best(scores: mx.array, count: int) -> mx.array:
    """Which of scores (..., n) are among the `count` best, bool; of equal ones the first."""
    if scores.shape[-1] <= count:
        return mx.ones(scores.shape, mx.bool_)
    least = mx.topk(scores, count, axis=-1).min(axis=-1, keepdims=True)
    above, equal = scores > least, scores == least
    return above | (equal & (mx.cumsum(equal.astype(mx.int32), axis=-1) <= count - above.sum(axis=-1, keepdims=True)))


def narrowed(mask: Any, chosen: mx.array | None) -> Any:
    """A mask of attention, an array or None for all keys, without those that are not chosen."""
    if chosen is None or mask is None:
        return mask if chosen is None else chosen
    return mask & chosen
