"""Pictures to pixels: sizes, resizing, normalising, patches. numpy and Pillow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import MediaError
from .prompt import MediaInputs

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

MAX_ASPECT = 200
"""Qwen's bound on the longer side over the shorter one."""

MOST_PIXELS = 1 << 27
"""Of a picture as a model takes it: 1.6 GB as floats."""

MANY_TOKENS, MANY_VIDEO_TOKENS = 4096, 16384
"""A picture, or a video, that becomes more tokens than this is worth a word; published settings bound most below."""


@dataclass(frozen=True)
class PixelSettings:
    """How a family makes pixels, as its preprocessor_config.json has it.

    min_pixels, max_pixels: bounds of a picture's area, or of a whole video's volume. patch: size of a patch in
    pixels; merge: patches a side that become one token; frames: frames that make one patch in time.
    """

    min_pixels: int
    max_pixels: int
    patch: int
    merge: int = 2
    frames: int = 2
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: Image.Resampling = Image.Resampling.BICUBIC

    @property
    def factor(self) -> int:
        """A processed side is a multiple of this many pixels: one token."""
        return self.patch * self.merge


def picture_size(height: int, width: int, settings: PixelSettings) -> tuple[int, int]:
    """The (height, width) a picture is resized to: multiples of a token, area within bounds, aspect kept nearly.

    Source: transformers' Qwen2VLImageProcessor.smart_resize.
    """
    check_aspect(height, width)
    factor, most, least = settings.factor, settings.max_pixels, settings.min_pixels
    to_height, to_width = round(height / factor) * factor, round(width / factor) * factor
    if to_height * to_width > most:
        return shrink(height, width, math.sqrt(height * width / most), factor)
    if to_height * to_width < least:
        return grow(height, width, math.sqrt(least / (height * width)), factor)
    return to_height, to_width


def video_size(frames: int, height: int, width: int, settings: PixelSettings) -> tuple[int, int]:
    """The (height, width) of a video's frames: as a picture's, but the bounds are of frames * height * width.

    Source: transformers' Qwen3VLVideoProcessor.smart_resize, which refuses a video of less frames than one patch in
    time has; here they are repeated until they fill it.
    """
    frames = max(frames, settings.frames)
    factor, most, least = settings.factor, settings.max_pixels, settings.min_pixels
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    check_aspect(height, width)
    to_height, to_width = round(height / factor) * factor, round(width / factor) * factor
    volume = round(frames / settings.frames) * settings.frames * to_height * to_width
    if volume > most:
        return shrink(height, width, math.sqrt(frames * height * width / most), factor)
    if volume < least:
        return grow(height, width, math.sqrt(least / (frames * height * width)), factor)
    return to_height, to_width


def pixel_bounds(media: MediaInputs, least: int, most: int, frames: int = 1) -> tuple[int, int]:
    """The request's own bounds, which are of one picture or frame, in the place of a processor's `least` and `most`,
    which for a video are of all its frames. One that was not given yields to the other."""
    least = least if media.min_pixels is None else media.min_pixels * frames
    most = most if media.max_pixels is None else media.max_pixels * frames
    if media.min_pixels is None:
        least = min(least, most)
    if media.max_pixels is None:
        most = max(least, most)
    if not 0 < least <= most:
        raise ValueError(
            f"min_pixels={media.min_pixels}, max_pixels={media.max_pixels}: expected 0 < min_pixels <= max_pixels"
        )
    return least, most


def check_aspect(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise MediaError(
            f"a picture of {width} x {height} pixels is too thin: one side may be at most {MAX_ASPECT} times "
            "the other; crop it, or give resize_shape=(height, width)"
        )


def shrink(height: int, width: int, by: float, factor: int) -> tuple[int, int]:
    return max(factor, math.floor(height / by / factor) * factor), max(factor, math.floor(width / by / factor) * factor)


def grow(height: int, width: int, by: float, factor: int) -> tuple[int, int]:
    return math.ceil(height * by / factor) * factor, math.ceil(width * by / factor) * factor


def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """size: (height, width). MediaError for more pixels than any model takes: Pillow would ask for memory in blocks
    until there is none."""
    if math.prod(size) > MOST_PIXELS:
        raise MediaError(
            f"a picture would become {size[1]} x {size[0]} pixels; expected at most {MOST_PIXELS:,} in all. Give a "
            "smaller resize_shape or min_pixels, or correct the checkpoint's preprocessor_config.json"
        )
    return image if image.size == size[::-1] else image.resize(size[::-1], resample)


def normalize(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 levels (..., 3) to float32: (level / 255 - mean) / std."""
    scale = (1 / (255 * np.asarray(std))).astype(np.float32)
    shift = (np.asarray(mean) / np.asarray(std)).astype(np.float32)
    return pixels.astype(np.float32) * scale - shift


def patchify(frames: np.ndarray, settings: PixelSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
    """frames (T, H, W, C), resized -> patches (N, C * t * patch * patch) and their grid (frames, rows, columns).

    The last frame is repeated until they fill whole patches in time (a picture is one frame, so it stands twice).
    The merge x merge patches that become one token lie together, tokens in reading order.
    Source: transformers' Qwen2VLImageProcessor and Qwen3VLVideoProcessor, `patchify`.
    """
    t, patch, merge = settings.frames, settings.patch, settings.merge
    frames = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % t, axis=0)])
    count, height, width, channels = frames.shape
    grid = count // t, height // patch, width // patch
    parts = frames.reshape(
        grid[0], t, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, channels
    )  # (T, t, rows, m, p, columns, m, p, C)
    parts = parts.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return parts.reshape(math.prod(grid), -1), grid
