"""FastVLM's processor: one large square image, few tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LoadError
from .fixed_size import FixedSizeSettings
from .images import CLIP_MEAN, CLIP_STD
from .llava import LlavaProcessor
from .processor import ProcessorSettings

PATCH = 64
"""Side of the square that becomes one token, in pixels."""


@dataclass(eq=False, repr=False)
class FastVLMProcessor(LlavaProcessor):
    """Source: transformers' LlavaProcessor with a patch_size of 64."""

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        image = FixedSizeSettings.read(settings.image, 224, CLIP_MEAN, CLIP_STD)
        height, width = image.crop or image.size or (0, 0)
        patch = settings.processor.get("patch_size") or PATCH
        if patch != PATCH or not height or height % PATCH or width % PATCH:
            raise LoadError(
                f"This checkpoint's pictures are {height} x {width} pixels with a patch_size of {patch}; expected "
                f"sides that are multiples of {PATCH}, and a patch_size of {PATCH}: the tower makes one feature of it."
            )
        return {"image_settings": image, "image_tokens": height // PATCH * (width // PATCH)}
