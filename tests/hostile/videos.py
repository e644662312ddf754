"""Hostile video files: (name, bytes), a small MP4 with numbers changed in its boxes."""

import functools
import io
import struct
from collections.abc import Iterator

import numpy as np

from .pictures import Named

FRAMES = 25


@functools.cache
def small_movie() -> bytes:
    """An MP4 of 25 frames of 64 x 48 pixels, 10 a second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 8 * FRAMES, 8):
            frame = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def lying_headers() -> Iterator[Named]:
    for box, at, *values in (
        (b"stsz", 8, 1, 10**6),
        (b"stsz", 12, 10**6),
        (b"stsz", 12, 2**31 - 1),
        (b"stts", 12, 10**6, 1),
        (b"stts", 16, 0),
        (b"stts", 16, 2**32 - 1),
        (b"mdhd", 16, 0),
        (b"mvhd", 16, 0),
        (b"mdhd", 20, 0),
        (b"tkhd", 80, 30000 << 16, 30000 << 16),
        (b"stsd", 8 + 32, 30000 << 16 | 30000),
    ):
        yield f"{box.decode()} {values}", patched(box, at, *values)


def patched(box: bytes, at: int, *values: int) -> bytes:
    """32-bit numbers in the place of a small MP4's, so many bytes after the name of a box."""
    data = bytearray(small_movie())
    struct.pack_into(f">{len(values)}I", data, data.index(box) + at, *values)
    return bytes(data)
