"""Functions of logits (B, V) that give logits (B, V): what the engine and transformers' processors share.

Scores are logits after some of these. penalty, share, threshold: (B, 1), or a number for all rows. min_keep: that many
of the best tokens always stay.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .._runtime import mx

NUCLEUS = 4096 if mx.default_device().type == mx.DeviceType.cpu else None
"""Among how many tokens, the first in order, the end of a nucleus is looked for before all are sorted: of 151,936 that
takes 1.4 ms a row on the CPU, and to sort all 15 ms. Whether it is there the host must know, which costs nothing on the
CPU only, where no step starts ahead: elsewhere None, and all are sorted at once."""


def log_softmax(logits: mx.array) -> mx.array:
    """float32 log-probabilities of logits (..., V)."""
    scores = logits.astype(mx.float32)
    return scores - mx.logsumexp(scores, axis=-1, keepdims=True)


def most_likely(logits: mx.array) -> mx.array:
    """(B,) int32: the best token of each row, the first of equals. On the CPU, which a step's tokens are waited for
    anyway, NumPy's takes 0.1 ms for 8 rows of 151,936 and MLX's 1.2."""
    if mx.default_device().type == mx.DeviceType.cpu and logits.dtype == mx.float32:
        return mx.array(np.asarray(logits).argmax(axis=-1).astype(np.int32))
    return mx.argmax(logits, axis=-1).astype(mx.int32)


def mask(scores: mx.array, excluded: mx.array) -> mx.array:
    """Scores with what is excluded (B, V) at -inf."""
    return mx.where(excluded, -mx.inf, scores)


def repetition_penalty(logits: mx.array, present: mx.array, penalty: mx.array | float) -> mx.array:
    """Logits of present tokens (B, V) divided by the penalty, negative ones multiplied (CTRL, arXiv 1909.05858)."""
    return mx.where(present, mx.where(logits < 0, logits * penalty, logits / penalty), logits)


def presence_penalty(logits: mx.array, present: mx.array, penalty: mx.array | float) -> mx.array:
    """The penalty off the logits of present tokens (B, V)."""
    return logits - penalty * present


def add_biases(logits: mx.array, biases: Sequence[Mapping[int, float]]) -> mx.array:
    """Logits with each row's {token: bias} added."""
    places = [(row, token) for row, of_row in enumerate(biases) for token in of_row]
    if not places:
        return logits
    row, token = (mx.array(index) for index in np.array(places, dtype=np.int32).T)
    values = mx.array([float(value) for of_row in biases for value in of_row.values()])
    return logits.at[row, token].add(values.astype(logits.dtype))


def top_n_sigma(scores: mx.array, sigma: mx.array) -> mx.array:
    """Only what lies within `sigma` (B, 1) standard deviations of the best token; 0 is off (arXiv 2411.07641)."""
    lowest = mx.max(scores, axis=-1, keepdims=True) - sigma * _deviation(scores)
    return mask(scores, (scores < lowest) & (sigma > 0))


def best(scores: mx.array, count: int) -> mx.array:
    """(B, count) ids in ascending order: the best tokens of each row, whatever rows stand beside it. Of equal ones at
    the end any may be among them.

    Exact in two levels, since MLX's partition of 151,936 scores takes 1.3 ms a row on the CPU and this 0.2 ms: what is
    among the best lies in a block whose best is among the best.
    """
    rows, vocabulary = scores.shape
    size = 1 << max(0, round(math.log2(vocabulary / count) / 2))  # of a block: both levels look at as many
    blocks = -(-vocabulary // size)
    if lacking := blocks * size - vocabulary:
        scores = mx.maximum(scores, mx.finfo(scores.dtype).min)  # above what fills the last blocks, which is no token
        scores = mx.pad(scores, [(0, 0), (0, lacking)], constant_values=-mx.inf)
    index = _partition(mx.max(scores.reshape(rows, size, blocks), axis=1), count)
    places = (index[:, None] + mx.arange(size, dtype=index.dtype)[:, None] * blocks).reshape(rows, -1)
    index = _partition(mx.take_along_axis(scores, places, axis=-1), count)
    return mx.sort(mx.take_along_axis(places, index, axis=-1), axis=-1)


def _partition(scores: mx.array, count: int) -> mx.array:
    """(B, count): where each row's largest are, in any order."""
    return mx.argpartition(-scores, kth=count - 1, axis=-1)[:, :count]


def top_k(scores: mx.array, counts: mx.array, largest: int) -> mx.array:
    """Only the counts[b] (B, 1) best tokens of each row, and what ties with the last; 0 and -1 are off. largest: of the
    counts, or more."""
    return mask(scores, scores < kth_largest(scores, counts, largest))


def top_p(scores: mx.array, share: mx.array, min_keep: int = 1) -> mx.array:
    """Only the most likely tokens whose probability reaches `share`."""
    return mask(scores, _past(share, -scores, scores, min_keep))


def min_p(scores: mx.array, share: mx.array, min_keep: int = 1) -> mx.array:
    """Only what is at least `share` as likely as the most likely token."""
    excluded = scores < mx.max(scores, axis=-1, keepdims=True) + mx.log(share)
    if min_keep > 1:
        excluded = excluded & (scores < kth_largest(scores, mx.array([[min_keep]]), min_keep))
    return mask(scores, excluded)


def typical_p(scores: mx.array, share: mx.array, min_keep: int = 1) -> mx.array:
    """Only the tokens of most typical surprise whose probability reaches `share` (arXiv 2202.00666)."""
    surprise = -log_softmax(scores)
    return mask(scores, _past(share, mx.abs(surprise - entropy(surprise)), scores, min_keep))


def exclude_top_choices(scores: mx.array, threshold: mx.array, chosen: mx.array) -> mx.array:
    """XTC: in chosen rows (B, 1) without the tokens at least as likely as the threshold, except the least likely of
    them. Source: https://github.com/oobabooga/text-generation-webui/pull/6335."""
    likely = mx.softmax(scores, axis=-1)
    top = likely >= threshold
    last = mx.where(top, likely, mx.inf).min(axis=-1, keepdims=True)
    return mask(scores, top & (likely > last) & chosen)


def entropy(surprise: mx.array) -> mx.array:
    """(B, 1), of negated log-probabilities (B, V)."""
    return mx.where(mx.isinf(surprise), 0, mx.exp(-surprise) * surprise).sum(axis=-1, keepdims=True)


def kth_largest(scores: mx.array, ranks: mx.array, largest: int) -> mx.array:
    """(B, 1): the ranks[b]-th (B, 1) largest score of each row; -inf where the rank is off (0, -1) or past the
    vocabulary. largest: of the ranks, or more."""
    vocabulary = scores.shape[-1]
    largest = min(largest, vocabulary)
    ascending = mx.sort(mx.topk(scores, largest, axis=-1), axis=-1)
    kth = mx.take_along_axis(ascending, largest - mx.clip(ranks, 1, largest), axis=-1)
    return mx.where((ranks <= 0) | (ranks >= vocabulary), -mx.inf, kth)


def _deviation(scores: mx.array) -> mx.array:
    """(B, 1): the standard deviation of each row's finite scores."""
    finite = mx.isfinite(scores)
    count = finite.sum(axis=-1, keepdims=True)
    mean = mx.where(finite, scores, 0).sum(axis=-1, keepdims=True) / count
    return mx.sqrt((mx.where(finite, scores - mean, 0) ** 2).sum(axis=-1, keepdims=True) / count)


def _past(share: mx.array, order: mx.array, scores: mx.array, min_keep: int) -> mx.array:
    """(B, V): the tokens before which others, taken by ascending `order`, have reached `share` of the probability; the
    first `min_keep` never. A share of 1 excludes none, whatever the sum rounds to."""
    likely = mx.softmax(scores, axis=-1)

    def past(index: mx.array) -> mx.array:
        """(B, C), of the first C tokens in order."""
        first = mx.take_along_axis(likely, index, axis=-1)
        before = mx.cumsum(first, axis=-1) - first
        return (mx.arange(index.shape[-1]) >= min_keep) & (before >= share) & (share < 1)

    if NUCLEUS is not None and scores.shape[-1] > NUCLEUS:
        places = best(-order, NUCLEUS)
        index = mx.argsort(mx.take_along_axis(order, places, axis=-1), axis=-1)  # stable: equals by id, as of all
        index = mx.take_along_axis(places, index, axis=-1)
        ordered, excluded = mx.take_along_axis(order, index, axis=-1), past(index)
        last = ordered[:, -1:]  # of its equals some may be missing; at infinity are those that are excluded already
        ends = (excluded & (ordered < last)).any(axis=-1, keepdims=True) | (last == mx.inf) | (share >= 1)
        if ends.all().item():
            return mx.put_along_axis(mx.broadcast_to(share < 1, scores.shape), index, excluded, axis=-1)
    index = mx.argsort(order, axis=-1)
    return mx.put_along_axis(mx.zeros(scores.shape, dtype=mx.bool_), index, past(index), axis=-1)
