"""Beam search: a row decodes as several hypotheses, of which the best go on.

Source: what is kept, finished and returned is transformers' `GenerationMixin._beam_search` (5.23), so that sequences
and scores are equal to its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from .._runtime import mx
from ..models.base import Embedded, Model
from ..results import Beam, FinishReason
from . import cache as kv
from .batch import Batch, Emit
from .penalties import penalize
from .report import criteria_met
from .request import Row
from .sampling import BatchSampler, draw_key, log_softmax, process

OUT = np.float32(-1e9)
"""Added to the score of what must not be chosen."""


@dataclass
class Finished:
    """A hypothesis that ended, by what; or one that stands where none did yet."""

    score: np.float32 = OUT
    tokens: list[int] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    reason: FinishReason | None = None

    @property
    def real(self) -> bool:
        return self.reason is not None


class Hypotheses:
    """Those of one row. running: as rows, best first, each with its tokens; scores (beams,): sums of log-probabilities;
    origins: for each token the place, one step before, of the hypothesis that it was added to."""

    def __init__(self, row: Row):
        assert row.request.beams
        self.row, self.asked = row, row.request.beams
        self.running = [replace(row, tokens=[], counts=Counter()) for _ in range(self.asked.count)]
        self.scores = np.full(self.asked.count, OUT)
        self.scores[0] = 0  # all are the same at first: only one of them counts
        self.origins: list[list[int]] = [[] for _ in self.running]
        self.finished = [Finished() for _ in self.running]
        self.improvable = True
        self.over = False

    @property
    def length(self) -> int:
        """Generated tokens."""
        return len(self.running[0].tokens)

    def candidates(self, log_probs: mx.array) -> tuple[mx.array, mx.array]:
        """Of log-probabilities (beams, V) the likeliest continuations, best first: their summed scores (K,) and their
        places in (beams * V); drawn without replacement, in the order drawn, where the request samples."""
        most = max(2, 1 + len(self.row.end_tokens)) * self.asked.count
        total = (log_probs.astype(mx.float32) + mx.array(self.scores)[:, None]).reshape(-1)
        order = total
        if self.asked.sample:  # Gumbel's trick: the largest perturbed values are draws without replacement
            key = mx.array(draw_key(self.row.seed, self.length))
            order = total - mx.logsumexp(total) + mx.random.gumbel(total.shape, key=key)
        best = mx.argpartition(-order, kth=most - 1)[:most]
        best = best[mx.argsort(-order[best])]
        return total[best], best

    def advance(self, scores: np.ndarray, places: np.ndarray, vocabulary: int) -> list[int]:
        """Go on with the best candidates (K,), and keep those that end. The places of the hypotheses that these were
        added to; `over` when nothing better can come."""
        beams, made = self.asked.count, self.length + 1
        parents, tokens = places // vocabulary, places % vocabulary
        late = self.row.late
        reasons = [self._reason(int(p), int(t), late) for p, t in zip(parents, tokens, strict=True)]
        ends = np.array([reason is not None for reason in reasons])
        self._finish(scores, parents, tokens, reasons, made)
        open_scores = scores + ends * OUT
        chosen = np.argsort(-open_scores, kind="stable")[:beams]
        running, origins = [], []
        for place in chosen:
            old, token = self.running[parents[place]], int(tokens[place])
            counts = old.counts.copy()
            counts[token] += 1
            running.append(replace(old, tokens=[*old.tokens, token], counts=counts))
            origins.append([*self.origins[parents[place]], int(parents[place])])
        self.running, self.origins, self.scores = running, origins, open_scores[chosen]
        self.improvable &= self._may_improve(made)
        full = self.asked.early_stopping is True and all(own.real for own in self.finished)
        self.over = full or not self.improvable or bool(ends.all())
        return [int(parent) for parent in parents[chosen]]

    def _reason(self, parent: int, token: int, late: bool) -> FinishReason | None:
        """What makes a candidate a whole answer, if anything does. late: whether the row's time is up."""
        tokens = [*self.running[parent].tokens, token]
        if token in self.row.end_tokens:
            return "stop"
        if late or len(tokens) >= self.row.sampling.max_tokens:
            return "length"
        if self.row.error:
            return None
        try:
            stops = self.row.text.stops(tokens) or criteria_met(self.row, tokens, None)
        except Exception as error:  # the user's code may raise anything, and ends its own row only
            self.row.error, stops = error, False
        return "stop" if stops else None

    def _finish(
        self,
        scores: np.ndarray,
        parents: np.ndarray,
        tokens: np.ndarray,
        reasons: Sequence[FinishReason | None],
        made: int,
    ) -> None:
        """Keep the best of what had ended and of the candidates that do, of which only the first `beams` may."""
        reasons = [reason if place < self.asked.count else None for place, reason in enumerate(reasons)]
        may = np.array([reason is not None for reason in reasons])
        scores = (scores / np.float32(made**self.asked.length_penalty)).astype(np.float32)
        if (self.asked.early_stopping is True and all(own.real for own in self.finished)) or not self.improvable:
            scores = scores + OUT
        scores = scores + ~may * OUT
        new = [
            Finished(score, [*self.running[p].tokens, int(t)], [*self.origins[p], int(p)], reason)
            for score, p, t, reason in zip(scores, parents, tokens, reasons, strict=True)
        ]
        together = [*self.finished, *new]
        order = np.argsort([-own.score for own in together], kind="stable")
        self.finished = [together[place] for place in order[: self.asked.count]]

    def _may_improve(self, made: int) -> bool:
        """Whether the best running hypothesis could still beat one that has ended. transformers guesses its best score
        from the present length; with "never", from the longest one where length is rewarded."""
        asked = self.asked
        rewarded = asked.early_stopping == "never" and asked.length_penalty > 0
        longest = self.row.sampling.max_tokens if rewarded else made
        possible = self.scores[0] / np.float32(longest**asked.length_penalty)
        worst = min(own.score for own in self.finished)
        return any(possible > (worst if own.real else OUT) for own in self.finished)

    def best(self) -> list[Beam]:
        """What is returned, best first."""
        return [Beam(own.tokens, float(own.score), own.origins) for own in self.finished[: self.asked.returned]]


@dataclass
class Search(Batch):
    """Rows that search, each with as many places in the caches as it has beams. Nothing is under way between steps:
    which hypotheses go on must be read before the next forward."""

    searches: Sequence[Hypotheses] = ()

    @classmethod
    def begin(cls, rows: list[Row], cache: kv.Cache, logits: mx.array) -> Self:
        searches = [Hypotheses(row) for row in rows]
        owners = [place for place, own in enumerate(searches) for _ in own.running]
        return cls._chosen(searches, cache, logits[mx.array(owners)], owners)

    def step(self, model: Model, emit: Emit) -> Self | None:
        for own in self.searches:
            if own.over or own.row.cancelled or own.row.error:
                self._hand_out(own, emit)
        left = self.select([place for place, row in enumerate(self.rows) if not row.over])
        if not left.rows:
            return None
        inputs = Embedded(left.tokens[:, None], delta=left.delta, capture=left.rows[0].capture())
        logits = model(inputs, left.cache)[:, 0]
        return self._chosen(left.searches, left.cache, logits, range(len(logits)))

    @classmethod
    def _chosen(cls, searches: Sequence[Hypotheses], cache: kv.Cache, logits: mx.array, owners: Sequence[int]) -> Self:
        """Every search one token further. logits (places, V), one row a hypothesis; owners: each one's place in
        `cache`."""
        beams = [beam for own in searches for beam in own.running]
        log_probs = process(beams, penalize(beams, log_softmax(logits), None))
        ranges, start = [], 0
        for own in searches:
            ranges.append(slice(start, start + len(own.running)))
            start += len(own.running)
        found = [own.candidates(log_probs[span]) for own, span in zip(searches, ranges, strict=True)]
        mx.eval(found)
        order: list[int] = []
        for own, span, beam, (scores, places) in zip(searches, ranges, ranges, found, strict=True):
            own.row.error = own.row.error or next((b.error for b in beams[beam] if b.error), None)
            if trace := own.row.request.trace:
                trace.logits.append(logits[span])
                trace.scores.append(log_probs[span])
            parents = own.advance(np.array(scores), np.array(places), logits.shape[-1])
            order += [owners[span.start + parent] for parent in parents]
        rows = [own.row for own in searches]
        running = [beam for own in searches for beam in own.running]
        lengths = [beam.length + len(beam.tokens) - 1 for beam in running]
        if order != list(range(len(order))) or len(order) != len(owners) or len(set(owners)) != len(owners):
            cache = kv.take(cache, order, lengths)
        tokens = mx.array([beam.tokens[-1] for beam in running], dtype=mx.int32)
        return cls(rows, cache, BatchSampler(rows), tokens, [], searches)

    def _hand_out(self, own: Hypotheses, emit: Emit) -> None:
        """The best answer, token by token, as a row that never searched would give it. A row that fails or is cancelled
        ends with the first."""
        own.row.found, own.row.found_reason = own.best(), own.finished[0].reason or "stop"
        for token in own.row.found[0].tokens or [0]:
            emit(own.row, token, None)

    @property
    def delta(self) -> mx.array:
        return mx.array([own.row.delta for own in self.searches for _ in own.running])

    def join(self, other: Self) -> Self:
        searches = [*self.searches, *other.searches]
        lengths = [beam.length + len(beam.tokens) - 1 for own in searches for beam in own.running]
        cache = kv.join(self.cache, other.cache, lengths)
        rows = [own.row for own in searches]
        return type(self)(rows, cache, BatchSampler(rows), mx.concatenate([self.tokens, other.tokens]), [], searches)

    def select(self, places: Sequence[int]) -> Self:
        if len(places) == len(self.rows):
            return self
        searches = [self.searches[place] for place in places]
        starts = np.cumsum([0, *(len(own.running) for own in self.searches)])
        taken = [int(at) for place in places for at in range(starts[place], starts[place + 1])]
        if not taken:
            return type(self)([], [], self.sampler, self.tokens[:0], [], [])
        lengths = [beam.length + len(beam.tokens) - 1 for own in searches for beam in own.running]
        rows = [own.row for own in searches]
        cache = kv.take(self.cache, taken, lengths)
        return type(self)(rows, cache, BatchSampler(rows), self.tokens[mx.array(taken)], [], searches)
