"""Gemma 3: SigLIP, a projector that averages neighbouring patches, and a text decoder with mostly sliding layers.

Source: Gemma Team 2025 (arXiv 2503.19786); transformers' Gemma3ForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .base import Features
from .gemma import Norm
from .llava import Llava
from .vision_language import VisionLanguageModel, encode_tiles
from .vit import SiglipVision, SiglipVisionConfig, Tower


class Projector(nn.Module):
    """Patches (B, N, d) -> averages of squares of them, normalised, at the text's width: (B, tokens, width)."""

    def __init__(self, vision: SiglipVisionConfig, width: int, tokens: int):
        super().__init__()
        self.mm_input_projection_weight = mx.zeros((vision.hidden_size, width))
        self.mm_soft_emb_norm = Norm(vision.hidden_size, vision.layer_norm_eps)
        self._side = int(tokens**0.5)
        self._pool = vision.image_size // vision.patch_size // self._side

    def __call__(self, x: mx.array) -> mx.array:
        side, pool = self._side, self._pool
        pooled = x.reshape(len(x), side, pool, side, pool, -1).mean(axis=(2, 4))
        return self.mm_soft_emb_norm(pooled.reshape(len(x), side * side, -1)) @ self.mm_input_projection_weight


class Gemma3(VisionLanguageModel):
    text_types = ("gemma3_text",)
    renames = Llava.renames

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        vision = SiglipVisionConfig.from_dict(config["vision_config"])
        self.vision_tower = Tower(SiglipVision(vision))
        self.multi_modal_projector = Projector(vision, self.hidden_size, config.get("mm_tokens_per_image", 256))

    duplicated_layers: ClassVar[Mapping[str, str]] = {"language_model.lm_head": "language_model.model.embed_tokens"}

    def encode(self, media: Sequence[Media]) -> list[Features]:
        tower = self.vision_tower.vision_model
        return encode_tiles(media, lambda tiles: self.multi_modal_projector(tower(tiles)))
