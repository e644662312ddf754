"""Random keys of draws: numpy's SeedSequence, many steps at a time.

Source of the hash: O'Neill 2015, Developing a seed_seq Alternative. `numpy.random.SeedSequence` gives the same bits, at
6 to 15 us for each row and step; a block of them takes some 70 us.
"""

from functools import lru_cache

import numpy as np

BLOCK = 64
"""Steps whose keys are made at once."""


def draw_key(seed: int, step: int, use: int = 0) -> np.ndarray:
    """The random key (2,) uint32 for a row's step-th token. It depends on nothing else: not on the other rows,
    and not on what was drawn before, so that a step can be taken back and drawn again. use: of several draws a step."""
    return np.asarray(_keys(seed & (2**64 - 1), step // BLOCK, use)[step % BLOCK])


def seed_of_draw(seed: int, draw: int) -> int:
    """Of one of several answers to a request: the first has the seed that it has alone, each other another one."""
    return seed if draw == 0 else int(np.random.SeedSequence((abs(seed), draw)).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=1024)
def _keys(seed: int, block: int, use: int) -> np.ndarray:
    """(BLOCK, 2): SeedSequence((seed, step, use)).generate_state(2) for each step of the block."""
    steps = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint32)
    words = [seed & 0xFFFFFFFF, *([seed >> 32] if seed >> 32 else []), steps, use, 0][:4]
    pool = _hash(np.stack([np.full(BLOCK, word, dtype=np.uint32) for word in words]), 0, _POOL)  # (4, BLOCK)
    for source in range(4):
        others = [place for place in range(4) if place != source]
        hashed = _hash(np.stack([pool[source]] * 3), 4 + 3 * source, _POOL)
        pool[others] = _fold(pool[others] * np.uint32(0xCA01F9DD) - hashed * np.uint32(0x4973F715))
    return _hash(pool[:2], 0, _STATE).T


def _hash(values: np.ndarray, use: int, constants: np.ndarray) -> np.ndarray:
    """Values (n, BLOCK) as the hashes use, use + 1, ... of a sequence, each of which has its constants."""
    here = slice(use, use + len(values))
    return _fold((values ^ constants[:-1][here]) * constants[1:][here])


def _fold(values: np.ndarray) -> np.ndarray:
    return np.asarray(values ^ (values >> 16))


def _constants(first: int, factor: int, count: int) -> np.ndarray:
    """(count, 1)."""
    return np.array([[first * pow(factor, i, 2**32) % 2**32] for i in range(count)], dtype=np.uint32)


_POOL, _STATE = _constants(0x43B0D7E5, 0x931E8875, 17), _constants(0x8B51F9DD, 0x58F38DED, 3)
