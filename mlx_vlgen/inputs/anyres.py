"""Pictures of any shape as one square that shows the whole and squares that are its tiles, for towers of one size.

Source: LLaVA-NeXT (llava-vl.github.io/blog/2024-01-30-llava-next); transformers' LlavaNextImageProcessor.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MediaError
from .images import resize
from .plain import PlainSettings, plain_pixels

Size = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True)
class AnyRes:
    """square: how each square is processed; canvases: sizes that a picture may be laid out on, whole tiles each;
    patches: of one side of a square."""

    square: PlainSettings
    canvases: Sequence[Size]
    patches: int

    @classmethod
    def read(
        cls,
        own: Mapping[str, Any],
        config: Mapping[str, Any],
        canvases: Sequence[Size],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> "AnyRes":
        """From a preprocessor_config.json; what it leaves out, from config.json, and the family's own."""
        vision = config["vision_config"]
        given = own.get("image_grid_pinpoints") or config.get("image_grid_pinpoints") or canvases
        return cls(
            PlainSettings.read(own, vision["image_size"], mean, std),
            [(height, width) for height, width in given],
            vision["image_size"] // vision["patch_size"],
        )

    @property
    def base(self) -> Size:
        """The size at which the whole picture is seen."""
        edge = self.square.shortest_edge or 0
        return self.square.size or (edge, edge)

    def canvas(self, size: Size) -> Size:
        """The canvas on which most of a picture of `size` is kept, and of those the one with the least room left."""
        height, width = size

        def merit(canvas: Size) -> Size:
            scale = min(canvas[1] / width, canvas[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - canvas[0] * canvas[1]

        best = max(self.canvases, key=merit)
        if merit(best)[0] == 0:
            raise MediaError(
                f"a picture of {width} x {height} pixels is too thin for this model: crop it, or give "
                "resize_shape=(height, width)"
            )
        return best

    def layout(self, size: Size) -> tuple[int, int, int, int]:
        """How a picture of `size` is laid out: rows and columns of tiles, and the rows and columns of patches, from
        the middle, that hold it; the others are padding."""
        height, width = size
        side = (self.square.crop or self.base)[0]
        canvas = self.canvas(size)
        rows, columns = canvas[0] // side, canvas[1] // side
        down, across = rows * self.patches, columns * self.patches
        # Rounding to 7 digits keeps a product that is whole but for a last bit from being cut to one less.
        if width / height > across / down:
            kept = int(round(height * (across / width), 7))
            return rows, columns, down - (down - kept) // 2 * 2, across
        kept = int(round(width * (down / height), 7))
        return rows, columns, down, across - (across - kept) // 2 * 2

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(1 + tiles, 3, side, side) float32: the whole picture, out of shape, and its tiles, row by row."""
        canvas = self.canvas((image.height, image.width))
        whole = resize(image, self.base, self.square.resample)
        fitted = np.asarray(resize(image, fitting((image.height, image.width), canvas), self.square.resample))
        top, left = (canvas[0] - fitted.shape[0]) // 2, (canvas[1] - fitted.shape[1]) // 2
        padded = np.zeros((*canvas, 3), np.uint8)
        padded[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
        side = (self.square.crop or self.base)[0]
        tiles = [
            Image.fromarray(padded[y : y + side, x : x + side])
            for y in range(0, canvas[0], side)
            for x in range(0, canvas[1], side)
        ]
        return np.stack([plain_pixels(square, self.square) for square in (whole, *tiles)])


def fitting(size: Size, canvas: Size) -> Size:
    """The largest size of that shape inside `canvas`, rounded up."""
    (height, width), (rows, columns) = size, canvas
    if columns / width < rows / height:
        return min(math.ceil(height * (columns / width)), rows), columns
    return rows, min(math.ceil(width * (rows / height)), columns)
