"""MobileNetV5, Gemma 3n's vision tower: inverted residuals, then attention whose keys all heads share.

Source: Qin et al. 2024 (arXiv 2404.10518) on the blocks; timm's mobilenetv5_300m_enc, whose names of parameters these
are. Convolutions keep as many pixels as their stride leaves ("same" padding).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from .attention import attention
from .configuration import BaseConfig
from .layers import ACTIVATIONS, pace

gelu = ACTIVATIONS["gelu_pytorch_tanh"]
STEM, FEATURES = 64, 2048
"""Channels of the first and of the last convolution, whatever the multiplier is."""
NORM_EPS = 1e-6


@dataclass(frozen=True)
class MobileNetV5Config(BaseConfig):
    """channel_multiplier: of the channels of all stages. msfa_output_resolution: features a side."""

    channel_multiplier: float = 1.0
    msfa_output_resolution: int = 16

    @classmethod
    def read(cls, vision: Mapping[str, Any]) -> "MobileNetV5Config":
        """From a `vision_config` for timm; LoadError for another network than this one."""
        architecture = vision.get("architecture", "mobilenetv5_300m_enc")
        if architecture.partition(".")[0] != "mobilenetv5_300m_enc":
            raise LoadError(
                f"This checkpoint's vision tower is {architecture!r}; expected timm's mobilenetv5_300m_enc."
            )
        arguments = vision.get("model_args") or {}
        if unknown := arguments.keys() - {"channel_multiplier", "msfa_output_resolution"}:
            raise LoadError(f"model_args of this checkpoint's tower has {sorted(unknown)}, which is not computed here.")
        config = cls.from_dict(arguments)
        if config.channel_multiplier > 1:
            raise LoadError(
                f"model_args of this checkpoint's tower has channel_multiplier = {config.channel_multiplier}; "
                "expected at most 1."
            )
        return config

    def channels(self, count: int) -> int:
        return divisible(count * self.channel_multiplier)


def divisible(count: float) -> int:
    """The nearest multiple of 8 that is not a tenth less. Source: timm's `make_divisible`."""
    rounded = max(8, int(count + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * count else rounded


class Convolution(nn.Conv2d):
    """x (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), outputs), each output of all channels, or of one."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, depthwise: bool = False, bias: bool = False
    ):
        super().__init__(inputs, outputs, kernel, stride, groups=inputs if depthwise else 1, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        kernel, stride = self.weight.shape[1], self.stride[0]
        if kernel == 1 and stride == 1:
            x = x @ self.weight[:, 0, 0].T
            return x + self.bias if "bias" in self else x
        missing = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[1:3]]
        return super().__call__(mx.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)]))


class ConvNorm(nn.Module):
    def __init__(self, *arguments: Any, activate: bool = True, **keywords: Any):
        super().__init__()
        self.conv = Convolution(*arguments, **keywords)
        self.bn = nn.RMSNorm(self.conv.weight.shape[0], NORM_EPS)
        self._activate = activate

    def __call__(self, x: mx.array) -> mx.array:
        x = self.bn(self.conv(x))
        return gelu(x) if self._activate else x


class LayerScale(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.gamma = mx.ones((size,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.gamma


class EdgeResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        inner = divisible(inputs * expansion)
        self.conv_exp, self.conv_pwl = Convolution(inputs, inner, 3, stride), Convolution(inner, outputs)
        self.bn1, self.bn2 = nn.RMSNorm(inner, NORM_EPS), nn.RMSNorm(outputs, NORM_EPS)
        self._skips = inputs == outputs and stride == 1

    def __call__(self, x: mx.array) -> mx.array:
        h = self.bn2(self.conv_pwl(gelu(self.bn1(self.conv_exp(x)))))
        return x + h if self._skips else h


class InvertedResidual(nn.Module):
    """first, middle: sides of the kernels of each channel by itself before and after it widens; 0 for none."""

    def __init__(
        self, inputs: int, outputs: int, first: int, middle: int, stride: int, expansion: int, scales: bool = True
    ):
        super().__init__()
        inner = divisible(inputs * expansion)
        if first:
            self.dw_start = ConvNorm(inputs, inputs, first, depthwise=True, activate=False)
        self.pw_exp = ConvNorm(inputs, inner)
        if middle:
            self.dw_mid = ConvNorm(inner, inner, middle, stride, depthwise=True)
        self.pw_proj = ConvNorm(inner, outputs, activate=False)
        if scales:
            self.layer_scale = LayerScale(outputs)
        self._skips = scales and inputs == outputs and stride == 1

    def __call__(self, x: mx.array) -> mx.array:
        h = self.pw_exp(self.dw_start(x) if "dw_start" in self else x)
        h = self.pw_proj(self.dw_mid(h) if "dw_mid" in self else h)
        h = self.layer_scale(h) if "layer_scale" in self else h
        return x + h if self._skips else h


class Projection(nn.Module):
    """Where `stride` is more than 1, of fewer pixels."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        if stride > 1:
            self.down_conv = Convolution(inputs, inputs, 3, stride, depthwise=True)
            self.norm = nn.RMSNorm(inputs, NORM_EPS)
        self.proj = Convolution(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, H, W, C) -> (B, N, outputs)."""
        x = self.norm(self.down_conv(x)) if "down_conv" in self else x
        return self.proj(x).flatten(1, 2)


class MultiQueryAttention(nn.Module):
    def __init__(self, channels: int, heads: int, size: int, stride: int):
        super().__init__()
        self.query, self.output = Projection(channels, heads * size), Projection(heads * size, channels)
        self.key, self.value = Projection(channels, size, stride), Projection(channels, size, stride)
        self._heads, self._size = heads, size

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, channels = x.shape
        q = self.query(x).reshape(batch, -1, self._heads, self._size).transpose(0, 2, 1, 3)
        out = attention(q, self.key(x)[:, None], self.value(x)[:, None], self._size**-0.5)
        out = out.transpose(0, 2, 1, 3).reshape(batch, height, width, -1)
        return self.output(out).reshape(batch, height, width, channels)


class MobileAttention(nn.Module):
    def __init__(self, channels: int, heads: int, size: int, stride: int = 1):
        super().__init__()
        self.norm, self.layer_scale = nn.RMSNorm(channels, NORM_EPS), LayerScale(channels)
        self.attn = MultiQueryAttention(channels, heads, size, stride)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.layer_scale(self.attn(self.norm(x)))


class Fusion(nn.Module):
    """The last two stages' channels together."""

    def __init__(self, channels: int, resolution: int):
        super().__init__()
        self.ffn = InvertedResidual(channels, FEATURES, 0, 0, 1, 2, scales=False)
        self.norm = nn.RMSNorm(FEATURES, NORM_EPS)
        self._resolution = resolution

    def __call__(self, large: mx.array, small: mx.array) -> mx.array:
        """(B, H, W, C) and (B, H / 2, W / 2, c) -> (B, resolution, resolution, 2048), means of squares."""
        times = large.shape[1] // small.shape[1]
        x = self.ffn(mx.concatenate([large, mx.repeat(mx.repeat(small, times, axis=1), times, axis=2)], axis=-1))
        batch, side, _, channels = x.shape
        count = self._resolution
        squares = x.reshape(batch, count, side // count, count, side // count, channels)
        return self.norm(squares.mean(axis=(2, 4)))


def stages(config: MobileNetV5Config) -> list[list[nn.Module]]:
    first, second, third, fourth = (config.channels(count) for count in (128, 256, 640, 1280))
    attending = [MobileAttention(third, 12, 64, stride=2) for _ in range(14)]
    narrow = [InvertedResidual(third, third, 0, 0, 1, 1 if i == 0 else 2) for i in range(15)]
    return [
        [EdgeResidual(STEM if i == 0 else first, first, 2 if i == 0 else 1, 4) for i in range(3)],
        [
            InvertedResidual(first, second, 3, 5, 2, 6),
            *(InvertedResidual(second, second, kernel, 0, 1, 4) for kernel in (5, 3, 5, 3)),
        ],
        [
            InvertedResidual(second, third, 5, 5, 2, 6),
            *(InvertedResidual(third, third, 5, 0, 1, 4) for _ in range(7)),
            narrow[0],
            *(block for pair in zip(attending, narrow[1:], strict=True) for block in pair),
        ],
        [
            InvertedResidual(third, fourth, 5, 5, 2, 6),
            *(
                block
                for _ in range(19)
                for block in (MobileAttention(fourth, 16, 96), InvertedResidual(fourth, fourth, 0, 0, 1, 2))
            ),
        ],
    ]


class MobileNetV5(nn.Module):
    def __init__(self, config: MobileNetV5Config):
        super().__init__()
        self.conv_stem = ConvNorm(3, STEM, 3, 2, bias=True)
        self.blocks = stages(config)
        self.msfa = Fusion(config.channels(640) + config.channels(1280), config.msfa_output_resolution)

    def __call__(self, pixels: mx.array) -> mx.array:
        """(B, H, W, 3) -> (B, n, n, 2048)."""
        x, outputs = self.conv_stem(pixels.astype(self.conv_stem.conv.weight.dtype)), []
        for stage in self.blocks:
            for block in stage:
                before, x = x, block(x)
                pace(before, x)
            outputs.append(x)
        return self.msfa(*outputs[-2:])
