"""What takes exp in text decoders, attention and gates, where no kernel is fused and MLX's exp is slow: on x86."""

from typing import Any

from .._mlx_lm import scaled_dot_product_attention, swiglu, use_functions
from .._runtime import mx, nn
from .attention import in_blocks, weighted
from .layers import ACTIVATIONS
from .x86 import by_blocks, gated, leaves_mlx, on_x86


def text_attention(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """What mlx-lm's function of that place computes.

    queries: (B, H, N, D). keys, values: (B, h, K, D), each for H / h heads, or the packed arrays of a quantized cache.
    mask: None, "causal", or bool, (N, K) or (B or 1, 1, N, K).
    """
    # Of a quantized cache few queries read the packed arrays, by mlx-lm's function: many must not differ by a rounding.
    quantized = hasattr(cache, "group_size")
    if quantized or sinks is not None or not on_x86(queries.dtype):
        return scaled_dot_product_attention(queries, keys, values, cache, scale=scale, mask=mask, sinks=sinks)
    return blocked_attention(queries, keys, values, scale, mask)


def blocked_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    """Softmax attention in blocks of queries, as `attention.unfused_attention` computes it. Of a causal one the keys
    that come after a block are left out: half of the work."""
    batch, _, length, size = queries.shape
    count = keys.shape[2]
    if isinstance(mask, mx.array):
        mask = mx.broadcast_to(mask, (batch, 1, length, count))

    def attend(q: mx.array, k: mx.array, v: mx.array, rows: slice, span: slice) -> mx.array:
        batch, heads, queries, _ = q.shape
        first = count - length + span.start  # the key at the first query's position
        if mask == "causal" and first + queries < count:
            k, v = k[:, :, : first + queries], v[:, :, : first + queries]
        groups, keys = k.shape[1:3]
        q = q.reshape(batch, groups, -1, size) * scale  # of all heads that share keys
        scores = q @ k.swapaxes(-1, -2)
        seen = None
        if isinstance(mask, mx.array):
            seen = mask[rows, :, None, span]
        elif mask is not None and queries > 1:
            seen = mx.arange(keys) <= first + mx.arange(queries)[:, None]
        if seen is not None:
            of_heads = scores.reshape(batch, groups, -1, queries, keys)
            scores = mx.where(seen, of_heads, mx.finfo(scores.dtype).min).reshape(scores.shape)
        return weighted(scores, v).reshape(batch, heads, queries, -1)

    return in_blocks(attend, queries, keys, values)


def text_swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, as mlx-lm's function of that place computes it; many values of a gate are overwritten."""
    if not on_x86(gate.dtype):
        return swiglu(gate, x)
    if leaves_mlx(gate):  # no layer of mlx-lm looks at its gate again
        return by_blocks(lambda values: gated(values, values), gate, overwrites=True) * x
    return ACTIVATIONS["silu"](gate) * x


def avoid_exp(network: nn.Module) -> None:
    """Let mlx-lm's layers in `network` call these functions, on a machine where they are faster."""
    if on_x86(mx.float32):
        for layer in network.modules():
            use_functions(layer, {"scaled_dot_product_attention": text_attention, "swiglu": text_swiglu})
