"""Attention and MLP of the vision towers, with the names of each checkpoint's parameters."""

from collections.abc import Callable, Sequence
from functools import partial

from .._runtime import mx, nn
from .layers import ACTIVATIONS, rotate

FUSED_HEAD_SIZES = {"gpu": (64, 80, 128), "cpu": ()}
"""Head sizes for which MLX computes attention without writing the scores to memory (read in MLX's source)."""

SCORE_BYTES = 32 << 20
"""Memory for attention scores where they are written out: a 1024 x 1024 picture then peaks at 0.15 GB, not 1.1."""

Windows = Sequence[tuple[int, int]]
"""Runs of (number of windows, patches in each); patches attend within their window. Empty: all attend to all."""

Linear = Callable[[int, int], nn.Module]
"""(inputs, outputs) -> a layer."""

linear_without_bias = partial(nn.Linear, bias=False)

GATED = ("gate_proj", "up_proj", "down_proj")
PROJECTOR = ("linear_1", "linear_2")


def is_fused(head_size: int) -> bool:
    """Whether a kernel of the default device attends without writing the scores to memory."""
    return head_size in FUSED_HEAD_SIZES[mx.default_device().type.name]


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Softmax attention of (B, H, N, D) without a mask, in blocks of queries where no fused kernel applies."""
    batch, heads, length, size = q.shape
    rows = max(1, SCORE_BYTES // (4 * batch * heads * k.shape[2]))
    if rows >= length or is_fused(size):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    blocks = [q[:, :, start : start + rows] for start in range(0, length, rows)]
    return mx.concatenate([mx.fast.scaled_dot_product_attention(b, k, v, scale=scale) for b in blocks], axis=2)


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
