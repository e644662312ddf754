"""Penalties on earlier tokens, and biases: for all rows at once, each from its tokens only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from .._runtime import mx
from .logits import add_biases, repetition_penalty
from .params import SamplingParams
from .request import Row


@dataclass
class Penalties:
    """Which tokens of the vocabulary came in some rows and how often, on the device: a step adds the drawn tokens,
    which nobody may have read yet. Built when rows join or leave.

    lengths: how many generated tokens of each row are counted.
    presence, generated, recent: (B, V) float32, the presence penalty of the tokens that were generated, how often they
    were, and how often each is among the last ones of prompt and text; None where no row has a penalty on them.
    """

    rows: Sequence[Row]
    vocabulary: int
    lengths: list[int]
    presence: mx.array | None
    generated: mx.array | None
    recent: mx.array | None

    def __post_init__(self) -> None:
        settings = [row.sampling for row in self.rows]
        self._factor = _column(s.repetition_penalty or 1 for s in settings)
        self._presence = _column(s.presence_penalty or 0 for s in settings)
        self._frequency = _column(s.frequency_penalty or 0 for s in settings)
        biases = [s.logit_bias for s in settings]
        self._bias = add_biases(mx.zeros((len(biases), self.vocabulary)), biases) if any(biases) else None

    @classmethod
    def of(cls, rows: Sequence[Row], vocabulary: int) -> Self:
        """With all tokens that the rows have recorded."""

        def counts(tokens: Sequence[Sequence[int]]) -> mx.array:
            return mx.array(np.stack([_count(of_row, vocabulary) for of_row in tokens]))

        presence = generated = recent = None
        if any(row.sampling.presence_penalty for row in rows):
            penalties = _column(row.sampling.presence_penalty or 0 for row in rows)
            presence = penalties * (counts([row.tokens for row in rows]) > 0)
        if any(row.sampling.frequency_penalty for row in rows):
            generated = counts([row.tokens for row in rows])
        if any(_counts_recent(row.sampling) for row in rows):
            recent = counts([row.recent(row.sampling.repetition_context_size) for row in rows])
        return cls(rows, vocabulary, [len(row.tokens) for row in rows], presence, generated, recent)

    def add(self, tokens: mx.array) -> None:
        """Count one more token (B,) of each row."""
        rows = mx.arange(len(self.rows))
        if self.presence is not None:
            self.presence[rows, tokens] = self._presence[:, 0]
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
        if self.presence is not None:
            scores = scores - self.presence
        if self.generated is not None:
            scores = scores - self._frequency * self.generated
        if scores.dtype != logits.dtype:
            scores = scores.astype(logits.dtype)
        return scores if self._bias is None else scores + self._bias.astype(logits.dtype)

    @property
    def _counts(self) -> tuple[mx.array | None, ...]:
        return self.presence, self.generated, self.recent

    def select(self, places: Sequence[int]) -> Self:
        index = mx.array(list(places))
        counts = [None if one is None else one[index] for one in self._counts]
        return type(self)([self.rows[i] for i in places], self.vocabulary, [self.lengths[i] for i in places], *counts)

    def join(self, other: Self) -> Self:
        """The rows of both. Those without a penalty need no counts: theirs begin at none."""

        def joined(one: mx.array | None, two: mx.array | None) -> mx.array | None:
            if one is None and two is None:
                return None
            parts = ((one, self.rows), (two, other.rows))
            return mx.concatenate(
                [mx.zeros((len(rows), self.vocabulary)) if part is None else part for part, rows in parts]
            )

        counts = [joined(one, two) for one, two in zip(self._counts, other._counts, strict=True)]
        return type(self)([*self.rows, *other.rows], self.vocabulary, self.lengths + other.lengths, *counts)


def _counts_recent(settings: SamplingParams) -> bool:
    return settings.repetition_penalty not in (None, 1.0)


def _column(values: Iterable[float]) -> mx.array:
    """(B, 1)."""
    return mx.array([float(value) for value in values])[:, None]


def _count(tokens: Sequence[int], vocabulary: int) -> np.ndarray:
    """(V,) float32: how often each id is there; those past the vocabulary are nowhere."""
    return np.bincount(np.array(tokens, dtype=np.int64), minlength=vocabulary)[:vocabulary].astype(np.float32)
