"""The processor of PaddleOCR-VL."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .images import CLIP_MEAN, CLIP_STD, PixelSettings, Size, image_size, patchify
from .kinds import Kind
from .prompt import MediaInputs
from .qwen_vl import QwenVLProcessor, bounded


@dataclass(eq=False, repr=False)
class PaddleOCRVLProcessor(QwenVLProcessor):
    """Pictures only, a patch of a single frame. Source: transformers' PaddleOCRVLImageProcessor."""

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|IMAGE_PLACEHOLDER|>"}
    prompt_tokens = ""
    image_bounds = video_bounds = (384 * 384, 1536 * 1536)
    mean, std = CLIP_MEAN, CLIP_STD

    @classmethod
    def _read(cls, settings: Mapping[str, Any], vision: Mapping[str, Any], bounds: tuple[int, int]) -> PixelSettings:
        return replace(super()._read(settings, vision, bounds), frames=1)

    def image_size(self, height: int, width: int, media: MediaInputs) -> Size:
        """A side shorter than a token becomes as long as one first."""
        settings = bounded(self.image_settings, media)
        if height < settings.factor:
            height, width = settings.factor, round(width * settings.factor / height)
        if width < settings.factor:
            height, width = round(height * settings.factor / width), settings.factor
        return image_size(height, width, settings)

    def patchify(self, frames: np.ndarray, settings: PixelSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
        """In reading order."""
        return patchify(frames, replace(settings, merge=1))

    def patch_shape(self, settings: PixelSettings) -> tuple[int, ...]:
        return 3, settings.patch, settings.patch
