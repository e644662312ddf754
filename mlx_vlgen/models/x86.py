"""What takes exp on x86 CPUs, where MLX's is slow: of many values NumPy computes it, which is left for and come back
from at once. So it does rotations, which take more memory in MLX."""

import math
import platform
from collections.abc import Callable, Sequence

import numpy as np

from .._runtime import mx
from .building import builds_only

_ON_X86 = platform.machine() in ("x86_64", "AMD64")

MANY = 1 << 15
"""Values from which waiting for them and leaving MLX takes less time than MLX's power of them."""

BLOCK = 1 << 14
"""Values that NumPy computes with at a time: they stay in a core's cache through all operations."""

TURNED = 1 << 16
"""Pairs of values that are turned at a time: 1.6 MB take as long as in MLX so, and 16 MB 0.6 of it."""


def on_x86(dtype: mx.Dtype) -> bool:
    """Whether an x86 CPU computes what is of this type. There MLX's exp calls libm's fma six times a value, which takes
    13 ns, and its tanh and erf are as slow; libm's power takes 4.5, NumPy's exp 2 and less (measured)."""
    return _ON_X86 and dtype == mx.float32 and mx.default_device().type.name == "cpu"


def leaves_mlx(x: mx.array) -> bool:
    """Whether what is computed here of x is NumPy's."""
    return x.size >= MANY and not builds_only()


def power(x: mx.array) -> mx.array:
    """exp of few values. Of 2, for float32 has e with an error that grows with x."""
    return mx.power(2.0, math.log2(math.e) * x)


def by_blocks(change: Callable[[np.ndarray], np.ndarray], x: mx.array, overwrites: bool = False) -> mx.array:
    """`change` of each value of x, which is computed at once. overwrites: in the memory of x, which nobody else may
    have; elsewhere where its values do not lie together."""
    values = np.array(x, copy=False)
    out, changed = (x, values) if overwrites and values.flags.c_contiguous else _empty(x.shape)
    values, changed = values.reshape(-1), changed.reshape(-1)
    with np.errstate(over="ignore"):
        for start in range(0, values.size, BLOCK):
            changed[start : start + BLOCK] = change(values[start : start + BLOCK])
    return out


def _empty(shape: Sequence[int]) -> tuple[mx.array, np.ndarray]:
    """An array to be filled, and its memory: what NumPy allocates would be copied."""
    array = mx.zeros(shape)
    mx.eval(array)
    return array, np.array(array, copy=False)


def gated(x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """x * sigmoid(gate)."""
    powers = np.exp(-gate)
    powers += 1
    return np.divide(x, powers, out=powers)


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the part of a normal distribution that is less than it. Source: Abramowitz and Stegun 1964, 7.1.26, whose
    error is 1.5e-7 at most."""
    size = np.abs(x)
    t = 1 / (1 + 0.3275911 / math.sqrt(2) * size)
    more = t * 1.061405429
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        more += factor
        more *= t
    more *= np.exp(-0.5 * x * x)  # twice the part that is more than |x|
    more *= size
    return np.maximum(x, 0) - 0.5 * more


def rotated(x: mx.array, cos: mx.array, sin: mx.array, first: slice, second: slice) -> mx.array:
    """Pairs of values of x (..., H, L, D), those in the columns `first` and `second`, turned by the angles of cos and
    sin, which broadcast to (..., H, L, D / 2). MLX would have seven arrays of that size in memory."""
    values, (out, turned) = np.array(x, copy=False), _empty(x.shape)
    *outer, heads, length, columns = x.shape
    shape = (*outer, heads, length, columns // 2)
    cosines, sines = (np.broadcast_to(np.array(part, copy=False), shape) for part in (cos, sin))
    positions = max(1, TURNED // (heads * shape[-1]))
    product = np.empty((heads, min(positions, length), shape[-1]), np.float32)
    for place in np.ndindex(*outer):
        for start in range(0, length, positions):
            part = (*place, slice(None), slice(start, start + positions))
            a, b = values[*part, first], values[*part, second]
            c, s = cosines[part], sines[part]
            other = product[:, : c.shape[1]]
            np.multiply(a, c, out=turned[*part, first])
            turned[*part, first] -= np.multiply(b, s, out=other)
            np.multiply(b, c, out=turned[*part, second])
            turned[*part, second] += np.multiply(a, s, out=other)
    return out


def softmax_parts(scores: mx.array) -> tuple[mx.array, mx.array]:
    """exp of scores (..., K) less the maximum of their row, and the sums of rows (..., 1). Many scores are overwritten:
    nobody else may have them."""
    if leaves_mlx(scores):
        values = np.array(scores, copy=False)
        values -= values.max(axis=-1, keepdims=True)
        np.exp(values, out=values)
        weights = scores
    else:
        weights = power(scores - scores.max(axis=-1, keepdims=True))
    # As a product: of 4,096 it takes a third of the time of a sum, whose error is three times as large.
    return weights, weights @ mx.ones((scores.shape[-1], 1))
