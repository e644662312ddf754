"""PaliGemma and PaliGemma 2: SigLIP, one linear layer, and Gemma or Gemma 2 that reads the whole prompt both ways.

Source: Beyer et al. 2024 (arXiv 2407.07726) and Steiner et al. 2024 (arXiv 2412.03555); transformers'
PaliGemmaForConditionalGeneration. It counts positions from 1, which is all the same to rotary ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .base import Embedded, Features, LayerKind
from .gemma import Gemma, capped, layer_kinds, scaled
from .llava import Llava
from .text import text_arguments
from .vision_language import VisionLanguageModel
from .vit import SiglipVision, Tower, siglip_config


class Projector(nn.Module):
    def __init__(self, vision: int, text: int):
        super().__init__()
        self.linear = nn.Linear(vision, text)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x)


class PaliGemma(VisionLanguageModel):
    renames = Llava.renames
    within_window = False

    def __init__(self, config: dict[str, Any]):
        text = text_arguments({"model_type": "gemma"} | config["text_config"])
        if text["model_type"] not in ("gemma", "gemma2"):
            raise LoadError(f"This PaliGemma has a {text['model_type']} text decoder; gemma and gemma2 are known.")
        super().__init__(config, Gemma(text))
        vision = siglip_config(config)
        self._layers = layer_kinds(text)
        self._cap = text.get("final_logit_softcapping", 30.0) if text["model_type"] == "gemma2" else None
        self.vision_tower = Tower(SiglipVision(vision))
        self.multi_modal_projector = Projector(vision["hidden_size"], text["hidden_size"])

    def cache_layout(self) -> list[LayerKind]:
        return self._layers

    def words(self, tokens: mx.array) -> mx.array:
        return scaled(self.body.embed_tokens(tokens))

    def encode(self, media: Sequence[Media]) -> list[Features]:
        pixels = mx.array(np.concatenate([own.pixels for own in media]))
        return [Features(own) for own in self.multi_modal_projector(self.vision_tower.vision_model(pixels))]

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        return capped(super().forward(inputs, cache, at), self._cap)
