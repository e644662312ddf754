"""Penalties on earlier tokens, and biases: for all rows at once, each from its tokens only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from .._runtime import mx
from .logits import add_biases, presence_penalty, repetition_penalty
from .params import SamplingParams
from .request import Row


@dataclass
class Penalties:
    """How often each token of the vocabulary came in some rows, on the device: a step adds the drawn tokens, which
    nobody may have read yet. Built when rows join or leave.

    lengths: how many generated tokens of each row are counted.
    generated, recent: (B, V) float32, of the generated tokens and of the last ones of prompt and text; None where no
    row has a penalty on them.
    """

    rows: Sequence[Row]
    vocabulary: int
    lengths: list[int]
    generated: mx.array | None
    recent: mx.array | None

    def __post_init__(self) -> None:
        settings = [row.sampling for row in self.rows]
        self._factor = _column(s.repetition_penalty or 1 for s in settings)
        self._presence = _column(s.presence_penalty or 0 for s in settings)
        frequencies = [s.frequency_penalty or 0 for s in settings]
        self._frequency = _column(frequencies) if any(frequencies) else None
        biases = [s.logit_bias for s in settings]
        self._bias = add_biases(mx.zeros((len(biases), self.vocabulary)), biases) if any(biases) else None

    @classmethod
    def of(cls, rows: Sequence[Row], vocabulary: int) -> Self:
        """With all tokens that the rows have recorded."""

        def counts(tokens: Sequence[Sequence[int]]) -> mx.array:
            return mx.array(np.stack([_count(of_row, vocabulary) for of_row in tokens]))

        generated = recent = None
        if any(_counts_generated(row.sampling) for row in rows):
            generated = counts([row.tokens for row in rows])
        if any(_counts_recent(row.sampling) for row in rows):
            recent = counts([row.recent(row.sampling.repetition_context_size) for row in rows])
        return cls(rows, vocabulary, [len(row.tokens) for row in rows], generated, recent)

    def add(self, tokens: mx.array) -> None:
        """Count one more token (B,) of each row."""
        rows = mx.arange(len(self.rows))
        if self.generated is not None:
            self.generated = self.generated.at[rows, tokens].add(1.0)
        if self.recent is not None:
            leaving = [self._leaving(row, length) for row, length in zip(self.rows, self.lengths, strict=True)]
            known = [token is not None and token < self.vocabulary for token in leaving]
            entering = [row.sampling.repetition_context_size != 0 for row in self.rows]
            ids = mx.stack([tokens, mx.array([token if k else 0 for token, k in zip(leaving, known, strict=True)])])
            values = mx.array([[float(one) for one in entering], [-float(one) for one in known]])
            self.recent = self.recent.at[rows, ids].add(values)
        self.lengths = [length + 1 for length in self.lengths]

    def _leaving(self, row: Row, length: int) -> int | None:
        """The token that is none of the last ones any more once one follows the row's first `length` generated ones."""
        size = row.sampling.repetition_context_size
        if not size:
            return None
        place = length - size
        if place >= 0:
            return row.tokens[place]
        text = row.text_tokens
        return text[place] if place >= -len(text) else None

    def __call__(self, logits: mx.array) -> mx.array:
        """logits (B, V) after the rows' repetition, presence and frequency penalties and biases, in this order."""
        scores = logits
        if self.recent is not None:
            scores = repetition_penalty(scores, self.recent > 0, self._factor).astype(logits.dtype)
        if self.generated is not None:
            scores = presence_penalty(scores, self.generated > 0, self._presence)
            if self._frequency is not None:
                scores = scores - self._frequency * self.generated
            scores = scores.astype(logits.dtype)
        return scores if self._bias is None else scores + self._bias.astype(logits.dtype)

    def select(self, places: Sequence[int]) -> Self:
        index = mx.array(list(places))
        generated, recent = (None if one is None else one[index] for one in (self.generated, self.recent))
        rows, lengths = [self.rows[i] for i in places], [self.lengths[i] for i in places]
        return type(self)(rows, self.vocabulary, lengths, generated, recent)

    def join(self, other: Self) -> Self:
        """The rows of both. Those without a penalty need no counts: theirs begin at none."""

        def joined(one: mx.array | None, two: mx.array | None) -> mx.array | None:
            if one is None and two is None:
                return None
            parts = ((one, self.rows), (two, other.rows))
            return mx.concatenate(
                [mx.zeros((len(rows), self.vocabulary)) if part is None else part for part, rows in parts]
            )

        generated, recent = joined(self.generated, other.generated), joined(self.recent, other.recent)
        rows, lengths = [*self.rows, *other.rows], self.lengths + other.lengths
        return type(self)(rows, self.vocabulary, lengths, generated, recent)


def _counts_generated(settings: SamplingParams) -> bool:
    return bool(settings.presence_penalty or settings.frequency_penalty)


def _counts_recent(settings: SamplingParams) -> bool:
    return settings.repetition_penalty not in (None, 1.0)


def _column(values: Iterable[float]) -> mx.array:
    """(B, 1)."""
    return mx.array([float(value) for value in values])[:, None]


def _count(tokens: Sequence[int], vocabulary: int) -> np.ndarray:
    """(V,) float32: how often each id is there; those past the vocabulary are nowhere."""
    return np.bincount(np.array(tokens, dtype=np.int64), minlength=vocabulary)[:vocabulary].astype(np.float32)
