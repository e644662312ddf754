"""Sound files that lie, and damaged ones; arrays with any rate.

Each third seed is the next of `LYING`, while there are any; the others damage a small file, or give an array.
"""

import functools
import importlib.util
import io
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlx_vlgen.inputs.audio import load_audio
from mlx_vlgen.inputs.identify import identified

from .trial import SPARE, Try
from .values import NUMBERS, array, value

RATE = 16_000
FORMATS = {"flac": "flac", "ogg": "libopus", "mp3": "libmp3lame", "mp4": "aac", "wav": "pcm_alaw"}


def tone(seconds: float = 0.2, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """(n, channels) int16, a sine of 440 Hz at half of full scale, each channel quieter than the one before."""
    sine = np.sin(2 * np.pi * 440 / rate * np.arange(round(seconds * rate)))
    return np.rint(16384 * sine[:, np.newaxis] / np.arange(1, channels + 1)).astype(np.int16)


def wav(
    data: bytes, channels: int = 1, rate: int = RATE, bits: int = 16, coding: int = 1, size: int | None = None,
    frame: int | None = None, before: bytes = b"",
) -> bytes:  # fmt: skip
    """A WAV file. size: of the data, as the header has it; frame: of one sample of all channels; before: chunks."""
    frame = channels * bits // 8 if frame is None else frame
    form = struct.pack("<HHIIHH", coding, channels, rate, rate * frame % 2**32, frame, bits)
    body = before + chunk(b"fmt ", form) + b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


@functools.cache
def encoded(kind: str) -> bytes:
    """The tone in a format of PyAV's."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(FORMATS[kind], rate=RATE, layout="mono")
        stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(tone().T.copy(), format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def lying() -> Iterator[tuple[str, bytes]]:
    data = tone().tobytes()
    for rate in (0, 1, 999, 767_999, 10_000_000, 2**32 - 1):
        yield f"{rate} Hz", wav(data, rate=rate)
    for channels in (0, 64, 65535):
        yield f"{channels} channels", wav(data, channels, frame=channels * 2 % 65536)
    for bits, coding in ((0, 1), (7, 1), (12, 1), (40, 1), (64, 1), (16, 3), (128, 3), (16, 0), (4, 17), (16, 85)):
        yield f"{bits} bits of {coding}", wav(data, bits=bits, coding=coding)
    yield "frame of 0", wav(data, frame=0)
    for size in (0, 1, len(data) + 1, 2**31 - 1, 2**32 - 1):
        yield f"size {size}", wav(data, size=size)
    for number in (np.nan, np.inf, 3e38):
        yield f"{number}", wav(np.full(9, number, "<f4").tobytes(), bits=32, coding=3)
    yield "extensible without the rest", wav(data, coding=0xFFFE)
    yield "many chunks", wav(data, before=chunk(b"junk", b"") * 100_000)
    yield "chunk of 4 GiB", wav(data, before=b"junk" + b"\xff" * 4)
    yield "two formats", wav(data, before=chunk(b"fmt ", bytes(16)))
    yield "no data", wav(data)[:36]
    yield "data first", b"RIFF\0\0\0\0WAVE" + chunk(b"data", data) + chunk(b"fmt ", bytes(16))
    yield "two hours at the lowest rate", wav(bytes(7_300 * 1000), rate=1000, bits=8)


class Attack:
    def __init__(self, folder: Path):
        self._lying = list(lying())
        known = [encoded(kind) for kind in FORMATS] if importlib.util.find_spec("av") else []
        self._files = [wav(tone(channels=2).tobytes(), 2), *known]

    def draw(self, seed: int) -> Try:
        draw, index = random.Random(seed), seed // 3
        if seed % 3 == 0 and index < len(self._lying):
            name, source = self._lying[index]
        elif draw.random() < 0.2:
            name, source = "array", (array(draw), draw.choice([RATE, 44_100, *NUMBERS, value(draw)]))
        else:
            name, source = "damaged", damaged(draw, draw.choice(self._files))
        return Try(f"{name} {source!r:.80}", lambda: _load(source), peak=SPARE)


def _load(source: Any) -> None:
    samples = load_audio(identified("audio", source)[0], RATE)
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()


def damaged(draw: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(draw.choice([0, 1, 2, 8])):
        place = draw.randrange(draw.choice([64, len(data)]))
        data[place] = draw.choice([0, 1, 255, draw.randrange(256)])
    return bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
