"""Images of one fixed size: resized and cropped, as the processors of CLIP and SigLIP do it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from .files import MAX_SIDE
from .images import Color, ImageSettings, Size, read_colors, refuse_pixel_bounds
from .prompt import MediaInputs


@dataclass(frozen=True)
class FixedSizeSettings(ImageSettings):
    """As a preprocessor_config.json has it. size: (height, width) of the result; shortest_edge: instead, the shorter
    side after resizing; crop: (height, width) that is then cut from the middle, or None."""

    size: Size | None
    shortest_edge: int | None
    crop: Size | None

    @classmethod
    def read(cls, settings: Mapping[str, Any], side: int, mean: Color, std: Color) -> Self:
        """side, mean, std: of the vision tower and the family, where the file leaves them out."""
        size = settings.get("size")
        edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
        if edge and edge > MAX_SIDE:
            raise ValueError(f"shortest_edge = {edge}; expected at most {MAX_SIDE} pixels")
        return cls(
            size=None if edge else read_size(size, side),
            shortest_edge=edge,
            crop=read_size(settings.get("crop_size"), side)
            if settings.get("do_center_crop", edge is not None)
            else None,
            **read_colors(settings, mean, std),
        )

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(height, width, 3) uint8. Source: transformers' CLIPImageProcessor, SiglipImageProcessor."""
        if self.shortest_edge:
            longer = int(self.shortest_edge * max(image.size) / min(image.size))
            wide = image.width >= image.height
            image = self.resize(image, (self.shortest_edge, longer) if wide else (longer, self.shortest_edge))
        elif self.size:
            image = self.resize(image, self.size)
        levels = np.asarray(image)
        return center_crop(levels, self.crop) if self.crop else levels

    def load_pixels(self, source: Any, media: MediaInputs) -> tuple[np.ndarray, Size]:
        """One image as (1, height, width, 3) uint8, and its original size."""
        refuse_pixel_bounds(media)
        image, original = self.load(source, media)
        return self.pixels(image)[np.newaxis], original

    def video_pixels(self, frames: np.ndarray, media: MediaInputs) -> np.ndarray:
        """frames: uint8 (T, height, width, 3) -> the same, of the fixed size."""
        return np.stack([self.pixels(image) for image in self.frame_images(frames, media)])


def read_size(size: Any, side: int) -> Size:
    """(height, width) from a number, or from a dictionary of any release."""
    if isinstance(size, Mapping):
        return size.get("height", side), size.get("width", side)
    return (side, side) if size is None else (size, size)


def center_crop(levels: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) -> the middle of it; black is added where it is smaller."""
    for axis, length in enumerate(size):
        missing = max(0, length - levels.shape[axis])
        before = -(-missing // 2)
        padding = [(0, 0)] * 3
        padding[axis] = before, missing - before
        levels = np.pad(levels, padding)
        start = (levels.shape[axis] - length) // 2
        levels = levels[start : start + length] if axis == 0 else levels[:, start : start + length]
    return levels
