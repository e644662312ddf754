"""Kimi K2.5's processor: images of any size, filled up to whole tokens with black."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from .images import ImageSettings, Size, read_colors, refuse_pixel_bounds
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs

NAMES = {"in_patch_limit": "max_patches", "merge_kernel_size": "merge_size"}
"""The authors' for those of transformers."""


@dataclass(frozen=True)
class MoonVitSettings(ImageSettings):
    """patch: its side in pixels; merge: patches a side that become one token. max_side: patches of an image's longer
    side at most; max_patches: of all of it."""

    patch: int
    merge: int
    max_side: int
    max_patches: int

    @classmethod
    def read(cls, settings: Mapping[str, Any], max_patches: int) -> Self:
        """With transformers' Kimi_K25ImageProcessor's numbers for what the file leaves out; in its authors' own form,
        too."""
        if first := settings.get("media_proc_cfg"):
            if first.get("fixed_output_tokens") is not None:
                raise ValueError("fixed_output_tokens: pictures of a fixed number of tokens are not made here")
            settings = {NAMES.get(name, name): value for name, value in first.items()}
            side = settings.get("patch_limit_on_one_side", 512)
            settings["size"] = {"max_height": side, "max_width": side}
        size = settings.get("size") or {"max_height": 512, "max_width": 512}
        if size["max_height"] != size["max_width"]:
            raise ValueError(f"size = {size}; expected equal sides")
        return cls(
            patch=settings.get("patch_size", 14),
            merge=settings.get("merge_size", 2),
            max_side=size["max_height"],
            max_patches=settings.get("max_patches", max_patches),
            **read_colors(settings),
        )

    def shrunk(self, height: int, width: int) -> Size:
        """The (height, width) within the bounds, the aspect kept; never enlarged."""
        patches = max(1, height // self.patch) * max(1, width // self.patch)
        longest = self.max_side * self.patch
        by = min(1.0, math.sqrt(self.max_patches / patches), longest / height, longest / width)
        return min(max(1, int(height * by)), longest), min(max(1, int(width * by)), longest)

    def filled(self, levels: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> the same with black below and on the right, up to whole tokens."""
        factor = self.patch * self.merge
        return np.pad(levels, [(0, -levels.shape[0] % factor), (0, -levels.shape[1] % factor), (0, 0)])


@dataclass(eq=False, repr=False)
class KimiK25Processor(Processor):
    """Source: transformers' Kimi_K25Processor and Kimi_K25ImageProcessor."""

    image_settings: MoonVitSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|media_pad|>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"image_settings": MoonVitSettings.read(settings.image, 16384)}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        settings = self.image_settings
        image, original = settings.load(source, media)
        pixels = settings.filled(np.asarray(settings.resize(image, settings.shrunk(image.height, image.width))))
        factor = settings.patch * settings.merge
        count = (pixels.shape[0] // factor) * (pixels.shape[1] // factor)
        self.check_count(kind, original, count, "resize_shape (--resize-shape) makes it smaller")
        text, normalization = self.placeholders[kind] * count, settings.normalization
        return Expansion(text, (count,), pixels[np.newaxis], (), original, normalization=normalization)
