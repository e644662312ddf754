"""Features of sound as Whisper's extractor makes them, for every family whose audio tower is like Whisper's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..errors import LoadError
from ..notices import notice
from .audio_tensors import AudioTensors
from .mel import MelSettings, log_mel

_MARGIN = 3
"""Frames of silence that are kept after a clip's own: two that the convolutions see, and one that hears nothing of it,
which is what all others would be."""


@dataclass(frozen=True)
class WhisperSettings:
    """mel: of the spectrogram. seconds: a clip is taken as if it lasted so long, cut off or followed by silence."""

    mel: MelSettings
    seconds: int

    @classmethod
    def read(cls, settings: Mapping[str, Any], mels: int) -> Self:
        """From a preprocessor_config.json. mels: where it does not say."""
        seen = "image_mean" in settings  # in one file with those of pictures, whose `do_normalize` it is
        for name in ("dither", "padding_value", *(() if seen else ("do_normalize",))):
            if settings.get(name):
                raise LoadError(f"This checkpoint's features of sound have {name}, which is not computed here.")
        rate, hop = settings.get("sampling_rate", 16_000), settings.get("hop_length", 160)
        fft, mels = settings.get("n_fft", 400), settings.get("feature_size", mels)
        return cls(MelSettings(rate, mels, frame=fft, hop=hop, fft=fft), settings.get("chunk_length", 30))

    @property
    def samples(self) -> int:
        return self.seconds * self.mel.rate

    @property
    def tensors(self) -> AudioTensors:
        frames = self.samples // self.mel.hop
        return AudioTensors(bands=self.mel.mels, bands_first=True, frames=frames, margin=_MARGIN, repeats=True)

    def check_positions(self, positions: int) -> None:
        """LoadError where a tower with so many, each of two frames, does not take such clips."""
        if (frames := self.samples // self.mel.hop) != 2 * positions:
            raise LoadError(
                f"Clips of this checkpoint become {frames:,} frames and its audio tower takes {2 * positions:,}: its "
                "preprocessor_config.json does not belong to its config.json."
            )

    def features(self, samples: np.ndarray, name: str) -> tuple[np.ndarray, int]:
        """(n,) float32 -> (frames, mels) float32, those that differ from silence, and how many are the clip's own.
        name: of the clip, in a notice that its end is cut off."""
        if len(samples) > self.samples:
            length = len(samples) / self.mel.rate
            notice(
                f"{name}: this model hears {self.seconds} seconds, and not the rest of {length:.1f}; cut it in parts"
            )
        hop, samples = self.mel.hop, samples[: self.samples]
        frames = -(-len(samples) // hop)
        padded = min(frames + _MARGIN, self.samples // hop)
        # So much silence that none of the frames that are kept sees its end, where it is mirrored.
        heard = min(self.samples, padded * hop + self.mel.frame)
        return log_mel(np.pad(samples, (0, heard - len(samples))), self.mel)[:padded], frames

    def chunks(self, samples: np.ndarray) -> np.ndarray:
        """(n,) float32 -> (frames, mels) float32 of a whole number of windows, of which the last ends in silence."""
        return log_mel(np.pad(samples, (0, -len(samples) % self.samples)), self.mel)


def whisper_positions(frames: int) -> int:
    """Of the tower, for so many frames of a clip: its second convolution takes every other one."""
    return (frames - 1) // 2 + 1
