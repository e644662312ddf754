"""Pixtral's and Mistral 3's processor: images of any size, one token a square of patches, row by row."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .images import CLIP_MEAN, CLIP_STD, ImageSettings, Size, grow, pixel_bounds, read_colors, shrink
from .kinds import KINDS
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs


@dataclass(frozen=True)
class PixtralImageSettings(ImageSettings):
    """max_size: (height, width) that an image is shrunk into. token: side of the square that becomes one token, in
    pixels. multiple: what its sides are multiples of, where that is another number."""

    max_size: Size
    token: int
    multiple: int | None = None

    @property
    def factor(self) -> int:
        return self.token if self.multiple is None else self.multiple


@dataclass(eq=False, repr=False)
class PixtralProcessor(Processor):
    """Source: transformers' PixtralProcessor and PixtralImageProcessor. row_end, end, image: tokens."""

    image_settings: PixtralImageSettings
    row_end: str
    end: str
    image: str

    def __post_init__(self) -> None:
        self.placeholders: Mapping[Kind, str] = {"image": self.image}  # type: ignore[misc]  # its name is in a file

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        processor = settings.processor
        size = settings.image.get("size") or {"longest_edge": 1024}
        longest = size.get("longest_edge")
        patch = processor.get("patch_size", config["vision_config"].get("patch_size", 16))
        # Only Mistral 3 merges patches, and always says so: by its type, if not in a file.
        default = config.get("spatial_merge_size", 2 if config["model_type"] == "mistral3" else 1)
        return {
            "image_settings": PixtralImageSettings(
                max_size=(longest, longest) if longest else (size["height"], size["width"]),
                token=patch * processor.get("spatial_merge_size", default),
                **read_colors(settings.image, CLIP_MEAN, CLIP_STD),
            ),
            "row_end": processor.get("image_break_token", "[IMG_BREAK]"),
            "end": processor.get("image_end_token", "[IMG_END]"),
            "image": processor.get("image_token", "[IMG]"),
        }

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        settings = self.image_settings
        image, original = settings.load(source, media)
        size = image_size(image.height, image.width, settings, media)
        rows, columns = size[0] // settings.token, size[1] // settings.token
        many = KINDS["image"].many_tokens
        remedy = f"max_pixels (--max-pixels) makes it smaller: {many * settings.token**2} gives {many:,}"
        self.check_count(kind, original, rows * columns, remedy)
        pixels = np.asarray(settings.resize(image, size))[np.newaxis]
        text = self.row_end.join([self.placeholders[kind] * columns] * rows) + self.end
        counts = (columns,) * rows if self.row_end else (rows * columns,)
        return Expansion(text, counts, pixels, (), original, normalization=settings.normalization)


def image_size(height: int, width: int, settings: PixtralImageSettings, media: MediaInputs) -> Size:
    """The (height, width) an image is resized to: shrunk to `settings.max_size` where it is larger, then enlarged to
    multiples of `settings.factor`. Bounds of the request change it further, its aspect kept; where not both hold, the
    upper does."""
    by = max(height / settings.max_size[0], width / settings.max_size[1], 1)
    if by > 1:
        height, width = max(1, math.floor(height / by)), max(1, math.floor(width / by))
    size = grow(height, width, 1.0, settings.factor)
    min_pixels, max_pixels = pixel_bounds(media, 1, sys.maxsize)
    if math.prod(size) > max_pixels:
        return shrink(height, width, math.sqrt(height * width / max_pixels), settings.factor)
    if math.prod(size) < min_pixels:
        larger = grow(height, width, math.sqrt(min_pixels / (height * width)), settings.factor)
        return larger if math.prod(larger) <= max_pixels else size
    return size
