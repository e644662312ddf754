"""Drawing the next token of every row at once, each with its own settings and its own random numbers."""

from collections.abc import Sequence

import numpy as np

from .._runtime import mx
from .request import Row


def draw_key(seed: int, step: int) -> np.ndarray:
    """The random key (2,) uint32 for a row's step-th token. It depends on nothing else: not on the other rows,
    and not on what was drawn before, so that a step can be taken back and drawn again."""
    return np.random.SeedSequence((seed & (2**64 - 1), step)).generate_state(2)


class BatchSampler:
    """The settings of some rows as arrays; built when rows join or leave, used at every step.

    Every row draws through the same vmapped call whatever the number of rows, since MLX draws other numbers for
    other shapes. Truncation masks logits and keeps their places, for the same reason.
    """

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows
        settings = [row.sampling for row in rows]
        self._greedy = [s.temperature == 0 for s in settings]
        self._temperature = _column([s.temperature or 1.0 for s in settings])
        self._top_k = [s.top_k for s in settings] if any(s.top_k > 0 for s in settings) else None
        self._top_p = _column([s.top_p for s in settings]) if any(s.top_p < 1 for s in settings) else None
        self._min_p = _column([s.min_p for s in settings]) if any(s.min_p > 0 for s in settings) else None

    def __call__(self, logits: mx.array, ahead: int) -> mx.array:
        """logits (B, V) -> tokens (B,) int32. ahead: how many drawn tokens the rows have not recorded yet."""
        if all(self._greedy):
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        scores = self.truncate(logits.astype(mx.float32) / self._temperature)
        keys = mx.array(np.stack([draw_key(row.seed, len(row.tokens) + ahead) for row in self._rows]))
        drawn = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(scores, keys)
        if any(self._greedy):
            drawn = mx.where(mx.array(self._greedy), mx.argmax(logits, axis=-1), drawn)
        return drawn.astype(mx.int32)

    def truncate(self, scores: mx.array) -> mx.array:
        """Scores (B, V), already divided by the temperature, with what top_k, top_p and min_p exclude at -inf."""
        if self._top_k is not None:
            scores = mx.where(scores < _kth_largest(scores, self._top_k), -mx.inf, scores)
        if self._top_p is not None:
            # A token stays while the more likely ones together have not reached top_p; the most likely one always.
            # With top_p = 1 rounding of the sum must not exclude any.
            order = mx.argsort(-scores, axis=-1)
            likely = mx.take_along_axis(mx.softmax(scores, axis=-1), order, axis=-1)
            before = mx.cumsum(likely, axis=-1) - likely
            out = (before > 0) & (before >= self._top_p) & (self._top_p < 1)
            out = mx.put_along_axis(mx.zeros_like(out), order, out, axis=-1)
            scores = mx.where(out, -mx.inf, scores)
        if self._min_p is not None:
            least = mx.max(scores, axis=-1, keepdims=True) + mx.log(self._min_p)
            scores = mx.where(scores < least, -mx.inf, scores)
        return scores


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), dtype=mx.float32)[:, None]


def _kth_largest(scores: mx.array, ranks: Sequence[int]) -> mx.array:
    """(B, 1): the ranks[b]-th largest score of each row; -inf where the rank is off (0, -1) or past the vocabulary."""
    vocabulary = scores.shape[-1]
    most = min(max(ranks), vocabulary)
    best = mx.sort(mx.topk(scores, most, axis=-1), axis=-1)  # ascending
    index = mx.array([most - min(max(rank, 1), most) for rank in ranks])[:, None]
    off = mx.array([rank <= 0 or rank >= vocabulary for rank in ranks])[:, None]
    return mx.where(off, -mx.inf, mx.take_along_axis(best, index, axis=-1))


def draw_with_user_code(rows: Sequence[Row], logits: mx.array, sampler: BatchSampler) -> mx.array:
    """As `sampler(logits, 0)`, through the rows' logits processors and samplers. An exception there is noted on its
    row, whose token then means nothing, and no other row's changes."""
    scores, chosen = [], {}
    for place, row in enumerate(rows):
        own = logits[place : place + 1]
        if row.sampling.calls_user and row.error is None:
            try:
                own, token = _apply_user_code(row, own)
                if token is not None:
                    chosen[place] = token
            except Exception as error:  # the user's code may raise anything, and ends its own row only
                row.error, own = error, logits[place : place + 1]
        scores.append(own)
    drawn = sampler(mx.concatenate(scores), 0)
    return mx.concatenate([chosen.get(place, drawn[place : place + 1]) for place in range(len(rows))])


def _apply_user_code(row: Row, logits: mx.array) -> tuple[mx.array, mx.array | None]:
    """Logits (1, V) through the row's processors, and the token (1,) that its own sampler takes, if it has one.
    TypeError or ValueError for what is neither: it would end other rows, or the process."""
    assert row.prompt
    so_far = mx.array([*row.prompt.tokens.tolist(), *row.tokens])
    scores, token = logits, None
    for processor in row.sampling.logits_processors:
        scores = processor(so_far, scores)
        if not isinstance(scores, mx.array) or scores.shape != logits.shape:
            raise TypeError(f"a logits processor returned {_named(scores)}: expected an mlx array {logits.shape}")
    mx.eval(scores)
    if row.sampling.sampler is not None:
        token = row.sampling.sampler(log_softmax(scores))
        if not isinstance(token, mx.array) or token.size != 1:
            raise TypeError(f"the sampler returned {_named(token)}: expected one token as an mlx array (1,)")
        if not 0 <= (drawn := int(np.array(token).item())) < logits.shape[-1]:
            raise ValueError(f"the sampler returned token {drawn}: expected one of 0 to {logits.shape[-1] - 1}")
        token = token.reshape(1).astype(mx.int32)
    return scores, token


def _named(value: object) -> str:
    return f"an mlx array {value.shape}" if isinstance(value, mx.array) else repr(value)


def log_softmax(logits: mx.array) -> mx.array:
    """float32 log-probabilities of logits (..., V)."""
    scores = logits.astype(mx.float32)
    return scores - mx.logsumexp(scores, axis=-1, keepdims=True)


def top(logits: mx.array, count: int) -> list[tuple[int, float]]:
    """The `count` best of logits (V,) as (id, log-probability), best first, without sorting the vocabulary."""
    count = min(count, logits.size)
    scores = log_softmax(logits)
    index = mx.argpartition(-scores, kth=count - 1)[:count]
    pairs = zip(np.array(index), np.array(scores[index]), strict=True)
    return sorted(((int(i), float(value)) for i, value in pairs), key=lambda pair: (-pair[1], pair[0]))
