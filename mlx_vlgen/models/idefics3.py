"""Idefics3 and SmolVLM: SigLIP on tiles, neighbouring patches folded into one feature, and Llama.

Source: Laurençon et al. 2024 (arXiv 2408.12637) and Marafioti et al. 2025 (arXiv 2504.05299); transformers'
Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration, which are one network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .base import Features
from .layers import fold_squares
from .vision_language import VisionLanguageModel, encode_tiles
from .vit import SiglipEmbeddings, SiglipVision, SiglipVisionConfig, position_buckets


@dataclass(frozen=True)
class Idefics3VisionConfig(SiglipVisionConfig):
    hidden_size: int = 1152
    num_attention_heads: int = 16
    patch_size: int = 32


class Embeddings(SiglipEmbeddings):
    """SigLIP's, with the learned positions spread over as many rows and columns as a tile has."""

    def __call__(self, pixels: mx.array) -> mx.array:
        patch, side = self.patch_embedding.weight.shape[1], math.isqrt(len(self.position_embedding.weight))
        counts = (length // patch for length in pixels.shape[1:3])
        steps = (np.arange(count, dtype=np.float32) * (np.float32(1) / np.float32(count)) for count in counts)
        row, column = (position_buckets(coordinates, side) for coordinates in steps)
        index = mx.array((row[:, None] * side + column).reshape(-1))
        return self.patch_embedding(pixels) + self.position_embedding.weight[index]


class Connector(nn.Module):
    """(B, N, d) -> (B, N / scale^2, text d): each scale x scale square of patches becomes one feature."""

    def __init__(self, vision: int, text: int, scale: int):
        super().__init__()
        self.scale = scale
        self.modality_projection = Projection(vision * scale**2, text)

    def __call__(self, x: mx.array) -> mx.array:
        batch, count, hidden = x.shape
        side = math.isqrt(count)
        return self.modality_projection(fold_squares(x.reshape(batch, side, side, hidden), self.scale))


class Projection(nn.Module):
    def __init__(self, vision: int, text: int):
        super().__init__()
        self.proj = nn.Linear(vision, text, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj(x)


class Idefics3(VisionLanguageModel):
    renames = (
        ("model.vision_model.", "vision_model."),
        ("model.connector.", "connector."),
        ("model.text_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        # Conversions for MLX have no inner `model`.
        ("language_model.lm_head.", "language_model.lm_head."),
        ("language_model.model.", "language_model.model."),
        ("language_model.", "language_model.model."),
    )

    def __init__(self, config: dict[str, Any]):
        tied = config.get("tie_word_embeddings", False)
        text = {"model_type": "llama"} | config["text_config"] | {"tie_word_embeddings": tied}
        super().__init__(config, text)
        vision = Idefics3VisionConfig.from_dict(config["vision_config"])
        self.vision_model = SiglipVision(vision)
        self.vision_model.embeddings = Embeddings(vision)
        self.connector = Connector(vision.hidden_size, self.hidden_size, config.get("scale_factor", 2))

    def published(self, name: str) -> tuple[str, ...]:
        return (name.replace("language_model.model.", "language_model.", 1),)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_tiles(media, lambda tiles: self.connector(self.vision_model(tiles)))
