"""What of a prompt has been computed before: decided from its tokens, media and spans, without arrays of MLX."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from ..inputs.prompt import Prompt, Span

BLOCK = 128
"""Positions in a block, but for the last of a row."""

LEAST = 32
"""Fewer positions are computed again: what begins alike by a template's first tokens runs better in one forward."""

Units = np.ndarray
"""(L, 4) uint64: a position's token with its place in a medium, the medium's key, and the row's variant with a hash of
the spans around it whose positions depend on later ones. Rows that are equal from the first one to here have equal keys
and values there, with the same weights and caches."""


def units_of(prompt: Prompt, variant: int = 0) -> Units:
    """Of all positions of a prompt. Its pixels are read, where nobody asked for their key before."""
    units = token_units(prompt.tokens.tolist(), variant)
    for medium in prompt.media:
        key, place = np.frombuffer(bytes.fromhex(medium.key)[:16], np.uint64), 1
        for start, end in medium.spans:
            units[start:end, 0] += np.arange(place, place + end - start, dtype=np.uint64) << np.uint64(32)
            units[start:end, 1:3] = key
            place += end - start
    hashes = np.zeros(len(units), np.uint64)
    for start, end in bound_spans(prompt):
        digest = hashlib.sha256(units[start:end, :3].tobytes()).digest()
        hashes[start:end] ^= np.frombuffer(digest[:8], np.uint64) >> np.uint64(4)  # below the variant
    units[:, 3] ^= hashes
    return units


def bound_spans(prompt: Prompt) -> set[Span]:
    """Those whose positions depend on each other, the last ones too: no known beginning ends in one, and what was
    computed in one is known by all of it."""
    spans = [medium.bounds for medium in prompt.media if medium.spans]
    return {*spans, *prompt.two_way, *prompt.unbroken}


def token_units(tokens: Sequence[int], variant: int = 0) -> Units:
    """Of tokens that stand for themselves."""
    units = np.zeros((len(tokens), 4), np.uint64)
    units[:, 0], units[:, 3] = tokens, variant << 60
    return units


def agreement(one: Units, other: Units) -> int:
    """How many positions, from the first on, are equal."""
    count = min(len(one), len(other))
    unlike = (one[:count] != other[:count]).any(axis=1)
    return int(unlike.argmax()) if unlike.any() else count


def block_keys(root: bytes, units: Units) -> list[bytes]:
    """Of the blocks that these positions are cut into, the last perhaps shorter. A key says what comes before, too."""
    keys = [root]
    for start in range(0, len(units), BLOCK):
        keys.append(hashlib.sha256(keys[-1] + units[start : start + BLOCK].tobytes()).digest())
    return keys[1:]


def cut_back(length: int, prompt: Prompt) -> int:
    """How many of `length` known positions a prompt can begin with: none of its media, two-way and unbroken spans is
    cut, and its last token is computed, for its logits."""
    length = min(length, len(prompt.tokens) - 1)
    for start, end in sorted(bound_spans(prompt), reverse=True):
        if start < length < end:
            length = start
    return length


def covers(runs: Iterable[tuple[int, int]], start: int, stop: int) -> bool:
    """Whether runs of positions (first, count), no two of which overlap, hold all from `start` to `stop`."""
    return sum(max(0, min(first + count, stop) - max(first, start)) for first, count in runs) >= stop - start
