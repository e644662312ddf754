"""What the processors of Qwen's vision-language models share, pictures of any size as grids of patches; Qwen3-VL's."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import MediaError
from .images import (
    MANY_TOKENS,
    PixelSettings,
    normalize,
    patchify,
    picture_size,
    pixel_bounds,
    resize,
    video_size,
)
from .media import describe_source
from .plain import open_picture
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs
from .video import Sampler, Video, load_video


class QwenVLProcessor(Processor):
    """A family says how large a video's frames become and what text stands for them.

    picture_bounds, video_bounds: least and most pixels where a checkpoint is silent; mean, std: likewise.
    """

    placeholders: Mapping[Kind, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    prompt_tokens = r"<\|(object_ref|box|quad|point)_(start|end)\|>"
    picture_bounds: ClassVar[tuple[int, int]] = (56 * 56, 28 * 28 * 1280)
    video_bounds: ClassVar[tuple[int, int]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    timed: bool = False
    """Whether the model's positions tell how fast a video runs."""

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: PixelSettings, videos: PixelSettings):
        super().__init__(tokenizer, chat_template)
        self.pictures, self.videos = pictures, videos

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        tokenizer, settings, vision = load_tokenizer(folder), read_settings(folder), config["vision_config"]
        pictures = cls._settings(settings.image, vision, cls.picture_bounds)
        videos = cls._settings(settings.video, vision, cls.video_bounds)
        return cls(tokenizer, load_template(folder, tokenizer), pictures, videos)

    @classmethod
    def _settings(cls, own: Mapping[str, Any], vision: Mapping[str, Any], bounds: tuple[int, int]) -> PixelSettings:
        """From a preprocessor_config.json of any version; what it leaves out, from the vision tower's configuration."""
        size = own.get("size") or {}
        return PixelSettings(
            min_pixels=own.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or bounds[0],
            max_pixels=own.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or bounds[1],
            patch=own.get("patch_size") or vision.get("patch_size", 14),
            merge=own.get("merge_size") or vision.get("spatial_merge_size", 2),
            frames=own.get("temporal_patch_size") or vision.get("temporal_patch_size", 2),
            mean=tuple(own.get("image_mean") or cls.mean),
            std=tuple(own.get("image_std") or cls.std),
            resample=Image.Resampling(own.get("resample", Image.Resampling.BICUBIC)),
        )

    # -- what a family says

    def picture_size(self, height: int, width: int, media: MediaInputs) -> tuple[int, int]:
        """The (height, width) that a picture is resized to."""
        return picture_size(height, width, bounded(self.pictures, media))

    def sampler(self, media: MediaInputs) -> Sampler | None:
        """The family's own rule of which frames of a video to keep; see `load_video`."""
        return None

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> tuple[int, int]:
        """The (height, width) that frames are resized to."""
        raise NotImplementedError

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        """What stands for `groups` groups of frames of `count` tokens each: text and counts of an `Expansion`."""
        raise NotImplementedError

    # -- what is the same for all

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return self._picture(source, media) if kind == "image" else self._video(source, media)

    def _picture(self, source: Any, media: MediaInputs) -> Expansion:
        settings = self.pictures
        image, original = open_picture(source, media, settings.resample)
        with named(source):
            size = self.picture_size(image.height, image.width, media)
        count, most = size[0] * size[1] // settings.factor**2, MANY_TOKENS * settings.factor**2
        remedy = f"max_pixels (--max-pixels) makes it smaller: {most} gives {MANY_TOKENS:,}"
        self.check_count("image", original, count, remedy)
        image = resize(image, size, settings.resample)
        pixels, grid = patchify(normalize(np.asarray(image)[None], settings.mean, settings.std), settings)
        return Expansion(self.placeholders["image"] * count, (count,), pixels, grid, original)

    def _video(self, source: Any, media: MediaInputs) -> Expansion:
        most = 768 if media.max_frames is None else media.max_frames
        video = load_video(
            source, fps=media.video_fps, num_frames=media.num_frames, max_frames=most, sampler=self.sampler(media)
        )
        frames, settings = video.frames, self.videos
        original = frames.shape[1], frames.shape[2]
        if media.resize_shape:
            frames = _resized(frames, media.resize_shape, settings)
        with named(source):
            size = self.frame_size(len(frames), frames.shape[1], frames.shape[2], media)
        count = -(-len(frames) // settings.frames) * size[0] * size[1] // settings.factor**2
        self.check_count("video", original, count, f"max_pixels (--max-pixels) makes frames smaller, {FEWER_FRAMES}")
        frames = _resized(frames, size, settings)
        pixels, grid = patchify(normalize(frames, settings.mean, settings.std), settings)
        text, counts = self.video_text(video, grid[0], grid[1] * grid[2] // settings.merge**2)
        seconds = settings.frames / video.fps if self.timed else 0.0
        return Expansion(text, counts, pixels, grid, original, seconds)


class Qwen3VLProcessor(QwenVLProcessor):
    """Source: transformers' Qwen3VLProcessor, Qwen2VLImageProcessor and Qwen3VLVideoProcessor."""

    video_bounds = (128 * 32 * 32, 32 * 32 * 768)
    mean = std = (0.5, 0.5, 0.5)

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> tuple[int, int]:
        return video_size(frames, height, width, bounded(self.videos, media, frames))

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        # Each pair of frames has its time before it. That the pairs' own start and end tokens stand inside those
        # of the chat template is how transformers 5 writes it.
        text = "".join(
            f"<{seconds:.1f} seconds><|vision_start|>{self.placeholders['video'] * count}<|vision_end|>"
            for seconds in pair_times(video, self.videos.frames)
        )
        return text, (count,) * groups


@contextlib.contextmanager
def named(source: Any) -> Iterator[None]:
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
    """The settings with the request's own bounds, which are of one picture or frame, in the place of the processor's,
    which for a video are of all its frames: many large frames stay within that."""
    least, most = pixel_bounds(media, settings.min_pixels, settings.max_pixels, frames)
    if frames > 1:
        most = max(least, min(most, settings.max_pixels))
    return dataclasses.replace(settings, min_pixels=least, max_pixels=most)


def _resized(frames: np.ndarray, size: tuple[int, int], settings: PixelSettings) -> np.ndarray:
    return np.stack([np.asarray(resize(Image.fromarray(frame), size, settings.resample)) for frame in frames])
