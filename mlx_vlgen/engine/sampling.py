"""Drawing the next token of every row at once, each with its settings and its random numbers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._runtime import mx
from .logits import exclude_top_choices, log_softmax, min_p, top_k, top_n_sigma, top_p, typical_p
from .params import Sampler
from .request import Row


def draw_key(seed: int, step: int, use: int = 0) -> np.ndarray:
    """The random key (2,) uint32 for a row's step-th token. It depends on nothing else: not on the other rows,
    and not on what was drawn before, so that a step can be taken back and drawn again. use: of several draws a step."""
    return np.random.SeedSequence((seed & (2**64 - 1), step, use)).generate_state(2)


class Scores(NamedTuple):
    """What a row's token was drawn from: one row of a step's logits (B, V), which are under way or done, so that any
    thread may look at them. To take one costs nothing."""

    logits: mx.array
    place: int

    @property
    def row(self) -> mx.array:
        """(V,)."""
        return self.logits[self.place]

    def alone(self) -> "Scores":
        """The same without the other rows, which would stay in memory as long as this one."""
        if len(self.logits) == 1:
            return self
        row = self.row[None]  # a copy, not a view
        mx.async_eval(row)
        return Scores(row, 0)


class BatchSampler:
    """The settings of some rows as arrays; built when rows join or leave, used at every step.

    Every row draws through the same vmapped call whatever the number of rows, since MLX draws other numbers for
    other shapes. Truncation masks logits and keeps their places, for the same reason.
    """

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows
        settings = [row.sampling for row in rows]
        self._greedy = [s.greedy for s in settings]
        self._temperature = _array([1.0 if s.greedy else s.temperature for s in settings])
        truncations: list[tuple[Callable[..., mx.array], Any]] = [
            (top_n_sigma, _column([s.top_n_sigma for s in settings], off=0)),
            (top_k, [s.top_k for s in settings] if any(s.top_k > 0 for s in settings) else None),
            (top_p, _column([s.top_p for s in settings], off=1)),
            (min_p, _column([s.min_p for s in settings], off=0)),
            (typical_p, _column([s.typical_p for s in settings], off=1)),
        ]
        self._truncations = [(truncate, values) for truncate, values in truncations if values is not None]
        self._xtc = _column([s.xtc_probability for s in settings], off=0)
        self._xtc_threshold = _array([s.xtc_threshold for s in settings])

    def __call__(self, logits: mx.array, ahead: int | Sequence[int]) -> mx.array:
        """logits (B, V) -> tokens (B,) int32. ahead: how many drawn tokens the rows, or each of them, have not recorded
        yet."""
        if all(self._greedy):
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        scores = self.truncate(logits.astype(mx.float32) / self._temperature)
        more = [ahead] * len(self._rows) if isinstance(ahead, int) else ahead
        steps = [len(row.tokens) + unrecorded for row, unrecorded in zip(self._rows, more, strict=True)]
        if self._xtc is not None:
            coins = mx.vmap(lambda key: mx.random.uniform(key=key))(self._keys(steps, use=1))[:, None]
            scores = exclude_top_choices(scores, self._xtc_threshold, coins < self._xtc)
        drawn = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(scores, self._keys(steps))
        if any(self._greedy):
            drawn = mx.where(mx.array(self._greedy), mx.argmax(logits, axis=-1), drawn)
        return drawn.astype(mx.int32)

    def _keys(self, steps: Sequence[int], use: int = 0) -> mx.array:
        return mx.array(np.stack([draw_key(r.seed, step, use) for r, step in zip(self._rows, steps, strict=True)]))

    def truncate(self, scores: mx.array) -> mx.array:
        """Scores (B, V), already divided by the temperature, with what is excluded at -inf."""
        for truncate, values in self._truncations:
            scores = truncate(scores, values)
        return scores


def _array(values: Sequence[float]) -> mx.array:
    """(B, 1)."""
    return mx.array([float(value) for value in values])[:, None]


def _column(values: Sequence[float], off: float) -> mx.array | None:
    """(B, 1); None where every row has the value that switches it off."""
    return None if all(value == off for value in values) else _array(values)


def apply_processors(rows: Sequence[Row], logits: mx.array) -> mx.array:
    """logits (B, V) through the rows' logits processors. An exception there is noted on its row, whose logits then
    mean nothing, and no other row's change."""
    if not any(row.sampling.logits_processors for row in rows):
        return logits
    processed = []
    for place, row in enumerate(rows):
        row_logits = logits[place : place + 1]
        if row.sampling.logits_processors and row.error is None:
            try:
                row_logits = _apply_processors(row, row_logits)
            except Exception as error:  # the user's code may raise anything, and ends its row only
                row.error = error
        processed.append(row_logits)
    return mx.concatenate(processed)


def _apply_processors(row: Row, logits: mx.array) -> mx.array:
    """Logits (1, V) through one row's processors. TypeError for what is none: it would end other rows too."""
    so_far, scores = mx.array([*row.prompt.tokens.tolist(), *row.tokens]), logits
    for processor in row.sampling.logits_processors:
        scores = processor(so_far, scores)
        if not isinstance(scores, mx.array) or scores.shape != logits.shape:
            raise TypeError(f"a logits processor returned {_named(scores)}: expected an mlx array {logits.shape}")
    mx.eval(scores)
    return scores


def apply_samplers(rows: Sequence[Row], logits: mx.array, drawn: mx.array) -> mx.array:
    """The tokens `drawn` (B,) from logits (B, V), but those of the rows' samplers where they have one. An exception
    there is noted on its row, whose token then means nothing."""
    for place, row in enumerate(rows):
        if row.sampling.sampler is not None and row.error is None:
            try:
                drawn[place] = _apply_sampler(row.sampling.sampler, logits[place : place + 1])
            except Exception as error:  # as above
                row.error = error
    return drawn


def _apply_sampler(sampler: Sampler, logits: mx.array) -> int:
    """The token that the row's sampler takes. TypeError or ValueError for what is none."""
    token = sampler(log_softmax(logits))
    if not isinstance(token, mx.array) or token.size != 1 or not mx.issubdtype(token.dtype, mx.integer):
        raise TypeError(f"the sampler returned {_named(token)}: expected one token as an mlx array (1,)")
    if not 0 <= (drawn := int(np.array(token).item())) < logits.shape[-1]:
        raise ValueError(f"the sampler returned token {drawn}: expected one of 0 to {logits.shape[-1] - 1}")
    return drawn


def _named(value: object) -> str:
    return f"an mlx array {value.shape}" if isinstance(value, mx.array) else repr(value)


def top(logits: mx.array, count: int) -> Callable[[], list[tuple[int, float]]]:
    """The `count` best of logits (V,), without sorting the vocabulary: they are under way, hold nothing else in memory,
    and any thread may call for them, as (id, log-probability), best first."""
    count = min(count, logits.size)
    scores = log_softmax(logits)
    index = mx.argpartition(-scores, kth=count - 1)[mx.arange(count)]  # copies: a slice would be a view of all
    values = scores[index]
    mx.async_eval(index, values)

    def pairs() -> list[tuple[int, float]]:
        both = zip(np.array(index).tolist(), np.array(values).tolist(), strict=True)
        return sorted(both, key=lambda pair: (-pair[1], pair[0]))

    return pairs
