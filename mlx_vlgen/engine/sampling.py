"""Drawing the next token of every row at once, each with its settings and its random numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .._runtime import mx
from .draw_keys import draw_key
from .logits import best, exclude_top_choices, log_softmax, min_p, most_likely, top_k, top_n_sigma, top_p, typical_p
from .noise import noise_of
from .params import Sampler, SamplingParams
from .request import Row


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


class Signature(NamedTuple):
    """What rows must have in common to draw in one call. greedy: take the best token. on: the settings that are used.

    candidates: how many of its best tokens a row with top_k draws from, which hang on its top_k only: they hold at
    least half as many more for what ties with the last, and what ties beyond them is dropped. 0 is all.
    """

    greedy: bool
    candidates: int = 0
    on: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: SamplingParams) -> "Signature":
        if settings.greedy:
            return cls(True)
        on = tuple(name for name, off in _OFF.items() if getattr(settings, name) != off)
        k = settings.top_k
        return cls(False, 1 << (k + max(k // 2, 32) - 1).bit_length() if k > 0 else 0, on)


_OFF = {"top_n_sigma": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "xtc_probability": 0}
"""Settings and the value that switches each off."""


class Group:
    """Rows of one signature, and their settings as arrays (G, 1)."""

    def __init__(self, signature: Signature, rows: Sequence[Row]):
        self._signature, self._seeds = signature, [row.seed for row in rows]
        settings, names = [row.sampling for row in rows], ("temperature", *signature.on, "xtc_threshold")
        self._values = {name: mx.array([[float(getattr(s, name))] for s in settings]) for name in names}
        self._top_k = mx.array([[min(s.top_k, 2**30)] for s in settings], dtype=mx.int32)

    def draw(self, logits: mx.array, steps: Sequence[int]) -> mx.array:
        """logits (G, V) -> tokens (G,) int32."""
        if self._signature.greedy:
            return most_likely(logits)
        places, scores = self.truncate(logits)
        if "xtc_probability" in self._signature.on:
            coins = mx.vmap(lambda key: mx.random.uniform(key=key))(mx.array(self._keys(steps, use=1)))[:, None]
            chosen = coins < self._values["xtc_probability"]
            scores = exclude_top_choices(scores, self._values["xtc_threshold"], chosen)
        # Gumbel's trick as `mx.random.categorical` does it, with noise for all tokens: what a row draws does not hang
        # on how many of them are looked at.
        noise = noise_of(self._keys(steps), places, logits.shape[-1])
        index = mx.argmax(scores - mx.log(-mx.log(noise)), axis=-1, keepdims=True)
        drawn = index if places is None else mx.take_along_axis(places, index, axis=-1)
        return drawn[:, 0].astype(mx.int32)

    def truncate(self, logits: mx.array) -> tuple[mx.array | None, mx.array]:
        """The ids (G, C) that are looked at, None for all of them in their order, and their scores (G, C), with what is
        excluded at -inf."""
        on, candidates, values = self._signature.on, self._signature.candidates, self._values
        scores, places = logits.astype(mx.float32), None
        if "top_n_sigma" in on:  # the same at any temperature
            scores = top_n_sigma(scores, values["top_n_sigma"])
        if 0 < candidates < logits.shape[-1]:
            places = best(scores, candidates)
            scores = mx.take_along_axis(scores, places, axis=-1)
        scores = scores / values["temperature"]
        if candidates:
            scores = top_k(scores, self._top_k, candidates)
        for name, truncate in (("top_p", top_p), ("min_p", min_p), ("typical_p", typical_p)):
            if name in on:
                scores = truncate(scores, values[name])
        return places, scores

    def _keys(self, steps: Sequence[int], use: int = 0) -> np.ndarray:
        return np.stack([draw_key(seed, step, use) for seed, step in zip(self._seeds, steps, strict=True)])


class BatchSampler:
    """The settings of some rows, in groups that draw together; built when rows join or leave, used at every step.

    A row draws what it draws alone: in a group each operation is one of each row's own.
    """

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows
        places: dict[Signature, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(Signature.of(row.sampling), []).append(place)
        self.groups = [(group, Group(signature, [rows[i] for i in group])) for signature, group in places.items()]
        self._order = mx.array(np.argsort([place for group in places.values() for place in group]))

    def __call__(self, logits: mx.array, ahead: int | Sequence[int]) -> mx.array:
        """logits (B, V) -> tokens (B,) int32. ahead: how many drawn tokens the rows, or each of them, have not recorded
        yet."""
        more = [ahead] * len(self._rows) if isinstance(ahead, int) else ahead
        steps = [len(row.tokens) + unrecorded for row, unrecorded in zip(self._rows, more, strict=True)]
        if len(self.groups) == 1:
            return self.groups[0][1].draw(logits, steps)
        drawn = [group.draw(logits[mx.array(places)], [steps[i] for i in places]) for places, group in self.groups]
        return mx.concatenate(drawn)[self._order]


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
    so_far, scores = mx.array([*row.prompt_tokens, *row.tokens]), logits
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
