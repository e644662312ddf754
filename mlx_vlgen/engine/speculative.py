"""Speculative decoding: guesses of a row's next tokens, checked by one forward of the model on all of them.

A guess is right when it is the token that the row draws there, with the very random numbers it would have drawn with
alone. So the answer is the same token for token, sampled or greedy, and its distribution is the model's. For
guesses that are no draws themselves (a draft model's likeliest tokens, text that was there before) this accepts as many
as rejection sampling does (Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, 2.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from .._runtime import mx
from ..models.base import Embedded, Model
from . import cache as kv
from .batch import Emit, SampledBatch, draw
from .drafters import propose
from .penalties import Penalties
from .request import Row
from .sampling import BatchSampler, Scores


@dataclass
class Speculative(SampledBatch):
    """Rows whose next tokens are guessed, each as many as its drafter does. Nothing is under way between steps."""

    def step(self, model: Model, emit: Emit) -> Self | None:
        checked = self._check(model, emit)
        return checked.read(emit) if checked else None

    def _check(self, model: Model, emit: Emit) -> Self | None:
        """One forward on each row's last token and the guesses after it. Tokens are handed out as long as guesses are
        right. Returns the rows that go on, each with one token that is drawn and not handed out."""
        guesses = propose(self.rows, model.vocab_size)
        longest = max(map(len, guesses))
        block = np.zeros((len(self.rows), 1 + longest), dtype=np.int32)
        for place, (row, guessed) in enumerate(zip(self.rows, guesses, strict=True)):
            block[place, : 1 + len(guessed)] = [row.tokens[-1], *guessed]
        kv.reserve(self.cache, longest)
        inputs = Embedded(mx.array(block), delta=self.delta, variant=self.rows[0].variant)
        logits = model(inputs, self.cache)  # (B, 1 + longest, V)
        tokens, right = [0] * len(self.rows), [0] * len(self.rows)
        scores: dict[int, Scores] = {}
        alive = list(range(len(self.rows)))
        known = self._draw_all(logits) if all(map(_draws_freely, self.rows)) else None
        while alive:
            at = right[alive[0]]
            here = logits[:, at]
            mx.async_eval(here)  # other threads may look at it
            drawn = self._draw(alive, here) if known is None else known[alive, at]
            for place, token in zip(alive, drawn, strict=True):
                tokens[place], scores[place] = int(token), Scores(here, place)
            alive = [place for place in alive if guesses[place][at : at + 1] == tokens[place : place + 1]]
            for place in alive:
                right[place] += 1
                self.rows[place].accepted += 1
                emit(self.rows[place], tokens[place], scores[place])
            alive = [place for place in alive if not self.rows[place].over]
        for row, guessed, accepted in zip(self.rows, guesses, right, strict=True):
            try:
                if row.drafter:
                    row.drafter.update(len(guessed), accepted)
            except Exception as error:
                row.error = error
        self.tokens, self.unread = mx.array(tokens, dtype=mx.int32), True
        self.scores = [scores[place] for place in range(len(self.rows))]
        kv.rollback(self.cache, [longest - accepted for accepted in right])
        self.store_ended([len(row.tokens) - 1 for row in self.rows])
        left = [place for place, row in enumerate(self.rows) if not row.over]
        return self.select(left) if left else None

    def _draw(self, places: Sequence[int], logits: mx.array) -> np.ndarray:
        """The next token of these rows, from logits (B, V) of all."""
        rows = [self.rows[place] for place in places]
        selected = logits if len(rows) == len(self.rows) else logits[mx.array(list(places))]
        penalties = Penalties.of(rows, logits.shape[-1])
        return np.array(draw(rows, BatchSampler(rows), penalties, selected, None))

    def _draw_all(self, logits: mx.array) -> np.ndarray:
        """(B, L): the tokens at all positions at once, from logits (B, L, V)."""
        rows, length, _ = logits.shape
        sampler = BatchSampler([row for row in self.rows for _ in range(length)])
        tokens = sampler(logits.flatten(0, 1), [*range(length)] * rows)
        return np.array(tokens).reshape(rows, length)


def _draws_freely(row: Row) -> bool:
    """Whether a draw depends on earlier tokens through the model only."""
    s = row.sampling
    penalized = s.presence_penalty or s.frequency_penalty or s.repetition_penalty not in (None, 1.0)
    return not (row.needs_token or row.negative or penalized or s.logit_bias or s.thinking_budget is not None)
