"""The processor of Qwen2-VL and Qwen2.5-VL."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from .images import CLIP_MEAN, CLIP_STD, picture_size
from .processor import read_settings
from .prompt import MediaInputs
from .qwen_vl import QwenVLProcessor, bounded
from .video import Video


class Qwen2VLProcessor(QwenVLProcessor):
    """A video's bounds are of each frame. Source: transformers' Qwen2_5_VLProcessor and Qwen2VLVideoProcessor.

    all_frames: in checkpoints that say so, the most pixels of a video's groups of frames together.
    """

    video_bounds = (128 * 28 * 28, 28 * 28 * 768)
    mean, std = CLIP_MEAN, CLIP_STD
    all_frames: int | None = None

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        processor, own = super().from_folder(folder, config), read_settings(folder).video
        processor.timed = config.get("model_type") == "qwen2_5_vl"
        if own.get("cap_pixels_per_frame"):
            processor.all_frames = int(own.get("max_video_tokens", 128_000) * processor.videos.factor**2 * 0.9)
        return processor

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> tuple[int, int]:
        settings = bounded(self.videos, media)
        if self.all_frames is not None:
            share = min(settings.max_pixels, self.all_frames * settings.frames // frames)
            settings = replace(settings, max_pixels=max(share, int(settings.min_pixels * 1.05)))
        return picture_size(height, width, settings)

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        return self.placeholders["video"] * (groups * count), (groups * count,)
