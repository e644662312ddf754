"""LLaVA's processor: one square picture, one token a patch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .plain import PlainSettings, open_picture, plain_pixels, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class LlavaProcessor(Processor):
    """Source: transformers' LlavaProcessor and CLIPImageProcessor. count: features of a picture."""

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: PlainSettings, count: int):
        super().__init__(tokenizer, chat_template)
        self.placeholders: Mapping[Kind, str] = {"image": "<image>"}
        self.pictures, self.count = pictures, count

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "LlavaProcessor":
        tokenizer, vision = load_tokenizer(folder), config["vision_config"]
        settings = read_settings(folder)
        pictures = PlainSettings.read(settings.image, vision["image_size"], CLIP_MEAN, CLIP_STD)
        rows, columns = (side // vision["patch_size"] for side in pictures.crop or pictures.size or (0, 0))
        whole = config.get("vision_feature_select_strategy", "default") == "full"
        return cls(tokenizer, load_template(folder, tokenizer), pictures, rows * columns + whole)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        image, original = open_picture(source, media, self.pictures.resample)
        pixels = plain_pixels(image, self.pictures)[np.newaxis]
        return Expansion(self.placeholders[kind] * self.count, (self.count,), pixels, (), original)
