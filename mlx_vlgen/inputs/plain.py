"""Pictures of one fixed size: resized, cropped, normalised, as the processors of CLIP and SigLIP do it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UnsupportedError
from .files import MOST_SIDE
from .images import normalize, resize
from .media import load_image
from .prompt import MediaInputs


@dataclass(frozen=True)
class PlainSettings:
    """As a preprocessor_config.json has it. size: (height, width) of the result; shortest_edge: instead, the shorter
    side after resizing; crop: (height, width) that is then cut from the middle, or None."""

    size: tuple[int, int] | None
    shortest_edge: int | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling

    @classmethod
    def read(
        cls, own: Mapping[str, Any], side: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> "PlainSettings":
        """What the file leaves out: `side`, of the vision tower, and the family's own mean and deviation."""
        size, crop = _pair(own.get("size"), side), _pair(own.get("crop_size"), side)
        size_given = own.get("size")
        edge = size_given.get("shortest_edge") if isinstance(size_given, Mapping) else None
        if edge and edge > MOST_SIDE:
            raise ValueError(f"shortest_edge = {edge}; expected at most {MOST_SIDE} pixels")
        return cls(
            size=None if edge else size,
            shortest_edge=edge,
            crop=crop if own.get("do_center_crop", edge is not None) else None,
            mean=tuple(own.get("image_mean") or mean),
            std=tuple(own.get("image_std") or std),
            resample=Image.Resampling(own.get("resample", Image.Resampling.BICUBIC)),
        )


SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


def _pair(size: Any, side: int) -> tuple[int, int]:
    """(height, width) from a number, or from a dictionary of any release."""
    if isinstance(size, Mapping):
        return size.get("height", side), size.get("width", side)
    return (side, side) if size is None else (size, size)


def plain_pixels(image: Image.Image, settings: PlainSettings) -> np.ndarray:
    """A picture -> (3, height, width) float32. Source: transformers' CLIPImageProcessor, SiglipImageProcessor."""
    if settings.shortest_edge:
        scale = settings.shortest_edge / min(image.size)
        longer = int(settings.shortest_edge * max(image.size) / min(image.size))
        size = (settings.shortest_edge, longer) if image.width >= image.height else (longer, settings.shortest_edge)
        image = resize(image, size, settings.resample) if scale != 1 else image
    elif settings.size:
        image = resize(image, settings.size, settings.resample)
    pixels = np.asarray(image)
    if settings.crop:
        pixels = center_crop(pixels, settings.crop)
    return normalize(pixels, settings.mean, settings.std).transpose(2, 0, 1)


def center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> the middle of it; black is added where it is smaller."""
    for axis, length in enumerate(size):
        lacking = max(0, length - pixels.shape[axis])
        before = -(-lacking // 2)
        pads = [(0, 0)] * 3
        pads[axis] = before, lacking - before
        pixels = np.pad(pixels, pads)
        start = (pixels.shape[axis] - length) // 2
        pixels = pixels[start : start + length] if axis == 0 else pixels[:, start : start + length]
    return pixels


def open_picture(source: Any, media: MediaInputs, resample: Image.Resampling) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, resized to `resize_shape` where that is given, and its original (height, width)."""
    image = load_image(source)
    original = image.height, image.width
    return (resize(image, media.resize_shape, resample) if media.resize_shape else image), original


def fixed_picture(source: Any, media: MediaInputs, settings: PlainSettings) -> tuple[np.ndarray, tuple[int, int]]:
    """One square as (1, 3, height, width), and the picture's original (height, width)."""
    refuse_pixel_bounds(media)
    image, original = open_picture(source, media, settings.resample)
    return plain_pixels(image, settings)[np.newaxis], original


def refuse_pixel_bounds(media: MediaInputs) -> None:
    """UnsupportedError for a family whose pictures have sizes of their own."""
    for name in ("min_pixels", "max_pixels"):
        if getattr(media, name) is not None:
            raise UnsupportedError(f"{name}: this model resizes every picture to a size of its own; leave it out")
