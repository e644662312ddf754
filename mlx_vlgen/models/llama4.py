"""Llama 4: a vision tower with rotary and learned positions on tiles, 2 x 2 patches folded into one feature, and its
text decoder.

Source: Meta's Llama 4 (2025); transformers' Llama4ForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .attention import MLP, VisionAttention, linear_without_bias
from .base import Features
from .configuration import BaseConfig
from .layers import fold_squares, gelu, hidden_states, reading_order, rotary_2d
from .vision_language import VisionLanguageModel, encode_tiles

EPS = 1e-5
"""Of all norms of the tower, whatever its configuration says."""


@dataclass(frozen=True)
class Llama4VisionConfig(BaseConfig):
    hidden_size: int = 768
    num_hidden_layers: int = 34
    num_attention_heads: int = 16
    num_channels: int = 3
    intermediate_size: int = 5632
    vision_output_dim: int = 7680
    image_size: int = 448
    patch_size: int = 14
    pixel_shuffle_ratio: float = 0.5
    projector_input_dim: int = 4096
    projector_output_dim: int = 4096
    rope_theta: float = 10000.0
    rope_parameters: Mapping[str, Any] | None = None

    @property
    def side(self) -> int:
        """Patches a side of a tile."""
        return self.image_size // self.patch_size


class PatchEmbedding(nn.Module):
    """Tiles (B, H, W, 3) -> (B, N, d)."""

    def __init__(self, config: Llama4VisionConfig):
        super().__init__()
        self._patch = config.patch_size
        self.linear = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size, bias=False)

    def __call__(self, tiles: mx.array) -> mx.array:
        batch, height, width, channels = tiles.shape
        rows, columns = height // self._patch, width // self._patch
        parts = tiles.reshape(batch, rows, self._patch, columns, self._patch, channels)
        return self.linear(parts.transpose(0, 1, 3, 5, 2, 4).reshape(batch, rows * columns, -1))


class Layer(nn.Module):
    def __init__(self, config: Llama4VisionConfig):
        super().__init__()
        hidden, names = config.hidden_size, ("q_proj", "k_proj", "v_proj", "o_proj")
        self.self_attn = VisionAttention(hidden, config.num_attention_heads, names, traditional=True)
        self.mlp = MLP(hidden, config.intermediate_size, "gelu")
        self.input_layernorm = nn.LayerNorm(hidden, eps=EPS)
        self.post_attention_layernorm = nn.LayerNorm(hidden, eps=EPS)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    def __init__(self, config: Llama4VisionConfig):
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]


class Adapter(nn.Module):
    """Patches (B, N, d) -> (B, n, d'): squares of them as one."""

    def __init__(self, config: Llama4VisionConfig):
        super().__init__()
        self._side, self._fold = config.side, round(1 / config.pixel_shuffle_ratio)
        inner, outer = config.projector_input_dim, config.projector_output_dim
        self.mlp = MLP(config.intermediate_size, inner, "gelu", linear=linear_without_bias, outputs=outer)

    def __call__(self, x: mx.array) -> mx.array:
        squares = fold_squares(x.reshape(len(x), self._side, self._side, -1), self._fold)
        return gelu(self.mlp(squares))


class VisionModel(nn.Module):
    """Tiles (B, H, W, 3) -> (B, n, d)."""

    def __init__(self, config: Llama4VisionConfig):
        super().__init__()
        hidden, side = config.hidden_size, config.side
        self.patch_embedding = PatchEmbedding(config)
        self.class_embedding = mx.zeros(hidden)
        self.positional_embedding_vlm = mx.zeros((side**2 + 1, hidden))
        self.layernorm_pre, self.layernorm_post = nn.LayerNorm(hidden, eps=EPS), nn.LayerNorm(hidden, eps=EPS)
        self.model = Encoder(config)
        self.vision_adapter = Adapter(config)
        theta = (config.rope_parameters or {}).get("rope_theta", config.rope_theta)
        # Rows and columns count from one; the class token, which comes last, is not rotated.
        places = np.pad(reading_order(side, side)[::-1] + 1, ((0, 0), (0, 1)))
        self._rotary = partial(rotary_2d, places, hidden // config.num_attention_heads, theta)

    def __call__(self, tiles: mx.array) -> mx.array:
        patches = self.patch_embedding(tiles.astype(self.class_embedding.dtype))
        last = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1]))
        x = self.layernorm_pre(mx.concatenate([patches, last], axis=1) + self.positional_embedding_vlm)
        [x] = hidden_states(self.model.layers, x, [-1], *self._rotary())
        return self.vision_adapter(self.layernorm_post(x)[:, :-1])


class Projector(nn.Module):
    def __init__(self, vision: int, text: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision, text, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_1(x)


class Llama4(VisionLanguageModel):
    text_types = ("llama4_text",)

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        vision = Llama4VisionConfig.from_dict(config["vision_config"])
        folded = vision.hidden_size * round(1 / vision.pixel_shuffle_ratio) ** 2
        if folded != vision.intermediate_size:
            raise LoadError(
                f"This llama4 checkpoint's tower gives {folded} values, a square of patches together, and its adapter "
                f"takes {vision.intermediate_size} (intermediate_size); expected the same number."
            )
        self.vision_model = VisionModel(vision)
        self.multi_modal_projector = Projector(vision.vision_output_dim, self.hidden_size)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_tiles(media, lambda tiles: self.multi_modal_projector(self.vision_model(tiles)))
