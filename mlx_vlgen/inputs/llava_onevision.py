"""LLaVA-OneVision's processor: one image in tiles, several as a square each, videos as small squares."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import LoadError
from .anyres import AnyRes
from .fixed_size import FixedSizeSettings
from .images import CLIP_MEAN, CLIP_STD, Color, Size, refuse_pixel_bounds
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .video import has_raw_frames, load_clip

SIDES = (384, 768, 1152, 1536, 1920, 2304)
MAX_FRAMES = 32
"""Frames of a file, where no number is given: as many as the model was trained on."""


@dataclass(eq=False, repr=False)
class LlavaOnevisionProcessor(Processor):
    """Source: transformers' LlavaOnevisionProcessor. max_tiles: tiles whose patches an image may become, at about a
    tenth more a side; a larger one is resampled to as many."""

    image_settings: AnyRes
    video_settings: FixedSizeSettings
    max_tiles: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image>", "video": "<video>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        canvases = [(height, width) for height in SIDES for width in SIDES]
        side = config["vision_config"]["image_size"]
        aspect = config.get("vision_aspect_ratio", "anyres_max_9")
        max_tiles = aspect.removeprefix("anyres_max_")
        if not max_tiles.isdigit():
            raise LoadError(f"vision_aspect_ratio is {aspect!r}; expected anyres_max_9, or another number of tiles")
        return {
            "image_settings": AnyRes.read(settings.image, config, canvases, CLIP_MEAN, CLIP_STD),
            "video_settings": FixedSizeSettings.read(settings.video, side, CLIP_MEAN, CLIP_STD),
            "max_tiles": int(max_tiles),
        }

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        if kind == "video":
            return self._expand_video(source, media)
        square, patches = self.image_settings.square, self.image_settings.patches
        image, original = square.load(source, media)
        if len(media.images) > 1:
            grid: tuple[int, ...] = ()
            pixels, count = square.pixels(pad_to_square(image, square.mean))[np.newaxis], patches**2 + 1
        else:
            grid = self._layout((image.height, image.width))
            count = patches**2 + grid[4] * (grid[5] + 1)
            self.check_count(kind, original, count, "resize_shape (--resize-shape) makes it smaller")
            pixels = self.image_settings.pixels(image)
        text = self.placeholders[kind] * count
        return Expansion(text, (count,), pixels, grid, original, normalization=square.normalization)

    def context(self, media: MediaInputs) -> MediaInputs:
        """And whether there are several images."""
        return replace(super().context(media), images=(None,) * min(len(media.images), 2))

    def _layout(self, size: Size) -> tuple[int, ...]:
        """`AnyRes.layout`, and the rows and columns to which its patches are resampled."""
        layout = self.image_settings.layout(size)
        rows, columns = layout[2:]
        ratio = math.sqrt(rows * columns / (self.max_tiles * self.image_settings.patches**2))
        return (*layout, int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (*layout, rows, columns)

    def _expand_video(self, source: Any, media: MediaInputs) -> Expansion:
        frames = load_clip(source, media, max_frames=None if has_raw_frames(source) else MAX_FRAMES).frames
        original, count = frames.shape[1:3], len(frames) * (-(-self.image_settings.patches // 2)) ** 2 + 1
        self.check_count("video", original, count, FEWER_FRAMES)
        pixels = self.video_settings.video_pixels(frames, media)
        text, normalization = self.placeholders["video"] * count, self.video_settings.normalization
        return Expansion(text, (count,), pixels, (len(frames),), original, normalization=normalization)


def pad_to_square(image: Image.Image, mean: Color) -> Image.Image:
    """The image in the middle of a square that is filled with the mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(level * 255) for level in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
