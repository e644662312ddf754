"""LLaVA-OneVision's processor: one picture in tiles, several as a square each, videos as small squares."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import LoadError
from .anyres import AnyRes
from .images import CLIP_MEAN, CLIP_STD, resize
from .plain import PlainSettings, open_picture, plain_pixels, refuse_pixel_bounds
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs
from .video import has_raw_frames, load_video

SIDES = (384, 768, 1152, 1536, 1920, 2304)
MAX_FRAMES = 32
"""Frames of a file, where nothing else is said: as many as the model was trained on."""


class LlavaOnevisionProcessor(Processor):
    """Source: transformers' LlavaOnevisionProcessor. most: tiles whose patches a picture may become, at about a tenth
    more a side; a larger one is resampled to as many."""

    placeholders: Mapping[Kind, str] = {"image": "<image>", "video": "<video>"}

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: AnyRes, videos: PlainSettings, most: int):
        super().__init__(tokenizer, chat_template)
        self.pictures, self.videos, self.most = pictures, videos, most

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "LlavaOnevisionProcessor":
        tokenizer, settings = load_tokenizer(folder), read_settings(folder)
        canvases = [(height, width) for height in SIDES for width in SIDES]
        pictures = AnyRes.read(settings.image, config, canvases, CLIP_MEAN, CLIP_STD)
        videos = PlainSettings.read(settings.video, config["vision_config"]["image_size"], CLIP_MEAN, CLIP_STD)
        rule = config.get("vision_aspect_ratio", "anyres_max_9")
        most = rule.removeprefix("anyres_max_")
        if not most.isdigit():
            raise LoadError(f"vision_aspect_ratio is {rule!r}; expected anyres_max_9, or another number of tiles")
        return cls(tokenizer, load_template(folder, tokenizer), pictures, videos, int(most))

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        if kind == "video":
            return self._video(source, media)
        image, original = open_picture(source, media, self.pictures.square.resample)
        if len(media.images) > 1:
            squared = pad_to_square(image, self.pictures.square.mean)
            pixels, count = plain_pixels(squared, self.pictures.square)[np.newaxis], self.pictures.patches**2 + 1
            return Expansion(self.placeholders[kind] * count, (count,), pixels, (), original)
        grid = self._layout((image.height, image.width))
        count = self.pictures.patches**2 + grid[4] * (grid[5] + 1)
        self.check_count(kind, original, count, "resize_shape (--resize-shape) makes it smaller")
        return Expansion(self.placeholders[kind] * count, (count,), self.pictures.pixels(image), grid, original)

    def _layout(self, size: tuple[int, int]) -> tuple[int, ...]:
        """That of `AnyRes`, and the rows and columns to which its patches are resampled."""
        layout = self.pictures.layout(size)
        rows, columns = layout[2:]
        ratio = math.sqrt(rows * columns / (self.most * self.pictures.patches**2))
        return (*layout, int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (*layout, rows, columns)

    def _video(self, source: Any, media: MediaInputs) -> Expansion:
        most = MAX_FRAMES if media.max_frames is None and not has_raw_frames(source) else media.max_frames
        frames = load_video(source, fps=media.video_fps, num_frames=media.num_frames, max_frames=most).frames
        original, count = (frames.shape[1], frames.shape[2]), len(frames) * (-(-self.pictures.patches // 2)) ** 2 + 1
        self.check_count("video", original, count, FEWER_FRAMES)
        images = (Image.fromarray(frame) for frame in frames)
        if media.resize_shape:
            images = (resize(image, media.resize_shape, self.videos.resample) for image in images)
        pixels = np.stack([plain_pixels(image, self.videos) for image in images])
        return Expansion(self.placeholders["video"] * count, (count,), pixels, (len(frames),), original)


def pad_to_square(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """The picture in the middle of a square that is filled with the mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(level * 255) for level in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
