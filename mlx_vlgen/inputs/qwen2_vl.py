"""The processor of Qwen2-VL and Qwen2.5-VL."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .images import CLIP_MEAN, CLIP_STD, Size, image_size
from .processor_files import ProcessorSettings
from .prompt import MediaInputs
from .qwen_vl import QwenVLProcessor, bounded
from .video import Video


@dataclass(eq=False, repr=False)
class Qwen2VLProcessor(QwenVLProcessor):
    """A video's bounds are of each frame. Source: transformers' Qwen2_5_VLProcessor and Qwen2VLVideoProcessor.

    max_volume: in checkpoints that have it, the most pixels of a video's groups of frames together.
    """

    max_volume: int | None = field(default=None, kw_only=True)

    video_bounds = (128 * 28 * 28, 28 * 28 * 768)
    mean, std = CLIP_MEAN, CLIP_STD

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        fields, video = super().read_fields(settings, config), settings.video
        fields["timed"] = config.get("model_type") == "qwen2_5_vl"
        if video.get("cap_pixels_per_frame"):
            token_area = fields["video_settings"].factor ** 2
            fields["max_volume"] = int(video.get("max_video_tokens", 128_000) * token_area * 0.9)
        return fields

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> Size:
        settings = bounded(self.video_settings, media)
        if self.max_volume is not None:
            share = min(settings.max_pixels, self.max_volume * settings.frames // frames)
            settings = replace(settings, max_pixels=max(share, int(settings.min_pixels * 1.05)))
        return image_size(height, width, settings)

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        return self.placeholders["video"] * (groups * count), (groups * count,)
