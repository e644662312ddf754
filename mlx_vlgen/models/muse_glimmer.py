"""Muse Glimmer: a tower of windows for pictures of any size, frames of a clip by two, and a gated decoder.

Source: transformers' MuseGlimmerForConditionalGeneration, whose names of parameters these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media, Normalization
from .attention import MLP, VisionAttention, linear_without_bias
from .base import Features
from .configuration import BaseConfig
from .layers import (
    ACTIVATIONS,
    PositionTable,
    embed_patches,
    fold_squares,
    pace,
    reading_order,
    resample_faded,
    rotary_2d,
)
from .mrope import VisionBlock
from .qwen2_5_vl import window_order
from .vision_language import VisionLanguageModel

PATCHES_AT_ONCE = 16384
"""Of frames: those of the largest picture. A clip has hundreds of small ones."""


@dataclass(frozen=True)
class MuseVisionConfig(BaseConfig):
    hidden_size: int = 1536
    num_hidden_layers: int = 50
    num_attention_heads: int = 16
    intermediate_size: int = 8960
    hidden_act: str = "gelu"
    patch_size: int = 14
    patch_temporal: int = 2
    merge_size: int = 2
    pos_emb_height: int = 32
    pos_emb_width: int = 32
    layer_norm_eps: float = 1e-5
    layer_types: Sequence[str] | None = None
    rope_parameters: Mapping[str, Any] | None = None

    @property
    def full(self) -> frozenset[int]:
        """Layers whose patches attend to all others."""
        last = self.num_hidden_layers - 1
        if self.layer_types is None:
            return frozenset(index for index in range(last + 1) if index % 4 == 3 or index == last)
        return frozenset(index for index, kind in enumerate(self.layer_types) if kind == "full_attention")


class PatchKernel(nn.Module):
    """weight: (d, frames * 3 * patch * patch)."""

    def __init__(self, config: MuseVisionConfig):
        super().__init__()
        self._shape = (config.hidden_size, config.patch_temporal, 3, config.patch_size, config.patch_size)
        self.weight = mx.zeros((self._shape[0], int(np.prod(self._shape[1:]))))

    def __call__(self, patches: mx.array, normalization: Normalization | None) -> mx.array:
        """(B, N, values) -> (B, N, d): levels as `embed_patches` takes them, or floats in the kernel's order."""
        if normalization is None or patches.dtype != mx.uint8:
            return patches.astype(self.weight.dtype) @ self.weight.T
        kernel = self.weight.reshape(self._shape).transpose(0, 1, 3, 4, 2)
        return embed_patches(kernel, patches, normalization)


class PatchEmbedder(nn.Module):
    def __init__(self, config: MuseVisionConfig):
        super().__init__()
        self.patch_embedding = PatchKernel(config)
        self._side = config.pos_emb_height
        self.position_embedding_table = PositionTable(self._side**2, config.hidden_size)

    def __call__(self, patches: mx.array, rows: int, columns: int, normalization: Normalization | None) -> mx.array:
        """The positions of a grid turned over are added in their reading order, as the model was trained."""
        table = self.position_embedding_table.weight.reshape(self._side, self._side, -1)
        return self.patch_embedding(patches, normalization) + resample_faded(table, columns, rows).flatten(0, 1)


class MuseTower(nn.Module):
    """Frames (B, N, values), N in reading order, that do not see each other -> (B, N / merge^2, d * merge^2)."""

    def __init__(self, config: MuseVisionConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.patch_embedder = PatchEmbedder(config)
        self.ln_pre, self.ln_post = nn.LayerNorm(hidden, eps=eps), nn.LayerNorm(hidden, eps=eps)
        names = ("q_proj", "k_proj", "v_proj", "proj")
        self.layers = [
            VisionBlock(
                partial(nn.LayerNorm, hidden, eps=1e-5),
                VisionAttention(hidden, config.num_attention_heads, names),
                MLP(hidden, config.intermediate_size, config.hidden_act, ("fc1", "fc2")),
            )
            for _ in range(config.num_hidden_layers)
        ]
        self._full, self._window, self._merge = config.full, config.pos_emb_height, config.merge_size
        self._head_size = hidden // config.num_attention_heads
        self._theta = float((config.rope_parameters or {}).get("rope_theta", 10000.0))

    def __call__(self, patches: mx.array, rows: int, columns: int, normalization: Normalization | None) -> mx.array:
        count, length = patches.shape[:2]
        order, windows = window_order(rows, columns, self._window)
        places = np.tile(reading_order(rows, columns)[::-1, order] + 1, (1, count))
        cos, sin = rotary_2d(places, self._head_size, self._theta)
        x = self.ln_pre(self.patch_embedder(patches, rows, columns, normalization))[:, mx.array(order)]
        x = x.reshape(1, count * length, -1)
        for index, layer in enumerate(self.layers):
            before, x = x, layer(x, cos, sin, [(count, ((1, length),) if index in self._full else windows)])
            pace(before, x)
        x = self.ln_post(x.reshape(count, length, -1)[:, mx.array(np.argsort(order))])
        squares = fold_squares(x.reshape(len(x), rows, columns, -1), self._merge)
        by_channel = squares.reshape(*squares.shape[:2], self._merge**2, -1).swapaxes(2, 3)
        return by_channel.flatten(2)


class Adapter(nn.Module):
    def __init__(self, inputs: int, outputs: int, activation: str):
        super().__init__()
        self.fc1, self.fc2 = linear_without_bias(inputs, outputs), linear_without_bias(outputs, outputs)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self._activation(self.fc2(self._activation(self.fc1(x))))


class MuseGlimmer(VisionLanguageModel):
    text_types: ClassVar[Sequence[str]] = ("muse_glimmer_text",)
    scales_logits = True
    renames = (
        ("model.language_model.", "language_model.model."),
        ("model.vision_", "vision_"),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        vision = MuseVisionConfig.from_dict(config["vision_config"])
        width, inner = config.get("out_hidden_size", 6144), config.get("projector_hidden_size", 4096)
        if vision.pos_emb_height != vision.pos_emb_width or width != vision.hidden_size * vision.merge_size**2:
            raise LoadError(
                f"This checkpoint's tower has {vision.pos_emb_height} x {vision.pos_emb_width} positions and gives "
                f"{width} values a token; expected a square and {vision.hidden_size * vision.merge_size**2}."
            )
        self.vision_tower = MuseTower(vision)
        self.vision_adapter = Adapter(width, inner, config.get("projector_hidden_act", "gelu"))
        self.vision_projection = linear_without_bias(inner, self.hidden_size)
        self._eps: float = self.driver.arguments["rms_norm_eps"]
        defaults = {"image_token_id": 200092, "video_token_id": 200091}
        self._placeholders = tuple(config.get(name, default) for name, default in defaults.items())

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """Of a clip some frames at a time."""
        count, rows, columns = media[0].grid
        frames = mx.array(np.concatenate([medium.pixels for medium in media]))
        frames = frames.reshape(len(media) * count, rows * columns, -1)
        step = max(1, PATCHES_AT_ONCE // (rows * columns))
        parts = []
        for start in range(0, len(frames), step):
            x = self.vision_tower(frames[start : start + step], rows, columns, media[0].normalization)
            parts.append(mx.fast.rms_norm(self.vision_projection(self.vision_adapter(x)), None, self._eps))
        features = mx.concatenate(parts).reshape(len(media), -1, self.hidden_size)
        return [Features(medium) for medium in features]

    def embed_answer(self, tokens: mx.array) -> mx.array:
        """Placeholders are taken for token 0, as transformers takes them."""
        placeholder = (tokens[..., None] == mx.array(self._placeholders)).any(axis=-1)
        return super().embed_answer(mx.where(placeholder, 0, tokens))
