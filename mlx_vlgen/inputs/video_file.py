"""Video files as frames, through PyAV (extra `video`)."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from ..errors import MediaError
from .budget import check_memory, check_size
from .cut_short import BOXES, is_cut_short
from .decode import foreign_kind
from .fetch import Limits
from .frames import Sampler, Video, stack_frames

# libav's names. Its other demuxers include playlists and scripts, which open further files and URLs by name.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_READABLE = "MP4, MOV, WebM, MKV, AVI, MPEG, FLV, WMV, OGG, animated GIF, WebP or PNG"
_VIDEO_STARTS = (b"RIFF", b"\x1a\x45\xdf\xa3", b"\0\0\x01", b"FLV", b"OggS", b"\x30\x26\xb2\x75")
_FRAME_BYTES = 24  # a pixel in sixteen earlier frames, which a frame may be made from
_MARGIN = 256
_THREAD_BYTES = 3  # a pixel that each thread holds


def read_container(file: BinaryIO, name: str, sample: Sampler, limits: Limits) -> Video:
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
                # Frames may be larger than announced; libav counts its margins, too.
                max_pixels = min(limits.max_image_pixels, limits.max_decoded_bytes // _FRAME_BYTES)
                max_pixels = max(max_pixels, (size[0] + _MARGIN) * (size[1] + _MARGIN))
                stream.codec_context.options = {"max_pixels": str(max_pixels)}
                decoded = _Counted(stream.container.decode(stream))
                frames = stack_frames(_upright_at(indices.tolist(), decoded), len(indices), name, limits)
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
    """As many as there are processors and memory for: each decodes another frame."""
    pixels = math.prod(size)
    room = (limits.max_decoded_bytes - pixels * _FRAME_BYTES) // (pixels * _THREAD_BYTES)
    return max(1, min(os.cpu_count() or 1, room))


class _Counted:
    """An iterator that counts its items."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self.count += 1
            yield item


def _upright_at(indices: list[int], frames: Iterable[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The frames at `indices` (ascending, repeats allowed) with their labels; reads no further than the last."""
    position = 0
    for number, frame in enumerate(frames):
        while indices[position] == number:
            yield f"frame {number}", _upright(frame)
            position += 1
            if position == len(indices):
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
