"""Gemma 4 without towers: squares of pixels and stretches of samples become tokens through a linear layer each.

Source: transformers' Gemma4UnifiedForConditionalGeneration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .base import Features
from .configuration import BaseConfig
from .gemma4_text import Gemma4Decoder, Projector
from .vision_language import encode_tiles
from .whisper import join_clips


@dataclass(frozen=True)
class Gemma4UnifiedVisionConfig(BaseConfig):
    patch_size: int = 16
    pooling_kernel_size: int = 3
    mm_embed_dim: int = 3840
    mm_posemb_size: int = 1120
    rms_norm_eps: float = 1e-6
    output_proj_dims: int = 3840


class VisionEmbedder(nn.Module):
    """pos_embedding: (positions, 2, d), of columns and of rows."""

    def __init__(self, config: Gemma4UnifiedVisionConfig):
        super().__init__()
        values, hidden = 3 * (config.patch_size * config.pooling_kernel_size) ** 2, config.mm_embed_dim
        self.patch_ln1, self.patch_ln2, self.pos_norm = (nn.LayerNorm(size) for size in (values, hidden, hidden))
        self.patch_dense = nn.Linear(values, hidden)
        self.pos_embedding = mx.zeros((config.mm_posemb_size, 2, hidden))

    def __call__(self, pixels: mx.array, rows: int, columns: int) -> mx.array:
        """pixels (B, N, values), levels from 0 to 1, N = rows * columns in reading order -> (B, N, d)."""
        row, column = np.divmod(np.arange(rows * columns), columns)
        x = self.patch_ln1(pixels.astype(self.patch_ln1.weight.dtype))
        x = self.patch_ln2(self.patch_dense(x))
        return self.pos_norm(x + self.pos_embedding[mx.array(column), 0] + self.pos_embedding[mx.array(row), 1])


class Gemma4Unified(Gemma4Decoder):
    text_types = ("gemma4_unified_text",)
    two_way_everywhere = True
    within_window = False
    renames = (
        ("model.language_model.", "language_model.model."),
        ("model.embed_vision.multimodal_embedder.", "embed_vision."),
        ("model.embed_vision.embedding_projection.", "embed_vision.embedding_projection."),
        ("model.embed_vision.", "vision_embedder."),
        ("model.vision_embedder.", "vision_embedder."),
        ("model.embed_audio.", "embed_audio."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        vision = Gemma4UnifiedVisionConfig.from_dict(config["vision_config"])
        self.vision_embedder = VisionEmbedder(vision)
        self.embed_vision = Projector(vision.output_proj_dims, self.hidden_size, vision.rms_norm_eps)
        if (audio := config.get("audio_config")) is not None:
            self.embed_audio = Projector(
                audio.get("audio_embed_dim", 640), self.hidden_size, audio.get("rms_norm_eps", 1e-6)
            )

    def encode(self, media: Sequence[Media]) -> list[Features]:
        if media[0].kind == "audio":
            return [Features(clip) for clip in self.embed_audio(join_clips(media))]
        rows, columns = media[0].grid
        return encode_tiles(media, lambda pixels: self.embed_vision(self.vision_embedder(pixels, rows, columns)))
