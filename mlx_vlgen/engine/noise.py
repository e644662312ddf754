"""Random numbers of single tokens: those that MLX draws for the whole vocabulary.

Source of the hash: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3 (Threefry, 2 words, 20 rounds). Of a
key and two counters it makes two numbers, and MLX has them in the two halves of its array.
"""

import numpy as np

from .._runtime import mx

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)
_LARGEST = np.float32(1) - np.float32(2**-24)  # below 1


def noise_of(keys: np.ndarray, places: mx.array | None, vocabulary: int) -> mx.array:
    """(G, C) numbers of 0 to below 1: of each row's random key (2,) those of the tokens `places` (G, C), as
    `mx.random.uniform(shape=(vocabulary,), key=key)` has them there, bit by bit. places: None for all, in order.

    A GPU makes all of them in no time. A CPU takes 1.4 ms for 151,936, each row, and 0.1 to 0.2 ms for 64 in 1 to 32
    rows; that it waits for the places costs nothing, since no step starts ahead there."""
    if places is not None and mx.default_device().type == mx.DeviceType.cpu:
        return mx.array(_uniform(keys, np.array(places), vocabulary))
    every = mx.vmap(lambda key: mx.random.uniform(shape=(vocabulary,), key=key))(mx.array(keys))
    return every if places is None else mx.take_along_axis(every, places, axis=-1)


def _uniform(keys: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Of arrays of `count` numbers those at `places`."""
    half = count - count // 2
    second = places >= half
    low, high = places - half * second, places + half * ~second
    if count % 2:
        high[places == half - 1] = 0  # the one in the middle has no partner
    words = _threefry(keys, low.astype(np.uint32), high.astype(np.uint32))
    bits = np.where(second, words[1], words[0])
    return np.minimum(bits.astype(np.float32) / np.float32(2**32 - 1), _LARGEST)


def _threefry(keys: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two words of each pair of counters x, y (G, C), with a key (2,) a row."""
    first, last = keys[:, :1], keys[:, 1:]
    schedule = first, last, first ^ last ^ _PARITY
    x, y = x + schedule[0], y + schedule[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            x += y
            y = (y << np.uint32(rotation) | y >> np.uint32(32 - rotation)) ^ x
        x += schedule[(turn + 1) % 3]
        y += schedule[(turn + 2) % 3] + np.uint32(turn + 1)
    return x, y
