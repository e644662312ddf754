"""What vision towers share: patch embedding as a matmul, rotary positions in two dimensions, resampling."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Normalization
from . import x86
from .building import builds_only

Activation = Callable[[mx.array], mx.array]


def _gated(activation: Activation, gate: Callable[[Any], Any]) -> Activation:
    """x * sigmoid(gate(x)), by `activation` or, where exp is slow, by powers. gate: of MLX's arrays and of NumPy's."""

    def activate(x: mx.array) -> mx.array:
        if not x86.on_x86(x.dtype):
            return activation(x)
        if x86.leaves_mlx(x):
            return x86.by_blocks(lambda values: x86.gated(values, gate(values)), x)
        return x / (1 + x86.power(-gate(x)))

    return activate


def gelu(x: mx.array) -> mx.array:
    """The exact one."""
    return x86.by_blocks(x86.gelu, x) if x86.on_x86(x.dtype) and x86.leaves_mlx(x) else nn.gelu(x)


class GELU(nn.Module):
    """`gelu` where a layer has a number."""

    def __call__(self, x: mx.array) -> mx.array:
        return gelu(x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_pytorch_tanh": _gated(nn.gelu_approx, lambda x: (8 / math.pi) ** 0.5 * x * (1 + 0.044715 * x * x)),
    "silu": _gated(nn.silu, lambda x: x),
    "quick_gelu": _gated(nn.gelu_fast_approx, lambda x: 1.702 * x),
}
"""transformers' `hidden_act` names."""


def rotate(x: mx.array, cos: mx.array, sin: mx.array, traditional: bool = False) -> mx.array:
    """Rotary embedding of x (..., D); cos and sin broadcast to (..., D / 2).

    traditional: pairs are the values 2i and 2i + 1; otherwise they are the two halves of D.
    """
    # On a GPU as one kernel: otherwise most of a layer's memory would be its parts in float32.
    turn = _turn if mx.default_device().type.name == "cpu" else _turn_compiled
    if x86.on_x86(x.dtype) and x.dtype == cos.dtype and x.ndim > 2 and x86.leaves_mlx(x):
        half = x.shape[-1] // 2
        pairs = (slice(0, None, 2), slice(1, None, 2)) if traditional else (slice(0, half), slice(half, None))
        return x86.rotated(x, cos, sin, *pairs)
    if traditional:
        return mx.stack(turn(x[..., ::2], x[..., 1::2], cos, sin), axis=-1).reshape(x.shape)
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate(turn(a, b, cos, sin), axis=-1)


def _turn(a: mx.array, b: mx.array, cos: mx.array, sin: mx.array) -> list[mx.array]:
    """In the precision of cos and sin."""
    first, second = a.astype(cos.dtype), b.astype(cos.dtype)
    turned = first * cos - second * sin, second * cos + first * sin
    return [part.astype(a.dtype) for part in turned]


_turn_compiled = mx.compile(_turn, shapeless=True)

ROWS = 1024
"""Of states that a CPU computes at a time, so that what comes between them is still in its cache."""


def by_rows(change: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """`change` of each row of x (..., d). On a CPU some at a time: an MLP of 4,096 rows of 256 and 1,024 within took
    0.6 of the time."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) < 2 * ROWS or mx.default_device().type.name != "cpu":
        return change(x)
    out = mx.concatenate([change(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)])
    return out.reshape(*x.shape[:-1], -1)


LARGE_STATES = 1 << 18
"""Bytes of the states between two layers: 50 tokens of 2560 values in half precision."""


def pace(before: mx.array, *after: mx.array) -> None:
    """Between two layers, where states are large: launch the second and wait for the first. MLX holds the memory of all
    that is launched, which would be that of all layers; so it is that of two, and a GPU never waits. On an H100 4k
    tokens took a quarter of the memory and 0.84 of the time. On a CPU, where MLX is up to a hundred operations ahead
    and a wait costs nothing, the second is waited for too: 4 pictures of 270 x 270 took 26 MB in place of 30."""
    if after[0].nbytes < LARGE_STATES or builds_only():
        return
    mx.async_eval(*after)
    mx.eval(*after if mx.default_device().type.name == "cpu" else before)


def reading_order(rows: int, columns: int) -> np.ndarray:
    """Row and column of each patch of a grid (2, rows * columns)."""
    return np.indices((rows, columns)).reshape(2, -1)


def merge_order(rows: int, columns: int, merge: int) -> np.ndarray:
    """The same in the order in which Qwen stores patches: the merge x merge that become one token lie together."""
    grid = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    return grid.transpose(0, 1, 3, 2, 4).reshape(2, -1)


def rotary_2d(
    places: np.ndarray, head_size: int, theta: float = 10000.0, column_step: float = 0.0
) -> tuple[mx.array, mx.array]:
    """places: row and column of each patch (2, N) -> cos and sin (N, head_size / 2).

    The first half of the frequencies turns with the row, the rest with the column.
    column_step: by what part of a step the frequencies of columns are lower than those of rows.
    """
    quarter = head_size // 4
    steps = np.arange(quarter, dtype=np.float32)
    cos, sin = [], []
    for index, step in zip(places, (0.0, column_step), strict=True):
        frequencies = theta ** -((steps + np.float32(step)) / quarter)
        angles = np.outer(np.arange(index.max() + 1), frequencies).astype(np.float32)  # of each row, not of each patch
        cos.append(mx.array(np.cos(angles))[mx.array(index)])
        sin.append(mx.array(np.sin(angles))[mx.array(index)])
    return mx.concatenate(cos, axis=1), mx.concatenate(sin, axis=1)


def hidden_states(blocks: Sequence[nn.Module], x: mx.array, layers: Sequence[int], *args: Any) -> list[mx.array]:
    """x (B, N, d) -> (B, N, d) for each of `layers`, 0 being `x` and -1 what the last block gives; later blocks are not
    computed. args: of every block."""
    indices = [layer % (len(blocks) + 1) for layer in layers]
    states = {0: x}
    for index, block in enumerate(blocks[: max(indices)], 1):
        before, x = x, block(x, *args)
        pace(before, x)
        if index in indices:
            states[index] = x
    return [states[index] for index in indices]


def cut_patches(pixels: mx.array, patch: int) -> mx.array:
    """(B, H, W, C) -> (B, N, patch * patch * C), in reading order; what lies beside whole patches is left out."""
    batch, height, width, channels = pixels.shape
    rows, columns = height // patch, width // patch
    cut = pixels[:, : rows * patch, : columns * patch].reshape(batch, rows, patch, columns, patch * channels)
    return cut.swapaxes(2, 3).reshape(batch, rows * columns, -1)


def fold_squares(x: mx.array, merge: int) -> mx.array:
    """(B, rows, columns, d) -> (B, rows * columns / merge^2, merge^2 * d): a merge x merge square becomes one, with its
    parts in reading order."""
    batch, rows, columns, hidden = x.shape
    x = x.reshape(batch, rows // merge, merge, columns // merge, merge, hidden).swapaxes(2, 3)
    return x.reshape(batch, -1, merge**2 * hidden)


def _between(source: np.ndarray, length: int) -> mx.array:
    """(to, length): weights of the two of `length` old points beside each place in source (to,)."""
    new, low = np.arange(len(source)), np.floor(source).astype(int)
    weight = np.zeros((len(source), length), np.float32)
    np.add.at(weight, (new, low), 1 - (source - low))
    np.add.at(weight, (new, np.minimum(low + 1, length - 1)), source - low)
    return mx.array(weight)


def resample_bilinear(x: mx.array, rows: int, columns: int) -> mx.array:
    """A grid (..., R, C, d) bilinearly resampled to (..., rows, columns, d), without smoothing: a new point lies
    between its four nearest old ones. Source: torch's `interpolate`, mode "bilinear"."""

    def weights(length: int, to: int) -> mx.array:
        """(to, length); a point lies in the middle of its cell."""
        source = np.maximum((np.arange(to) + 0.5) * length / to - 0.5, 0)
        return _between(source, length)

    return _resample(x, rows, columns, weights)


def resample_aligned(x: mx.array, rows: int, columns: int) -> mx.array:
    """The same with the corners in their places: the old points lie evenly from one to the other. Source:
    `fast_pos_embed_interpolate` of transformers' Qwen3VLVisionModel."""

    def weights(length: int, to: int) -> mx.array:
        source = np.arange(to, dtype=np.float32) * np.float32(length - 1) / np.float32(max(to - 1, 1))
        return _between(source, length)

    return _resample(x, rows, columns, weights)


def resample_faded(x: mx.array, rows: int, columns: int) -> mx.array:
    """The same as `resample_bilinear`, but past the border there is nothing. Source: torch's `grid_sample`, mode
    "bilinear", padding "zeros"."""

    def weights(length: int, to: int) -> mx.array:
        source = (np.arange(to, dtype=np.float32) + np.float32(0.5)) * length / to - np.float32(0.5)
        far = np.abs(source[:, None] - np.arange(length, dtype=np.float32))
        return mx.array(np.maximum(0, 1 - far).astype(np.float32))

    return _resample(x, rows, columns, weights)


def resample_bicubic(x: mx.array, rows: int, columns: int) -> mx.array:
    """The same from the sixteen nearest old points; past the border, those on it repeat. Source: torch's
    `grid_sample`, mode "bicubic", padding "border": Keys' cubic with a = -0.75."""

    def weights(length: int, to: int) -> mx.array:
        source = (np.arange(to) + 0.5) * length / to - 0.5
        low = np.floor(source).astype(int)
        weight = np.zeros((to, length), np.float32)
        for tap in range(-1, 3):
            far = np.abs(source - (low + tap))
            near, tail = (1.25 * far - 2.25) * far**2 + 1, ((-0.75 * far + 3.75) * far - 6) * far + 3
            np.add.at(weight, (np.arange(to), np.clip(low + tap, 0, length - 1)), np.where(far <= 1, near, tail))
        return mx.array(weight)

    return _resample(x, rows, columns, weights)


def resample_smooth(x: mx.array, rows: int, columns: int) -> mx.array:
    """The same from all old points that a new one covers where these are fewer. Source: torch's `interpolate`, mode
    "bicubic", antialias: Keys' cubic with a = -0.5, as wide as a new point; past the border there is nothing."""

    def weights(length: int, to: int) -> mx.array:
        step = length / to
        wide = max(step, 1.0)
        middle = (np.arange(to)[:, None] + 0.5) * step
        first, end = (np.clip((middle + side * 2 * wide + 0.5).astype(int), 0, length) for side in (-1, 1))
        index = np.arange(length)
        far = np.abs(index + 0.5 - middle) / wide
        near, tail = (1.5 * far - 2.5) * far**2 + 1, ((-0.5 * far + 2.5) * far - 4) * far + 2
        weight = np.where(far < 1, near, np.where(far < 2, tail, 0)) * ((index >= first) & (index < end))
        return mx.array((weight / weight.sum(axis=1, keepdims=True)).astype(np.float32))

    return _resample(x, rows, columns, weights)


def _resample(x: mx.array, rows: int, columns: int, weights: Callable[[int, int], mx.array]) -> mx.array:
    """weights: numbers of old and new points of a side -> (new, old), the part of each old point in each new one."""
    *rest, height, width, size = x.shape
    if (rows, columns) == (height, width):
        return x
    across = weights(width, columns) @ x.astype(mx.float32)  # (..., R, columns, d)
    down = weights(height, rows) @ across.reshape(*rest, height, columns * size)
    return down.reshape(*rest, rows, columns, size).astype(x.dtype)


class PositionTable(nn.Module):
    """Learned positions (count, d), used as a whole. MLX does not quantize this module as it does embeddings; where a
    conversion did, loading makes floats of it."""

    def __init__(self, count: int, size: int):
        super().__init__()
        self.weight = mx.zeros((count, size))


class ClippedLinear(nn.Module):
    """Without bias. With `clipped`, its inputs and outputs are clipped to bounds that the checkpoint has."""

    def __init__(self, inputs: int, outputs: int, clipped: bool):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        if clipped:
            self.input_min, self.output_min = mx.array(-mx.inf), mx.array(-mx.inf)
            self.input_max, self.output_max = mx.array(mx.inf), mx.array(mx.inf)

    def __call__(self, x: mx.array) -> mx.array:
        if "input_min" not in self:
            return self.linear(x)
        x = self.linear(mx.clip(x, self.input_min, self.input_max))
        return mx.clip(x, self.output_min, self.output_max)


def normalize(levels: mx.array, normalization: Normalization) -> mx.array:
    """levels: uint8 (..., n * 3), channels last -> float32, of the same shape."""
    scale, shift = (mx.array(np.tile(c, levels.shape[-1] // 3)) for c in normalization.coefficients)
    return levels.astype(mx.float32) * scale - shift


PATCHES_AT_ONCE = 4096
"""Of a large picture, that are floats at the same time: 12 MB."""


def embed_patches(kernel: mx.array, patches: mx.array, normalization: Normalization | None) -> mx.array:
    """A convolution of patches (B, N, values) whose kernel (O, T, P, P, C) is as large as they are, without its bias:
    (B, N, O).

    patches: `Media.pixels` of one form: uint8 levels (T, P, P, C), or (P, P, C) of a single frame that stands for all
    of T, to be normalised; or floats (C, T, P, P).
    """
    if normalization is None or patches.dtype != mx.uint8:
        weight = kernel.transpose(0, 4, 1, 2, 3).reshape(len(kernel), -1)
        return patches.astype(weight.dtype) @ weight.T
    dtype = kernel.dtype
    if patches.shape[-1] < kernel[0].size:
        # Some microseconds for each picture, and never stale. In float32: rounded sums would be less exact than both
        # kernels.
        kernel = kernel.astype(mx.float32).sum(axis=1)
    weight = kernel.reshape(len(kernel), -1)
    starts = range(0, patches.shape[1], PATCHES_AT_ONCE)
    parts = (normalize(patches[:, start : start + PATCHES_AT_ONCE], normalization) for start in starts)
    return mx.concatenate([part.astype(weight.dtype) @ weight.T for part in parts], axis=1).astype(dtype)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, computed as one matmul."""

    def __init__(self, channels: int, frames: int, size: int, hidden: int, bias: bool = True):
        super().__init__()
        kernel = (frames, size, size)
        self.proj = nn.Conv3d(channels, hidden, kernel, stride=kernel, bias=bias)  # weight (O, T, P, P, C)

    def __call__(self, patches: mx.array, normalization: Normalization | None = None) -> mx.array:
        """patches (B, N, values): see `embed_patches`."""
        out = embed_patches(self.proj.weight, patches, normalization)
        return out + self.proj.bias if "bias" in self.proj else out


def packed_halves(joined: mx.array) -> tuple[mx.array, mx.array]:
    """Experts' gates and what they gate, of (E, 2 * inner, d), each in memory of its own: MLX 0.32's CUDA kernels for
    sorted experts take every stack for one without gaps, and multiply by other weights where there are some."""
    gate, up = mx.split(joined, 2, axis=1)
    return mx.contiguous(gate), mx.contiguous(up)
