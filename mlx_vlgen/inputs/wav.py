"""WAV files of PCM and floats, a block at a time, and the signal that every decoder of sound gives."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from ..errors import MediaError

_BLOCK = 1 << 16
_CHUNKS = 1000
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SUBFORMAT = bytes.fromhex("000000001000800000aa00389b71")  # after the two bytes of a coding
_STREAMED = 0x7FFFF000  # what writes to a pipe, and cannot go back to the header, gives this size or more


@dataclass(frozen=True)
class Signal:
    """Sound before it is decoded. rate: samples a second. frames: samples of each channel by the header; None where it
    does not say. blocks: (n, channels) float64 each, full scale -1 to 1."""

    rate: int
    channels: int
    frames: int | None
    blocks: Iterator[np.ndarray]


class _Format(NamedTuple):
    """width: bytes of one sample of one channel."""

    coding: int
    channels: int
    rate: int
    width: int


def to_full_scale(values: np.ndarray) -> np.ndarray:
    """Integers of any width to float64 from -1 to 1; floats as they are."""
    if values.dtype.kind not in "ui":
        return values.astype(np.float64)
    half = 1 << (8 * values.dtype.itemsize - 1)
    return (values.astype(np.float64) - (half if values.dtype.kind == "u" else 0)) / half


def read_wav(file: BinaryIO, name: str) -> Signal | None:
    """What a file holds that starts with a WAV; None for other files, and WAVs in other codings and byte orders."""
    if (head := file.read(12))[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    form: _Format | None = None
    for _ in range(_CHUNKS):
        if len(header := file.read(8)) < 8:
            break
        kind, size = header[:4], int.from_bytes(header[4:], "little")
        if kind == b"data" and form is not None:
            return _signal(file, form, size, name)
        if kind == b"fmt " and form is None:
            start = file.tell()
            form = _read_format(file.read(min(size, 40)))
            if form is None:
                return None
            file.seek(start)
        file.seek(size + size % 2, 1)
    raise MediaError(f"{name}: the WAV is truncated or damaged; get a whole copy")


def _read_format(data: bytes) -> _Format | None:
    """None for what is not read here."""
    if len(data) < 16:
        return None
    coding, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", data[:16])
    if coding == _EXTENSIBLE and data[26:40] == _SUBFORMAT:
        coding = int.from_bytes(data[24:26], "little")
    width = -(-bits // 8)
    whole = frame_bytes == channels * width
    readable = (coding == _PCM and 1 <= width <= 4) or (coding == _FLOAT and bits in (32, 64))
    return _Format(coding, channels, rate, width) if whole and readable else None


def _signal(file: BinaryIO, form: _Format, size: int, name: str) -> Signal:
    start = file.tell()
    there = file.seek(0, 2) - start
    if size > there and size < _STREAMED:
        raise MediaError(f"{name}: the WAV is truncated: {there:,} of {size:,} bytes of sound; get a whole copy")
    file.seek(start)
    frames = min(size, there) // (form.width * form.channels) if form.channels else 0
    return Signal(form.rate, form.channels, frames, _blocks(file, form, frames, name))


def _blocks(file: BinaryIO, form: _Format, frames: int, name: str) -> Iterator[np.ndarray]:
    while frames > 0:
        count = min(frames, max(1, _BLOCK // form.channels))
        data = file.read(count * form.channels * form.width)
        if len(data) < count * form.channels * form.width:
            raise MediaError(f"{name}: reading it failed")
        yield _samples(data, form).reshape(count, form.channels)
        frames -= count


def _samples(data: bytes, form: _Format) -> np.ndarray:
    """(n,) float64."""
    if form.width == 3:
        whole = np.zeros((len(data) // 3, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return to_full_scale(whole.view("<i4")[:, 0])
    letter = "f" if form.coding == _FLOAT else "u" if form.width == 1 else "i"
    return to_full_scale(np.frombuffer(data, f"<{letter}{form.width}"))
