"""What the processors of Qwen's vision-language models share, images of any size as grids of patches; Qwen3-VL's."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import MediaError
from .images import (
    SIGLIP_MEAN,
    SIGLIP_STD,
    Color,
    PixelSettings,
    Size,
    channels_first,
    image_size,
    patchify,
    pixel_bounds,
    read_colors,
    video_size,
)
from .kinds import KINDS
from .media import describe_source
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, ProcessorSettings
from .prompt import Media, MediaInputs
from .video import Sampler, Video, load_clip


@dataclass(eq=False, repr=False)
class QwenVLProcessor(Processor):
    """A family defines how large a video's frames become and what text stands for them.

    image_bounds, video_bounds: min_pixels and max_pixels where a checkpoint has none; mean, std: likewise.
    timed: whether the model's positions tell how fast a video runs.
    """

    image_settings: PixelSettings
    video_settings: PixelSettings
    timed: bool = field(default=False, kw_only=True)

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    prompt_tokens = r"<\|(object_ref|box|quad|point)_(start|end)\|>"
    image_bounds: ClassVar[tuple[int, int]] = (56 * 56, 28 * 28 * 1280)
    video_bounds: ClassVar[tuple[int, int]]
    mean: ClassVar[Color]
    std: ClassVar[Color]

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        vision = config["vision_config"]
        return {
            "image_settings": cls._read(settings.image, vision, cls.image_bounds),
            "video_settings": cls._read(settings.video, vision, cls.video_bounds),
        }

    @classmethod
    def _read(cls, settings: Mapping[str, Any], vision: Mapping[str, Any], bounds: tuple[int, int]) -> PixelSettings:
        """From a preprocessor_config.json of any version; what it leaves out, from the vision tower's configuration."""
        size = settings.get("size") or {}
        return PixelSettings(
            min_pixels=settings.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or bounds[0],
            max_pixels=settings.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or bounds[1],
            patch=settings.get("patch_size") or vision.get("patch_size", 14),
            merge=settings.get("merge_size") or vision.get("spatial_merge_size", 2),
            frames=settings.get("temporal_patch_size") or vision.get("temporal_patch_size", 2),
            **read_colors(settings, cls.mean, cls.std),
        )

    # -- what a family defines

    def image_size(self, height: int, width: int, media: MediaInputs) -> Size:
        """The (height, width) that an image is resized to."""
        return image_size(height, width, bounded(self.image_settings, media))

    def sampler(self, media: MediaInputs) -> Sampler | None:
        """The family's rule of which frames of a video to keep; see `load_video`."""
        return None

    def count_sampler(self) -> Callable[[int, int], np.ndarray] | None:
        """The same where their number is given; see `evenly` there."""
        return None

    def annotate(self, frames: np.ndarray, timestamps: Sequence[float]) -> np.ndarray:
        """Frames (T, H, W, 3) as they are before they are resized."""
        return frames

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> Size:
        """The (height, width) that frames are resized to."""
        raise NotImplementedError

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        """What stands for `groups` groups of frames of `count` tokens each: text and counts of an `Expansion`."""
        raise NotImplementedError

    def fit(
        self, image: Image.Image, size: Size, settings: PixelSettings, media: MediaInputs, frames: int
    ) -> np.ndarray:
        """An image, or one of `frames` frames, as (height, width, 3) of the size that was found for it."""
        return np.asarray(settings.resize(image, size))

    def patchify(self, frames: np.ndarray, settings: PixelSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Frames (T, H, W, C), resized, as `Media.pixels` and `Media.grid`."""
        return patchify(frames, settings)

    def token_count(self, grid: tuple[int, ...], settings: PixelSettings) -> int:
        """Features of a medium of this grid."""
        return math.prod(grid) // settings.merge**2

    def patch_shape(self, settings: PixelSettings) -> tuple[int, ...]:
        """Of one patch in transformers' `pixel_values`."""
        return (3 * settings.frames * settings.patch**2,)

    # -- what all families share

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return self._expand_image(source, media) if kind == "image" else self._expand_video(source, media)

    def _expand_image(self, source: Any, media: MediaInputs) -> Expansion:
        settings = self.image_settings
        image, original = settings.load(source, media)
        with naming(source):
            size = self.image_size(image.height, image.width, media)
        count = size[0] * size[1] // settings.factor**2
        many = KINDS["image"].many_tokens
        remedy = f"max_pixels (--max-pixels) makes it smaller: {many * settings.factor**2} gives {many:,}"
        self.check_count("image", original, count, remedy)
        fitted = self.fit(image, size, settings, media, settings.frames)
        pixels, grid = self.patchify(fitted[None], settings)
        text = self.placeholders["image"] * count
        return Expansion(text, (count,), pixels, grid, original, normalization=settings.normalization)

    def _expand_video(self, source: Any, media: MediaInputs) -> Expansion:
        video = load_clip(source, media, max_frames=768, sampler=self.sampler(media), evenly=self.count_sampler())
        frames, settings = video.frames, self.video_settings
        original = frames.shape[1], frames.shape[2]
        if media.resize_shape:
            frames = _resize_frames(frames, media.resize_shape, settings)
        frames = self.annotate(frames, video.timestamps)
        with naming(source):
            size = self.frame_size(len(frames), frames.shape[1], frames.shape[2], media)
        planned = -(-len(frames) // settings.frames), size[0] // settings.patch, size[1] // settings.patch
        count = self.token_count(planned, settings)
        self.check_count("video", original, count, f"max_pixels (--max-pixels) makes frames smaller, {FEWER_FRAMES}")
        images = [Image.fromarray(frame) for frame in frames]
        fitted = np.stack([self.fit(image, size, settings, media, len(images)) for image in images])
        pixels, grid = self.patchify(fitted, settings)
        text, counts = self.video_text(video, grid[0], grid[1] * grid[2] // settings.merge**2)
        seconds = settings.frames / video.fps if self.timed else 0.0
        return Expansion(text, counts, pixels, grid, original, seconds, settings.normalization)

    def pixel_values(self, media: Media) -> np.ndarray:
        values = media.pixels
        if values.dtype != np.uint8 or media.normalization is None:
            return values
        settings = self.image_settings if media.kind == "image" else self.video_settings
        values = channels_first(media.normalization(values.reshape(len(values), -1, 3)), settings)
        return values.reshape(len(values), *self.patch_shape(settings))


@dataclass(eq=False, repr=False)
class Qwen3VLProcessor(QwenVLProcessor):
    """Source: transformers' Qwen3VLProcessor, Qwen2VLImageProcessor and Qwen3VLVideoProcessor."""

    video_bounds = (128 * 32 * 32, 32 * 32 * 768)
    mean, std = SIGLIP_MEAN, SIGLIP_STD

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> Size:
        return video_size(frames, height, width, bounded(self.video_settings, media, frames))

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        # Each pair of frames has its time before it, and start and end tokens inside those of the chat template, as
        # transformers 5 writes it.
        text = "".join(
            f"<{seconds:.1f} seconds><|vision_start|>{self.placeholders['video'] * count}<|vision_end|>"
            for seconds in pair_times(video, self.video_settings.frames)
        )
        return text, (count,) * groups


@contextlib.contextmanager
def naming(source: Any) -> Iterator[None]:
    """Puts the name of the source before what is wrong with its shape."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{describe_source(source)}: {error}") from None


def pair_times(video: Video, frames: int) -> list[float]:
    """The time of each group of `frames` frames: the mean of its first and last, in seconds."""
    times = list(video.timestamps)
    times += times[-1:] * (-len(times) % frames)
    return [(times[i] + times[i + frames - 1]) / 2 for i in range(0, len(times), frames)]


def bounded(settings: PixelSettings, media: MediaInputs, frames: int = 1) -> PixelSettings:
    """The settings with the request's bounds, which are of one image or frame, in the place of the processor's, which
    for a video are of all its frames: many large frames stay within that."""
    min_pixels, max_pixels = pixel_bounds(media, settings.min_pixels, settings.max_pixels, frames)
    if frames > 1:
        max_pixels = max(min_pixels, min(max_pixels, settings.max_pixels))
    return replace(settings, min_pixels=min_pixels, max_pixels=max_pixels)


def _resize_frames(frames: np.ndarray, size: Size, settings: PixelSettings) -> np.ndarray:
    return np.stack([np.asarray(settings.resize(Image.fromarray(frame), size)) for frame in frames])
