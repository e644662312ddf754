"""Muse Glimmer's processor: images of any size, and frames of a clip by two, each pair after its time."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import UnsupportedError
from .images import PixelSettings, Size, check_aspect, patchify, read_colors
from .processor import Expansion, Kind, ProcessorSettings
from .prompt import Media, MediaInputs
from .qwen_vl import QwenVLProcessor
from .video import Sampler, Video


@dataclass(eq=False, repr=False)
class MuseGlimmerProcessor(QwenVLProcessor):
    """max_pixels of its settings is what the largest number of tokens of an image, or of a pair of frames, takes.

    fps: frames of a video kept a second, at most max_frames. time_format: of what stands before each pair.
    Source: transformers' MuseGlimmerProcessor, MuseGlimmerImageProcessor and MuseGlimmerVideoProcessor.
    """

    fps: float = field(default=2.0, kw_only=True)
    max_frames: int = field(default=96, kw_only=True)
    time_format: str = field(default="Time: {timestamp:.1f}s", kw_only=True)

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|patch|>", "video": "<|video|>"}
    prompt_tokens = ""

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision, video = config["vision_config"], settings.video
        return {
            "image_settings": _read(settings.image, vision, settings.image.get("max_image_tokens", 4096)),
            "video_settings": _read(video, vision, video.get("max_video_frame_tokens", 144)),
            "fps": video.get("fps") or 2.0,
            "max_frames": video.get("num_frames") or 96,
            "time_format": video.get("frame_timestamp_format", "Time: {timestamp:.1f}s"),
        }

    def image_size(self, height: int, width: int, media: MediaInputs) -> Size:
        return fitted_size(height, width, bounded(self.image_settings, media))

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> Size:
        return fitted_size(height, width, bounded(self.video_settings, media))

    def patchify(self, frames: np.ndarray, settings: PixelSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
        """In reading order."""
        return patchify(frames, replace(settings, merge=1))

    def _expand_image(self, source: Any, media: MediaInputs) -> Expansion:
        made = super()._expand_image(source, media)
        return replace(made, text=f"<|image_start|>{made.text}<|image_end|>")

    def sampler(self, media: MediaInputs) -> Sampler:
        fps, group = self.fps if media.video_fps is None else media.video_fps, self.video_settings.frames

        def sample(total: int, rate: float) -> np.ndarray:
            count = min(int(total * fps / rate), media.max_frames or self.max_frames, total)
            count = min(max(group, count // group * group), total)
            return evenly_spaced(total, count)

        return sample

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        starts = video.timestamps[:: self.video_settings.frames]
        features = self.placeholders["video"] * count
        pairs = [self.time_format.format(timestamp=start) + features for start in starts]
        return f"<|vid_start|>{'<|vid_frame_separator|>'.join(pairs)}<|vid_end|>", (count,) * groups

    def pixel_values(self, media: Media) -> np.ndarray:
        """In a patch its frames come first, then their channels."""
        values = media.pixels
        if values.dtype != np.uint8 or media.normalization is None:
            return values
        settings = self.image_settings if media.kind == "image" else self.video_settings
        values = media.normalization(values.reshape(len(values), -1, 3))
        parts = values.reshape(len(values), -1, settings.patch, settings.patch, 3).transpose(0, 1, 4, 2, 3)
        return np.broadcast_to(parts, (len(parts), settings.frames, *parts.shape[2:])).reshape(len(parts), -1)


def _read(settings: Mapping[str, Any], vision: Mapping[str, Any], tokens: int) -> PixelSettings:
    patch = settings.get("patch_size") or vision.get("patch_size", 14)
    merge = settings.get("merge_size") or vision.get("merge_size", 2)
    frames = settings.get("temporal_patch_size") or vision.get("patch_temporal", 2)
    colors = read_colors(settings, resample=Image.Resampling.LANCZOS)
    return PixelSettings(1, tokens * (patch * merge) ** 2, patch, merge, frames, **colors)


def bounded(settings: PixelSettings, media: MediaInputs) -> PixelSettings:
    """With a request's bound of an image's, or a frame's, area."""
    if media.min_pixels is not None:
        raise UnsupportedError("min_pixels: this model's processor enlarges no picture; leave it out")
    if media.max_pixels is None:
        return settings
    return replace(settings, max_pixels=max(settings.factor**2, min(settings.max_pixels, media.max_pixels)))


def fitted_size(height: int, width: int, settings: PixelSettings) -> Size:
    """The (height, width) in whole tokens, rounded up or down, that keeps the aspect best within the largest number of
    tokens. Source: transformers' `smart_resize` of MuseGlimmer."""
    check_aspect(height, width)
    factor, most = settings.factor, settings.max_pixels // settings.factor**2
    rows, columns = height / factor, width / factor
    aspect = columns / rows
    if rows * columns > most:
        rows = (most / aspect) ** 0.5
        columns = rows * aspect
    sides = itertools.product((math.floor(rows), math.ceil(rows)), (math.floor(columns), math.ceil(columns)))
    # Where two keep it alike, the set's first counts, as there.
    grids = [grid for grid in set(sides) if min(grid) >= 1 and grid[0] * grid[1] <= most]
    if not grids:
        grids = [(max(1, round(rows)), max(1, round(columns)))]
    down, across = min(grids, key=lambda grid: abs(grid[0] / grid[1] - height / width))
    return down * factor, across * factor


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """`count` indices from the first to the last of `total`, rounded down. Source: torch's `linspace`, from both ends
    by a step in float32, and no other rounding before the last."""
    if count < 2:
        return np.zeros(count, np.int64)
    step, index = float(np.float32(total - 1) / np.float32(count - 1)), np.arange(count)
    places = np.where(index < count // 2, index * step, total - 1 - (count - 1 - index) * step)
    return places.astype(np.float32).astype(np.int64)
