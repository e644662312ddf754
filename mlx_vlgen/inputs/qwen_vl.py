"""The processors of Qwen's vision-language models: pictures of any size as grids of patches."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MediaError
from ..notices import notice
from .images import PixelSettings, normalize, patchify, picture_size, resize, video_size
from .media import describe_source, load_image
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import MediaInputs
from .video import Video, load_video

MANY_TOKENS = 4096
"""A picture that becomes more tokens than this is worth a word."""


class Qwen3VLProcessor(Processor):
    """Source: transformers' Qwen3VLProcessor, Qwen2VLImageProcessor and Qwen3VLVideoProcessor."""

    placeholders: Mapping[Kind, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: PixelSettings, videos: PixelSettings):
        super().__init__(tokenizer, chat_template)
        self.pictures, self.videos = pictures, videos

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "Qwen3VLProcessor":
        tokenizer = load_tokenizer(folder)
        settings = read_settings(folder)
        return cls(
            tokenizer,
            load_template(folder, tokenizer),
            _settings(settings.image, config, 56 * 56, 28 * 28 * 1280),
            _settings(settings.video, config, 128 * 32 * 32, 32 * 32 * 768),
        )

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return self._picture(source, media) if kind == "image" else self._video(source, media)

    def _picture(self, source: Any, media: MediaInputs) -> Expansion:
        image = load_image(source)
        settings = bounded(self.pictures, media)
        original = image.height, image.width
        if media.resize_shape:
            image = resize(image, media.resize_shape, settings.resample)
        try:
            size = picture_size(image.height, image.width, settings)
        except MediaError as error:
            raise MediaError(f"{describe_source(source)}: {error}") from None
        image = resize(image, size, settings.resample)
        pixels, grid = patchify(normalize(np.asarray(image)[None], settings.mean, settings.std), settings)
        count = len(pixels) // settings.merge**2
        if count > MANY_TOKENS:
            notice(
                f"a picture of {original[1]} x {original[0]} pixels becomes {count:,} tokens; "
                f"max_pixels (--max-pixels) makes it smaller: {MANY_TOKENS * settings.factor**2} gives {MANY_TOKENS:,}"
            )
        return Expansion(self.placeholders["image"] * count, (count,), pixels, grid, original)

    def _video(self, source: Any, media: MediaInputs) -> Expansion:
        most = 768 if media.max_frames is None else media.max_frames
        video = load_video(source, fps=media.video_fps, num_frames=media.num_frames, max_frames=most)
        frames = video.frames
        original = frames.shape[1], frames.shape[2]
        if media.resize_shape:
            frames = _resized(frames, media.resize_shape, self.videos)
        settings = bounded(self.videos, media, len(frames))
        try:
            size = video_size(len(frames), frames.shape[1], frames.shape[2], settings)
        except MediaError as error:
            raise MediaError(f"{describe_source(source)}: {error}") from None
        frames = _resized(frames, size, settings)
        pixels, grid = patchify(normalize(frames, settings.mean, settings.std), settings)
        count = grid[1] * grid[2] // settings.merge**2
        # Each pair of frames has its time before it. That the pairs' own start and end tokens stand inside those
        # of the chat template is how transformers 5 writes it.
        text = "".join(
            f"<{seconds:.1f} seconds><|vision_start|>{self.placeholders['video'] * count}<|vision_end|>"
            for seconds in pair_times(video, settings.frames)
        )
        return Expansion(text, (count,) * grid[0], pixels, grid, original)


def pair_times(video: Video, frames: int) -> list[float]:
    """The time of each group of `frames` frames: the mean of its first and last, in seconds."""
    times = list(video.timestamps)
    times += times[-1:] * (-len(times) % frames)
    return [(times[i] + times[i + frames - 1]) / 2 for i in range(0, len(times), frames)]


def bounded(settings: PixelSettings, media: MediaInputs, frames: int = 1) -> PixelSettings:
    """The settings with the request's own bounds, which are of one picture or frame, in the place of the processor's,
    which for a video are of all its frames: many large frames stay within that."""
    least = settings.min_pixels if media.min_pixels is None else media.min_pixels * frames
    most = settings.max_pixels if media.max_pixels is None else media.max_pixels * frames
    if media.min_pixels is None:
        least = min(least, most)
    if media.max_pixels is None:
        most = max(least, most)
    if not 0 < least <= most:
        raise ValueError(
            f"min_pixels={media.min_pixels}, max_pixels={media.max_pixels}: expected 0 < min_pixels <= max_pixels"
        )
    if frames > 1:
        most = max(least, min(most, settings.max_pixels))
    return dataclasses.replace(settings, min_pixels=least, max_pixels=most)


def _resized(frames: np.ndarray, size: tuple[int, int], settings: PixelSettings) -> np.ndarray:
    return np.stack([np.asarray(resize(Image.fromarray(frame), size, settings.resample)) for frame in frames])


def _settings(own: Mapping[str, Any], config: Mapping[str, Any], least: int, most: int) -> PixelSettings:
    """From a preprocessor_config.json of any version; what it leaves out, from the vision tower's configuration."""
    size, vision = own.get("size") or {}, config["vision_config"]
    return PixelSettings(
        min_pixels=own.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or least,
        max_pixels=own.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or most,
        patch=own.get("patch_size", vision["patch_size"]),
        merge=own.get("merge_size", vision["spatial_merge_size"]),
        frames=own.get("temporal_patch_size", vision["temporal_patch_size"]),
        mean=tuple(own.get("image_mean", (0.5,) * 3)),
        std=tuple(own.get("image_std", (0.5,) * 3)),
        resample=Image.Resampling(own.get("resample", Image.Resampling.BICUBIC)),
    )
