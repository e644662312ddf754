"""Penalties on earlier tokens, and biases: for all rows at once, each from its tokens only."""

from collections.abc import Sequence

from .._runtime import mx
from .logits import add_biases, presence_penalty, repetition_penalty
from .request import Row


def penalize(rows: Sequence[Row], logits: mx.array, unread: mx.array | None) -> mx.array:
    """logits (B, V) after the rows' repetition, presence and frequency penalties and biases, in this order.

    unread (B,): a token that each row has drawn and nobody has read yet; it counts as generated.
    """
    settings = [row.sampling for row in rows]
    if any(s.repetition_penalty not in (None, 1.0) for s in settings):
        logits = _repetition(rows, logits, unread)
    if any(s.presence_penalty or s.frequency_penalty for s in settings):
        logits = _presence(rows, logits, unread)
    if any(s.logit_bias for s in settings):
        logits = add_biases(logits, [s.logit_bias for s in settings])
    return logits


def _repetition(rows: Sequence[Row], logits: mx.array, unread: mx.array | None) -> mx.array:
    """Of the recent tokens of prompt and text."""
    ahead = unread is not None
    recent = [dict.fromkeys(row.recent(row.sampling.repetition_context_size, ahead), 1.0) for row in rows]
    present = add_biases(mx.zeros(logits.shape), recent) > 0
    if unread is not None:
        counted = [row.sampling.repetition_context_size != 0 for row in rows]
        present = present | (_places(logits, unread) & mx.array(counted)[:, None])
    factor = mx.array([float(row.sampling.repetition_penalty or 1) for row in rows])[:, None]
    return repetition_penalty(logits, present, factor).astype(logits.dtype)


def _presence(rows: Sequence[Row], logits: mx.array, unread: mx.array | None) -> mx.array:
    """presence_penalty off the logit of each generated token, and frequency_penalty for each time it was there."""
    presence = mx.array([float(row.sampling.presence_penalty or 0) for row in rows])[:, None]
    frequency = mx.array([float(row.sampling.frequency_penalty or 0) for row in rows])[:, None]
    counts = add_biases(mx.zeros(logits.shape), [row.counts for row in rows])
    if unread is not None:
        counts = counts + _places(logits, unread)
    return (presence_penalty(logits, counts > 0, presence) - frequency * counts).astype(logits.dtype)


def _places(logits: mx.array, tokens: mx.array) -> mx.array:
    """(B, V): true at each row's token."""
    return mx.arange(logits.shape[-1]) == tokens[:, None]
