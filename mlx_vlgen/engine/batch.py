"""Rows that decode together: what every kind of batch does, and the one in which each row draws a token a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from .._runtime import mx
from ..models.base import Embedded, Model
from . import cache as kv
from .guidance import follow, mix
from .modes import Past
from .penalties import Penalties
from .request import Row
from .sampling import BatchSampler, Scores, apply_processors, apply_samplers
from .states import StateCache
from .structured import constrain
from .thinking import Thinking

LOOKAHEAD = mx.default_device().type == mx.DeviceType.gpu
"""Whether a step starts before the tokens of the last one are read, so that the device does not wait for Python. On the
CPU MLX runs a step while it is launched: tokens would come a step later, and no sooner be followed by the next."""

LARGE_CACHE = 256 << 20 if mx.metal.is_available() else None
"""Bytes of caches beyond which a step is launched only when the last one has ended, or None. Metal's command buffers
hold what they read (MLX's metal/eval.cpp), and what is held is copied when it is written: twice 256 MB take 0.6 to 5 ms
on Apple's chips, and a wait less. That is reasoned, not measured. On an H100 nothing was copied at 16k positions, since
the GPU is done with a step before Python is with the next."""

Emit = Callable[[Row, int, Scores | None], None]
"""Takes a row's token that was read, with what it was drawn from: records it, hands it out, and ends the row by it."""


class Batch(Protocol):
    """Rows that step in the same way. cache: of all their sequences; tokens: the last of each, drawn or being drawn."""

    cache: kv.Cache
    tokens: mx.array

    @property
    def rows(self) -> Sequence[Row]: ...

    @classmethod
    def begin(cls, rows: list[Row], cache: kv.Cache, logits: mx.array) -> Self:
        """Rows whose prompt is through, and its last logits (B, V): their first tokens are drawn."""

    def read(self, emit: Emit) -> Self | None:
        """Hand out the tokens that are drawn; returns what goes on, if anything does."""

    def step(self, model: Model, emit: Emit) -> Self | None:
        """Decode and hand out tokens; returns what goes on, if anything does."""

    def join(self, other: Self, most: int) -> Self:
        """The rows of both, all of whose tokens are handed out. What fails leaves this batch as it is. most: rows that
        may come to decode together."""


@dataclass
class SampledBatch:
    """Some rows, their caches, and the token that each has drawn last, which `penalties` do not count."""

    rows: list[Row]
    cache: kv.Cache
    sampler: BatchSampler
    penalties: Penalties
    tokens: mx.array  # (B,), being computed
    scores: list[Scores]  # what they were drawn from; none when they are handed out
    unread: bool = True  # whether the tokens are still to be handed out

    @classmethod
    def begin(cls, rows: list[Row], cache: kv.Cache, logits: mx.array) -> Self:
        """Rows whose prompt is through: draw their first token from its logits (B, V)."""
        sampler, penalties = BatchSampler(rows), Penalties.of(rows, logits.shape[-1])
        return cls(rows, cache, sampler, penalties, *_drawn(rows, sampler, penalties, logits, None))

    def read(self, emit: Emit) -> Self | None:
        if not self.unread:
            return self
        lengths = [len(row.tokens) for row in self.rows]
        self._hand_out(emit)
        self.store_past()
        self.store_ended(lengths)
        left = [place for place, row in enumerate(self.rows) if row.goes_on]
        return replace(self, scores=[], unread=False).select(left) if left else None

    def _hand_out(self, emit: Emit) -> None:
        for row, token, scores in zip(self.rows, np.array(self.tokens).tolist(), self.scores, strict=True):
            emit(row, token, scores)

    def step(self, model: Model, emit: Emit) -> Self | None:
        """Compute the next tokens and hand them out. Returns the rows that go on, None without any."""
        drawn = self if self.unread else self.draw(self.forward(model), unread=False)
        if LOOKAHEAD and not any(row.request.trace for row in self.rows):
            return drawn.step_ahead(model, emit)
        return drawn.read(emit)

    def step_ahead(self, model: Model, emit: Emit) -> Self | None:
        """Start the next step, then hand out the tokens of this one.

        A row that ends by its length is known before and computes nothing more; one that its token ends (an end token,
        a stop string) has computed a token in vain, which is dropped. Where one row needs its token, all draw after it
        was read.
        """
        going = [place for place, row in enumerate(self.rows) if not row.last_token_due]
        if not going:
            return self.read(emit)
        for place in {*range(len(self.rows))} - {*going}:
            self.rows[place].store(self.cache, place, len(self.rows[place].tokens))
        following = self.select(going)
        states = [layer.snapshot() if isinstance(layer, StateCache) else None for layer in self.cache]
        lengths = [len(row.tokens) for row in following.rows]
        logits = following.forward(model)
        if LARGE_CACHE is not None and kv.nbytes(self.cache) > LARGE_CACHE:
            mx.eval(self.tokens)
        waits = any(row.needs_token for row in self.rows)
        if waits:
            mx.async_eval(logits)
        else:
            following = following.draw(logits, unread=True)
        self._hand_out(emit)
        following.store_ended(lengths, states)
        left = [place for place, row in enumerate(following.rows) if row.goes_on]
        if not left:
            return None
        places = kv.compacted(left)
        following = following.select(left)
        return following.draw(logits[mx.array(places)], unread=False) if waits else following

    def store_past(self) -> None:
        """Store the caches of rows that are over in their traces, where the requests want them."""
        for place, row in enumerate(self.rows):
            trace = row.request.trace
            if row.over and trace and trace.keep_cache:
                length = row.length + len(row.tokens) - 1
                trace.past = Past(kv.alone(self.cache, place), length, row.delta, row.request.kv, row.variant)

    def store_ended(self, tokens: Sequence[int], states: Any = None) -> None:
        """Store what rows that are over may share with others: prompts and so many tokens of each, which the cache
        holds. states: of recurrent layers there, by layer, where the cache has gone on."""
        for place, row in enumerate(self.rows):
            if row.over:
                row.store(self.cache, place, tokens[place], states)

    def forward(self, model: Model) -> mx.array:
        """Logits (B, V) after the tokens that these rows have drawn."""
        first = self.rows[0]
        inputs = Embedded(self.tokens[:, None], delta=self.delta, variant=first.variant, capture=first.capture())
        return model(inputs, self.cache)[:, 0]

    def draw(self, logits: mx.array, unread: bool) -> Self:
        """The same rows with their next tokens, from logits (B, V). unread: whether the last ones are still to be read
        and recorded."""
        self.penalties.add(self.tokens)
        drawn = _drawn(self.rows, self.sampler, self.penalties, logits, self.tokens if unread else None)
        return type(self)(self.rows, self.cache, self.sampler, self.penalties, *drawn)

    @property
    def delta(self) -> float | mx.array:
        """How far each row's rotary position is ahead of its cache."""
        return self.rows[0].delta if len(self.rows) == 1 else mx.array([row.delta for row in self.rows])

    def lengths(self) -> list[int]:
        """Positions of each row in the cache, where the last token that was handed out is not."""
        return [row.positions - (not self.unread) for row in self.rows]

    def join(self, other: Self, most: int) -> Self:
        rows, sampler = self.rows + other.rows, BatchSampler(self.rows + other.rows)
        tokens = mx.concatenate([self.tokens, other.tokens])
        penalties = self.penalties.join(other.penalties)
        kv.join(self.cache, other.cache, len(self.rows), most)  # last: whatever fails leaves this batch as it is
        return type(self)(rows, self.cache, sampler, penalties, tokens, [], unread=False)

    def select(self, places: Sequence[int]) -> Self:
        """Only these rows, in the order of `kv.compacted`; this batch is of no use any more."""
        if len(places) == len(self.rows):
            return self
        places = kv.compacted(places)
        kv.select(self.cache, places)
        rows, index = [self.rows[i] for i in places], mx.array(places)
        penalties, scores = self.penalties.select(places), [self.scores[i] for i in places if self.scores]
        tokens = self.tokens[index]
        return type(self)(rows, self.cache, BatchSampler(rows), penalties, tokens, scores, self.unread)


def _drawn(
    rows: list[Row], sampler: BatchSampler, penalties: Penalties, logits: mx.array, unread: mx.array | None
) -> tuple[mx.array, list[Scores]]:
    """One token a row from logits (B, V), being computed, and what each was drawn from."""
    tokens = draw(rows, sampler, penalties, logits, unread)
    mx.async_eval(tokens, logits)
    return tokens, [Scores(logits, place) for place in range(len(rows))]


def draw(
    rows: list[Row], sampler: BatchSampler, penalties: Penalties, logits: mx.array, unread: mx.array | None
) -> mx.array:
    """Tokens (B,) from logits (B, V) through the rows' settings. unread (B,): the token that each row drew before and
    that is not recorded yet, if there is one."""
    scores = constrain(rows, apply_processors(rows, penalties(mix(rows, logits))))
    tokens = apply_samplers(rows, scores, sampler(scores, ahead=0 if unread is None else 1))
    for place, row in enumerate(rows):
        if row.thinking:
            _close(row.thinking, tokens, place, unread)
        if trace := row.request.trace:
            trace.logits.append(logits[place])
            trace.scores.append(scores[place])
    return follow(rows, tokens)


def _close(thinking: Thinking, tokens: mx.array, place: int, unread: mx.array | None) -> None:
    """Set the token at `place` to what the row's budget forces, if it does. An unread token is compared where it is."""
    if unread is None:
        if thinking.forced is not None:
            tokens[place] = thinking.forced
    elif thinking.undecided and thinking.decider:
        mark, forces = thinking.decider
        tokens[place] = mx.where((unread[place] == mark) == forces, thinking.marks.end[0], tokens[place])
