"""Sound from anywhere as one channel at a model's rate, within limits: WAV by us, other formats through PyAV."""

import contextlib
import os
from collections.abc import Iterator
from numbers import Integral
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from ..errors import MediaError
from .audio_file import open_audio
from .budget import MAX_CHANNELS, check_audio
from .fetch import Limits
from .media import describe_source, has_attribute, open_media
from .resample import can_resample, resample
from .wav import Signal, read_wav, to_full_scale

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | tuple[np.ndarray, int]
"""Path, file:, http(s): or data: URL, encoded bytes, open binary file, array, or array with its rate."""

_BLOCK = 1 << 16
_NONE = np.empty(0, np.float32)
_TYPES = (np.float16, np.float32, np.float64, np.int16, np.int32, np.uint8)
_LOUDEST = 32.0  # 30 dB above full scale, which no recording is; integers written as floats are


def load_audio(source: AudioSource, rate: int, *, limits: Limits = Limits()) -> np.ndarray:
    """Read one clip as (n,) float32, full scale -1 to 1, `rate` samples a second: the mean of its channels, resampled
    as `resample` says. A clip of that rate keeps its samples.

    Args:
        source: a path, URL, bytes or binary file, as in `load_image`, whose main sound track is read, a video's too;
            an array of `rate` samples a second, or a tuple of an array and its rate. Arrays are (n,), (n, channels) or
            (channels, n), where the shorter side is that of the channels; floats from -1 to 1, int16, int32 or uint8.
        rate: samples a second, that the model takes.
        limits: caps on seconds, samples, bytes, time and addresses. A file on disk may have any size.

    Raises:
        MediaError: anything that keeps the clip from being read, with the source's name as `describe_source` gives it.
    """
    array, array_rate = source if isinstance(source, tuple) and len(source) == 2 else (source, rate)
    name = describe_source(array)
    with contextlib.ExitStack() as stack:
        if has_attribute(array, "__array__"):
            signal = _from_array(array, array_rate, name)
        elif isinstance(source, tuple):
            raise MediaError(f"{name}: expected an array and its rate, or a path, URL, bytes or file without one")
        else:
            signal = _from_file(stack, source, name, limits)
        check_audio(signal.rate, signal.channels, signal.frames, name, limits)
        if not can_resample(signal.rate, rate):
            raise MediaError(
                f"{name}: {signal.rate:,} samples a second have no simple ratio to the {rate:,} that this model takes; "
                "resample it to a usual rate"
            )
        samples = np.concatenate([_NONE, *resample(_mono(signal, name, limits), signal.rate, rate)])
    if not len(samples):
        raise MediaError(f"{name}: has no samples")
    return samples


def _from_file(stack: contextlib.ExitStack, source: Any, name: str, limits: Limits) -> Signal:
    file = stack.enter_context(open_media(source, name, limits))
    try:
        if not file.read(1):
            raise MediaError(f"{name}: is empty")
        file.seek(0)
        signal = read_wav(file, name)
    except OSError:
        raise MediaError(f"{name}: reading it failed") from None
    return signal or stack.enter_context(open_audio(file, name, limits))


def _from_array(source: Any, rate: Any, name: str) -> Signal:
    if not isinstance(rate, Integral) or isinstance(rate, bool):
        raise MediaError(f"{name}: its rate is {rate!r:.80}; expected a whole number of samples a second")
    if isinstance(source, np.ma.MaskedArray):
        raise MediaError(f"{name}: parts of it are masked; give array.filled(0)")
    try:
        array = np.asarray(source)
    except Exception:
        raise MediaError(f"{name}: numpy cannot convert it; give float32") from None
    if array.ndim == 1:
        array = array[:, np.newaxis]
    elif array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    if array.ndim != 2 or not 1 <= array.shape[1] <= MAX_CHANNELS:
        raise MediaError(
            f"{name}: expected samples (n,), (n, channels) or (channels, n), of {MAX_CHANNELS} channels at most"
        )
    if array.dtype.type not in _TYPES:
        raise MediaError(f"{name}: values of type {array.dtype}; expected float from -1 to 1, int16, int32 or uint8")
    blocks = (to_full_scale(array[start : start + _BLOCK]) for start in range(0, len(array), _BLOCK))
    return Signal(int(rate), array.shape[1], len(array), blocks)


def _mono(signal: Signal, name: str, limits: Limits) -> Iterator[np.ndarray]:
    """The mean of the channels, block by block; MediaError for values that are none, and for more than the header
    says and the limits allow."""
    total = 0
    for block in signal.blocks:
        total += len(block)
        check_audio(signal.rate, signal.channels, total, name, limits)
        loudest = float(np.abs(block).max(initial=0.0))
        if not np.isfinite(loudest):
            raise MediaError(f"{name}: holds values that are not finite")
        if loudest > _LOUDEST:
            raise MediaError(f"{name}: float values up to {loudest:g}; expected -1 to 1 (integers are int16 or int32)")
        yield block.mean(axis=1)
