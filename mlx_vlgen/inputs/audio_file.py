"""Sound in files of every format but plain WAV, and in videos, through PyAV (extra `audio`)."""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from ..errors import MediaError
from .budget import check_audio
from .cut_short import BOXES, is_cut_short
from .decode import foreign_kind, image_kind
from .fetch import Limits
from .wav import Signal, to_full_scale

# libav's names. Its other demuxers include playlists and scripts, which open further files and URLs by name.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mp3,flac,wav,w64,aac,aiff,caf,amr,au"
_READABLE = "WAV, MP3, FLAC, M4A, AAC, OGG, Opus, AIFF, WMA, or a video with sound"
_STARTS = (
    b"RIFF", b"RIFX", b"RF64", b"riff", b"ID3", b"fLaC", b"OggS", b"FORM", b"caff", b"#!AMR", b".snd", b"FLV",
    b"\x1a\x45\xdf\xa3", b"\0\0\x01", b"\x30\x26\xb2\x75",
)  # fmt: skip
_COUNTED = ("flac", "wav", "w64", "aiff", "au")  # formats whose headers count samples; others' durations are estimates


@contextlib.contextmanager
def open_audio(file: BinaryIO, name: str, limits: Limits) -> Iterator[Signal]:
    """The main sound track of a file, decoded as its blocks are taken."""
    try:
        import av
    except ImportError:
        raise MediaError(f'{name}: sound that is not WAV needs an extra: pip install "mlx-vlgen[audio]"') from None
    with contextlib.ExitStack() as stack:
        try:
            if is_cut_short(file):
                raise MediaError(f"{name}: the file is truncated; get a whole copy")
            file.seek(0)
            container = stack.enter_context(av.open(file, options={"format_whitelist": _CONTAINERS}))
            stream = container.streams.best("audio")
            if stream is None:
                raise MediaError(f"{name}: has no sound")
            duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
            context = stream.codec_context
            frames = None if duration is None or duration < 0 else round(duration * context.sample_rate)
            check_audio(context.sample_rate, context.channels, frames, name, limits)
            decoded = iter(container.decode(stream))
            first = next(decoded)  # its rate is the decoder's, which a header may halve
        except MediaError:
            raise
        except StopIteration:
            raise MediaError(f"{name}: has no samples") from None
        except Exception:
            raise MediaError(f"{name}: {_why_unreadable(file)}") from None
        counted = frames if container.format.name in _COUNTED else None
        blocks = _blocks(chain([first], decoded), first.sample_rate, first.layout.nb_channels, counted, name)
        yield Signal(first.sample_rate, first.layout.nb_channels, frames, blocks)


def _blocks(frames: Iterable[Any], rate: int, channels: int, counted: int | None, name: str) -> Iterator[np.ndarray]:
    """counted: how many samples there are to be."""
    total = 0
    try:
        for frame in frames:
            if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise MediaError(f"{name}: its rate or number of channels changes within; convert it to WAV")
            values = frame.to_ndarray()  # (channels, n), or (1, n * channels)
            values = values.T if frame.format.is_planar else values.reshape(-1, channels)
            total += len(values)
            yield to_full_scale(values)
    except MediaError:
        raise
    except Exception:
        raise MediaError(f"{name}: the sound is truncated or damaged; get a whole copy") from None
    if counted is not None and total < counted:
        raise MediaError(f"{name}: the sound is truncated: {total:,} of {counted:,} samples; get a whole copy")


def _why_unreadable(file: BinaryIO) -> str:
    with contextlib.suppress(Exception):
        file.seek(0)
        head = file.read(512)
        if kind := image_kind(head):
            return f"a {kind} picture; give it as image="
        transport_stream = head[:1] == b"G" and head[188:189] == b"G"  # MPEG-TS: a packet every 188 bytes
        sync = head[:1] == b"\xff" and head[1:2] >= b"\xe0"  # of MP3 and AAC
        if not (head.startswith(_STARTS) or head[4:8] in BOXES or transport_stream or sync):
            return f"no sound that is read here ({foreign_kind(head)}); expected {_READABLE}"
    return "the sound is truncated or damaged; get a whole copy"
