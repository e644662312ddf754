"""What takes exp on x86 CPUs, where MLX's is slow: of many values NumPy computes it, which is left for and come back
from at once."""

import math
import platform
from collections.abc import Callable

import numpy as np

from .._runtime import mx
from .building import builds_only

_ON_X86 = platform.machine() in ("x86_64", "AMD64")

MANY = 1 << 15
"""Values from which waiting for them and leaving MLX takes less time than MLX's power of them."""

BLOCK = 1 << 14
"""Values that NumPy computes with at a time: they stay in a core's cache through all operations."""


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


def by_blocks(change: Callable[[np.ndarray], np.ndarray], x: mx.array) -> mx.array:
    """`change` of each value of x, which is computed at once."""
    values = np.array(x, copy=False).reshape(-1)
    out = np.empty_like(values)
    with np.errstate(over="ignore"):
        for start in range(0, values.size, BLOCK):
            out[start : start + BLOCK] = change(values[start : start + BLOCK])
    return mx.array(out.reshape(x.shape))


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
