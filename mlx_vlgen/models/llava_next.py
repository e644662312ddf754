"""LLaVA-NeXT (LLaVA 1.6): LLaVA that takes a picture whole and in tiles, row by row of patches.

Source: Liu et al. 2024 (llava-vl.github.io/blog/2024-01-30-llava-next); transformers'
LlavaNextForConditionalGeneration.
"""

import math
from collections.abc import Sequence
from typing import Any

from .._runtime import mx
from ..errors import LoadError
from ..inputs.prompt import Media
from .base import Features
from .llava import Llava
from .vit import CLIPVision


class LlavaNext(Llava):
    """`Media.pixels` are the whole picture and then its tiles; for `Media.grid` see `AnyRes.layout`."""

    def __init__(self, config: dict[str, Any], text: dict[str, Any] | None = None):
        super().__init__(config, text)
        # What leaves a square of patches.
        strategy = "default" if isinstance(self.vision_tower.vision_model, CLIPVision) else "full"
        stated = config.get("vision_feature_select_strategy", "default")
        if stated != strategy:
            raise LoadError(
                f"vision_feature_select_strategy is {stated!r}; with this checkpoint's vision tower it is {strategy!r}."
            )
        self.image_newline = mx.zeros(self.hidden_size)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        squares = self.encode_pixels(media)
        squares = squares.reshape(len(media), -1, *squares.shape[1:])  # (media, tiles, patches, d)
        return [Features(self.pack(image, medium.grid)) for image, medium in zip(squares, media, strict=True)]

    def pack(self, squares: mx.array, grid: tuple[int, ...]) -> mx.array:
        """(1 + tiles, patches, d) -> (n, d): the whole picture, then the lines of the tiles."""
        return mx.concatenate([squares[0], end_lines(unpadded(squares[1:], grid), self.image_newline)])


def end_lines(patches: mx.array, newline: mx.array) -> mx.array:
    """(rows, columns, d) -> (rows * (columns + 1), d): `newline` (d,) after each row."""
    rows, columns, size = patches.shape
    ends = mx.broadcast_to(newline, (rows, 1, size))
    return mx.concatenate([patches, ends], axis=1).reshape(rows * (columns + 1), size)


def unpadded(tiles: mx.array, grid: tuple[int, ...]) -> mx.array:
    """(tiles, patches, d) -> (height, width, d): the tiles side by side, and what is no picture cut off.

    grid: (rows, columns) of tiles, and the (height, width) that remain, from the middle.
    """
    rows, columns, height, width = grid[:4]
    side = math.isqrt(tiles.shape[1])
    whole = tiles.reshape(rows, columns, side, side, -1).transpose(0, 2, 1, 3, 4)
    whole = whole.reshape(rows * side, columns * side, -1)
    top, left = (rows * side - height) // 2, (columns * side - width) // 2
    return whole[top : top + height, left : left + width]
