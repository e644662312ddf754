"""Functions of logits (B, V) that give logits (B, V): what the engine and transformers' processors share.

Scores are logits after some of these. penalty, share, threshold: (B, 1), or a number for all rows. min_keep: that many
of the best tokens always stay.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .._runtime import mx


def log_softmax(logits: mx.array) -> mx.array:
    """float32 log-probabilities of logits (..., V)."""
    scores = logits.astype(mx.float32)
    return scores - mx.logsumexp(scores, axis=-1, keepdims=True)


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


def top_k(scores: mx.array, counts: Sequence[int]) -> mx.array:
    """Only the counts[b] best tokens of each row; 0 and -1 are off."""
    return mask(scores, scores < kth_largest(scores, counts))


def top_p(scores: mx.array, share: mx.array, min_keep: int = 1) -> mx.array:
    """Only the most likely tokens whose probability reaches `share`."""
    return mask(scores, _past(share, -scores, scores, min_keep))


def min_p(scores: mx.array, share: mx.array, min_keep: int = 1) -> mx.array:
    """Only what is at least `share` as likely as the most likely token."""
    excluded = scores < mx.max(scores, axis=-1, keepdims=True) + mx.log(share)
    if min_keep > 1:
        excluded = excluded & (scores < kth_largest(scores, [min_keep]))
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


def kth_largest(scores: mx.array, ranks: Sequence[int]) -> mx.array:
    """(B, 1): the ranks[b]-th largest score of each row; -inf where the rank is off (0, -1) or past the vocabulary."""
    vocabulary = scores.shape[-1]
    largest = min(max(ranks), vocabulary)
    best = mx.sort(mx.topk(scores, largest, axis=-1), axis=-1)  # ascending
    index = mx.array([largest - min(max(rank, 1), largest) for rank in ranks])[:, None]
    off = mx.array([rank <= 0 or rank >= vocabulary for rank in ranks])[:, None]
    return mx.where(off, -mx.inf, mx.take_along_axis(best, index, axis=-1))


def _deviation(scores: mx.array) -> mx.array:
    """(B, 1): the standard deviation of each row's finite scores."""
    finite = mx.isfinite(scores)
    count = finite.sum(axis=-1, keepdims=True)
    mean = mx.where(finite, scores, 0).sum(axis=-1, keepdims=True) / count
    return mx.sqrt((mx.where(finite, scores - mean, 0) ** 2).sum(axis=-1, keepdims=True) / count)


def _past(share: mx.array, order: mx.array, scores: mx.array, min_keep: int) -> mx.array:
    """(B, V): the tokens before which others, taken by ascending `order`, have reached `share` of the probability; the
    first `min_keep` never. A share of 1 excludes none, whatever the sum rounds to."""
    index = mx.argsort(order, axis=-1)
    likely = mx.take_along_axis(mx.softmax(scores, axis=-1), index, axis=-1)
    before = mx.cumsum(likely, axis=-1) - likely
    past = (mx.arange(scores.shape[-1]) >= min_keep) & (before >= share) & (share < 1)
    return mx.put_along_axis(mx.zeros_like(past), index, past, axis=-1)
