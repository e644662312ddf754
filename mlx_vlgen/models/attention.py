"""Attention and MLP of the vision towers, with the names of each checkpoint's parameters."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial

import numpy as np

from .._runtime import mx, nn
from .layers import ACTIVATIONS, by_rows, rotate
from .x86 import leaves_mlx, on_x86, softmax_parts

METAL_HEAD_SIZES = (64, 72, 80, 96, 128)
CUDA_HEAD_SIZES = range(8, 129, 8)

SCORE_BYTES = {"cpu": 2 << 20, "gpu": 256 << 20}
"""Memory for attention scores where they are written out, by device. On a CPU they stay in its caches (a 1024 x 1024
picture: 2 MB took 0.77 of the time of 32). On a GPU some passes over 256 MB take 0.3 ms and more, so that the launch of
a block, 0.01 ms, no longer counts."""

PADDED_SCORES = 16 << 20
"""Scores of padding, of one head, that are computed where that makes one call of several: 0.1 ms on an H100, where each
call of a tower's layer took 0.3 ms of Python and launches."""

PADDED_UNIT = 64
"""Padded lengths are multiples of it, for cuDNN's plan of a new length takes 43 ms."""

Windows = Sequence[tuple[int, int]]
"""Runs of (number of windows, patches in each), of one frame; patches attend within their window."""

Frames = Sequence[tuple[int, Windows]]
"""Runs of (number of frames, the windows of each) in one sequence of patches."""

Linear = Callable[[int, int], nn.Module]
"""(inputs, outputs) -> a layer."""

linear_without_bias = partial(nn.Linear, bias=False)

GATED = ("gate_proj", "up_proj", "down_proj")
PROJECTOR = ("linear_1", "linear_2")


def fused_head_size(size: int, dtype: mx.Dtype) -> int | None:
    """The head size, `size` or the next larger one, for which a kernel of the default device attends without writing
    the scores to memory; None where there is none.

    Source: `has_fused_kernel` and `supports_sdpa_cudnn` in MLX 0.32's scaled_dot_product_attention.cpp for Metal and
    for CUDA. Metal's kernels for 192 and 256 are left out: MLX takes them only where it is told to.
    """
    if mx.default_device().type.name == "cpu":
        return None
    if mx.metal.is_available():
        sizes: Sequence[int] = METAL_HEAD_SIZES
    else:
        sizes = CUDA_HEAD_SIZES if dtype in (mx.float16, mx.bfloat16) and _cudnn_attends() else ()
    return next((fused for fused in sizes if fused >= size), None)


@cache
def _cudnn_attends() -> bool:
    major = mx.device_info().get("compute_capability_major", 0)
    return int(major) >= 8  # Ampere


Attend = Callable[[mx.array, mx.array, mx.array, slice, slice], mx.array]
"""Some queries, keys and values, which rows of the batch and which queries they are -> what attention gives."""


def in_blocks(attend: Attend, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """`attend` of some heads and some of their queries at a time, as many as have scores of `SCORE_BYTES`.

    q: (B, H, N, D). k, v: (B, h, K, D), each for H / h heads of q.
    """
    (batch, heads, length, _), (groups, keys) = q.shape, k.shape[1:3]
    shared = heads // groups
    budget = max(1, SCORE_BYTES[mx.default_device().type.name] // (4 * keys * shared))  # queries of a group
    queries = min(length, budget)
    group_step = min(groups, max(1, budget // queries))
    batch_step = min(batch, max(1, budget // (queries * groups)))

    def part(rows: slice, some: slice) -> mx.array:
        of_heads = slice(some.start * shared, some.stop * shared)
        q_part, k_part, v_part = q[rows, of_heads], k[rows, some], v[rows, some]
        spans = [slice(start, start + queries) for start in range(0, length, queries)]
        return _join([attend(q_part[:, :, span], k_part, v_part, rows, span) for span in spans], axis=2)

    row_parts = [slice(start, start + batch_step) for start in range(0, batch, batch_step)]
    head_parts = [slice(start, start + group_step) for start in range(0, groups, group_step)]
    return _join([_join([part(rows, some) for some in head_parts], axis=1) for rows in row_parts], axis=0)


def _join(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None) -> mx.array:
    """Softmax attention of (B, H, N, D): fused, or in blocks of queries where no kernel is. The values of v may be
    fewer than D. mask: (B, 1, 1, N), added to the scores; only where a kernel is."""
    size, values = q.shape[-1], v.shape[-1]
    if fused := fused_head_size(size, q.dtype):
        # Columns of zeros change nothing. They cost less than scores that go through memory, by the arithmetic of both
        # (16 bytes of float32 a score against at most 4 * 64 operations); this is not measured on Metal.
        padding = [[(0, 0)] * 3 + [(0, fused - x.shape[-1])] for x in (q, k, v)]
        q, k, v = (mx.pad(x, p) if p[-1][1] else x for x, p in zip((q, k, v), padding, strict=True))
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)[..., :values]
    k, v = mx.contiguous(k), mx.contiguous(v)  # as parts of larger arrays they would be copied for each block
    return in_blocks(lambda q, k, v, *_: unfused_attention(q, k, v, scale), q, k, v)


def unfused_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Softmax attention whose scores are written out. k, v: (B, h, K, D), each for H / h heads of q."""
    if not on_x86(q.dtype):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    batch, heads, length, size = q.shape
    q = q.reshape(batch, k.shape[1], -1, size) * scale  # of all heads that share keys
    return weighted(q @ k.swapaxes(-1, -2), v).reshape(batch, heads, length, -1)


def weighted(scores: mx.array, v: mx.array) -> mx.array:
    """Means of v (B, h, K, D) by the softmax of scores (B, h, N, K), which it overwrites, where exp is slow:
    (B, h, N, D)."""
    weights, sums = softmax_parts(scores)
    out = (weights @ v) / sums
    if leaves_mlx(scores):  # then the weights are there already, and in memory until they are used
        mx.async_eval(out)
    return out


def windowed_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, windows: Windows) -> mx.array:
    """The same within windows. Those of a run are one call: they lie beside each other as heads do."""
    batch, heads, _, size = q.shape
    start, outs = 0, []
    for count, patches in windows:
        run = slice(start, start + count * patches)
        start = run.stop
        parts = [x[:, :, run].reshape(batch, heads * count, patches, size) for x in (q, k, v)]
        outs.append(attention(parts[0], parts[1], parts[2], scale).reshape(batch, heads, -1, size))
    return _join(outs, axis=2)


def framed_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, frames: Frames) -> mx.array:
    """The same of (1, H, N, D) within the windows of each frame: (1, N, H * D). The frames of a run are a batch."""
    if mx.cuda.is_available() and fused_head_size(q.shape[-1], q.dtype):
        lengths = [size for count, windows in frames for number, size in [*windows] * count for _ in range(number)]
        if len(set(lengths)) > 1:
            return padded_attention(q, k, v, scale, lengths)
    heads, size, start, outs = q.shape[1], q.shape[3], 0, []
    for count, windows in frames:
        length = sum(number * patches for number, patches in windows)
        run = slice(start, start + count * length)
        start = run.stop
        parts = [x[0, :, run].reshape(heads, count, length, size).swapaxes(0, 1) for x in (q, k, v)]
        out = windowed_attention(parts[0], parts[1], parts[2], scale, windows)
        outs.append(merge_heads(out).reshape(1, count * length, heads * size))
    return _join(outs, axis=1)


def padded_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, lengths: Sequence[int]) -> mx.array:
    """The same of (1, H, N, D) within parts of these lengths, some padded to the longest of them: (1, N, H * D)."""
    heads, size, start, outs = q.shape[1], q.shape[3], 0, []
    for some in _padded_together(tuple(lengths)):
        run = slice(start, start + sum(some))
        start = run.stop
        into, back, mask = _padding(some, q.dtype)
        parts = [x[0, :, run][:, into].reshape(heads, len(some), -1, size).swapaxes(0, 1) for x in (q, k, v)]
        out = merge_heads(attention(parts[0], parts[1], parts[2], scale, mask))
        outs.append(out.reshape(1, -1, heads * size)[:, back])
    return _join(outs, axis=1)


@lru_cache(maxsize=8)
def _padded_together(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Neighbours that are one call, for little of it is padding. The same for all layers of a tower."""
    ends, longest, scores = [0], 0, 0
    for place, length in enumerate(lengths):
        longest, scores = max(longest, length), scores + length**2
        if (place + 1 - ends[-1]) * longest**2 > scores + scores // 4 + PADDED_SCORES and place > ends[-1]:
            ends.append(place)
            longest, scores = length, length**2
    return [lengths[start:end] for start, end in zip(ends, [*ends[1:], len(lengths)], strict=True)]


@lru_cache(maxsize=8)
def _padding(lengths: tuple[int, ...], dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """Of parts of a sequence: which position stands at each place of them padded; at which place each position stands;
    and what is added to the scores of each place (parts, 1, 1, N). The same for all layers of a tower."""
    places = np.arange(-(-max(lengths) // PADDED_UNIT) * PADDED_UNIT)
    starts = np.cumsum((0, *lengths[:-1]))[:, None]
    inside = places < np.array(lengths)[:, None]
    into, back = np.where(inside, starts + places, starts).reshape(-1), np.flatnonzero(inside)
    mask = mx.array(np.where(inside, np.float32(0), np.float32(-np.inf))[:, None, None]).astype(dtype)
    padding = mx.array(into), mx.array(back), mask
    mx.eval(padding)
    return padding


def split_heads(x: mx.array, heads: int) -> mx.array:
    """(B, N, H * D) -> (B, H, N, D)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """(B, H, N, D) -> (B, N, H * D)."""
    batch, _, length, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, -1)


class VisionAttention(nn.Module):
    """x (B, N, d) -> (B, N, d).

    names: of the layers for queries, keys, values and output; or of one for all three, and output.
    linear, out_linear: make these layers.
    norm: makes norms of queries and keys from a number of values; None where there are none.
    norm_heads: whether they are of each head, or of all together.
    traditional: see `rotate`.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        names: Sequence[str] = ("qkv", "proj"),
        linear: Linear = nn.Linear,
        out_linear: Linear = nn.Linear,
        norm: Callable[[int], nn.Module] | None = None,
        norm_heads: bool = False,
        traditional: bool = False,
    ):
        super().__init__()
        self.heads, self.traditional, self._norm_heads = heads, traditional, norm_heads
        self._inputs, self._output = tuple(names[:-1]), names[-1]  # MLX takes a list for modules
        for name in self._inputs:
            self[name] = linear(hidden, 3 * hidden // len(self._inputs))
        self[self._output] = out_linear(hidden, hidden)
        if norm is not None:
            size = hidden // heads if norm_heads else hidden
            self.q_norm, self.k_norm = norm(size), norm(size)

    def __call__(
        self,
        x: mx.array,
        cos: mx.array | None = None,
        sin: mx.array | None = None,
        frames: Frames = (),
        mask: mx.array | None = None,
    ) -> mx.array:
        """cos, sin: (N, D / 2) of rotary positions; None where there are none. frames: of a sequence (B = 1) that holds
        several; where it is empty all attend to all. mask: (B, 1, 1, N), which are seen."""
        if len(self._inputs) == 1:
            q, k, v = mx.split(self[self._inputs[0]](x), 3, axis=-1)
        else:
            q, k, v = (self[name](x) for name in self._inputs)
        if "q_norm" in self and not self._norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        if "q_norm" in self and self._norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        if cos is not None and sin is not None:
            q, k = (rotate(part, cos, sin, self.traditional) for part in (q, k))
        scale = q.shape[-1] ** -0.5
        if mask is not None:
            out = merge_heads(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask))
        elif frames:
            out = framed_attention(q, k, v, scale, frames)
        else:
            out = merge_heads(attention(q, k, v, scale))
        return self[self._output](out)


def join_qkv(weights: Mapping[str, mx.array], attention: str) -> dict[str, mx.array]:
    """Queries, keys and values as one layer `qkv`, where the name of a tower's tensor has `attention` before them."""
    out = dict(weights)
    for name in [name for name in weights if f"{attention}q_proj." in name and not name.startswith("language_model.")]:
        parts = [out.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        out[name.replace("q_proj", "qkv")] = mx.concatenate(parts)
    return out


class MLP(nn.Module):
    """x (..., inputs) -> (..., outputs).

    names: of its two layers; or of three where it is gated: gate, up, down.
    linear: makes these layers.
    outputs: default the same as inputs.
    limit: of what goes into a gate's activation, and on both sides of what it gates.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        activation: str,
        names: Sequence[str] = ("fc1", "fc2"),
        linear: Linear = nn.Linear,
        outputs: int | None = None,
        limit: float | None = None,
    ):
        super().__init__()
        self._limit = limit
        self._inputs, self._output = tuple(names[:-1]), names[-1]
        for name in self._inputs:
            self[name] = linear(inputs, inner)
        self[self._output] = linear(inner, inputs if outputs is None else outputs)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        return by_rows(self._compute, x)

    def _compute(self, x: mx.array) -> mx.array:
        h = self[self._inputs[0]](x)
        if len(self._inputs) == 1:
            h = self._activation(h)
        elif self._limit is None:
            h = self._activation(h) * self[self._inputs[1]](x)
        else:
            h = clipped(h, self[self._inputs[1]](x), self._limit, self._activation)
        return self[self._output](h)


def clipped(gate: mx.array, x: mx.array, limit: float, activation: Callable[[mx.array], mx.array]) -> mx.array:
    """x times its gate, with both kept within limits before."""
    return activation(mx.minimum(gate, limit)) * mx.clip(x, -limit, limit)
