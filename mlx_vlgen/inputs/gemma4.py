"""Gemma 4's processor: pictures as large as a number of tokens allows, and videos as timed frames, each like one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UnsupportedError
from .chat_template import Message, words_joined
from .images import normalize, resize
from .literal import Segment
from .plain import open_picture
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import Media, MediaInputs, Span
from .video import load_video

BUDGETS = (70, 140, 280, 560, 1120)
"""The most tokens of a picture that the published models know."""


@dataclass(frozen=True)
class PatchSettings:
    """tokens: the most of a picture or frame; patch: a patch's side in pixels; pool: patches a side that become one
    token."""

    tokens: int
    patch: int
    pool: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: Image.Resampling

    @classmethod
    def read(cls, own: Mapping[str, Any], vision: Mapping[str, Any], tokens: int, normal: bool) -> "PatchSettings":
        """What the file leaves out: `tokens`, sizes of the vision tower, and whether levels from 0 to 1 are
        normalised (`normal`), which no published file does in effect."""
        normal = own.get("do_normalize", normal)
        return cls(
            tokens=own.get("max_soft_tokens") or tokens,
            patch=own.get("patch_size") or vision.get("patch_size", 16),
            pool=own.get("pooling_kernel_size") or vision.get("pooling_kernel_size", 3),
            mean=tuple(own.get("image_mean") or (0.0,) * 3) if normal else (0.0,) * 3,
            std=tuple(own.get("image_std") or (1.0,) * 3) if normal else (1.0,) * 3,
            resample=Image.Resampling(own.get("resample", Image.Resampling.BICUBIC)),
        )

    @property
    def side(self) -> int:
        """Of the square that becomes one token, in pixels."""
        return self.patch * self.pool


class Gemma4Processor(Processor):
    """Source: transformers' Gemma4Processor, Gemma4ImageProcessor and Gemma4VideoProcessor.

    `max_pixels` chooses the number of tokens: the largest of `BUDGETS` whose pictures are not larger. clips: how frames
    are made, and how many of a file are kept. both_ways: whether the tokens of a picture see each other.
    """

    placeholders: Mapping[Kind, str] = {"image": "<|image|>", "video": "<|video|>"}

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None,
        pictures: PatchSettings,
        clips: tuple[PatchSettings, int],
        both_ways: bool,
    ):
        super().__init__(tokenizer, chat_template)
        self.pictures, (self.frames, self.count), self.both_ways = pictures, clips, both_ways

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "Gemma4Processor":
        tokenizer, settings, vision = load_tokenizer(folder), read_settings(folder), config["vision_config"]
        # Where a file says nothing of videos, what it says of pictures does not hold for them.
        video = {} if settings.video is settings.image else settings.video
        return cls(
            tokenizer,
            load_template(folder, tokenizer),
            PatchSettings.read(settings.image, vision, tokens=280, normal=False),
            (PatchSettings.read(video, vision, tokens=70, normal=True), video.get("num_frames") or 32),
            config["text_config"].get("use_bidirectional_attention") == "vision",
        )

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """The published template writes a system's list of parts down as it is."""
        texts = [words_joined(own) if own["role"] in ("system", "developer") else own for own in messages]
        return super().format(texts, **kwargs)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return self._picture(source, media) if kind == "image" else self._video(source, media)

    def _picture(self, source: Any, media: MediaInputs) -> Expansion:
        settings = self.pictures
        image, original = open_picture(source, media, settings.resample)
        pixels, grid = patches([image], settings, budget(settings, media))
        count = math.prod(grid) // settings.pool**2
        return Expansion(self._marked("image", count), (count,), pixels, grid, original)

    def _video(self, source: Any, media: MediaInputs) -> Expansion:
        def sampler(total: int, rate: float) -> np.ndarray:
            fps = media.video_fps
            count = self.count if fps is None else max(1, int(total / rate * fps))
            return spread(total, min(count, total, media.max_frames or total))

        video = load_video(
            source, fps=media.video_fps, num_frames=media.num_frames, max_frames=media.max_frames, sampler=sampler,
            evenly=spread,
        )  # fmt: skip
        settings = self.frames
        images = [Image.fromarray(frame) for frame in video.frames]
        if media.resize_shape:
            images = [resize(image, media.resize_shape, settings.resample) for image in images]
        pixels, grid = patches(images, settings, budget(settings, media))
        count = math.prod(grid) // settings.pool**2
        frame = self._marked("video", count)
        text = " ".join(f"{int(at // 60):02d}:{int(at % 60):02d} {frame}" for at in video.timestamps)
        return Expansion(text, (count,) * len(images), pixels, grid, video.frames.shape[1:3])

    def _marked(self, kind: Kind, count: int) -> str:
        """A picture's or frame's tokens, and those that say where it begins and ends."""
        return f"<|image>{self.placeholders[kind] * count}<image|>"

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        return tuple(span for own in media for span in own.spans) if self.both_ways else ()


def budget(settings: PatchSettings, media: MediaInputs) -> int:
    """How many tokens a picture may become."""
    if media.min_pixels is not None:
        raise UnsupportedError(
            "min_pixels: this model makes every picture as large as max_pixels (--max-pixels) allows; give that"
        )
    if media.max_pixels is None:
        return settings.tokens
    fitting = [tokens for tokens in BUDGETS if tokens * settings.side**2 <= media.max_pixels]
    if not fitting:
        least = BUDGETS[0] * settings.side**2
        raise ValueError(f"max_pixels={media.max_pixels}: this model's pictures have up to {least} at least; give that")
    return fitting[-1]


def fitted(height: int, width: int, side: int, tokens: int) -> tuple[int, int]:
    """The (height, width) that a picture is resized to: whole squares of `side` pixels, at most `tokens` of them, as
    many as its aspect allows; one row or column of them where it is too thin for more.
    Source: `get_aspect_ratio_preserving_size` of transformers' Gemma4ImageProcessor."""
    scale = math.sqrt(tokens * side**2 / (height * width))
    rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
    if rows == 0:
        rows, columns = 1, min(width // height, tokens)
    elif columns == 0:
        rows, columns = min(height // width, tokens), 1
    return rows * side, columns * side


def patches(images: Sequence[Image.Image], settings: PatchSettings, tokens: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Pictures of one size -> (T, N, patch * patch * 3) and their grid (rows, columns), in reading order."""
    height, width = fitted(images[0].height, images[0].width, settings.side, tokens)
    size, rows, columns = settings.patch, height // settings.patch, width // settings.patch
    levels = np.stack([np.asarray(resize(image, (height, width), settings.resample)) for image in images])
    pixels = normalize(levels, settings.mean, settings.std).reshape(len(levels), rows, size, columns, size, 3)
    return pixels.swapaxes(2, 3).reshape(len(levels), rows * columns, -1), (rows, columns)


def spread(total: int, count: int) -> np.ndarray:
    """Which `count` of `total` frames to keep, evenly from the first one on; some twice where there are fewer."""
    return np.arange(count) * total // count
