"""Log-mel spectrograms, as audio towers take them, in numpy."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

_BLOCK = 1024  # frames


@dataclass(frozen=True)
class MelSettings:
    """How a spectrogram is made. The defaults are those of Whisper's extractor.

    rate: samples a second. mels: bands from `low` to `high` Hz.
    frame: samples under one window. window: Hann's, or Hamming's, which ends as it begins. hop: from one frame to the
    next. fft: samples of a frame's transform, of which those after the frame are zeros.
    padding: "centered", the signal mirrored so that frame t has its middle at sample t * hop; "before", half a frame of
    zeros before the first sample; "none"; "whole", the same. In the two before the last a frame needs one sample after
    it.
    gain: of the samples.
    preemphasis: how much of the sample before it is taken off each one of a frame.
    power: of the magnitudes.
    scale: "slaney", bands even in Hz up to 1 kHz and in octaves from there, all of one area; "htk", bands of one
    height, even in 2595 log10(1 + Hz / 700); "kaldi", those whose sides are straight in 1127 ln(1 + Hz / 700).
    floor: the least energy of a band; where `adds_floor`, it is added to all.
    single: whether frames and their transform are float32, as some extractors have them: quiet bands beside loud ones
    tell it. single_window: whether the cosines of the window are, too. double_transform: whether the window and the
    transform are not.
    log: "whisper", (log10 + 4) / 4 of what is not more than 8 decades below the loudest; "natural", ln.
    """

    rate: int = 16_000
    mels: int = 80
    low: float = 0.0
    high: float = 8000.0
    frame: int = 400
    hop: int = 160
    fft: int = 400
    window: Literal["hann", "hamming"] = "hann"
    padding: Literal["centered", "before", "none", "whole"] = "centered"
    gain: float = 1.0
    preemphasis: float = 0.0
    power: float = 2.0
    scale: Literal["slaney", "htk", "kaldi"] = "slaney"
    floor: float = 1e-10
    adds_floor: bool = False
    single: bool = False
    single_window: bool = False
    double_transform: bool = False
    log: Literal["whisper", "natural"] = "whisper"

    def frames(self, samples: int) -> int:
        """How many frames so many samples make."""
        if self.padding == "centered":
            return samples // self.hop
        before = self.frame // 2 if self.padding == "before" else 0
        return max(0, (samples + before - self.frame - (self.padding != "whole")) // self.hop + 1)


def log_mel(samples: np.ndarray, settings: MelSettings = MelSettings()) -> np.ndarray:
    """(n,) float32 at `settings.rate` -> (`settings.frames(n)`, mels) float32. Computed a part at a time.

    Equal to transformers' numpy extractors, of which Whisper's has mels first.
    """
    count = settings.frames(len(samples))
    features = np.empty((count, settings.mels), np.float32)
    if count == 0:
        return features
    half = settings.frame // 2
    if settings.padding == "centered":
        samples = np.pad(samples, half, mode="reflect")
    elif settings.padding == "before":
        samples = np.pad(samples, (half, 0))
    frames = np.lib.stride_tricks.sliding_window_view(samples, settings.frame)[:: settings.hop][:count]
    dtype = np.float32 if settings.single else np.float64
    n: np.ndarray = np.arange(settings.frame, dtype=np.float32 if settings.single_window else np.float64)
    if settings.window == "hann":
        window = 0.5 * (1 - np.cos(2 * np.pi * n / settings.frame))
    else:
        window = 0.54 - 0.46 * np.cos(2 * np.pi * n / (settings.frame - 1))
    window = window.astype(np.float64 if settings.double_transform else dtype)
    bands = mel_bands(settings)
    for start in range(0, count, _BLOCK):
        block: np.ndarray = frames[start : start + _BLOCK].astype(dtype)
        if settings.preemphasis:
            block[:, 1:] -= settings.preemphasis * block[:, :-1]
            block[:, 0] *= 1 - settings.preemphasis
        if settings.gain != 1:
            block *= settings.gain
        energies = np.abs(np.fft.rfft(block * window, settings.fft)) ** settings.power @ bands
        energies = energies + settings.floor if settings.adds_floor else np.maximum(energies, settings.floor)
        features[start : start + _BLOCK] = np.log10(energies) if settings.log == "whisper" else np.log(energies)
    if settings.log == "whisper":
        np.maximum(features, features.max() - 8, out=features)
        features += 4
        features /= 4
    return features


def mel_bands(settings: MelSettings) -> np.ndarray:
    """(fft // 2 + 1, mels) float64: how much of each frequency is in each band, triangles that overlap by half."""
    to_mel = {"slaney": _slaney_mel, "htk": _htk_mel, "kaldi": _kaldi_mel}[settings.scale]
    low, high = to_mel(np.array([settings.low, settings.high]))
    edges = np.linspace(low, high, settings.mels + 2)
    hz = np.arange(settings.fft // 2 + 1)[:, np.newaxis] * (settings.rate / settings.fft)
    if settings.scale == "kaldi":
        hz = _kaldi_mel(hz)
    else:
        edges = _slaney_hz(edges) if settings.scale == "slaney" else _htk_hz(edges)
    widths = np.diff(edges)
    bands = np.maximum(0, np.minimum((hz - edges[:-2]) / widths[:-1], (edges[2:] - hz) / widths[1:]))
    return bands * 2 / (edges[2:] - edges[:-2]) if settings.scale == "slaney" else bands


def _slaney_mel(hz: np.ndarray) -> np.ndarray:
    """Malcolm Slaney's Auditory Toolbox (1998): 15 mels up to 1 kHz, then 27 for a factor of 6.4."""
    return np.where(hz < 1000, hz * 0.015, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def _slaney_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels / 0.015, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def _htk_mel(hz: np.ndarray) -> np.ndarray:
    """The HTK Book, 5.4."""
    return 2595 * np.log10(1 + hz / 700)


def _htk_hz(mels: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mels / 2595) - 1)


def _kaldi_mel(hz: np.ndarray) -> np.ndarray:
    """`MelScale` of Kaldi's mel-computations.h."""
    return 1127 * np.log(1 + hz / 700)
