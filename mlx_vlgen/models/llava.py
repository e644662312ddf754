"""LLaVA 1.5: CLIP, a projector of two layers, and a text decoder.

Source: Liu et al. 2023 (arXiv 2310.03744); transformers' LlavaForConditionalGeneration.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .attention import MLP, PROJECTOR
from .base import Features
from .vision_language import VisionLanguageModel, encode_squares
from .vit import Tower, plain_vision


def projector(config: Mapping[str, Any], vision: int, text: int) -> MLP:
    """(..., vision) -> (..., text), the sizes of both parts' states."""
    linear = partial(nn.Linear, bias=config.get("multimodal_projector_bias", True))
    return MLP(vision, text, config.get("projector_hidden_act", "gelu"), PROJECTOR, linear, text)


class Llava(VisionLanguageModel):
    renames = (
        ("vision_tower.vision_model.", "vision_tower.vision_model."),
        ("vision_tower.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.image_newline", "image_newline"),  # of LLaVA-NeXT
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any], text: dict[str, Any] | None = None):
        super().__init__(config, text)
        layer = config.get("vision_feature_layer", -2)
        self._layers = [layer] if isinstance(layer, int) else list(layer)
        self._first = int(config.get("vision_feature_select_strategy", "default") == "default")  # drops the class token
        vision = plain_vision(config["vision_config"])
        self.vision_tower = Tower(vision)
        self.multi_modal_projector = projector(config, vision.hidden_size * len(self._layers), self.hidden_size)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return [Features(image) for image in self.encode_pixels(media)]

    def encode_pixels(self, media: Sequence[Media]) -> mx.array:
        """Features (B, patches, d), for the text decoder, of all B squares that are the media's pixels."""

        def encode(squares: mx.array) -> mx.array:
            states = self.vision_tower.vision_model.states(squares, self._layers)
            return self.multi_modal_projector(mx.concatenate(states, axis=-1)[:, self._first :])

        return encode_squares(media, encode)
