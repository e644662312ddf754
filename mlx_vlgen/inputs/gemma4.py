"""Gemma 4's processor: images as large as a number of tokens allows, and videos as timed frames, each like one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import UnsupportedError
from .chat_template import Message, parts_to_string
from .images import ImageSettings, Size, read_colors
from .literal import Segment
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs, Span
from .tiles import cut_tiles
from .video import load_clip

BUDGETS = (70, 140, 280, 560, 1120)
"""The numbers of tokens of an image that the published models know."""


@dataclass(frozen=True)
class Gemma4ImageSettings(ImageSettings):
    """max_tokens: of an image or frame; patch: a patch's side in pixels; pool: patches a side that become one token."""

    max_tokens: int
    patch: int
    pool: int

    @classmethod
    def read(cls, settings: Mapping[str, Any], vision: Mapping[str, Any], max_tokens: int, normalize: bool) -> Self:
        """Where the file leaves them out: `max_tokens`, sizes of the vision tower, and whether levels from 0 to 1 are
        normalised (`normalize`), which no published file does in effect."""
        return cls(
            max_tokens=settings.get("max_soft_tokens") or max_tokens,
            # The tower's first: it takes no others, and some conversions write a processor's defaults.
            patch=vision.get("patch_size") or settings.get("patch_size", 16),
            pool=vision.get("pooling_kernel_size") or settings.get("pooling_kernel_size", 3),
            **read_colors({"do_normalize": normalize, **settings}, mean=(0.0,) * 3, std=(1.0,) * 3),
        )

    @property
    def side(self) -> int:
        """Of the square that becomes one token, in pixels."""
        return self.patch * self.pool

    def patches(self, images: Sequence[Image.Image], media: MediaInputs) -> tuple[np.ndarray, Size, int]:
        """Images of one size -> (T, N, patch * patch * 3) uint8, their grid (rows, columns) in reading order, and the
        number of tokens of each."""
        size = fitted(images[0].height, images[0].width, self.side, self._token_budget(media))
        patches = np.stack([cut_tiles(np.asarray(self.resize(image, size)), self.patch) for image in images])
        grid = size[0] // self.patch, size[1] // self.patch
        return patches.reshape(*patches.shape[:2], -1), grid, math.prod(grid) // self.pool**2

    def _token_budget(self, media: MediaInputs) -> int:
        """How many tokens an image may become."""
        if media.min_pixels is not None:
            raise UnsupportedError(
                "min_pixels: this model makes every picture as large as max_pixels (--max-pixels) allows; give that"
            )
        if media.max_pixels is None:
            return self.max_tokens
        fitting = [tokens for tokens in BUDGETS if tokens * self.side**2 <= media.max_pixels]
        if not fitting:
            smallest = BUDGETS[0] * self.side**2
            raise ValueError(
                f"max_pixels={media.max_pixels}: this model's pictures have up to {smallest} at least; give that"
            )
        return fitting[-1]


@dataclass(eq=False, repr=False)
class Gemma4Processor(Processor):
    """Source: transformers' Gemma4Processor, Gemma4ImageProcessor and Gemma4VideoProcessor.

    `max_pixels` chooses the number of tokens: the largest of `BUDGETS` whose images are not larger. video_settings: of
    a frame; num_frames: how many of a file are kept; bidirectional: whether the tokens of an image attend to each
    other.
    """

    image_settings: Gemma4ImageSettings
    video_settings: Gemma4ImageSettings
    num_frames: int
    bidirectional: bool

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|image|>", "video": "<|video|>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        # Where a file says nothing of videos, what it says of images does not hold for them.
        video = {} if settings.video is settings.image else settings.video
        return {
            "image_settings": Gemma4ImageSettings.read(settings.image, vision, max_tokens=280, normalize=False),
            "video_settings": Gemma4ImageSettings.read(video, vision, max_tokens=70, normalize=True),
            "num_frames": video.get("num_frames") or 32,
            "bidirectional": config["text_config"].get("use_bidirectional_attention") == "vision",
        }

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """The published template writes the list of parts of a system message down as it is."""
        system = ("system", "developer")
        messages = [parts_to_string(message) if message["role"] in system else message for message in messages]
        return super().format(messages, **kwargs)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return self._expand_image(source, media) if kind == "image" else self._expand_video(source, media)

    def _expand_image(self, source: Any, media: MediaInputs) -> Expansion:
        image, original = self.image_settings.load(source, media)
        pixels, grid, count = self.image_settings.patches([image], media)
        text, normalization = self.delimited("image", count), self.image_settings.normalization
        return Expansion(text, (count,), pixels, grid, original, normalization=normalization)

    def _expand_video(self, source: Any, media: MediaInputs) -> Expansion:
        def sampler(total: int, rate: float) -> np.ndarray:
            fps = media.video_fps
            count = self.num_frames if fps is None else max(1, int(total / rate * fps))
            return spread(total, min(count, total, media.max_frames or total))

        video = load_clip(source, media, sampler=sampler, evenly=spread)
        images = list(self.video_settings.frame_images(video.frames, media))
        pixels, grid, count = self.video_settings.patches(images, media)
        frame = self.delimited("video", count)
        text = " ".join(f"{int(at // 60):02d}:{int(at % 60):02d} {frame}" for at in video.timestamps)
        original, normalization = video.frames.shape[1:3], self.video_settings.normalization
        return Expansion(text, (count,) * len(images), pixels, grid, original, normalization=normalization)

    def delimited(self, kind: Kind, count: int) -> str:
        """The tokens of an image, frame or clip of sound, between those that say where it begins and ends."""
        edge = "audio" if kind == "audio" else "image"
        return f"<|{edge}>{self.placeholders[kind] * count}<{edge}|>"

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        seen = [medium for medium in media if medium.kind != "audio"]
        return tuple(span for medium in seen for span in medium.spans) if self.bidirectional else ()


def fitted(height: int, width: int, side: int, tokens: int) -> Size:
    """The (height, width) that an image is resized to: whole squares of `side` pixels, at most `tokens` of them, as
    many as its aspect allows; one row or column of them where it is too thin for more.
    Source: `get_aspect_ratio_preserving_size` of transformers' Gemma4ImageProcessor."""
    scale = math.sqrt(tokens * side**2 / (height * width))
    rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
    if rows == 0:
        rows, columns = 1, min(width // height, tokens)
    elif columns == 0:
        rows, columns = min(height // width, tokens), 1
    return rows * side, columns * side


def spread(total: int, count: int) -> np.ndarray:
    """Indices of `count` of `total` frames, evenly from the first one on; some twice where there are fewer."""
    return np.arange(count) * total // count
