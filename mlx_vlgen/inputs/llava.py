"""LLaVA's processor: one square image, one token a patch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .fixed_size import FixedSizeSettings
from .images import CLIP_MEAN, CLIP_STD
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs


@dataclass(eq=False, repr=False)
class LlavaProcessor(Processor):
    """Source: transformers' LlavaProcessor and CLIPImageProcessor. image_tokens: tokens of an image."""

    image_settings: FixedSizeSettings
    image_tokens: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        image = FixedSizeSettings.read(settings.image, vision["image_size"], CLIP_MEAN, CLIP_STD)
        rows, columns = (side // vision["patch_size"] for side in image.crop or image.size or (0, 0))
        full = config.get("vision_feature_select_strategy", "default") == "full"
        class_token = vision.get("model_type") != "siglip_vision_model"  # which CLIP has, and SigLIP has not
        return {"image_settings": image, "image_tokens": rows * columns + (full and class_token)}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        pixels, original = self.image_settings.load_pixels(source, media)
        text, normalization = self.placeholders[kind] * self.image_tokens, self.image_settings.normalization
        return Expansion(text, (self.image_tokens,), pixels, (), original, normalization=normalization)
