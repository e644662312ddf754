"""Images to pixels: loading, sizes, resizing, normalising, patches. numpy and Pillow."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MediaError, UnsupportedError
from .media import load_image
from .prompt import MediaInputs, Normalization

Size = tuple[int, int]
"""(height, width)."""

Color = tuple[float, ...]
"""Red, green and blue, from 0 to 1."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)

MAX_ASPECT = 200
"""Qwen's bound on the longer side over the shorter one."""

MAX_PIXELS = 1 << 27
"""Of an image as a model takes it: 1.6 GB as floats."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What the settings of every image processor have in common."""

    mean: Color = SIGLIP_MEAN
    std: Color = SIGLIP_STD
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def resize(self, image: Image.Image, size: Size) -> Image.Image:
        return resize(image, size, self.resample)

    @property
    def normalization(self) -> Normalization:
        return Normalization(self.mean, self.std)

    def load(self, source: Any, media: MediaInputs) -> tuple[Image.Image, Size]:
        """An image, resized to `media.resize_shape` where that is given, and its original size."""
        image = load_image(source)
        original = image.height, image.width
        return (self.resize(image, media.resize_shape) if media.resize_shape else image), original

    def frame_images(self, frames: Iterable[np.ndarray], media: MediaInputs) -> Iterator[Image.Image]:
        """The frames of a video as images, resized to `media.resize_shape` where that is given."""
        for frame in frames:
            image = Image.fromarray(frame)
            yield self.resize(image, media.resize_shape) if media.resize_shape else image


def read_colors(
    settings: Mapping[str, Any],
    mean: Color = SIGLIP_MEAN,
    std: Color = SIGLIP_STD,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> dict[str, Any]:
    """The fields of `ImageSettings` in a preprocessor_config.json. mean, std, resample: the family's, where it leaves
    them out. Without `do_normalize` levels go from 0 to 1, whatever it says of their mean."""
    normalized = settings.get("do_normalize", True)
    return {
        "mean": tuple(settings.get("image_mean") or mean) if normalized else (0.0,) * 3,
        "std": tuple(settings.get("image_std") or std) if normalized else (1.0,) * 3,
        "resample": Image.Resampling(settings.get("resample", resample)),
    }


def refuse_pixel_bounds(media: MediaInputs) -> None:
    """UnsupportedError for a family that resizes all images to its sizes."""
    for name in ("min_pixels", "max_pixels"):
        if getattr(media, name) is not None:
            raise UnsupportedError(f"{name}: this model resizes every picture to one size; leave it out")


@dataclass(frozen=True)
class PixelSettings(ImageSettings):
    """How Qwen's and GLM's processors make patches, as a preprocessor_config.json has it.

    min_pixels, max_pixels: bounds of an image's area, or of a whole video's volume. patch: side of a patch in pixels.
    merge: patches a side that become one token. frames: frames that make one patch in time.
    """

    min_pixels: int
    max_pixels: int
    patch: int
    merge: int = 2
    frames: int = 2

    @property
    def factor(self) -> int:
        """A processed side is a multiple of this many pixels: one token."""
        return self.patch * self.merge


def image_size(height: int, width: int, settings: PixelSettings) -> Size:
    """The (height, width) an image is resized to: multiples of a token, area within bounds, aspect kept nearly.

    Source: transformers' Qwen2VLImageProcessor.smart_resize.
    """
    check_aspect(height, width)
    factor, max_pixels, min_pixels = settings.factor, settings.max_pixels, settings.min_pixels
    to_height, to_width = round(height / factor) * factor, round(width / factor) * factor
    if to_height * to_width > max_pixels:
        return shrink(height, width, math.sqrt(height * width / max_pixels), factor)
    if to_height * to_width < min_pixels:
        return grow(height, width, math.sqrt(min_pixels / (height * width)), factor)
    return to_height, to_width


def video_size(frames: int, height: int, width: int, settings: PixelSettings) -> Size:
    """The (height, width) of a video's frames: as an image's, but the bounds are of frames * height * width.

    Source: transformers' Qwen3VLVideoProcessor.smart_resize, which refuses a video of less frames than one patch in
    time has; here they are repeated until they fill it.
    """
    frames = max(frames, settings.frames)
    factor, max_pixels, min_pixels = settings.factor, settings.max_pixels, settings.min_pixels
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    check_aspect(height, width)
    to_height, to_width = round(height / factor) * factor, round(width / factor) * factor
    volume = round(frames / settings.frames) * settings.frames * to_height * to_width
    if volume > max_pixels:
        return shrink(height, width, math.sqrt(frames * height * width / max_pixels), factor)
    if volume < min_pixels:
        return grow(height, width, math.sqrt(min_pixels / (frames * height * width)), factor)
    return to_height, to_width


def pixel_bounds(media: MediaInputs, min_pixels: int, max_pixels: int, frames: int = 1) -> tuple[int, int]:
    """min_pixels and max_pixels of a request, which are of one image or frame, in the place of a processor's, which for
    a video are of all its frames. One that was not given yields to the other."""
    if media.min_pixels is not None:
        min_pixels = media.min_pixels * frames
    if media.max_pixels is not None:
        max_pixels = media.max_pixels * frames
    if media.min_pixels is None:
        min_pixels = min(min_pixels, max_pixels)
    if media.max_pixels is None:
        max_pixels = max(min_pixels, max_pixels)
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(
            f"min_pixels={media.min_pixels}, max_pixels={media.max_pixels}: expected 0 < min_pixels <= max_pixels"
        )
    return min_pixels, max_pixels


def check_aspect(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise MediaError(
            f"a picture of {width} x {height} pixels is too thin: one side may be at most {MAX_ASPECT} times "
            "the other; crop it, or give resize_shape=(height, width)"
        )


def shrink(height: int, width: int, by: float, factor: int) -> Size:
    return max(factor, math.floor(height / by / factor) * factor), max(factor, math.floor(width / by / factor) * factor)


def grow(height: int, width: int, by: float, factor: int) -> Size:
    return math.ceil(height * by / factor) * factor, math.ceil(width * by / factor) * factor


def resize(image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    """size: (height, width)."""
    check_area(size)
    return image if image.size == size[::-1] else image.resize(size[::-1], resample)


def check_area(size: Size) -> None:
    """MediaError for more pixels than any model takes: Pillow would ask for memory in blocks until there is none."""
    if math.prod(size) > MAX_PIXELS:
        raise MediaError(
            f"a picture would become {size[1]} x {size[0]} pixels; expected at most {MAX_PIXELS:,} in all. Give a "
            "smaller resize_shape or min_pixels, or correct the checkpoint's preprocessor_config.json"
        )


def resize_bilinear(levels: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 -> the same of `size`, without smoothing: each new pixel lies between its four nearest old ones.
    Source: torch's `interpolate`, mode "bilinear"."""

    def between(length: int, to: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pixels before and after each new one, and how far it is from the first."""
        source = np.maximum((np.arange(to) + 0.5) * (length / to) - 0.5, 0)
        low = np.minimum(source.astype(int), length - 1)
        return low, np.minimum(low + 1, length - 1), (source - low).astype(np.float32)

    check_area(size)
    (top, bottom, down), (left, right, across) = (between(*sides) for sides in zip(levels.shape[:2], size, strict=True))
    columns = levels[:, left] + across[:, None] * (levels[:, right].astype(np.float32) - levels[:, left])
    rows = columns[top] + down[:, None, None] * (columns[bottom] - columns[top])
    return np.rint(rows).astype(np.uint8)


def patchify(frames: np.ndarray, settings: PixelSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
    """frames (T, H, W, C), resized -> patches (N, t * patch * patch * C) and their grid (frames, rows, columns).

    t: frames of a patch, the last one repeated until they fill it; 1 where there is a single frame, which would fill
    it alone. The merge x merge patches that become one token lie together, tokens in reading order.
    Source: transformers' Qwen2VLImageProcessor and Qwen3VLVideoProcessor, `patchify`; the order inside a patch is ours.
    """
    t, patch, merge = settings.frames if len(frames) > 1 else 1, settings.patch, settings.merge
    if missing := -len(frames) % t:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    count, height, width, channels = frames.shape
    grid = count // t, height // patch, width // patch
    parts = frames.reshape(
        grid[0], t, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch * channels
    )  # (T, t, rows, m, p, columns, m, p * C)
    parts = parts.transpose(0, 2, 5, 3, 6, 1, 4, 7)
    return parts.reshape(math.prod(grid), -1), grid


def channels_first(patches: np.ndarray, settings: PixelSettings) -> np.ndarray:
    """Patches (N, t * patch * patch * 3) as transformers has them: (N, 3 * frames * patch * patch), a single frame as
    often as a patch has frames."""
    parts = patches.reshape(len(patches), -1, settings.patch, settings.patch, 3).transpose(0, 4, 1, 2, 3)
    shape = *parts.shape[:2], settings.frames, *parts.shape[3:]
    return np.broadcast_to(parts, shape).reshape(len(patches), -1)
