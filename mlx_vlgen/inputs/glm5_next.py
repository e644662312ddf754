"""The processor of GLM-5.3-Flash: GLM-4.6V's, whose pictures are filled up to whole tokens and not stretched."""

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MediaError
from .glm4v import Glm4vProcessor, due_frames
from .images import PixelSettings, Size, pixel_bounds
from .processor import ProcessorSettings
from .prompt import MediaInputs
from .qwen_vl import bounded
from .video import Sampler


@dataclass(eq=False, repr=False)
class Glm5NextProcessor(Glm4vProcessor):
    """max_frames: of a video. max_duration: 0 for any.

    Source: transformers' Glm5NextProcessor, Glm5NextImageProcessor and Glm5NextVideoProcessor.
    """

    max_frames: int = field(default=2048, kw_only=True)

    # Of tokens: their files have no bounds of pixels.
    image_bounds = (16, 8000)
    video_bounds = (16, 240000)
    duration = 0

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return super().read_fields(settings, config) | {
            "paced": True,
            "max_frames": settings.video.get("max_frames") or 2048,
        }

    @classmethod
    def _read(cls, settings: Mapping[str, Any], vision: Mapping[str, Any], bounds: tuple[int, int]) -> PixelSettings:
        if settings.get("patch_expand_factor", 1) != 1:
            raise ValueError("patch_expand_factor: tokens of more patches than merge_size says are not made here")
        bare = {key: value for key, value in settings.items() if key not in ("size", "min_pixels", "max_pixels")}
        read = super()._read(bare, vision, bounds)
        volume = read.frames * read.factor**2
        return replace(
            read,
            min_pixels=settings.get("min_image_tokens", bounds[0]) * volume,
            max_pixels=settings.get("max_image_tokens", bounds[1]) * volume,
        )

    def image_size(self, height: int, width: int, media: MediaInputs) -> Size:
        settings = self.image_settings
        return filled_size(settings.frames, height, width, self._bounded(settings, media, settings.frames))

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> Size:
        return filled_size(frames, height, width, self._bounded(self.video_settings, media, frames))

    def _bounded(self, settings: PixelSettings, media: MediaInputs, frames: int) -> PixelSettings:
        if settings is self.video_settings:
            return bounded(settings, media, frames)
        bounds = pixel_bounds(media, settings.min_pixels, settings.max_pixels, frames)
        return replace(settings, min_pixels=bounds[0], max_pixels=bounds[1])

    def fit(
        self, image: Image.Image, size: Size, settings: PixelSettings, media: MediaInputs, frames: int
    ) -> np.ndarray:
        """With black below or on the right. Only what has less pixels than it must is enlarged."""
        height, width = image.height, image.width
        by = min(size[0] / height, size[1] / width)
        if frames * height * width >= self._bounded(settings, media, frames).min_pixels:
            by = min(1.0, by)
        content = max(1, min(size[0], int(height * by))), max(1, min(size[1], int(width * by)))
        levels = np.asarray(settings.resize(image, content))
        return np.pad(levels, [(0, size[0] - content[0]), (0, size[1] - content[1]), (0, 0)])

    def sampler(self, media: MediaInputs) -> Sampler:
        def sample(total: int, rate: float) -> np.ndarray:
            seconds, fps = total / rate, media.video_fps or self.fps
            seconds = min(seconds, self.max_duration) if self.max_duration > 0 else seconds
            count = min(int(seconds * fps), self.max_frames, media.max_frames or self.max_frames)
            return due_frames(total, rate, fps, count)

        return sample


def filled_size(frames: int, height: int, width: int, settings: PixelSettings) -> Size:
    """The (height, width) that holds a picture in whole tokens, its volume within bounds. Source: `smart_resize` of
    transformers' Glm5NextImageProcessor."""
    factor, group = settings.factor, settings.frames
    count = max(group, round(frames / group) * group)

    def whole(high: float, wide: float) -> Size:
        return math.ceil(high / factor) * factor, math.ceil(wide / factor) * factor

    def shrunk(high: int) -> Size:
        return whole(high, max(1, int(width * high / height)))

    size = whole(height, width)
    if count * math.prod(size) < settings.min_pixels:
        by = math.sqrt(settings.min_pixels / (frames * height * width))
        size = whole(math.ceil(height * by), math.ceil(width * by))
    if count * math.prod(size) <= settings.max_pixels:
        return size
    if count * factor**2 > settings.max_pixels:
        raise MediaError(
            f"{frames} frames do not fit into {settings.max_pixels:,} pixels, {factor**2} for one token each: give "
            "fewer frames (max_frames, video_fps) or a larger max_pixels"
        )
    high = bisect.bisect(range(1, height + 1), settings.max_pixels, key=lambda high: count * math.prod(shrunk(high)))
    return shrunk(high) if high else (factor, factor)
