"""FastViT-HD, a tower of convolutions with attention in its last stages: MobileCLIP-L's, for large pictures.

Source: Vasu et al. 2023 (arXiv 2303.14189) and 2024 (arXiv 2412.13303); timm's fastvit_mci3 in inference mode, where
the branches that a block is trained with are one convolution, and whose names of parameters these are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from .attention import VisionAttention, linear_without_bias
from .configuration import BaseConfig
from .layers import gelu

HEAD_SIZE = 32
TOKEN_MIXERS = ("repmixer", "repmixer", "repmixer", "attention", "attention")
ENLARGED = 2
"""Channels of the last convolution for one of the last stage."""
SQUEEZED = 16
"""Channels for one of a squeeze-and-excitation block's inner layer."""
STRIDE = 64
"""Side of the square of pixels that becomes one feature: two of the stem's layers and all stages but one halve it."""


@dataclass(frozen=True)
class FastViTConfig(BaseConfig):
    """Of each stage: how many blocks, how many channels, inner channels of its MLPs for one of these."""

    layers: tuple[int, ...] = (2, 12, 24, 4, 2)
    embed_dims: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4, 4)

    @classmethod
    def read(cls, vision: Mapping[str, Any]) -> "FastViTConfig":
        """From a `vision_config` for timm; LoadError for another network than this one."""
        kind, architecture = vision.get("model_type", "timm_wrapper"), vision.get("architecture", "fastvit_mci3")
        if (kind, architecture.partition(".")[0]) != ("timm_wrapper", "fastvit_mci3"):
            raise LoadError(
                f"This checkpoint's vision tower is {kind!r} with {architecture!r}; expected timm's fastvit_mci3."
            )
        arguments = dict(vision.get("model_args") or {"inference_mode": True})
        if not arguments.pop("inference_mode", False):
            raise LoadError(
                "This checkpoint's tower has inference_mode = False: it has the branches of training. Merge them with "
                "timm's reparameterize_model and save it again."
            )
        if unknown := arguments.keys() - {"layers", "embed_dims", "mlp_ratios"}:
            raise LoadError(f"model_args of this checkpoint's tower has {sorted(unknown)}, which is not computed here.")
        config = cls(**{name: tuple(values) for name, values in arguments.items()})
        if {len(config.layers), len(config.embed_dims), len(config.mlp_ratios)} != {len(TOKEN_MIXERS)}:
            raise LoadError(f"This checkpoint's tower has model_args {arguments}; expected {len(TOKEN_MIXERS)} stages.")
        return config


class ConvBlock(nn.Module):
    """x (B, H, W, C) -> a convolution of it, with what the block adds."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        depthwise: bool = True,
        activate: bool = True,
        excite: bool = False,
    ):
        super().__init__()
        groups = inputs if depthwise else 1
        self.reparam_conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
        if excite:
            self.se = SqueezeExcite(outputs)
        self._activate = activate

    def __call__(self, x: mx.array) -> mx.array:
        x = self.reparam_conv(x)
        x = self.se(x) if "se" in self else x
        return gelu(x) if self._activate else x


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole picture has of them. Source: Hu et al. 2017 (arXiv 1709.01507)."""

    def __init__(self, channels: int):
        super().__init__()
        inner = int(channels / SQUEEZED + 0.5)
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        whole = x.mean(axis=(1, 2), keepdims=True)
        return x * mx.sigmoid(self.fc2(nn.relu(self.fc1(whole))))


class BatchNorm(nn.Module):
    """By the statistics of training: x (..., C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = mx.ones(channels), mx.zeros(channels)
        self.running_mean, self.running_var = mx.zeros(channels), mx.ones(channels)

    def __call__(self, x: mx.array) -> mx.array:
        scale = self.weight * mx.rsqrt(self.running_var + 1e-5)
        return x * scale + (self.bias - self.running_mean * scale)


class ConvNorm(nn.Module):
    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.bn = BatchNorm(channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.bn(self.conv(x))


class ConvMLP(nn.Module):
    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.conv = ConvNorm(channels, 7)
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(gelu(self.fc1(self.conv(x))))


class LayerScale(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.gamma = mx.ones(channels)

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.gamma


class RepMixerBlock(nn.Module):
    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.token_mixer = ConvBlock(channels, channels, 3, activate=False)
        self.mlp, self.layer_scale = ConvMLP(channels, inner), LayerScale(channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.token_mixer(x)
        return x + self.layer_scale(self.mlp(x))


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.token_mixer = VisionAttention(channels, channels // HEAD_SIZE, linear=linear_without_bias)
        self.mlp = ConvMLP(channels, inner)
        self.layer_scale_1, self.layer_scale_2 = LayerScale(channels), LayerScale(channels)

    def __call__(self, x: mx.array) -> mx.array:
        mixed = self.token_mixer(self.norm(x).flatten(1, 2))
        x = x + self.layer_scale_1(mixed.reshape(x.shape))
        return x + self.layer_scale_2(self.mlp(x))


class Downsample(nn.Module):
    """(B, H, W, inputs) -> (B, H / 2, W / 2, outputs)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = [ConvBlock(inputs, outputs, 7, stride=2), ConvBlock(outputs, outputs, 1, depthwise=False)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj[1](self.proj[0](x))


class Stage(nn.Module):
    def __init__(self, inputs: int, channels: int, layers: int, mlp_ratio: float, mixer: str, first: bool):
        super().__init__()
        if not first or inputs != channels:
            self.downsample = Downsample(inputs, channels)
        if mixer == "attention":
            self.pos_emb = ConvBlock(channels, channels, 7, activate=False)
        block = AttentionBlock if mixer == "attention" else RepMixerBlock
        self.blocks = [block(channels, int(channels * mlp_ratio)) for _ in range(layers)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.downsample(x) if "downsample" in self else x
        x = self.pos_emb(x) if "pos_emb" in self else x
        for block in self.blocks:
            x = block(x)
        return x


class FastViT(nn.Module):
    """pixels (B, H, W, 3), sides multiples of `STRIDE` -> (B, H / 64 * W / 64, d)."""

    def __init__(self, config: FastViTConfig):
        super().__init__()
        sizes = config.embed_dims
        self.hidden_size = sizes[-1] * ENLARGED
        self.stem = [
            ConvBlock(3, sizes[0], 3, stride=2, depthwise=False),
            ConvBlock(sizes[0], sizes[0], 3, stride=2),
            ConvBlock(sizes[0], sizes[0], 1, depthwise=False),
        ]
        parts = zip((sizes[0], *sizes), sizes, config.layers, config.mlp_ratios, TOKEN_MIXERS, strict=False)
        self.stages = [Stage(*part, first=index == 0) for index, part in enumerate(parts)]
        self.final_conv = ConvBlock(sizes[-1], self.hidden_size, 3, excite=True)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = pixels.astype(self.stem[0].reparam_conv.weight.dtype)
        layers: list[nn.Module] = [*self.stem, *self.stages, self.final_conv]
        for layer in layers:
            x = layer(x)
        return x.flatten(1, 2)
