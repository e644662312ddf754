"""FastVLM: a tower of convolutions that makes few tokens of a large picture, a projector, and a text decoder.

Source: Vasu et al. 2024 (arXiv 2412.13303); transformers' FastVlmForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .._runtime import mx
from ..errors import LoadError
from ..inputs.prompt import Media
from .base import Features
from .fastvit import FastViT, FastViTConfig
from .llava import projector
from .vision_language import VisionLanguageModel, encode_tiles


class FastVLM(VisionLanguageModel):
    renames = (
        ("model.vision_tower.timm_model.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        text = config["text_config"]
        tied = text.get("tie_word_embeddings", False) or config.get("tie_word_embeddings", False)
        super().__init__(config, text | {"tie_word_embeddings": tied})
        for key, expected in (("vision_feature_select_strategy", "full"), ("vision_feature_layer", -1)):
            if (stated := config.get(key, expected)) != expected:
                raise LoadError(f"{key} is {stated!r}; expected {expected!r}: FastVLM takes all its tower's features.")
        self.vision_tower = FastViT(FastViTConfig.read(config["vision_config"]))
        self.multi_modal_projector = projector(config, self.vision_tower.hidden_size, self.hidden_size)

    @classmethod
    def rename(cls, key: str) -> str | None:
        """A counter of training's steps is of no use here."""
        return None if key.endswith(".num_batches_tracked") else super().rename(key)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """timm's scales are (C, 1, 1). The first convolution is (O, 3, 3, 3) with channels first and last; in which of
        both they are, the others tell."""
        weights = {key: value.flatten() if key.endswith(".gamma") else value for key, value in weights.items()}
        out = super().sanitize(weights)
        first, later = (f"vision_tower.stem.{index}.reparam_conv.weight" for index in (0, 1))
        if any(self.rename(key) == later and value.shape[1] == 1 for key, value in weights.items()):
            out[first] = out[first].moveaxis(1, -1)
        return out

    def encode(self, media: Sequence[Media]) -> list[Features]:
        # A picture of 1024 x 1024 pixels has states of 0.1 GB in float32.
        return encode_tiles(media, lambda pixels: self.multi_modal_projector(self.vision_tower(pixels)), at_once=1)
