"""Random keys of draws: numpy's SeedSequence, many steps at a time.

Source of the hash: O'Neill 2015, Developing a seed_seq Alternative. `numpy.random.SeedSequence` gives the same bits, at
6 to 15 us for each row and step; a block of them takes some 200 us.
"""

from functools import lru_cache

import numpy as np

BLOCK = 256
"""Steps whose keys are made at once."""


def draw_key(seed: int, step: int, use: int = 0) -> np.ndarray:
    """The random key (2,) uint32 for a row's step-th token. It depends on nothing else: not on the other rows,
    and not on what was drawn before, so that a step can be taken back and drawn again. use: of several draws a step."""
    return np.asarray(_keys(seed & (2**64 - 1), step // BLOCK, use)[step % BLOCK])


@lru_cache(maxsize=1024)
def _keys(seed: int, block: int, use: int) -> np.ndarray:
    """(BLOCK, 2): SeedSequence((seed, step, use)).generate_state(2) for each step of the block."""
    steps = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint32)
    words = [seed & 0xFFFFFFFF, *([seed >> 32] if seed >> 32 else []), steps, use, 0][:4]
    pool = [_hash(np.full(BLOCK, word, dtype=np.uint32), i, _POOL) for i, word in enumerate(words)]
    others = [(source, place) for source in range(4) for place in range(4) if source != place]
    for i, (source, place) in enumerate(others, start=4):
        mixed: np.ndarray = pool[place] * np.uint32(0xCA01F9DD) - _hash(pool[source], i, _POOL) * np.uint32(0x4973F715)
        pool[place] = mixed ^ (mixed >> 16)
    return np.stack([_hash(pool[i], i, _STATE) for i in range(2)], axis=1)


def _hash(values: np.ndarray, use: int, constants: np.ndarray) -> np.ndarray:
    """The use-th hash of a sequence, each of which has its constants."""
    hashed: np.ndarray = (values ^ constants[use]) * constants[use + 1]
    return hashed ^ (hashed >> 16)


def _constants(first: int, factor: int, count: int) -> np.ndarray:
    return np.array([first * pow(factor, i, 2**32) % 2**32 for i in range(count)], dtype=np.uint32)


_POOL, _STATE = _constants(0x43B0D7E5, 0x931E8875, 17), _constants(0x8B51F9DD, 0x58F38DED, 3)
