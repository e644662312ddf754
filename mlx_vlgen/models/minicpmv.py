"""MiniCPM-V 4.6 and 4.7: SigLIP on pictures of any size, which in its middle makes one patch of four, and Qwen3.5's
decoder.

Source: OpenBMB's MiniCPM-V; transformers' MiniCPMV4_6ForConditionalGeneration and MiniCPMV4_7ForConditionalGeneration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media, Prompt
from .attention import VisionAttention
from .base import Features
from .canvas import canvas_positions
from .layers import ACTIVATIONS, PositionTable, fold_squares, pace
from .mrope import MRopeModel
from .qwen3_5 import text_arguments
from .vision_language import join_pixels, tower_input
from .vit import Encoder, PatchConv, SiglipVisionConfig, position_buckets

MERGE = 2
"""Patches a side that each of both mergers makes one of."""


@dataclass(frozen=True)
class MiniCPMVVisionConfig(SiglipVisionConfig):
    insert_layer_id: int = 6
    window_kernel_size: tuple[int, int] = (MERGE, MERGE)


class Embeddings(nn.Module):
    """Patches (B, rows * columns, patch * patch * 3) -> (B, N, d); positions are the nearest of a square's."""

    def __init__(self, config: MiniCPMVVisionConfig):
        super().__init__()
        self._side = config.image_size // config.patch_size
        self.patch_embedding = PatchConv(config.num_channels, config.hidden_size, config.patch_size, bias=True)
        self.position_embedding = PositionTable(self._side**2, config.hidden_size)

    def __call__(self, patches: mx.array, rows: int, columns: int) -> mx.array:
        kernel, bias = self.patch_embedding.weight, self.patch_embedding.bias
        row, column = (nearest(count, self._side) for count in (rows, columns))
        positions = mx.array((row[:, None] * self._side + column).flatten())
        out = patches.astype(kernel.dtype) @ kernel.reshape(len(kernel), -1).T + bias
        return out + self.position_embedding.weight[positions]


def nearest(count: int, side: int) -> np.ndarray:
    """Which of `side` positions each of `count` rows takes, by coordinates that are divided in float32."""
    return position_buckets(np.arange(count, dtype=np.float32) / np.float32(count), side)


class Projection(nn.Module):
    """Four patches, side by side (..., 4 * d) -> (..., outputs)."""

    def __init__(self, inputs: int, inner: int, outputs: int, activation: str, eps: float = 1e-6):
        super().__init__()
        self.pre_norm = nn.LayerNorm(inputs, eps=eps)
        self.linear_1, self.linear_2 = nn.Linear(inputs, inner), nn.Linear(inner, outputs)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(self._activation(self.linear_1(self.pre_norm(x))))


class WindowMerger(Projection):
    """Patches of each square of four attend to each other and become one: (B, R, C, d) -> (B, R * C / 4, d)."""

    def __init__(self, config: MiniCPMVVisionConfig):
        hidden, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        super().__init__(hidden * MERGE**2, inner * MERGE**2, hidden, "gelu_pytorch_tanh", eps)
        self.layer_norm1 = nn.LayerNorm(hidden, eps=eps)
        self.self_attn = VisionAttention(hidden, config.num_attention_heads, ("q_proj", "k_proj", "v_proj", "out_proj"))

    def __call__(self, x: mx.array) -> mx.array:
        squares = fold_squares(x, MERGE)  # (B, n, 4 * d)
        patches = squares.reshape(-1, MERGE**2, x.shape[-1])
        patches = patches + self.self_attn(self.layer_norm1(patches))
        mean = patches.mean(axis=1).reshape(*squares.shape[:2], -1)
        return super().__call__(patches.reshape(squares.shape)) + mean


class VisionTower(nn.Module):
    """merges: whether it merges patches."""

    def __init__(self, config: MiniCPMVVisionConfig, merges: bool):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.vit_merger = WindowMerger(config)
        self._merge_after = config.insert_layer_id if merges else -1

    def __call__(self, patches: mx.array, rows: int, columns: int) -> mx.array:
        """(B, rows * columns, values) -> (B, n, d)."""
        x = self.embeddings(patches, rows, columns)
        for index, layer in enumerate(self.encoder.layers):
            before, x = x, layer(x)
            if index == self._merge_after:
                x = self.vit_merger(x.reshape(len(x), rows, columns, -1))
            pace(before, x)
        return self.post_layernorm(x)


class Merger(nn.Module):
    def __init__(self, hidden: int, text: int):
        super().__init__()
        self.mlp = [Projection(hidden * MERGE**2, hidden * MERGE**2, text, "gelu")]

    def __call__(self, x: mx.array) -> mx.array:
        """(B, R, C, d) -> (B, R * C / 4, text)."""
        return self.mlp[0](fold_squares(x, MERGE))


class MiniCPMV4_6(MRopeModel):
    renames = (
        ("model.vision_tower.", "vision_tower."),
        ("model.merger.", "merger."),
        ("vit_merger.", "vision_tower.vit_merger."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        if (kind := config["text_config"].get("model_type", "qwen3_5_text")) != "qwen3_5_text":
            raise LoadError(f"This checkpoint's text decoder is {kind!r}; expected 'qwen3_5_text'.")
        layer = config.get("insert_layer_id", 6)
        vision = MiniCPMVVisionConfig.from_dict({**config["vision_config"], "insert_layer_id": layer})
        for key, stated, expected in (
            ("window_kernel_size", list(vision.window_kernel_size), [MERGE, MERGE]),
            ("merge_kernel_size", list(config.get("merge_kernel_size", (MERGE, MERGE))), [MERGE, MERGE]),
            ("merger_times", config.get("merger_times", 1), 1),
        ):
            if stated != expected:
                raise LoadError(f"{key} is {stated}; expected {expected}.")
        self._merge = MERGE if config.get("downsample_mode") == "4x" else MERGE**2  # patches a side of a token
        tower = VisionTower(vision, merges=self._merge > MERGE)
        super().__init__(config, text_arguments(config), tower, (11, 11, 10), interleaved=True)
        self.merger = Merger(vision.hidden_size, self.hidden_size)

    @classmethod
    def rename(cls, key: str) -> str | None:
        """Layers that guess further tokens ("mtp") are of no use here."""
        return None if key.startswith("mtp.") else super().rename(key)

    def published(self, name: str) -> tuple[str, ...]:
        return (name.removeprefix("vision_tower.") if name.startswith("vision_tower.vit_merger.") else name,)

    packed = ()

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """Whole pictures (frames) are one batch, their slices another."""
        frames, height, width, rows, _, part_rows, part_columns = media[0].grid
        patches = join_pixels(media).reshape(len(media) * frames, -1, media[0].pixels.shape[-1])
        patches = tower_input(patches, media[0].normalization)  # (frames, patches of all their parts, values)
        parts = [self._encode_patches(patches[:, : height * width], height, width)]
        if rows:
            slices = patches[:, height * width :].reshape(-1, part_rows * part_columns, patches.shape[-1])
            features = self._encode_patches(slices, part_rows, part_columns)
            parts.append(features.reshape(len(patches), -1, self.hidden_size))
        joined = mx.concatenate(parts, axis=1).reshape(len(media), -1, self.hidden_size)
        return [Features(medium) for medium in joined]

    def _encode_patches(self, patches: mx.array, rows: int, columns: int) -> mx.array:
        states = self.vision_tower(patches, rows, columns)
        side = self._merge // MERGE  # of the square that the tower makes one of
        return self.merger(states.reshape(len(states), rows // side, columns // side, -1))

    def positions(self, prompt: Prompt) -> tuple[np.ndarray, int]:
        """As text's."""
        return np.broadcast_to(np.arange(len(prompt.tokens), dtype=np.int32), (3, len(prompt.tokens))), 0


class MiniCPMV4_7(MiniCPMV4_6):
    """The same with M-RoPE on a canvas."""

    def positions(self, prompt: Prompt) -> tuple[np.ndarray, int]:
        return canvas_positions(prompt, self._merge)
