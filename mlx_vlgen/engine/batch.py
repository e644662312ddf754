"""Rows that decode together."""

from collections.abc import Sequence
from dataclasses import dataclass

from .._runtime import mx
from ..models.base import Embedded, Model
from . import cache as kv
from .penalties import penalize
from .request import Row
from .sampling import BatchSampler, Scores, draw_with_user_code


@dataclass
class Batch:
    """Some rows, their caches, and the token each has drawn but nobody has read yet."""

    rows: list[Row]
    cache: kv.Cache
    sampler: BatchSampler
    tokens: mx.array  # (B,), being computed
    scores: list[Scores]  # what they were drawn from

    @classmethod
    def draw(
        cls,
        rows: list[Row],
        cache: kv.Cache,
        sampler: BatchSampler,
        logits: mx.array,
        unread: mx.array | None = None,
    ) -> "Batch":
        """Draw one token a row from logits (B, V), and start computing it.

        unread (B,): the token that each row drew before and that is not recorded yet, if there is one.
        """
        scores = penalize(rows, logits, unread)
        if any(row.sampling.calls_user for row in rows):
            tokens = draw_with_user_code(rows, scores, sampler)
        else:
            tokens = sampler(scores, ahead=0 if unread is None else 1)
        for place, row in enumerate(rows):
            if row.thinking and row.thinking.forced is not None:
                tokens[place] = row.thinking.forced
        mx.async_eval(tokens, logits)
        return cls(rows, cache, sampler, tokens, [Scores(logits, place) for place in range(len(rows))])

    def advance(self, model: Model, read: bool) -> "Batch":
        """One forward on the tokens these rows have drawn; the next ones, under way. read: whether the tokens are
        read and recorded already."""
        logits = model(Embedded(self.tokens[:, None], delta=self.delta), self.cache)[:, 0]
        return Batch.draw(self.rows, self.cache, self.sampler, logits, None if read else self.tokens)

    @property
    def delta(self) -> int | mx.array:
        """How far each row's rotary position is ahead of its cache."""
        return self.rows[0].delta if len(self.rows) == 1 else mx.array([row.delta for row in self.rows])

    def lengths(self) -> list[int]:
        return [row.length + len(row.tokens) for row in self.rows]

    def join(self, other: "Batch") -> "Batch":
        rows = self.rows + other.rows
        return Batch(
            rows,
            kv.join(self.cache, other.cache, self.lengths() + other.lengths()),
            BatchSampler(rows),
            mx.concatenate([self.tokens, other.tokens]),
            self.scores + other.scores,
        )

    def select(self, places: Sequence[int]) -> "Batch":
        if len(places) == len(self.rows):
            return self
        rows, index = [self.rows[i] for i in places], mx.array(list(places))
        lengths = [row.length + len(row.tokens) for row in rows]
        cache = kv.select(self.cache, places, lengths)
        return Batch(rows, cache, BatchSampler(rows), self.tokens[index], [self.scores[i] for i in places])
