"""Sound at another rate: a windowed sinc in float64, one for every pair of rates and every source.

Amplitude and phase of what lies below 0.9 of the lower Nyquist frequency are unchanged (2e-5); what lies above that
frequency is 100 dB lower. Sample n stands for the time n / rate, before and after.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

_ZEROS = 64  # zero crossings of the sinc on each side
_BETA = 10.06  # Kaiser's window for 100 dB, whose transition takes a tenth of the Nyquist frequency
_CUTOFF = 0.95
_BLOCK = 1 << 16
_MAX_WEIGHTS = 1 << 22


def can_resample(source_rate: int, rate: int) -> bool:
    """Whether the ratio of the two rates is one of numbers so small that the weights take about 32 MiB at most; those
    of all usual rates are."""
    ratio = Fraction(source_rate, rate)
    return ratio.denominator * 4 * _half(ratio) <= _MAX_WEIGHTS


def resample(blocks: Iterable[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """(n,) float64 each, one signal at `source_rate` -> the same at `rate`, (m,) float32 each. Of n samples in all it
    makes ceil(n * rate / source_rate)."""
    if source_rate == rate:
        yield from (block.astype(np.float32) for block in blocks)
        return
    ratio = Fraction(source_rate, rate)
    half = _half(ratio)
    periods = max(1, 2 * half // ratio.numerator)  # wide enough for a product of matrices to pay
    step, count = periods * ratio.numerator, periods * ratio.denominator  # so many samples become so many
    weights = _weights(ratio, count)
    total = made = 0
    held = np.zeros(half)  # from `half` samples before the next `step` on

    def convolve(steps: int) -> np.ndarray:
        parts = []
        for first, part in weights:
            windows = np.lib.stride_tricks.sliding_window_view(held, len(part))
            parts.append(windows[first : first + (steps - 1) * step + 1 : step] @ part)
        return np.concatenate(parts, axis=1).reshape(-1).astype(np.float32)

    for block in _joined(blocks):
        total += len(block)
        held = np.concatenate([held, block])
        if (steps := (len(held) - 2 * half) // step) > 0:
            yield convolve(steps)
            held = held[steps * step :]
            made += steps * count
    if (rest := -(-total * count // step) - made) > 0:
        steps = -(-rest // count)
        held = np.concatenate([held, np.zeros(max(0, steps * step + 2 * half - len(held)))])
        yield convolve(steps)[:rest]


def _half(ratio: Fraction) -> int:
    """How many samples before and after it a sample is made from."""
    return math.ceil(_ZEROS * max(Fraction(1), ratio))


def _weights(ratio: Fraction, count: int) -> list[tuple[int, np.ndarray]]:
    """How `count` samples, a whole number of periods of `ratio`, are made: some after the other from one product, of
    the samples from the first number on, counted from `_half` before the first sample, with (n, m) weights."""
    half, stretch = _half(ratio), max(1.0, float(ratio))
    columns = math.ceil(2 * half / ratio)
    weights = []
    for start in range(0, count, columns):
        outputs = range(start, min(start + columns, count))
        first, last = (math.floor(output * ratio) for output in (outputs[0], outputs[-1]))
        centers = np.array([float(output * ratio - first) for output in outputs])
        x = (np.arange(-half, last - first + half + 1)[:, np.newaxis] - centers) / stretch
        part = np.zeros_like(x)
        inside = np.abs(x) < _ZEROS
        x = x[inside]
        part[inside] = np.sinc(_CUTOFF * x) * np.i0(_BETA * np.sqrt(1 - (x / _ZEROS) ** 2))
        weights.append((first, part / part.sum(axis=0)))
    return weights


def _joined(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same signal in larger blocks: a codec's frames hold a thousand samples."""
    held, size = list[np.ndarray](), 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size >= _BLOCK:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)
