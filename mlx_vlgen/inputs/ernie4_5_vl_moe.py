"""The processor of ERNIE 4.5 VL."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UnsupportedError
from .files import check_bytes, reading
from .images import CLIP_MEAN, CLIP_STD, PixelSettings, Size, image_size, patchify
from .kinds import Kind
from .processor_files import ProcessorSettings, read_settings
from .prompt import MediaInputs
from .qwen_vl import QwenVLProcessor, bounded
from .video import Sampler, Video


def evenly(total: int, count: float) -> np.ndarray:
    """Which of `total` frames are kept, about so many. Source: transformers' Ernie4_5_VLMoeVideoProcessor."""
    indices = np.arange(0, total, total / count).astype(np.float32).astype(np.int64)
    return np.minimum(indices, total - 1)


@dataclass(eq=False, repr=False)
class Ernie4_5VLMoeProcessor(QwenVLProcessor):
    """A patch is of a single frame, and two frames of a video become one token. A video's bounds are of each frame.

    frame_bounds: the least and most frames that are kept of a video, where it has so many. font: what its times are
    written with, in each frame's upper left corner; None where they are not.
    Source: transformers' Ernie4_5_VLMoeProcessor, Ernie4_5_VLMoeImageProcessor and Ernie4_5_VLMoeVideoProcessor.
    """

    frame_bounds: tuple[int, int] = field(default=(16, 180), kw_only=True)
    font: Path | None = field(default=None, kw_only=True)

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|IMAGE_PLACEHOLDER|>", "video": "<|VIDEO_PLACEHOLDER|>"}
    prompt_tokens = ""
    image_bounds = (56 * 56, 6177 * 28 * 28)
    video_bounds = (299 * 28 * 28, 1196 * 28 * 28)
    mean, std = CLIP_MEAN, CLIP_STD

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        processor, settings = super().from_folder(folder, config), read_settings(folder).video
        if settings.get("draw_on_frames", True):
            processor.font = folder / Path(settings.get("font") or "Roboto-Regular.ttf").name
        return processor

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        video = settings.video
        return super().read_fields(settings, config) | {
            "frame_bounds": (video.get("min_frames") or 16, video.get("max_frames") or 180),
        }

    @classmethod
    def _read(cls, settings: Mapping[str, Any], vision: Mapping[str, Any], bounds: tuple[int, int]) -> PixelSettings:
        return replace(super()._read(settings, vision, bounds), frames=1)

    def token_count(self, grid: tuple[int, ...], settings: PixelSettings) -> int:
        return -(-grid[0] // 2) * math.prod(grid[1:]) // settings.merge**2

    def sampler(self, media: MediaInputs) -> Sampler:
        def sample(total: int, rate: float) -> np.ndarray:
            least, most = self.frame_bounds
            count = total if media.video_fps is None else total / rate * media.video_fps
            return evenly(total, min(max(count, least), media.max_frames or most, total))

        return sample

    def count_sampler(self) -> Callable[[int, int], np.ndarray]:
        return evenly

    def annotate(self, frames: np.ndarray, timestamps: Sequence[float]) -> np.ndarray:
        if self.font is None:
            return frames
        size = max(1, int(min(frames.shape[1:3]) * 0.1))
        if not self.font.is_file():
            raise UnsupportedError(
                f"this checkpoint writes the time into each frame of a video, and {self.font}, which it does that "
                'with, is not there: put it there, or say "draw_on_frames": false among its video settings'
            )
        check_bytes(self.font)
        with reading(self.font, "cannot be read as a font"):
            font = ImageFont.truetype(str(self.font), size)
        return np.stack([write_time(frame, seconds, font) for frame, seconds in zip(frames, timestamps, strict=True)])

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> Size:
        return image_size(height, width, bounded(self.video_settings, media))

    def patchify(self, frames: np.ndarray, settings: PixelSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
        """A video's last frame twice where their number is odd; a single frame is two by itself."""
        if len(frames) % 2 and len(frames) > 1:
            frames = np.concatenate([frames, frames[-1:]])
        return patchify(frames, settings)

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        total = -(-groups // 2) * count
        return self.placeholders["video"] * total, (total,)


def write_time(frame: np.ndarray, seconds: float, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """A frame (H, W, 3) with its time, black with a white border. Source: as `evenly`."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text, image = f"time: {int(hours):02d}:{int(minutes):02d}:{rest:05.02f}", Image.fromarray(frame)
    border = int(font.size * 0.1)
    ImageDraw.Draw(image).text((0, 0), text, (0, 0, 0), font, stroke_width=border, stroke_fill=(255, 255, 255))
    return np.asarray(image)
