"""Classifier-free guidance: a negative prompt decodes beside the row.

Source: Sanchez et al. 2023, Stay on topic with Classifier-Free Guidance, equation 7.
"""

from collections.abc import Sequence

from .._runtime import mx
from .logits import log_softmax
from .request import Row


def mix(rows: Sequence[Row], logits: mx.array) -> mx.array:
    """logits (B, V) with each guided row's as log-probabilities, moved away from those of its negative prompt."""
    if not any(row.negative for row in rows):
        return logits
    mixed = logits.astype(mx.float32)
    for place, row in enumerate(rows):
        if row.negative is not None and row.request.guidance is not None:
            positive, negative = log_softmax(logits[place]), log_softmax(logits[rows.index(row.negative)])
            mixed[place] = negative + row.request.guidance.scale * (positive - negative)
    return mixed


def follow(rows: Sequence[Row], tokens: mx.array) -> mx.array:
    """tokens (B,) where each negative prompt goes on with the token that its row drew."""
    for place, row in enumerate(rows):
        if row.negative is not None:
            tokens[rows.index(row.negative)] = tokens[place]
    return tokens
