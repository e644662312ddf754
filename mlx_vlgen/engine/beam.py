"""Beam search: a row decodes as several hypotheses, of which the best go on.

Source: what is kept, finished and returned is transformers' `GenerationMixin._beam_search` (5.23), so that sequences
and scores are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from .._runtime import mx
from ..models.base import Embedded, Model
from ..results import Beam, FinishReason
from . import cache as kv
from .batch import Emit
from .draw_keys import draw_key
from .emit import criteria_met
from .logits import log_softmax
from .modes import Beams
from .penalties import Penalties
from .request import Row
from .sampling import apply_processors

OUT = np.float32(-1e9)
"""Added to the score of a continuation that must not be chosen."""


@dataclass
class Hypothesis:
    """A hypothesis that ended. reason: what ended it; None for one that only fills a place."""

    score: np.float32 = OUT
    tokens: list[int] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    reason: FinishReason | None = None


class Hypotheses:
    """The hypotheses of one row.

    running: copies of the row with their tokens, best first. scores: (beams,), sums of log-probabilities.
    origins: for each token the place, one step before, of the hypothesis that it was added to.
    """

    def __init__(self, row: Row, settings: Beams):
        self.row, self.settings = row, settings
        self.running = [replace(row, tokens=[]) for _ in range(self.settings.count)]
        self.scores = np.full(self.settings.count, OUT)
        self.scores[0] = 0  # all are the same at first: only one of them counts
        self.origins: list[list[int]] = [[] for _ in self.running]
        self.finished = [Hypothesis() for _ in self.running]
        self.improvable = True
        self.over = False

    @property
    def length(self) -> int:
        """Generated tokens."""
        return len(self.running[0].tokens)

    def candidates(self, log_probs: mx.array) -> tuple[mx.array, mx.array]:
        """Of log-probabilities (beams, V) the likeliest continuations, best first: their summed scores (K,) and their
        places in (beams * V); drawn without replacement, in the order drawn, where the request samples."""
        count = max(2, 1 + len(self.row.end_tokens)) * self.settings.count
        total = (log_probs.astype(mx.float32) + mx.array(self.scores)[:, None]).reshape(-1)
        order = total
        if self.settings.sample:  # Gumbel's trick: the largest perturbed values are draws without replacement
            key = mx.array(draw_key(self.row.seed, self.length))
            order = total - mx.logsumexp(total) + mx.random.gumbel(total.shape, key=key)
        best = mx.argpartition(-order, kth=count - 1)[:count]
        best = best[mx.argsort(-order[best])]
        return total[best], best

    def advance(self, scores: np.ndarray, places: np.ndarray, vocabulary: int) -> list[int]:
        """Go on with the best candidates (K,), and keep those that end. Returns the places of the hypotheses that the
        best were added to; sets `over` when nothing better can come."""
        num_beams, length = self.settings.count, self.length + 1
        parents, tokens = places // vocabulary, places % vocabulary
        timed_out = self.row.timed_out
        reasons = [self._reason(int(p), int(t), timed_out) for p, t in zip(parents, tokens, strict=True)]
        ends = np.array([reason is not None for reason in reasons])
        self._finish(scores, parents, tokens, reasons, length)
        open_scores = scores + ends * OUT
        chosen = np.argsort(-open_scores, kind="stable")[:num_beams]
        running, origins = [], []
        for place in chosen:
            parent, token = self.running[parents[place]], int(tokens[place])
            running.append(replace(parent, tokens=[*parent.tokens, token]))
            origins.append([*self.origins[parents[place]], int(parents[place])])
        self.running, self.origins, self.scores = running, origins, open_scores[chosen]
        self.improvable &= self._may_improve(length)
        full = self.settings.early_stopping is True and all(ended.reason for ended in self.finished)
        self.over = full or not self.improvable or bool(ends.all())
        return [int(parent) for parent in parents[chosen]]

    def _reason(self, parent: int, token: int, timed_out: bool) -> FinishReason | None:
        """Why a candidate is a whole answer; None where it is not. timed_out: whether the row's time is up."""
        tokens = [*self.running[parent].tokens, token]
        if token in self.row.end_tokens:
            return "stop"
        if timed_out or len(tokens) >= self.row.sampling.max_tokens:
            return "length"
        if self.row.error:
            return None
        try:
            stops = self.row.text.stops(tokens) or criteria_met(self.row, tokens, None)
        except Exception as error:  # the user's code may raise anything, and ends its row only
            self.row.error, stops = error, False
        return "stop" if stops else None

    def _finish(
        self,
        scores: np.ndarray,
        parents: np.ndarray,
        tokens: np.ndarray,
        reasons: Sequence[FinishReason | None],
        length: int,
    ) -> None:
        """Keep the best of what had ended and of the candidates that do, of which only the first `beams` may."""
        reasons = [reason if place < self.settings.count else None for place, reason in enumerate(reasons)]
        may = np.array([reason is not None for reason in reasons])
        scores = (scores / np.float32(length**self.settings.length_penalty)).astype(np.float32)
        if (
            self.settings.early_stopping is True and all(ended.reason for ended in self.finished)
        ) or not self.improvable:
            scores = scores + OUT
        scores = scores + ~may * OUT
        new = [
            Hypothesis(score, [*self.running[p].tokens, int(t)], [*self.origins[p], int(p)], reason)
            for score, p, t, reason in zip(scores, parents, tokens, reasons, strict=True)
        ]
        together = [*self.finished, *new]
        order = np.argsort([-hypothesis.score for hypothesis in together], kind="stable")
        self.finished = [together[place] for place in order[: self.settings.count]]

    def _may_improve(self, length: int) -> bool:
        """Whether the best running hypothesis could still beat one that has ended. transformers guesses its best score
        from the present length; with "never", from the longest one where length is rewarded."""
        settings = self.settings
        rewarded = settings.early_stopping == "never" and settings.length_penalty > 0
        longest = self.row.sampling.max_tokens if rewarded else length
        possible = self.scores[0] / np.float32(longest**settings.length_penalty)
        worst = min(hypothesis.score for hypothesis in self.finished)
        return any(possible > (worst if hypothesis.reason else OUT) for hypothesis in self.finished)

    def best(self) -> list[Beam]:
        """What is returned, best first."""
        best = self.finished[: self.settings.returned]
        return [Beam(hypothesis.tokens, float(hypothesis.score), hypothesis.origins) for hypothesis in best]


@dataclass
class Search:
    """Rows that search, each with as many places in the caches as it has beams. Nothing is computed between steps: the
    next forward needs to know which hypotheses go on."""

    searches: Sequence[Hypotheses]
    cache: kv.Cache
    tokens: mx.array  # (places,): the last of each hypothesis

    @classmethod
    def begin(cls, rows: list[Row], cache: kv.Cache, logits: mx.array) -> Self:
        searches = [Hypotheses(row, row.request.beams) for row in rows if row.request.beams]
        owners = [place for place, search in enumerate(searches) for _ in search.running]
        return cls._advance(searches, cache, logits[mx.array(owners)], owners)

    @property
    def rows(self) -> list[Row]:
        return [search.row for search in self.searches]

    def step(self, model: Model, emit: Emit) -> Self | None:
        return self._forward(model).read(emit)

    def read(self, emit: Emit) -> Self | None:
        for search in self.searches:
            if search.over or search.row.cancelled or search.row.error:
                _hand_out(search, emit)
        left = [place for place, row in enumerate(self.rows) if not row.over]
        return self._select(left) if left else None

    def _forward(self, model: Model) -> Self:
        delta = mx.array([search.row.delta for search in self.searches for _ in search.running])
        first = self.rows[0]
        inputs = Embedded(self.tokens[:, None], delta=delta, variant=first.variant, capture=first.capture())
        logits = model(inputs, self.cache)[:, 0]
        return self._advance(self.searches, self.cache, logits, range(len(logits)))

    @classmethod
    def _advance(cls, searches: Sequence[Hypotheses], cache: kv.Cache, logits: mx.array, owners: Sequence[int]) -> Self:
        """Every search one token further. logits (places, V), one row a hypothesis; owners: each one's place in
        `cache`."""
        beams = _running(searches)
        log_probs = apply_processors(beams, Penalties.of(beams, logits.shape[-1])(log_softmax(logits)))
        ranges, start = [], 0
        for search in searches:
            ranges.append(slice(start, start + len(search.running)))
            start += len(search.running)
        candidates = [search.candidates(log_probs[span]) for search, span in zip(searches, ranges, strict=True)]
        mx.eval(candidates)
        order: list[int] = []
        for search, span, (scores, places) in zip(searches, ranges, candidates, strict=True):
            search.row.error = search.row.error or next((b.error for b in beams[span] if b.error), None)
            if trace := search.row.request.trace:
                trace.logits.append(logits[span])
                trace.scores.append(log_probs[span])
            parents = search.advance(np.array(scores), np.array(places), logits.shape[-1])
            order += [owners[span.start + parent] for parent in parents]
        if order != list(range(len(order))) or len(order) != len(owners) or len(set(owners)) != len(owners):
            cache = kv.take(cache, order)
        tokens = mx.array([beam.tokens[-1] for beam in _running(searches)], dtype=mx.int32)
        return cls(searches, cache, tokens)

    def join(self, other: Self, most: int) -> Self:
        searches, tokens = [*self.searches, *other.searches], mx.concatenate([self.tokens, other.tokens])
        beams = len(self.tokens) // len(self.searches)
        kv.join(self.cache, other.cache, len(self.tokens), most * beams)
        return type(self)(searches, self.cache, tokens)

    def _select(self, places: Sequence[int]) -> Self:
        if len(places) == len(self.searches):
            return self
        searches = [self.searches[place] for place in places]
        starts = np.cumsum([0, *(len(search.running) for search in self.searches)])
        taken = [int(at) for place in places for at in range(starts[place], starts[place + 1])]
        return type(self)(searches, kv.take(self.cache, taken), self.tokens[mx.array(taken)])


def _running(searches: Sequence[Hypotheses]) -> list[Row]:
    return [beam for search in searches for beam in search.running]


def _hand_out(search: Hypotheses, emit: Emit) -> None:
    """The best answer, token by token, as a row that never searched would give it. A row that fails or is cancelled
    ends with the first."""
    search.row.best_beams, search.row.best_beam_reason = search.best(), search.finished[0].reason or "stop"
    for token in search.row.best_beams[0].tokens or [0]:
        emit(search.row, token, None)
