"""The conformer that hears for Phi-4 multimodal.

Source: Gulati et al. 2020 (arXiv 2005.08100); transformers' Phi4MultimodalAudioModel, whose names of parameters these
are.
"""

import math
from dataclasses import dataclass

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from .attention import merge_heads, split_heads
from .configuration import BaseConfig
from .layers import ACTIVATIONS, pace

WINDOW = 500
"""Positions that attend to each other: a longer clip is cut into as many windows as it needs, the last one filled up
with zeros, which are seen."""


@dataclass(frozen=True)
class Phi4AudioConfig(BaseConfig):
    hidden_size: int = 1024
    intermediate_size: int = 1536
    num_blocks: int = 24
    num_attention_heads: int = 16
    activation: str = "swish"
    conv_activation: str = "swish"
    conv_glu_type: str = "swish"
    nemo_activation: str = "relu"
    chunk_size: int = -1
    ext_pw_out_channel: int = 1024
    depthwise_separable_out_channel: int = 1024
    depthwise_multiplier: int = 1
    kernel_size: int = 3
    input_size: int = 80
    time_reduction: int = 8
    bias_max_distance: int = 1000
    bias_symmetric: bool = False
    nemo_conv_channels: int = 1024
    downsample_rate: int = 1
    feature_layer: int = -2

    @property
    def bands(self) -> int:
        """Bands that are left where time is `time_reduction` times as short."""
        return math.ceil(self.input_size / self.time_reduction)

    def check(self) -> None:
        """LoadError for what no published checkpoint has."""
        expected = {"activation": "swish", "conv_activation": "swish", "conv_glu_type": "swish"}
        expected |= {"nemo_activation": "relu"}
        numbers = {"chunk_size": -1, "bias_symmetric": False, "downsample_rate": 1}
        for name, value in {**expected, **numbers}.items():
            if (given := getattr(self, name)) not in (value, "silu" if value == "swish" else value):
                raise LoadError(f"This checkpoint's audio tower has {name} = {given!r}; expected {value!r}.")


class FeedForward(nn.Module):
    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.layer_norm = nn.LayerNorm(hidden)
        self.gate_up_proj, self.down_proj = nn.Linear(hidden, 2 * inner), nn.Linear(inner, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        up, gate = mx.split(self.gate_up_proj(self.layer_norm(x)), 2, axis=-1)
        return self.down_proj(up * ACTIVATIONS["silu"](gate))


class Attention(nn.Module):
    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        hidden, self._heads = config.hidden_size, config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(hidden, hidden) for _ in range(4))

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        """bias: (1, H, N, N), added to the scores."""
        q, k, v = (split_heads(project(x), self._heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        scale = q.shape[-1] ** -0.5
        return self.o_proj(merge_heads(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=bias)))


class PointwiseGate(nn.Module):
    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        outputs = config.ext_pw_out_channel
        self.ext_pw_conv_1d = nn.Conv1d(config.hidden_size, 2 * outputs, 1)
        self.b1, self.b2 = mx.zeros((1, outputs, 1)), mx.zeros((1, outputs, 1))

    def __call__(self, x: mx.array) -> mx.array:
        x, gate = mx.split(self.ext_pw_conv_1d(x), 2, axis=-1)
        return (x + self.b1.reshape(-1)) * ACTIVATIONS["silu"](gate + self.b2.reshape(-1))


class SeparableConv(nn.Module):
    """Each channel by itself, of a position and the ones before it; then each position by itself."""

    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        hidden, inner = config.hidden_size, config.hidden_size * config.depthwise_multiplier
        self.dw_conv = nn.Conv1d(hidden, inner, config.kernel_size, groups=hidden)
        self.pw_conv = nn.Conv1d(inner, config.depthwise_separable_out_channel, 1)
        self._before = config.kernel_size - 1

    def __call__(self, x: mx.array) -> mx.array:
        return self.pw_conv(self.dw_conv(mx.pad(x, [(0, 0), (self._before, 0), (0, 0)])))


class Convolution(nn.Module):
    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.glu, self.dw_sep_conv_1d = PointwiseGate(config), SeparableConv(config)
        self.ext_pw_conv_1d = nn.Conv1d(config.hidden_size, config.ext_pw_out_channel, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.ext_pw_conv_1d(ACTIVATIONS["silu"](self.dw_sep_conv_1d(self.glu(self.layer_norm(x)))))


class ConformerLayer(nn.Module):
    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        self.feed_forward_in, self.feed_forward_out = FeedForward(config), FeedForward(config)
        self.self_attn, self.conv = Attention(config), Convolution(config)
        self.layer_norm_att, self.layer_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.self_attn(self.layer_norm_att(x), bias)
        x = x + self.conv(x)
        return self.layer_norm(x + 0.5 * self.feed_forward_out(x))


class Subsampling(nn.Module):
    """(B, T, bands) -> (B, T / time_reduction, d), rounded up. The list has an activation's place between two steps."""

    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        width, halvings = config.nemo_conv_channels, int(math.log2(config.time_reduction))
        self.conv: list[nn.Module] = [nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU()]
        for _ in range(halvings - 1):
            depthwise = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width)
            self.conv += [depthwise, nn.Conv2d(width, width, 1), nn.ReLU()]
        self.out = nn.Linear(width * config.bands, config.hidden_size)

        self._factor = 2**halvings

    def __call__(self, x: mx.array) -> mx.array:
        """Some windows at a time, with what their ends see on both sides: the states of 40 seconds take 0.3 GB."""
        factor, length = self._factor, x.shape[1]
        parts = list[mx.array]()
        for start in range(0, length, WINDOW * factor):
            end, first = min(start + WINDOW * factor, length), max(0, start - 2 * factor)
            states = self._shortened(x[:, first : end + 2 * factor])
            begin = (start - first) // factor
            parts.append(states[:, begin : begin + math.ceil((end - start) / factor)])
            if end < length:
                mx.eval(parts[-1])
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def _shortened(self, x: mx.array) -> mx.array:
        x = x[..., None]
        for layer in self.conv:
            x = layer(x)
        return self.out(x.swapaxes(2, 3).flatten(2))


class Statistics(nn.Module):
    def __init__(self, bands: int):
        super().__init__()
        self.global_mean, self.global_invstd = mx.zeros((bands,)), mx.ones((bands,))

    def __call__(self, x: mx.array) -> mx.array:
        return (x - self.global_mean) * self.global_invstd


class Distances(nn.Module):
    """What is added to scores, by how far a key is from its query."""

    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        self._farthest = config.bias_max_distance
        self.bias_values = nn.Embedding(2 * self._farthest, config.num_attention_heads)

    def __call__(self, length: int) -> mx.array:
        """(1, H, N, N)."""
        far = np.arange(length) - np.arange(length)[:, None]
        index = far.clip(-self._farthest, self._farthest - 1) + self._farthest
        return self.bias_values(mx.array(index)).transpose(2, 0, 1)[None]


class Phi4AudioEncoder(nn.Module):
    def __init__(self, config: Phi4AudioConfig):
        super().__init__()
        config.check()
        self.encoder_embedding, self.embed = Statistics(config.input_size), Subsampling(config)
        self.relative_attention_bias_layer = Distances(config)
        self.encoders = [ConformerLayer(config) for _ in range(config.num_blocks)]

    def __call__(self, features: mx.array) -> mx.array:
        """(B, T, bands), all of them the clips' own -> (B, ceil(T / 8), d)."""
        x = self.embed(self.encoder_embedding(features).astype(self.embed.out.bias.dtype))
        batch, length, hidden = x.shape
        window = min(length, WINDOW)
        x = mx.pad(x, [(0, 0), (0, -length % window), (0, 0)]).reshape(-1, window, hidden)
        bias = self.relative_attention_bias_layer(window).astype(x.dtype)
        for layer in self.encoders:
            before, x = x, layer(x, bias)
            pace(before, x)
        return x.reshape(batch, -1, hidden)[:, :length]
