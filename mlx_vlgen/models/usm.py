"""The conformer of the Universal Speech Model, which hears for Gemma 3n and Gemma 4.

Source: Zhang et al. 2023 (arXiv 2303.01037); transformers' Gemma4AudioModel, whose names of parameters these are.
"""

import math
from dataclasses import dataclass

import numpy as np

from .._runtime import mx, nn
from .attention import Linear, merge_heads, split_heads
from .configuration import BaseConfig
from .gemma import softcap
from .layers import ACTIVATIONS, pace


@dataclass(frozen=True)
class ConformerConfig(BaseConfig):
    """attention_context_left: one more than how many positions back a query may see, where all are computed."""

    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "silu"
    conv_kernel_size: int = 5
    residual_weight: float = 0.5
    attention_chunk_size: int = 12
    attention_context_left: int = 13
    attention_context_right: int = 0
    attention_logit_cap: float = 50.0
    rms_norm_eps: float = 1e-6
    gradient_clipping: float = 1e10


NORM_EPS = 1e-6
"""Of the norms whose eps no configuration says."""


def bounded(x: mx.array, bound: float) -> mx.array:
    """x clipped to [-bound, bound], or to what its dtype holds."""
    bound = min(bound, mx.finfo(x.dtype).max)
    return mx.clip(x, -bound, bound)


class FeedForward(nn.Module):
    def __init__(self, config: ConformerConfig, linear: Linear):
        super().__init__()
        hidden = config.hidden_size
        self.ffw_layer_1, self.ffw_layer_2 = linear(hidden, 4 * hidden), linear(4 * hidden, hidden)
        self.pre_layer_norm, self.post_layer_norm = (nn.RMSNorm(hidden, NORM_EPS) for _ in range(2))
        self._activation, self._weight = ACTIVATIONS[config.hidden_act], config.residual_weight
        self._bound = config.gradient_clipping

    def __call__(self, x: mx.array) -> mx.array:
        h = self._activation(self.ffw_layer_1(self.pre_layer_norm(bounded(x, self._bound))))
        h = self.post_layer_norm(bounded(self.ffw_layer_2(h), self._bound))
        return x + self._weight * h


class Attention(nn.Module):
    """A position attends to itself and to the `reach` ones before it, by what they hold and by how far they are.

    key_scale: of what they hold, not of how far they are.
    """

    def __init__(self, config: ConformerConfig, linear: Linear, reach: int, key_scale: float):
        super().__init__()
        hidden, self._heads = config.hidden_size, config.num_attention_heads
        size = hidden // self._heads
        self.q_proj, self.k_proj, self.v_proj, self.post = (linear(hidden, hidden) for _ in range(4))
        self.relative_k_proj = nn.Linear(hidden, hidden, bias=False)
        self.per_dim_scale = mx.zeros((size,))
        self._reach, self._cap = reach, config.attention_logit_cap
        self._scale, self._key_scale = size**-0.5 / math.log(2), key_scale

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, N, d) -> (B, N, d), in blocks of `reach` queries, which see their block and the one before it."""
        (batch, length, hidden), heads, block = x.shape, self._heads, self._reach
        count = -(-length // block)
        x = mx.pad(x, [(0, 0), (0, count * block - length), (0, 0)])
        q, k, v = (
            split_heads(project(x), heads).astype(mx.float32).reshape(batch, heads, count, block, -1)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = q * (self._scale * nn.softplus(self.per_dim_scale.astype(mx.float32)))
        k, v = (mx.concatenate([shifted(part), part], axis=3) for part in (self._key_scale * k, v))
        distance = np.arange(block)[:, None] - np.arange(2 * block) + block
        begun = np.arange(count)[:, None, None] * block + np.arange(2 * block) >= block
        known = begun & (distance >= 0) & (distance <= self._reach)  # (blocks, queries, keys)

        far = self.relative_k_proj(timing(self._reach + 1, hidden).astype(x.dtype))[None]
        by_distance = q @ split_heads(far, heads).astype(mx.float32)[:, :, None].swapaxes(-1, -2)
        index = mx.broadcast_to(mx.array(distance.clip(0, self._reach)), (batch, heads, count, block, 2 * block))
        scores = q @ k.swapaxes(-1, -2) + mx.take_along_axis(by_distance, index, axis=-1)
        scores = mx.where(mx.array(known), softcap(scores, self._cap), mx.finfo(mx.float32).min)
        out = (mx.softmax(scores, axis=-1) @ v).reshape(batch, heads, count * block, -1)
        return self.post(merge_heads(out)[:, :length].astype(x.dtype))


def shifted(blocks: mx.array) -> mx.array:
    """(B, H, blocks, n, D) -> the same, each block in the place of the next one."""
    return mx.concatenate([mx.zeros_like(blocks[:, :, :1]), blocks[:, :, :-1]], axis=2)


def timing(count: int, hidden: int) -> mx.array:
    """(count, hidden): sines of each distance in the first half, cosines in the second."""
    half = hidden // 2
    angles = np.outer(np.arange(count), np.exp(-math.log(1e4) / max(half - 1, 1) * np.arange(half)))
    return mx.array(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))


class LightConvolution(nn.Module):
    """Each channel by itself, of a position and the ones before it."""

    def __init__(self, config: ConformerConfig, linear: Linear):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.linear_start, self.linear_end = linear(hidden, 2 * hidden), linear(hidden, hidden)
        self.depthwise_conv1d = nn.Conv1d(hidden, hidden, config.conv_kernel_size, groups=hidden, bias=False)
        self.pre_layer_norm, self.conv_norm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)
        self._activation, self._bound = ACTIVATIONS[config.hidden_act], config.gradient_clipping
        self._before = config.conv_kernel_size - 1

    def __call__(self, x: mx.array) -> mx.array:
        h, gate = mx.split(self.linear_start(self.pre_layer_norm(x)), 2, axis=-1)
        h = self.depthwise_conv1d(mx.pad(h * mx.sigmoid(gate), [(0, 0), (self._before, 0), (0, 0)]))
        h = self._activation(self.conv_norm(bounded(h, self._bound)))
        return x + self.linear_end(h)


class ConformerLayer(nn.Module):
    def __init__(self, config: ConformerConfig, linear: Linear, reach: int, key_scale: float):
        super().__init__()
        self.feed_forward1, self.feed_forward2 = FeedForward(config, linear), FeedForward(config, linear)
        self.self_attn = Attention(config, linear, reach, key_scale)
        self.lconv1d = LightConvolution(config, linear)
        norms = (nn.RMSNorm(config.hidden_size, NORM_EPS) for _ in range(3))
        self.norm_pre_attn, self.norm_post_attn, self.norm_out = norms
        self._bound = config.gradient_clipping

    def __call__(self, x: mx.array) -> mx.array:
        x = self.feed_forward1(x)
        h = self.self_attn(self.norm_pre_attn(bounded(x, self._bound)))
        x = self.lconv1d(x + self.norm_post_attn(bounded(h, self._bound)))
        return self.norm_out(bounded(self.feed_forward2(x), self._bound))


def run_layers(layers: list[ConformerLayer], x: mx.array) -> mx.array:
    """(B, N, d) -> (B, N, d)."""
    for layer in layers:
        before, x = x, layer(x)
        pace(before, x)
    return x
