"""Products of few rows with large weights on x86 CPUs: what a text decoder computes of each token. MLX has a product of
matrices only, before which a BLAS brings the weights into another order: that takes longer than to read them."""

import ctypes
from functools import cache
from typing import Any

import numpy as np

from .._runtime import blas, mx, nn
from .building import builds_only
from .layers import pace
from .x86 import on_x86

ROWS = 2
"""Of a product that is computed row by row: with weights (6144, 2048) one row takes 2.6 ms and two 4.3, by MLX 7.9 and
9.4, of turned weights 4.9 and 5.9 (two cores with AVX2)."""

SEVERAL = 96
"""Rows up to which zeros are added for a multiple of `MULTIPLE`, of which OpenBLAS is fastest: with these weights 8
rows take 8.6 ms, 12 take 14.2 and 16 take 6.9, 28 take 18 and 32 take 10."""

MULTIPLE = 16

LARGE = 1 << 19
"""Values of a weight from which that is faster, though the row must be computed for it at once."""

BLOCK = 256
"""Rows that are turned together: they stay in a core's cache meanwhile."""


def hasten_few_rows(network: nn.Module) -> None:
    """Have the layers in `network` with large weights multiply few rows faster, on a machine where MLX is slow at it.
    Their parameters keep names, shapes and values; where they lie in memory changes."""
    if not on_x86(mx.float32):
        return
    layers = dict(network.named_modules())
    tied = not any("lm_head" in name.split(".") for name in layers)
    for name, layer in layers.items():
        kind = {nn.Linear: _Linear, nn.Embedding: _Embedding}.get(type(layer))
        if kind and layer.weight.size >= LARGE and layer.weight.dtype == mx.float32:
            layer.__class__ = kind
            # Of a table that is only looked up, as Gemma 3n's of each layer, rows are better together.
            if kind is _Linear or (tied and name.rpartition(".")[2] == "embed_tokens"):
                layer.weight = turned(layer.weight)


def turned(weight: mx.array) -> mx.array:
    """The same values, column by column in memory where those are as long as the rows or longer: 1 to 32 rows take 0.6
    to 0.9 of the time then, by MLX too, and many the same. With longer rows they take as much or more."""
    rows, columns = weight.shape
    if rows < columns:
        return weight
    parts = [weight[start : start + BLOCK].T for start in range(0, rows, BLOCK)]
    return mx.concatenate(parts, axis=1).T


class _Linear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        if not _few(x, self.weight):
            pace(x, x)  # so that MLX holds nothing of what made x beside what is made of it
            return super().__call__(x)
        out = _product(x, self.weight)
        return out + self.bias if "bias" in self else out


class _Embedding(nn.Embedding):
    def as_linear(self, x: mx.array) -> mx.array:
        return _product(x, self.weight) if _few(x, self.weight) else super().as_linear(x)


def _few(x: mx.array, weight: mx.array) -> bool:
    return x.size <= SEVERAL * x.shape[-1] and x.dtype == weight.dtype and on_x86(x.dtype) and not builds_only()


def _product(x: mx.array, weight: mx.array) -> mx.array:
    """x (..., d) and weight (n, d) -> (..., n)."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= ROWS:
        out = _by_vectors(rows, weight)
    else:
        more = -len(rows) % MULTIPLE if blas() else 0
        out = (mx.pad(rows, [(0, more), (0, 0)]) @ weight.T)[: len(rows)]
    return out.reshape(*x.shape[:-1], -1)


def _by_vectors(x: mx.array, weight: mx.array) -> mx.array:
    rows, weights = np.ascontiguousarray(np.array(x, copy=False)), np.array(weight, copy=False)
    out = np.empty((len(rows), len(weights)), np.float32)
    for row, product in zip(rows, out, strict=True):
        _multiply(weights, row, product)
    return mx.array(out)


def _multiply(matrix: np.ndarray, vector: np.ndarray, out: np.ndarray) -> None:
    """matrix (n, d) times vector (d,), into out (n,). By the BLAS that MLX has: the threads of another, NumPy's, would
    wait on the same cores while they have nothing to do, and a prompt of few rows took twice as long at times."""
    sgemv = _sgemv()
    if sgemv is None or not matrix.flags.forc:
        np.dot(matrix, vector, out=out)
        return
    by_rows = matrix.flags.c_contiguous
    lead, length = matrix.shape if by_rows else matrix.shape[::-1]
    order = 111 if by_rows else 112  # CblasNoTrans, CblasTrans
    matrix_at, vector_at, out_at = (array.ctypes.data for array in (matrix, vector, out))
    sgemv(101, order, lead, length, 1.0, matrix_at, length, vector_at, 1, 0.0, out_at, 1)  # 101: CblasRowMajor


@cache
def _sgemv() -> Any:
    """cblas_sgemv of the BLAS that was loaded for MLX; None without one."""
    library = blas()
    if library is None:
        return None
    function = ctypes.CDLL(library).cblas_sgemv
    size, scalar, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function.argtypes = [*[size] * 4, scalar, pointer, size, pointer, size, scalar, pointer, size]
    function.restype = None
    return function
