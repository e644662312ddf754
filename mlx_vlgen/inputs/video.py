"""Videos as frames and their times: files through PyAV (extra `video`), animations through Pillow, frames as given."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MediaError
from .budget import check_frames
from .decode import EncodedImage, image_kind, iso_kind
from .fetch import Limits
from .frames import Sampler, Video, check_counts, sample_indices, stack_frames
from .media import describe_source, has_attribute, is_local, load_image, local_path, open_media, read_to_end
from .prompt import MediaInputs
from .video_file import read_container

_FRAME_FILES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif"))
_NUMBERS = re.compile(r"(\d*)(\D*)")


def load_clip(
    source: Any,
    media: MediaInputs,
    *,
    max_frames: int | None = None,
    sampler: Sampler | None = None,
    evenly: Callable[[int, int], np.ndarray] | None = None,
) -> Video:
    """A video read as a request says. max_frames: where the request has none; sampler, evenly: as in `load_video`."""
    return load_video(
        source,
        fps=media.video_fps,
        num_frames=media.num_frames,
        max_frames=max_frames if media.max_frames is None else media.max_frames,
        sampler=sampler,
        evenly=evenly,
    )


def load_video(
    source: Any,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = 4,
    max_frames: int | None = 768,
    default_fps: float = 2.0,
    sampler: Sampler | None = None,
    evenly: Callable[[int, int], np.ndarray] | None = None,
    limits: Limits = Limits(),
) -> Video:
    """Read a video and keep some of its frames, evenly spread.

    Files and animations are sampled as `sample_indices` says, at `fps` frames a second unless `num_frames` is given.
    A file's timestamps are frame index / average frame rate, an animation's are in it. Raw frames (a folder, a list,
    an array) have no rate: `fps` states it, and all frames are kept unless `num_frames` or `max_frames`
    says otherwise.

    Args:
        source: a path, URL, bytes or binary file, as in `load_image`; a folder of pictures (in natural order: 2 before
            10; other files in it are passed over); a list of pictures of one size; an array (T, H, W, 3) uint8.
        fps: sampling rate of a file, default `default_fps`; the rate of raw frames.
        num_frames: keep exactly so many frames, repeating some of a shorter video.
        min_frames, max_frames: bounds for the number that follows from a rate; `max_frames` also bounds raw frames.
            None: no upper bound.
        sampler: a family's rule for files and animations, where `num_frames` is not given.
        evenly: the same where it is: (total frames, `num_frames`) -> indices of the frames to keep.
        limits: caps on pixels, bytes, time and addresses. A file on disk may have any size.

    Raises:
        MediaError: the source cannot be read, is not a video, or exceeds a limit.
        ValueError: `fps` and `num_frames` for a file or animation, or a number out of its range.
    """
    check_counts(num_frames, max_frames)
    name = describe_source(source)
    images: list[Any] | np.ndarray | None = None
    if isinstance(source, list | tuple):
        images = list(source)
    elif has_raw_frames(source):
        images = _frames_in(local_path(source), name) if is_local(source) else _checked_array(source, name)
    rate = default_fps if fps is None else fps
    if images is not None:
        if not 0 < rate < float("inf"):
            raise ValueError(f"fps is {rate}; expected more than 0")
        return _from_images(images, name, rate, num_frames, max_frames, limits)

    def sample(total: int, source_fps: float) -> np.ndarray:
        sampling_fps = rate if num_frames is None else fps
        indices = sample_indices(total, source_fps, sampling_fps, num_frames, min_frames, max_frames)
        if num_frames is not None:
            return indices if evenly is None else evenly(total, num_frames)
        return indices if sampler is None else sampler(total, source_fps)

    sample(1, 1.0)  # refuses bad numbers before anything is read
    with open_media(source, name, limits) as file:
        try:
            head = file.read(512) or b""
            file.seek(0)
        except OSError:
            raise MediaError(f"{name}: reading it failed") from None
        if not head:
            raise MediaError(f"{name}: is empty")
        if image_kind(head) in ("GIF", "WebP", "PNG"):
            return _from_animation(read_to_end(file, name, limits), name, sample, limits)
        if image_kind(head) or iso_kind(head) in ("HEIC", "AVIF"):
            raise _still(name)
        return read_container(file, name, sample, limits)


# Raw frames


def has_raw_frames(source: Any) -> bool:
    """Whether a video is a list of pictures, a folder of them, or an array: frames that somebody chose."""
    if is_local(source):
        return os.path.isdir(local_path(source))  # noqa: PTH112  Path's raises for long names
    return isinstance(source, list | tuple) or (
        has_attribute(source, "__array__") and not isinstance(source, Image.Image)
    )


def _frames_in(folder: str, name: str) -> list[Any]:
    try:
        files = [path for path in Path(folder).iterdir() if path.suffix.lower() in _FRAME_FILES and path.name[0] != "."]
    except OSError as error:
        raise MediaError(f"{name}: the folder cannot be read ({error.strerror})") from None
    if not files:
        raise MediaError(f"{name}: the folder holds no pictures ({', '.join(sorted(_FRAME_FILES))})")
    return sorted(files, key=lambda path: [(int(digits or -1), text) for digits, text in _NUMBERS.findall(path.name)])


def _checked_array(source: Any, name: str) -> np.ndarray:
    """(T, H, W, 3) uint8, a view where possible."""
    if isinstance(source, np.ma.MaskedArray):
        raise MediaError(f"{name}: parts of it are masked; give array.filled(255)")
    try:
        array = np.asarray(source)
    except Exception:
        raise MediaError(f"{name}: numpy cannot convert it; give uint8") from None
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise MediaError(f"{name}: {array.dtype} of shape {array.shape}; expected frames (T, H, W, 3) of uint8")
    return array


def _from_images(
    images: list[Any] | np.ndarray,
    name: str,
    rate: float,
    num_frames: int | None,
    max_frames: int | None,
    limits: Limits,
) -> Video:
    total = len(images)
    if total == 0:
        raise MediaError(f"{name}: a video needs one frame at least")
    count = num_frames if num_frames is not None else min(total, max_frames or total)
    indices = sample_indices(total, rate, None, count, max_frames=max_frames)
    if isinstance(images, np.ndarray):
        check_frames((images.shape[2], images.shape[1]), count, name, limits)
        frames = images[indices]
    else:
        frames = stack_frames(
            ((f"frame {at} ({describe_source(images[at])})", load_image(images[at], limits=limits)) for at in indices),
            len(indices),
            name,
            limits,
        )
    return Video(frames, tuple((indices / rate).tolist()), len(indices) / total * rate)


# Encoded videos


def _still(name: str) -> MediaError:
    return MediaError(f"{name}: a still picture; give it as image=, or in a list for a video of one frame")


def _from_animation(data: bytes, name: str, sample: Sampler, limits: Limits) -> Video:
    animation = EncodedImage(data, name, limits)
    durations = animation.durations()
    numbers = animation.frames
    if len(numbers) < 2:
        raise _still(name)
    # Rounded, lest sums of tenths fall short of whole seconds, which prompts hold. The last one is the end.
    starts = np.concatenate([[0.0], np.cumsum(durations).round(6)])
    indices = sample(len(numbers), len(numbers) / starts[-1])
    animation.check_kept_frames(len(indices))
    images = ((f"frame {at}", animation.frame(numbers[at])) for at in indices)
    frames = stack_frames(images, len(indices), name, limits)
    return Video(frames, tuple(starts[indices].tolist()), len(indices) / float(starts[-1]))
