"""Frames kept of a video: which, and how they are stacked."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..errors import MediaError
from .budget import check_frames
from .fetch import Limits

_MAX_FRAMES = 1_000_000

Sampler: TypeAlias = Callable[[int, float], np.ndarray]
"""(total frames, frames per second) -> indices of the frames to keep."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames kept of one video.

    Args:
        frames: (T, H, W, 3) uint8 RGB, upright.
        timestamps: when each kept frame is shown, in seconds from the start.
        fps: frames kept per second of video (transformers' `VideoMetadata.sampled_fps`).
    """

    frames: np.ndarray
    timestamps: tuple[float, ...]
    fps: float


def check_counts(num_frames: int | None, max_frames: int | None) -> None:
    for name, number in (("num_frames", num_frames), ("max_frames", max_frames)):
        if not isinstance(number, int | np.integer | None):
            raise TypeError(f"{name} is {number!r:.80}; expected a whole number")


def sample_indices(
    total: int,
    source_fps: float,
    fps: float | None,
    num_frames: int | None,
    min_frames: int = 4,
    max_frames: int | None = 768,
) -> np.ndarray:
    """Which of `total` frames to keep: evenly from first to last, in order (int64).

    The rule of transformers' `Qwen3VLVideoProcessor.sample_frames`. By `fps`: as many as `fps` a second gives, not
    fewer than `min_frames`, then not more than `max_frames`, then not more than there are. By `num_frames`: exactly so
    many, whatever the bounds, with repeats if there are fewer.

    Raises:
        ValueError: `fps` and `num_frames` together or neither; a number out of its range.
    """
    if (fps is None) == (num_frames is None):
        raise ValueError("give either fps or num_frames: each says how many frames of the video are kept")
    check_counts(num_frames, max_frames)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; expected 1 or more, or None")
    if fps is not None:
        if not 0 < fps < float("inf"):
            raise ValueError(f"fps is {fps}; expected more than 0")
        by_rate = min(total / source_fps * fps, float(total))  # a float may be too large for int
        count = min(max(int(by_rate), min_frames, 1), max_frames or total, total)
    else:
        count = num_frames or 0
        if not 1 <= count <= _MAX_FRAMES:
            raise ValueError(f"num_frames is {num_frames}; expected 1 to {_MAX_FRAMES}")
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def stack_frames(images: Iterable[tuple[str, Any]], count: int, name: str, limits: Limits) -> np.ndarray:
    """(count, H, W, 3) from images with their labels; fewer if fewer come, one image at a time in memory."""
    frames = np.empty((0, 0, 0, 3), np.uint8)
    received = 0
    for received, (label, image) in enumerate(images, 1):
        frame = np.asarray(image)
        if received == 1:
            height, width, _ = frame.shape
            check_frames((width, height), count, name, limits)
            frames = np.empty((count, height, width, 3), np.uint8)
        if frame.shape != frames.shape[1:]:
            raise MediaError(
                f"{name}: {label} is {frame.shape[1]} x {frame.shape[0]}, the first is {width} x {height}; "
                "the frames of a video have one size"
            )
        frames[received - 1] = frame
    return frames[:received]
