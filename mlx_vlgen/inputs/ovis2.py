"""Ovis2's processor: an image as a whole, and then as rows and columns of square tiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import LoadError
from .images import CLIP_MEAN, CLIP_STD, ImageSettings, read_colors, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .tiles import best_grid, cut_tiles

FEATURE = "<IMG_ATOM>"
MARKS = START, GRID, COLUMN, ROW, END = "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"
COVERED = 0.9
"""The part of an image that tiles should show in full size."""


@dataclass(frozen=True)
class Ovis2ImageSettings(ImageSettings):
    """As a preprocessor_config.json has it. tile: the side of a tile in pixels; min_tiles, max_tiles: of an image;
    covering: whether as few tiles are taken as show most of it in full size, or those nearest to its shape."""

    tile: int
    min_tiles: int
    max_tiles: int
    covering: bool

    @classmethod
    def read(cls, settings: Mapping[str, Any], side: int) -> Self:
        """side: of the tower's images, in pixels. Defaults are transformers' Ovis2ImageProcessor's."""
        size = settings.get("size") or {"height": 384, "width": 384}
        if (size.get("height"), size.get("width")) != (side, side):
            raise LoadError(f"This checkpoint's processor makes tiles of {size}, and its tower takes {side} x {side}.")
        return cls(
            tile=side,
            min_tiles=settings.get("min_patches", 1),
            max_tiles=settings.get("max_patches", 12) if settings.get("crop_to_patches", False) else 1,
            covering=settings.get("use_covering_area_grid", True),
            **read_colors(settings, CLIP_MEAN, CLIP_STD),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image."""
        if self.max_tiles == 1:
            return 1, 1
        if not self.covering:
            return best_grid(height, width, self.tile, self.min_tiles, self.max_tiles)
        return covering_grid(height, width, self.tile, self.max_tiles)

    def cut(self, image: Image.Image, rows: int, columns: int) -> np.ndarray:
        """An image -> the whole and then its tiles in reading order, (T, tile, tile, 3) uint8; the whole alone where it
        is one tile."""
        tile = self.tile
        whole = np.asarray(self.resize(image, (tile, tile)))[None]
        if rows * columns == 1:
            return whole
        tiles = cut_tiles(np.asarray(self.resize(image, (rows * tile, columns * tile))), tile)
        return np.concatenate([whole, tiles])


def covering_grid(height: int, width: int, tile: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns): of all grids of at most `max_tiles` the smallest whose regions of the image, each shrunk until
    its longer side fits a tile, keep nine tenths of its area; else the one that keeps most.

    Regions are those of a grid with rows and columns exchanged, as in transformers' Ovis2ImageProcessor.
    """

    def kept(rows: int, columns: int) -> float:
        """The part of the area that is kept."""
        heights = [height // rows] * (rows - 1) + [height - height // rows * (rows - 1)]
        widths = [width // columns] * (columns - 1) + [width - width // columns * (columns - 1)]
        area = 0.0
        for region_height in heights:
            for region_width in widths:
                longer, shorter = max(region_height, region_width), min(region_height, region_width)
                area += tile * (shorter / longer * tile) if longer > tile else longer * shorter
        return area / (height * width)

    sides = range(1, max_tiles + 1)
    grids = sorted(
        ((rows, columns) for columns in sides for rows in sides if rows * columns <= max_tiles),
        key=lambda grid: grid[0] * grid[1],
    )
    parts = {(rows, columns): kept(columns, rows) for rows, columns in grids}
    if enough := [grid for grid in grids if parts[grid] > COVERED]:
        return min(enough, key=lambda grid: (grid[0] * grid[1], -parts[grid]))
    return min(grids, key=lambda grid: (-parts[grid], grid[0] * grid[1]))


@dataclass(eq=False, repr=False)
class Ovis2Processor(Processor):
    """Source: transformers' Ovis2Processor. tile_tokens: tokens of a tile."""

    image_settings: Ovis2ImageSettings
    tile_tokens: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"image": FEATURE}
    marks: ClassVar[Sequence[str]] = MARKS

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        side, stride = vision.get("image_size", 224), vision.get("hidden_stride", 1)
        return {
            "image_settings": Ovis2ImageSettings.read(settings.image, side),
            "tile_tokens": (side // vision.get("patch_size", 14) // stride) ** 2,
        }

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        image, original = self.image_settings.load(source, media)
        rows, columns = self.image_settings.grid(image.height, image.width)
        counts = (self.tile_tokens,) * (1 if rows * columns == 1 else 1 + rows * columns)
        self.check_count(
            kind, original, sum(counts), "a smaller `max_patches` in preprocessor_config.json makes it less"
        )
        atoms = FEATURE * self.tile_tokens
        tiles = ROW.join([COLUMN.join([atoms] * columns)] * rows) if rows * columns > 1 else ""
        pixels, normalization = self.image_settings.cut(image, rows, columns), self.image_settings.normalization
        text = f"{START}{atoms}{GRID}{tiles}{END}"
        return Expansion(text, counts, pixels, (), original, normalization=normalization)
