"""Llama 4's processor: an image, padded, as rows and columns of square tiles, and once more as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError
from .fixed_size import read_size
from .images import ImageSettings, Size, read_colors, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .tiles import cut_tiles, smallest_upscaling

FEATURE = "<|patch|>"


@dataclass(frozen=True)
class PaddedTileSettings(ImageSettings):
    """Images in square tiles, with black on the right and below. tile: its side in pixels; max_tiles: of an image."""

    tile: int
    max_tiles: int

    @classmethod
    def read(cls, settings: Mapping[str, Any], side: int) -> Self:
        """side: of the tiles that the tower takes."""
        if (size := read_size(settings.get("size"), side)) != (side, side):
            raise LoadError(
                f"This checkpoint's processor makes tiles of {size} pixels, and its tower takes {side} x {side}; "
                "expected the same square."
            )
        if settings.get("resize_to_max_canvas"):
            raise LoadError(
                "preprocessor_config.json asks for the largest canvas (resize_to_max_canvas), which is not computed "
                "here: set it to false, as checkpoints are published"
            )
        colors = read_colors(settings, resample=Image.Resampling.BILINEAR)
        return cls(tile=side, max_tiles=settings.get("max_patches") or 16, **colors)

    def grid(self, height: int, width: int) -> Size:
        """Rows and columns of tiles of an image."""
        return smallest_upscaling(height, width, self.tile, self.max_tiles)

    def tiles(self, image: Image.Image, grid: Size) -> np.ndarray:
        """An image -> its tiles in reading order, (T, H, W, 3) uint8. Only those smaller than a tile are enlarged."""
        canvas = grid[0] * self.tile, grid[1] * self.tile
        bounds = [
            min(max(side, self.tile), full) for side, full in zip((image.height, image.width), canvas, strict=True)
        ]
        down, across = bounds[0] / image.height, bounds[1] / image.width
        if across < down:
            size = min(floor(image.height * across), bounds[0]), bounds[1]
        else:
            size = bounds[0], min(floor(image.width * down), bounds[1])
        levels = np.asarray(self.resize(image, (max(size[0], 1), max(size[1], 1))))
        missing = [(0, full - side) for full, side in zip(canvas, levels.shape[:2], strict=True)]
        return cut_tiles(np.pad(levels, [*missing, (0, 0)]), self.tile)

    def tiles_and_whole(self, image: Image.Image, grid: Size) -> np.ndarray:
        """The same, and then the whole image as one, where there are several."""
        tiles = self.tiles(image, grid)
        if len(tiles) == 1:
            return tiles
        return np.concatenate([tiles, np.asarray(self.resize(image, (self.tile, self.tile)))[None]])


@dataclass(eq=False, repr=False)
class Llama4Processor(Processor):
    """Source: transformers' Llama4Processor, and Llama4ImageProcessor, which normalises in bfloat16: half a level apart
    from float32, in which all pixels are normalised here. tile_tokens: tokens of a tile."""

    image_settings: PaddedTileSettings
    tile_tokens: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|image|>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"image": FEATURE}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        side, patch = vision.get("image_size", 448), vision.get("patch_size", 14)
        tokens = int(side // patch * vision.get("pixel_shuffle_ratio", 0.5)) ** 2
        return {"image_settings": PaddedTileSettings.read(settings.image, side), "tile_tokens": tokens}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        settings = self.image_settings
        image, original = settings.load(source, media)
        rows, columns = grid = settings.grid(image.height, image.width)
        counts = (self.tile_tokens,) * (rows * columns + (rows * columns > 1))
        remedy = "a smaller `max_patches` in preprocessor_config.json makes it less"
        self.check_count(kind, original, sum(counts), remedy)
        features = FEATURE * self.tile_tokens
        line = "<|tile_x_separator|>".join([features] * columns) + "<|tile_y_separator|>"
        tiles = line * rows if rows * columns > 1 else ""
        text = f"<|image_start|>{tiles}{self.placeholders[kind]}{features}<|image_end|>"
        pixels = settings.tiles_and_whole(image, grid)
        return Expansion(text, counts, pixels, (), original, normalization=settings.normalization)
