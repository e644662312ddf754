"""The plain vision transformer (CLIP, SigLIP) that most families have.

Source: Dosovitskiy et al. 2020 (arXiv 2010.11929); transformers' CLIPVisionModel and SiglipVisionModel, whose names of
parameters these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from .attention import MLP, VisionAttention
from .configuration import BaseConfig
from .layers import PositionTable, cut_patches, hidden_states


@dataclass(frozen=True)
class SiglipVisionConfig(BaseConfig):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class CLIPVisionConfig(SiglipVisionConfig):
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class PatchConv(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as one matmul: pixels (B, H, W, C) -> (B, N, d)."""

    def __init__(self, channels: int, hidden: int, patch: int, bias: bool):
        super().__init__(channels, hidden, patch, stride=patch, bias=bias)  # weight (O, P, P, C)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = cut_patches(pixels, self.weight.shape[1])
        out = patches.astype(self.weight.dtype) @ self.weight.reshape(len(self.weight), -1).T
        return out + self.bias if "bias" in self else out


SEPARATE = ("q_proj", "k_proj", "v_proj", "out_proj")


class EncoderLayer(nn.Module):
    """names: of the layers of its attention."""

    def __init__(self, config: SiglipVisionConfig, names: Sequence[str] = SEPARATE):
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(hidden, eps=eps), nn.LayerNorm(hidden, eps=eps)
        self.self_attn = VisionAttention(hidden, config.num_attention_heads, names)
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act)

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """mask: see `VisionAttention`."""
        x = x + self.self_attn(self.layer_norm1(x), mask=mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: SiglipVisionConfig, names: Sequence[str] = SEPARATE):
        super().__init__()
        self.layers = [EncoderLayer(config, names) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, d)."""
        return self.states(x, [-1])[0]

    def states(self, x: mx.array, layers: Sequence[int]) -> list[mx.array]:
        """See `hidden_states`."""
        return hidden_states(self.layers, x, layers)


class CLIPEmbeddings(nn.Module):
    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.class_embedding = mx.zeros(hidden)
        self.patch_embedding = PatchConv(config.num_channels, hidden, patch, bias=False)
        self.position_embedding = PositionTable((config.image_size // patch) ** 2 + 1, hidden)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels)
        first = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1]))
        return mx.concatenate([first, patches], axis=1) + self.position_embedding.weight


class CLIPVision(nn.Module):
    """pixels (B, H, W, 3) -> hidden states (B, 1 + N, d) of some layers, the class token first."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.embeddings = CLIPEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        # Of the class token, which nothing here takes; checkpoints have it.
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def states(self, pixels: mx.array, layers: Sequence[int]) -> list[mx.array]:
        return self.encoder.states(self.pre_layrnorm(self.embeddings(pixels)), layers)


class SiglipEmbeddings(nn.Module):
    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.patch_embedding = PatchConv(config.num_channels, hidden, patch, bias=True)
        self.position_embedding = PositionTable((config.image_size // patch) ** 2, hidden)

    def __call__(self, pixels: mx.array) -> mx.array:
        return self.patch_embedding(pixels) + self.position_embedding.weight


def position_buckets(coordinates: np.ndarray, side: int) -> np.ndarray:
    """Which of `side` learned positions rows (or columns) of patches take, by `coordinates` (count,) from 0 to 1.

    Source: the fractional coordinates of Patch n' Pack (arXiv 2307.06304), in transformers' Idefics2VisionEmbeddings.
    """
    borders = np.arange(1 / side, 1, 1 / side).astype(np.float32)
    return np.searchsorted(borders, coordinates, side="right")


class SiglipVision(nn.Module):
    """pixels (B, H, W, 3) -> the normalised last hidden states (B, N, d), or those of some layers as they are."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, pixels: mx.array) -> mx.array:
        return self.post_layernorm(self.encoder(self.embeddings(pixels)))

    def states(self, pixels: mx.array, layers: Sequence[int]) -> list[mx.array]:
        return self.encoder.states(self.embeddings(pixels), layers)


def plain_vision(config: Mapping[str, Any]) -> CLIPVision | SiglipVision:
    """The one that a `vision_config` names; LoadError for any other."""
    match config.get("model_type", "clip_vision_model"):
        case "clip_vision_model":
            return CLIPVision(CLIPVisionConfig.from_dict(config))
        case "siglip_vision_model":
            return SiglipVision(SiglipVisionConfig.from_dict(config))
        case other:
            expected = "clip_vision_model or siglip_vision_model"
            raise LoadError(f"This checkpoint's vision tower is {other!r}; expected {expected}.")


class Tower(nn.Module):
    """A vision model one level deeper, as most checkpoints name it: `vision_tower.vision_model.…`."""

    def __init__(self, vision_model: nn.Module):
        super().__init__()
        self.vision_model = vision_model
