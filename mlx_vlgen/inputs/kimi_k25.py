"""Kimi K2.5's processor: images of any size, filled up to whole tokens with black; of a clip some frames at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..errors import UnsupportedError
from .images import ImageSettings, Size, read_colors
from .processor import FEWER_FRAMES, Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .video import load_clip

NAMES = {
    "in_patch_limit": "max_patches", "merge_kernel_size": "merge_size", "sample_fps": "fps",
    "temporal_merge_kernel_size": "temporal_patch_size",
}  # fmt: skip
"""The authors' for those of transformers."""


IMAGE, VIDEO = "<|media_pad|>", "<|kimi_k25_video_placeholder|>"
IMAGE_PATCHES, FRAME_PATCHES = 16384, 4096


@dataclass(frozen=True)
class MoonVitSettings(ImageSettings):
    """patch: its side in pixels; merge: patches a side that become one token. max_side: patches of an image's longer
    side at most; max_patches: of all of it, or of a frame. frames: of a clip that become as many tokens as one of them;
    fps: of them a second."""

    patch: int
    merge: int
    max_side: int
    max_patches: int
    frames: int
    fps: float

    @classmethod
    def read(cls, settings: Mapping[str, Any], max_patches: int) -> Self:
        """With the numbers of transformers' processors for what the file leaves out; in the authors' form, too.
        max_patches: where the file has none; the authors' form has another limit for frames, which are fewer."""
        if first := settings.get("media_proc_cfg"):
            if first.get("fixed_output_tokens") is not None:
                raise ValueError("fixed_output_tokens: pictures of a fixed number of tokens are not made here")
            settings = {NAMES.get(name, name): value for name, value in first.items()}
            if max_patches < IMAGE_PATCHES:
                settings["max_patches"] = first.get("in_patch_limit_each_frame") or settings.get("max_patches")
            side = settings.get("patch_limit_on_one_side", 512)
            settings["size"] = {"max_height": side, "max_width": side}
        size = settings.get("size") or {"max_height": 512, "max_width": 512}
        if size["max_height"] != size["max_width"]:
            raise ValueError(f"size = {size}; expected equal sides")
        return cls(
            patch=settings.get("patch_size", 14),
            merge=settings.get("merge_size", 2),
            max_side=size["max_height"],
            max_patches=settings.get("max_patches") or max_patches,
            frames=settings.get("temporal_patch_size", 4),
            fps=settings.get("fps") or 2.0,
            **read_colors(settings),
        )

    def bounded(self, media: MediaInputs) -> Self:
        """With a request's bound of an image's, or a frame's, area."""
        if media.min_pixels is not None:
            raise UnsupportedError("min_pixels: this model's processor enlarges no picture; leave it out")
        if media.max_pixels is None:
            return self
        return replace(self, max_patches=max(1, min(self.max_patches, media.max_pixels // self.patch**2)))

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

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self.filled(np.asarray(self.resize(image, self.shrunk(image.height, image.width))))

    def count(self, levels: np.ndarray) -> int:
        """Tokens of an image, or of some frames: (H, W, 3)."""
        factor = self.patch * self.merge
        return (levels.shape[0] // factor) * (levels.shape[1] // factor)


@dataclass(eq=False, repr=False)
class KimiK25Processor(Processor):
    """Source: transformers' Kimi_K25Processor, Kimi_K25ImageProcessor and Kimi_K25VideoProcessor. vocab_size: of the
    model, which in published checkpoints has no row for a clip's placeholder: a picture's stands for its features."""

    image_settings: MoonVitSettings
    video_settings: MoonVitSettings
    vocab_size: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": IMAGE, "video": VIDEO}

    def __post_init__(self) -> None:
        video = self.tokenizer.convert_tokens_to_ids(VIDEO)
        if video is None or video >= self.vocab_size:
            self.feature_tokens: Mapping[Kind, str] = {"video": IMAGE}  # type: ignore[misc]

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "image_settings": MoonVitSettings.read(settings.image, IMAGE_PATCHES),
            "video_settings": MoonVitSettings.read(settings.video, FRAME_PATCHES),
            "vocab_size": config["text_config"]["vocab_size"],
        }

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        if kind == "video":
            return self._expand_video(source, media)
        settings = self.image_settings.bounded(media)
        image, original = settings.load(source, media)
        pixels = settings.pixels(image)
        count = settings.count(pixels)
        self.check_count(kind, original, count, "max_pixels (--max-pixels) makes it smaller")
        text, normalization = self.placeholders[kind] * count, settings.normalization
        return Expansion(text, (count,), pixels[np.newaxis], (), original, normalization=normalization)

    def _expand_video(self, source: Any, media: MediaInputs) -> Expansion:
        settings = self.video_settings.bounded(media)
        fps = settings.fps if media.video_fps is None else media.video_fps

        def sampler(total: int, rate: float) -> np.ndarray:
            count = min(max(1, int(total / rate * fps)), total, media.max_frames or total)
            return np.arange(count) * total // count

        video = load_clip(source, media, sampler=sampler)
        pixels = np.stack([settings.pixels(image) for image in settings.frame_images(video.frames, media)])
        starts = video.timestamps[:: settings.frames]
        count = settings.count(pixels[0])
        self.check_count(
            "video",
            video.frames.shape[1:3],
            count * len(starts),
            f"max_pixels (--max-pixels) makes frames smaller, {FEWER_FRAMES}",
        )
        features = self.feature_tokens.get("video", VIDEO) * count
        text = "".join(
            f"{clock(start)}<|media_begin|>video<|media_content|>{features}<|media_end|>" for start in starts
        )
        original, normalization = video.frames.shape[1:3], settings.normalization
        return Expansion(
            text, (count,) * len(starts), pixels, (settings.frames,), original, normalization=normalization
        )


def clock(seconds: float) -> str:
    """Hours, minutes, seconds and thousandths, rounded down."""
    whole = int(seconds)
    return f"{whole // 3600 % 24:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{int(seconds % 1 * 1000):03d}"
