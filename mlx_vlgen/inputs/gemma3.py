"""Gemma 3's processor: one square image, between tokens that say where it begins and ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import LoadError
from .fixed_size import FixedSizeSettings
from .images import SIGLIP_MEAN, SIGLIP_STD
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs, Span


@dataclass(eq=False, repr=False)
class Gemma3Processor(Processor):
    """Source: transformers' Gemma3Processor and Gemma3ImageProcessor. image_tokens: tokens of an image."""

    image_settings: FixedSizeSettings
    image_tokens: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<start_of_image>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"image": "<image_soft_token>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        if settings.image.get("do_pan_and_scan"):
            raise LoadError(
                "preprocessor_config.json asks for crops of thin pictures (do_pan_and_scan), which are not made here: "
                "set it to false to see every picture whole, as Gemma 3 was published"
            )
        side = config["vision_config"].get("image_size", 224)
        image = {"resample": Image.Resampling.BILINEAR, **settings.image}
        return {
            "image_settings": FixedSizeSettings.read(image, side, SIGLIP_MEAN, SIGLIP_STD),
            "image_tokens": config.get("mm_tokens_per_image", 256),
        }

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        pixels, original = self.image_settings.load_pixels(source, media)
        text = f"\n\n{self.placeholders[kind]}{self.feature_tokens[kind] * self.image_tokens}<end_of_image>\n\n"
        normalization = self.image_settings.normalization
        return Expansion(text, (self.image_tokens,), pixels, (), original, normalization=normalization)

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        return tuple(span for image in media for span in image.spans)
