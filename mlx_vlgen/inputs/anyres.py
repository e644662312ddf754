"""Images of any shape as one square that shows the whole and squares that are its tiles, for towers of one size.

Source: LLaVA-NeXT (llava-vl.github.io/blog/2024-01-30-llava-next); transformers' LlavaNextImageProcessor.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from ..errors import MediaError
from .fixed_size import FixedSizeSettings
from .images import Color, Size
from .tiles import cut_tiles


@dataclass(frozen=True)
class AnyRes:
    """square: how each square is processed; canvases: sizes that an image may be laid out on, whole tiles each;
    patches: of one side of a square."""

    square: FixedSizeSettings
    canvases: Sequence[Size]
    patches: int

    @classmethod
    def read(
        cls,
        settings: Mapping[str, Any],
        config: Mapping[str, Any],
        canvases: Sequence[Size],
        mean: Color,
        std: Color,
    ) -> Self:
        """From a preprocessor_config.json; what it leaves out, from config.json and the family."""
        vision = config["vision_config"]
        pinpoints = settings.get("image_grid_pinpoints") or config.get("image_grid_pinpoints") or canvases
        return cls(
            FixedSizeSettings.read(settings, vision["image_size"], mean, std),
            [(height, width) for height, width in pinpoints],
            vision["image_size"] // vision["patch_size"],
        )

    @property
    def whole_size(self) -> Size:
        """The size at which the whole image is seen."""
        edge = self.square.shortest_edge or 0
        return self.square.size or (edge, edge)

    @property
    def side(self) -> int:
        """Of a tile, in pixels."""
        return (self.square.crop or self.whole_size)[0]

    def canvas(self, size: Size) -> Size:
        """The canvas on which an image of `size` keeps most of its pixels, of several the one with least padding."""
        height, width = size

        def merit(canvas: Size) -> tuple[int, int]:
            scale = min(canvas[1] / width, canvas[0] / height)
            pixels = min(int(width * scale) * int(height * scale), width * height)
            return pixels, pixels - canvas[0] * canvas[1]

        best = max(self.canvases, key=merit)
        if merit(best)[0] == 0:
            raise MediaError(
                f"a picture of {width} x {height} pixels is too thin for this model: crop it, or give "
                "resize_shape=(height, width)"
            )
        return best

    def layout(self, size: Size) -> tuple[int, int, int, int]:
        """How an image of `size` is laid out: rows and columns of tiles, and the rows and columns of patches, from
        the middle, that hold it; the others are padding."""
        height, width = size
        canvas = self.canvas(size)
        rows, columns = canvas[0] // self.side, canvas[1] // self.side
        patch_rows, patch_columns = rows * self.patches, columns * self.patches
        # Rounding to 7 digits keeps a product that is whole but for a last bit from being cut to one less.
        if width / height > patch_columns / patch_rows:
            used = int(round(height * (patch_columns / width), 7))
            return rows, columns, patch_rows - (patch_rows - used) // 2 * 2, patch_columns
        used = int(round(width * (patch_rows / height), 7))
        return rows, columns, patch_rows, patch_columns - (patch_columns - used) // 2 * 2

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(1 + tiles, side, side, 3) uint8: the whole image, its aspect lost, and its tiles, row by row."""
        canvas = self.canvas((image.height, image.width))
        whole = self.square.resize(image, self.whole_size)
        fitted = np.asarray(self.square.resize(image, fitting((image.height, image.width), canvas)))
        top, left = (canvas[0] - fitted.shape[0]) // 2, (canvas[1] - fitted.shape[1]) // 2
        padded = np.zeros((*canvas, 3), np.uint8)
        padded[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
        tiles = [Image.fromarray(tile) for tile in cut_tiles(padded, self.side)]
        return np.stack([self.square.pixels(square) for square in (whole, *tiles)])


def fitting(size: Size, canvas: Size) -> Size:
    """The largest size of that shape inside `canvas`, rounded up."""
    (height, width), (rows, columns) = size, canvas
    if columns / width < rows / height:
        return min(math.ceil(height * (columns / width)), rows), columns
    return rows, min(math.ceil(width * (rows / height)), columns)
