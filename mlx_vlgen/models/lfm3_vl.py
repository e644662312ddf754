"""LFM3-VL: a tower of gated convolutions over patches and some attention, a projector, and LFM3.

Source: transformers' Lfm3VlForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media, Normalization
from .attention import MLP, PROJECTOR, attention, linear_without_bias, merge_heads, split_heads
from .base import Features
from .configuration import BaseConfig
from .layers import PatchEmbedding, fold_squares, merge_order, pace, reading_order, rotary_2d, rotate
from .lfm3 import GATED
from .vision_language import VisionLanguageModel, join_pixels

PATCHES = "vision_tower.patchifier"


@dataclass(frozen=True)
class Lfm3VisionConfig(BaseConfig):
    hidden_size: int = 1024
    intermediate_size: int = 2560
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    rope_parameters: Mapping[str, Any] | None = None
    num_hidden_layers: int = 14
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    layer_types: Sequence[str] | None = None
    conv_kernel_size: int = 3
    norm_eps: float = 1e-5

    @property
    def kinds(self) -> list[str]:
        """Of its layers."""
        indices = range(self.num_hidden_layers)
        return list(self.layer_types or ("conv" if index < 2 or index % 2 else "full_attention" for index in indices))

    @property
    def theta(self) -> float:
        rope = self.rope_parameters or {}
        if (kind := rope.get("rope_type", "axial")) != "axial":
            raise LoadError(f"rope_type of this checkpoint's tower is {kind!r}; expected 'axial'.")
        return float(rope.get("rope_theta", 1e6))


class Attention(nn.Module):
    """x (B, R, C, d) -> the same."""

    def __init__(self, config: Lfm3VisionConfig):
        super().__init__()
        hidden, size = config.hidden_size, config.hidden_size // config.num_attention_heads
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj, self.out_proj = linear_without_bias(hidden, hidden), linear_without_bias(hidden, hidden)
        self.k_proj, self.v_proj = (linear_without_bias(hidden, self._kv_heads * size) for _ in range(2))
        self.q_layernorm, self.k_layernorm = (nn.RMSNorm(size, eps=config.norm_eps) for _ in range(2))

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """cos, sin: (R * C, D / 2)."""
        flat = x.flatten(1, 2)
        q = rotate(self.q_layernorm(split_heads(self.q_proj(flat), self._heads)), cos, sin)
        k = rotate(self.k_layernorm(split_heads(self.k_proj(flat), self._kv_heads)), cos, sin)
        v = split_heads(self.v_proj(flat), self._kv_heads)
        return self.out_proj(merge_heads(attention(q, k, v, q.shape[-1] ** -0.5))).reshape(x.shape)


class GatedConv(nn.Module):
    """A convolution of each channel over the grid of patches (B, R, C, d), gated before and after."""

    def __init__(self, config: Lfm3VisionConfig):
        super().__init__()
        hidden, kernel = config.hidden_size, config.conv_kernel_size
        self.in_proj, self.out_proj = linear_without_bias(hidden, 3 * hidden), linear_without_bias(hidden, hidden)
        self.spatial_conv = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        before, after, values = mx.split(self.in_proj(x), 3, axis=-1)
        return self.out_proj(after * self.spatial_conv(before * values))


class Layer(nn.Module):
    def __init__(self, config: Lfm3VisionConfig, kind: str):
        super().__init__()
        hidden, eps = config.hidden_size, config.norm_eps
        if kind == "conv":
            self.conv = GatedConv(config)
        else:
            self.self_attn = Attention(config)
        self.feed_forward = MLP(hidden, config.intermediate_size, "silu", GATED, linear_without_bias)
        self.operator_norm, self.ffn_norm = nn.RMSNorm(hidden, eps=eps), nn.RMSNorm(hidden, eps=eps)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        normed = self.operator_norm(x)
        x = x + (self.conv(normed) if "conv" in self else self.self_attn(normed, cos, sin))
        return x + self.feed_forward(self.ffn_norm(x))


class VisionTower(nn.Module):
    """Patches (B, rows * columns, values), in merge order -> (B, rows, columns, d), in reading order."""

    def __init__(self, config: Lfm3VisionConfig):
        super().__init__()
        hidden, frames, patch = config.hidden_size, config.temporal_patch_size, config.patch_size
        self.patchifier = PatchEmbedding(config.in_channels, frames, patch, hidden, bias=False)
        self.embedding_norm = nn.RMSNorm(hidden, eps=config.norm_eps)
        self.layers = [Layer(config, kind) for kind in config.kinds]
        self.merge = config.spatial_merge_size
        self._head_size, self._theta = hidden // config.num_attention_heads, config.theta

    def __call__(self, patches: mx.array, rows: int, columns: int, normalization: Normalization | None) -> mx.array:
        row, column = merge_order(rows, columns, self.merge)
        reading = (row * columns + column).argsort()
        x = self.embedding_norm(self.patchifier(patches, normalization))
        x = x[:, mx.array(reading)].reshape(len(x), rows, columns, -1)
        cos, sin = rotary_2d(reading_order(rows, columns), self._head_size, self._theta)
        for layer in self.layers:
            before, x = x, layer(x, cos, sin)
            pace(before, x)
        return x


class Projector(MLP):
    """(B, rows, columns, d) -> (B, n, text d): each patch normalised, merge x merge become one token."""

    def __init__(self, config: Mapping[str, Any], vision: int, merge: int, text: int):
        linear = partial(nn.Linear, bias=config.get("projector_bias", True))
        inner, activation = config.get("projector_hidden_size", 4096), config.get("projector_hidden_act", "gelu")
        super().__init__(vision * merge**2, inner, activation, PROJECTOR, linear, text)
        self.layer_norm, self.merge = nn.LayerNorm(vision, eps=1e-6), merge

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(fold_squares(self.layer_norm(x), self.merge))


class Lfm3VL(VisionLanguageModel):
    renames = (
        ("model.vision_tower.patchifier.weight", f"{PATCHES}.proj.weight"),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        tied = config.get("tie_word_embeddings", True)
        super().__init__(config, {"model_type": "lfm3"} | config["text_config"] | {"tie_word_embeddings": tied})
        vision = Lfm3VisionConfig.from_dict(config["vision_config"])
        self.vision_tower = VisionTower(vision)
        merge = vision.spatial_merge_size
        self.multi_modal_projector = Projector(config, vision.hidden_size, merge, self.hidden_size)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The kernel of patches is a matrix (O, C * T * P * P)."""
        out = super().sanitize(weights)
        if (kernel := out.get(name := f"{PATCHES}.proj.weight")) is not None and kernel.ndim == 2:
            _, frames, patch, _, channels = self.vision_tower.patchifier.proj.weight.shape
            out[name] = kernel.reshape(-1, channels, frames, patch, patch).moveaxis(1, -1)
        return out

    def encode(self, media: Sequence[Media]) -> list[Features]:
        frames, rows, columns = media[0].grid
        pixels = join_pixels(media).reshape(len(media) * frames, rows * columns, -1)
        states = self.vision_tower(pixels, rows, columns, media[0].normalization)
        features = self.multi_modal_projector(states)  # (media * frames, n, d)
        return [Features(medium) for medium in features.reshape(len(media), -1, features.shape[-1])]
