"""Attention and MLP of the vision towers, with the names of each checkpoint's parameters."""

import math
import platform
from collections.abc import Callable, Sequence
from functools import cache, partial

from .._runtime import mx, nn
from .layers import ACTIVATIONS, rotate

METAL_HEAD_SIZES = (64, 72, 80, 96, 128)
CUDA_HEAD_SIZES = range(8, 129, 8)

SCORE_BYTES = {"cpu": 4 << 20, "gpu": 256 << 20}
"""Memory for attention scores where they are written out, by device. On a CPU they stay in its caches (a 1024 x 1024
picture: 4 MB took 0.85 of the time of 32). On a GPU some passes over 256 MB take 0.3 ms and more, so that the launch of
a block, 0.01 ms, no longer counts."""

Windows = Sequence[tuple[int, int]]
"""Runs of (number of windows, patches in each); patches attend within their window. Empty: all attend to all."""

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


def query_block(batch: int, heads: int, keys: int) -> int:
    """How many queries attend at once where the scores are written out."""
    return max(1, SCORE_BYTES[mx.default_device().type.name] // (4 * batch * heads * keys))


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Softmax attention of (B, H, N, D) without a mask: fused, or in blocks of queries where no kernel is."""
    batch, heads, length, size = q.shape
    if fused := fused_head_size(size, q.dtype):
        # Columns of zeros change nothing. They cost less than scores that go through memory, by the arithmetic of both
        # (16 bytes of float32 a score against at most 4 * 64 operations); this is not measured on Metal.
        padding = [(0, 0)] * 3 + [(0, fused - size)]
        q, k, v = (mx.pad(x, padding) if fused > size else x for x in (q, k, v))
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)[..., :size]
    rows = query_block(batch, heads, k.shape[2])
    blocks = [unfused_attention(q[:, :, start : start + rows], k, v, scale) for start in range(0, length, rows)]
    return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)


def unfused_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Softmax attention whose scores are written out. k, v: (B, h, K, D), each for H / h heads of q.

    On x86-64, MLX's softmax takes 13 ns a score, for its exp calls libm's fma six times; libm's power takes 4.5, and
    the maximum of columns is found in a third of the time that one of rows takes. All of it: 0.6 of the time of MLX's.
    """
    is_x86 = mx.default_device().type.name == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not is_x86 or q.dtype != mx.float32:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    batch, heads, length, size = q.shape
    q = q.reshape(batch, k.shape[1], -1, length, size) * (scale * math.log2(math.e))
    scores = k[:, :, None] @ q.swapaxes(-1, -2)  # (B, h, H / h, K, N)
    weights = mx.power(2.0, scores - scores.max(axis=-2, keepdims=True))
    out = (weights.swapaxes(-1, -2) @ v[:, :, None]) / weights.sum(axis=-2)[..., None]
    return out.reshape(batch, heads, length, -1)


def windowed_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, windows: Windows) -> mx.array:
    """The same within windows. The windows of a run are one call: they lie beside each other as heads do."""
    batch, heads, _, size = q.shape
    start, outs = 0, []
    for count, patches in windows:
        run = slice(start, start + count * patches)
        start = run.stop
        parts = [x[:, :, run].reshape(batch, heads * count, patches, size) for x in (q, k, v)]
        outs.append(attention(parts[0], parts[1], parts[2], scale).reshape(batch, heads, -1, size))
    return mx.concatenate(outs, axis=2)


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
    norm: makes norms of queries and keys, over all heads together, from d; None where there are none.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        names: Sequence[str] = ("qkv", "proj"),
        linear: Linear = nn.Linear,
        out_linear: Linear = nn.Linear,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.heads = heads
        self._inputs, self._output = tuple(names[:-1]), names[-1]  # MLX takes a list for modules
        for name in self._inputs:
            self[name] = linear(hidden, 3 * hidden // len(self._inputs))
        self[self._output] = out_linear(hidden, hidden)
        if norm is not None:
            self.q_norm, self.k_norm = norm(hidden), norm(hidden)

    def __call__(
        self, x: mx.array, cos: mx.array | None = None, sin: mx.array | None = None, windows: Windows = ()
    ) -> mx.array:
        """cos, sin: (N, D / 2) of rotary positions; None where there are none."""
        if len(self._inputs) == 1:
            q, k, v = mx.split(self[self._inputs[0]](x), 3, axis=-1)
        else:
            q, k, v = (self[name](x) for name in self._inputs)
        if "q_norm" in self:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        scale = q.shape[-1] ** -0.5
        out = windowed_attention(q, k, v, scale, windows) if windows else attention(q, k, v, scale)
        return self[self._output](merge_heads(out))


class MLP(nn.Module):
    """x (..., inputs) -> (..., outputs).

    names: of its two layers; or of three where it is gated: gate, up, down.
    linear: makes these layers.
    outputs: default the same as inputs.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        activation: str,
        names: Sequence[str] = ("fc1", "fc2"),
        linear: Linear = nn.Linear,
        outputs: int | None = None,
    ):
        super().__init__()
        self._inputs, self._output = tuple(names[:-1]), names[-1]
        for name in self._inputs:
            self[name] = linear(inputs, inner)
        self[self._output] = linear(inner, inputs if outputs is None else outputs)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        h = self._activation(self[self._inputs[0]](x))
        if len(self._inputs) == 2:
            h = h * self[self._inputs[1]](x)
        return self[self._output](h)
