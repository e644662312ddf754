"""PaliGemma and PaliGemma 2: SigLIP, one linear layer, and Gemma or Gemma 2 that reads the whole prompt both ways.

Source: Beyer et al. 2024 (arXiv 2407.07726) and Steiner et al. 2024 (arXiv 2412.03555); transformers'
PaliGemmaForConditionalGeneration. It counts positions from 1, which is all the same to rotary ones.
"""

from collections.abc import Sequence
from typing import Any

from .._runtime import mx, nn
from ..inputs.prompt import Media
from .base import Features
from .llava import Llava
from .vision_language import VisionLanguageModel, encode_tiles
from .vit import SiglipVision, SiglipVisionConfig, Tower


class Projector(nn.Module):
    def __init__(self, vision: int, text: int):
        super().__init__()
        self.linear = nn.Linear(vision, text)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x)


class PaliGemma(VisionLanguageModel):
    renames = Llava.renames
    within_window = False
    scales_logits = True
    text_types = ("gemma", "gemma2")

    def __init__(self, config: dict[str, Any]):
        # Two-way attention comes from the prompt's spans.
        text = {"model_type": "gemma"} | config["text_config"] | {"use_bidirectional_attention": None}
        super().__init__(config, text)
        vision = SiglipVisionConfig.from_dict(config["vision_config"])
        self.vision_tower = Tower(SiglipVision(vision))
        self.multi_modal_projector = Projector(vision.hidden_size, self.hidden_size)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        tower = self.vision_tower.vision_model
        return encode_tiles(media, lambda tiles: self.multi_modal_projector(tower(tiles)))
