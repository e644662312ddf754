"""Gemma 3's processor: one square picture, between tokens that say where it begins and ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import LoadError
from .plain import SIGLIP_MEAN, SIGLIP_STD, PlainSettings, fixed_picture
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import Media, MediaInputs, Span


class Gemma3Processor(Processor):
    """Source: transformers' Gemma3Processor and Gemma3ImageProcessor. count: features of a picture."""

    placeholders: Mapping[Kind, str] = {"image": "<start_of_image>"}
    feature_tokens: Mapping[Kind, str] = {"image": "<image_soft_token>"}

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: PlainSettings, count: int):
        super().__init__(tokenizer, chat_template)
        self.pictures, self.count = pictures, count

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "Gemma3Processor":
        tokenizer, own = load_tokenizer(folder), read_settings(folder).image
        if own.get("do_pan_and_scan"):
            raise LoadError(
                f"{folder}: preprocessor_config.json asks for crops of thin pictures (do_pan_and_scan), which are not "
                "made here: set it to false to see every picture whole, as Gemma 3 was published"
            )
        side = config["vision_config"].get("image_size", 224)
        pictures = PlainSettings.read({"resample": Image.Resampling.BILINEAR, **own}, side, SIGLIP_MEAN, SIGLIP_STD)
        return cls(tokenizer, load_template(folder, tokenizer), pictures, config.get("mm_tokens_per_image", 256))

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        pixels, original = fixed_picture(source, media, self.pictures)
        text = f"\n\n{self.placeholders[kind]}{self.feature_tokens[kind] * self.count}<end_of_image>\n\n"
        return Expansion(text, (self.count,), pixels, (), original)

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        return tuple(span for own in media for span in own.spans)
