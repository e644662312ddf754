"""Pixtral's and Mistral 3's processor: pictures of any size, one token a square of patches, row by row."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .images import MANY_TOKENS, grow, normalize, pixel_bounds, resize, shrink
from .plain import open_picture
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PixtralSettings:
    """largest: (height, width) that a picture is shrunk into. token: side of the square that becomes one token, in
    pixels."""

    largest: tuple[int, int]
    token: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling


class PixtralProcessor(Processor):
    """Source: transformers' PixtralProcessor and PixtralImageProcessor."""

    def __init__(
        self, tokenizer: Any, chat_template: str | None, pictures: PixtralSettings, row_end: str, end: str, image: str
    ):
        super().__init__(tokenizer, chat_template)
        self.placeholders: Mapping[Kind, str] = {"image": image}
        self.pictures, self.row_end, self.end = pictures, row_end, end

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "PixtralProcessor":
        tokenizer, settings = load_tokenizer(folder), read_settings(folder)
        own, image = settings.own, settings.image
        size = image.get("size") or {"longest_edge": 1024}
        longest = size.get("longest_edge")
        patch = own.get("patch_size", config["vision_config"].get("patch_size", 16))
        # Only Mistral 3 merges patches, and always says so: by its type, if not in a file.
        merge = own.get("spatial_merge_size", config.get("spatial_merge_size", 2 if _merges(config) else 1))
        pictures = PixtralSettings(
            largest=(longest, longest) if longest else (size["height"], size["width"]),
            token=patch * merge,
            mean=tuple(image.get("image_mean") or CLIP_MEAN),
            std=tuple(image.get("image_std") or CLIP_STD),
            resample=Image.Resampling(image.get("resample", Image.Resampling.BICUBIC)),
        )
        return cls(
            tokenizer, load_template(folder, tokenizer), pictures, own.get("image_break_token", "[IMG_BREAK]"),
            own.get("image_end_token", "[IMG_END]"), own.get("image_token", "[IMG]"),
        )  # fmt: skip

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        image, original = open_picture(source, media, self.pictures.resample)
        token = self.pictures.token
        height, width = picture_size(image.height, image.width, self.pictures, media)
        rows, columns = height // token, width // token
        self.check_count(
            kind, original, rows * columns,
            f"max_pixels (--max-pixels) makes it smaller: {MANY_TOKENS * token**2} gives {MANY_TOKENS:,}",
        )  # fmt: skip
        levels = np.asarray(resize(image, (height, width), self.pictures.resample))
        pixels = normalize(levels, self.pictures.mean, self.pictures.std).transpose(2, 0, 1)[np.newaxis]
        row = self.placeholders[kind] * columns
        return Expansion(self.row_end.join([row] * rows) + self.end, (columns,) * rows, pixels, (), original)


def picture_size(height: int, width: int, settings: PixtralSettings, media: MediaInputs) -> tuple[int, int]:
    """The (height, width) a picture is resized to: shrunk to `settings.largest` where it is larger, then enlarged to
    whole tokens. Bounds of a request's own change it further, its aspect kept; where not both hold, the upper does."""
    by = max(height / settings.largest[0], width / settings.largest[1], 1)
    if by > 1:
        height, width = max(1, math.floor(height / by)), max(1, math.floor(width / by))
    size = grow(height, width, 1.0, settings.token)
    least, most = pixel_bounds(media, 1, sys.maxsize)
    if math.prod(size) > most:
        return shrink(height, width, math.sqrt(height * width / most), settings.token)
    if math.prod(size) < least:
        larger = grow(height, width, math.sqrt(least / (height * width)), settings.token)
        return larger if math.prod(larger) <= most else size
    return size


def _merges(config: Mapping[str, Any]) -> bool:
    return config["model_type"] == "mistral3"
