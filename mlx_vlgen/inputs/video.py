"""Videos as frames and their times: files through PyAV (extra `video`), animations through Pillow, frames as given."""

import contextlib
import io
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image

from ..errors import MediaError
from .budget import check_frames, check_memory, check_size
from .cut_short import BOXES, is_cut_short
from .decode import EncodedPicture, foreign_kind, iso_kind, picture_kind
from .fetch import Limits
from .media import (
    describe_source,
    has,
    is_local,
    load_image,
    local_path,
    open_path,
    read_source,
    read_to_end,
)

_FRAME_FILES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif"))
# libav's names. Its other demuxers include playlists and scripts, which open further files and URLs by name.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_READABLE = "MP4, MOV, WebM, MKV, AVI, MPEG, FLV, WMV, OGG, animated GIF, WebP or PNG"
_VIDEO_STARTS = (b"RIFF", b"\x1a\x45\xdf\xa3", b"\0\0\x01", b"FLV", b"OggS", b"\x30\x26\xb2\x75")
_FRAME_BYTES = 24  # a pixel in sixteen earlier frames, which a frame may be made from
_MARGIN = 256
_MOST_FRAMES = 1_000_000
_THREAD_BYTES = 3  # a pixel that each thread holds
_PARTS = re.compile(r"(\d*)(\D*)")

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
    A file's timestamps are frame index / average frame rate, an animation's are its own. Raw frames (a folder, a list,
    an array) have no rate of their own: `fps` states it, and all frames are kept unless `num_frames` or `max_frames`
    says otherwise.

    Args:
        source: a path, URL, bytes or binary file, as in `load_image`; a folder of pictures (in natural order: 2 before
            10; other files in it are passed over); a list of pictures of one size; an array (T, H, W, 3) uint8.
        fps: sampling rate of a file, default `default_fps`; the rate of raw frames.
        num_frames: keep exactly so many frames, repeating some of a shorter video.
        min_frames, max_frames: bounds for the number that follows from a rate; `max_frames` also bounds raw frames.
            None: no upper bound.
        sampler: a family's own rule for files and animations, where `num_frames` is not given.
        evenly: the same where it is: (total frames, `num_frames`) -> indices of the frames to keep.
        limits: caps on pixels, bytes, time and addresses. A file on disk may have any size.

    Raises:
        MediaError: the source cannot be read, is not a video, or exceeds a limit.
        ValueError: `fps` and `num_frames` for a file or animation, or a number out of its range.
    """
    name = describe_source(source)
    pictures: list[Any] | np.ndarray | None = None
    if isinstance(source, list | tuple):
        pictures = list(source)
    elif has_raw_frames(source):
        pictures = _frames_in(local_path(source), name) if is_local(source) else _checked_array(source, name)
    rate = default_fps if fps is None else fps
    if pictures is not None:
        if not 0 < rate < float("inf"):
            raise ValueError(f"fps is {rate}; expected more than 0")
        return _from_pictures(pictures, name, rate, num_frames, max_frames, limits)

    def sample(total: int, source_fps: float) -> np.ndarray:
        wanted = rate if num_frames is None else fps
        kept = sample_indices(total, source_fps, wanted, num_frames, min_frames, max_frames)
        if num_frames is not None:
            return kept if evenly is None else evenly(total, num_frames)
        return kept if sampler is None else sampler(total, source_fps)

    sample(1, 1.0)  # refuses bad numbers before anything is read
    with _opened(source, name, limits) as file:
        try:
            head = file.read(512) or b""
            file.seek(0)
        except OSError:
            raise MediaError(f"{name}: reading it failed") from None
        if not head:
            raise MediaError(f"{name}: is empty")
        if picture_kind(head) in ("GIF", "WebP", "PNG"):
            return _from_animation(read_to_end(file, name, limits), name, sample, limits)
        if picture_kind(head) or iso_kind(head) in ("HEIC", "AVIF"):
            raise _still(name)
        return _from_container(file, name, sample, limits)


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
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; expected 1 or more, or None")
    if num_frames is None:
        assert fps is not None
        if not 0 < fps < float("inf"):
            raise ValueError(f"fps is {fps}; expected more than 0")
        by_rate = min(total / source_fps * fps, float(total))  # a float may be too large for int
        num_frames = min(max(int(by_rate), min_frames, 1), max_frames or total, total)
    elif not 1 <= num_frames <= _MOST_FRAMES:
        raise ValueError(f"num_frames is {num_frames}; expected 1 to {_MOST_FRAMES}")
    return np.linspace(0, total - 1, num_frames).round().astype(np.int64)


# Raw frames


def has_raw_frames(source: Any) -> bool:
    """Whether a video is a list of pictures, a folder of them, or an array: frames that somebody chose."""
    if is_local(source):
        return os.path.isdir(local_path(source))  # noqa: PTH112  Path's raises for long names
    return isinstance(source, list | tuple) or (has(source, "__array__") and not isinstance(source, Image.Image))


def _frames_in(folder: str, name: str) -> list[Any]:
    try:
        files = [path for path in Path(folder).iterdir() if path.suffix.lower() in _FRAME_FILES and path.name[0] != "."]
    except OSError as error:
        raise MediaError(f"{name}: the folder cannot be read ({error.strerror})") from None
    if not files:
        raise MediaError(f"{name}: the folder holds no pictures ({', '.join(sorted(_FRAME_FILES))})")
    return sorted(files, key=lambda path: [(int(digits or -1), text) for digits, text in _PARTS.findall(path.name)])


def _checked_array(source: Any, name: str) -> np.ndarray:
    """(T, H, W, 3) uint8, a view where it can be one."""
    if isinstance(source, np.ma.MaskedArray):
        raise MediaError(f"{name}: parts of it are masked; give array.filled(255)")
    try:
        array = np.asarray(source)
    except Exception:
        raise MediaError(f"{name}: numpy cannot convert it; give uint8") from None
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise MediaError(f"{name}: {array.dtype} of shape {array.shape}; expected frames (T, H, W, 3) of uint8")
    return array


def _from_pictures(
    pictures: list[Any] | np.ndarray,
    name: str,
    rate: float,
    num_frames: int | None,
    max_frames: int | None,
    limits: Limits,
) -> Video:
    total = len(pictures)
    if total == 0:
        raise MediaError(f"{name}: a video needs one frame at least")
    count = num_frames if num_frames is not None else min(total, max_frames or total)
    indices = sample_indices(total, rate, None, count, max_frames=max_frames)
    if isinstance(pictures, np.ndarray):
        check_frames((pictures.shape[2], pictures.shape[1]), count, name, limits)
        frames = pictures[indices]
    else:
        frames = _stack(
            (
                (f"frame {at} ({describe_source(pictures[at])})", load_image(pictures[at], limits=limits))
                for at in indices
            ),
            len(indices),
            name,
            limits,
        )
    return Video(frames, tuple((indices / rate).tolist()), len(indices) / total * rate)


# Encoded videos


@contextlib.contextmanager
def _opened(source: Any, name: str, limits: Limits) -> Iterator[BinaryIO]:
    """A seekable file that starts with the video, in memory only where it must be."""
    if is_local(source):
        with open_path(source) as file:
            yield file
    elif (descriptor := _regular_file_at_start(source)) is not None:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            try:
                file.seek(0)
                yield file
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)  # which both share
    else:
        yield io.BytesIO(read_source(source, limits))


def _regular_file_at_start(source: Any) -> int | None:
    """The descriptor of an open file on disk; None for everything else, which `read_source` reads or refuses.

    libav reads by the descriptor and not through the object, whose `read` and `seek` may do what they like.
    """
    if not isinstance(source, io.FileIO | io.BufferedReader | io.BufferedRandom):  # a GzipFile too has a descriptor
        return None
    try:
        descriptor = source.fileno()
        return descriptor if source.tell() == 0 and stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError, AttributeError):  # closed, or no file on disk; read_source says what is wrong
        return None


def _still(name: str) -> MediaError:
    return MediaError(f"{name}: a still picture; give it as image=, or in a list for a video of one frame")


def _from_animation(data: bytes, name: str, sample: Sampler, limits: Limits) -> Video:
    picture = EncodedPicture(data, name, limits)
    durations = picture.durations()
    numbers = picture.frames
    if len(numbers) < 2:
        raise _still(name)
    # Rounded, lest sums of tenths fall short of whole seconds, which prompts tell. The last one is the end.
    starts = np.concatenate([[0.0], np.cumsum(durations).round(6)])
    indices = sample(len(numbers), len(numbers) / starts[-1])
    picture.check_kept(len(indices))
    pictures = ((f"frame {at}", picture.frame(numbers[at])) for at in indices)
    frames = _stack(pictures, len(indices), name, limits)
    return Video(frames, tuple(starts[indices].tolist()), len(indices) / float(starts[-1]))


def _stack(pictures: Iterable[tuple[str, Any]], count: int, name: str, limits: Limits) -> np.ndarray:
    """(count, H, W, 3) from pictures with their labels; fewer if fewer come, one picture at a time in memory."""
    frames = np.empty((0, 0, 0, 3), np.uint8)
    came = 0
    for came, (label, picture) in enumerate(pictures, 1):
        frame = np.asarray(picture)
        if came == 1:
            height, width, _ = frame.shape
            check_frames((width, height), count, name, limits)
            frames = np.empty((count, height, width, 3), np.uint8)
        if frame.shape != frames.shape[1:]:
            raise MediaError(
                f"{name}: {label} is {frame.shape[1]} x {frame.shape[0]}, the first is {width} x {height}; "
                "the frames of a video have one size"
            )
        frames[came - 1] = frame
    return frames[:came]


def _from_container(file: BinaryIO, name: str, sample: Sampler, limits: Limits) -> Video:
    try:
        import av
    except ImportError:
        raise MediaError(f'{name}: video files need an extra: pip install "mlx-vlgen[video]"') from None
    try:
        if is_cut_short(file):
            raise MediaError(f"{name}: the video is truncated; get a whole copy")
        with _av_stream(av, file, name) as stream:
            size = stream.codec_context.width, stream.codec_context.height
            check_size(size, name, limits)
            check_memory(math.prod(size) * _FRAME_BYTES, name, limits)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            total = stream.frames
            if not 0 < total <= file.seek(0, os.SEEK_END):  # a frame takes a byte at least
                total = sum(packet.size > 0 for packet in stream.container.demux(stream))
        while rate > 0 and total > 0:
            indices = sample(total, rate)
            with _av_stream(av, file, name) as stream:
                stream.thread_type = "AUTO"
                stream.thread_count = _threads(size, limits)
                # Frames may be larger than announced; libav also counts its own margins.
                most = min(limits.max_image_pixels, limits.max_decoded_bytes // _FRAME_BYTES)
                most = max(most, (size[0] + _MARGIN) * (size[1] + _MARGIN))
                stream.codec_context.options = {"max_pixels": str(most)}
                decoded = _Counted(stream.container.decode(stream))
                frames = _stack(_upright_at(indices.tolist(), decoded), len(indices), name, limits)
            if len(frames) == len(indices):
                return Video(frames, tuple((indices / rate).tolist()), len(indices) / total * rate)
            total = decoded.count  # fewer than the container counts: its edit list hides some
    except MediaError:
        raise
    except Exception:
        pass
    raise MediaError(f"{name}: {_why_unreadable(file)}")


@contextlib.contextmanager
def _av_stream(av: Any, file: BinaryIO, name: str) -> Iterator[Any]:
    """The main video stream of a file, opened afresh."""
    file.seek(0)
    with av.open(file, options={"format_whitelist": _CONTAINERS}) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise MediaError(f"{name}: has no video track")
        yield stream


def _threads(size: tuple[int, int], limits: Limits) -> int:
    """As many as there are processors and memory for: each decodes a frame of its own."""
    pixels = math.prod(size)
    room = (limits.max_decoded_bytes - pixels * _FRAME_BYTES) // (pixels * _THREAD_BYTES)
    return max(1, min(os.cpu_count() or 1, room))


class _Counted:
    """An iterator that knows how many items it has given."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self.count += 1
            yield item


def _upright_at(indices: list[int], frames: Iterable[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The frames at `indices` (ascending, repeats allowed) with their labels; reads no further than the last."""
    kept = 0
    for number, frame in enumerate(frames):
        while indices[kept] == number:
            yield f"frame {number}", _upright(frame)
            kept += 1
            if kept == len(indices):
                return


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 with the display matrix applied, as players do (phones store the sensor's rows and a matrix).

    x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 8.3.2); a quarter turn has a = d = 0.
    """
    rgb: np.ndarray = frame.to_ndarray(format="rgb24")
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return rgb
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        rgb, a, d = rgb.swapaxes(0, 1), c, b
    return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _why_unreadable(file: BinaryIO) -> str:
    with contextlib.suppress(Exception):
        file.seek(0)
        head = file.read(512)
        transport_stream = head[:1] == b"G" and head[188:189] == b"G"  # MPEG-TS: a packet every 188 bytes
        if not (head.startswith(_VIDEO_STARTS) or head[4:8] in BOXES or transport_stream):
            return f"not a video that is read here ({foreign_kind(head)}); expected {_READABLE}"
    return "the video is truncated or damaged; get a whole copy"
