"""Spectrograms as the extractors of Gemma 3n and Gemma 4 make them, and what Gemma 4 makes of a clip."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import LoadError, MediaError
from ..notices import notice
from .audio import load_audio
from .audio_tensors import AudioTensors
from .gemma4 import Gemma4Processor
from .media import describe_source
from .mel import MelSettings, log_mel
from .processor import Expansion, Kind, ProcessorSettings
from .prompt import MediaInputs

GEMMA4 = MelSettings(
    mels=128, frame=320, fft=512, padding="before", power=1.0, scale="htk", floor=1e-3, adds_floor=True, single=True,
    log="natural",
)  # fmt: skip
MAX_SECONDS = 30
"""What the extractors cut off clips at, whatever a checkpoint says."""


def read_mel(settings: Mapping[str, Any], family: MelSettings, bands: int) -> MelSettings:
    """From an extractor's settings, where the family's hold for what they leave out. bands: that the tower takes."""
    if (mels := settings.get("feature_size", family.mels)) != bands:
        raise LoadError(
            f"This checkpoint's features of sound have {mels} bands and its audio tower takes {bands}: its "
            "processor_config.json does not belong to its config.json."
        )
    normalized = [name for name in ("per_bin_mean", "per_bin_stddev") if settings.get(name) is not None]
    ignored = [name for name in ("dither", "padding_value") if settings.get(name)]
    scaled = ["input_scale_factor"] if settings.get("input_scale_factor", 1.0) != 1.0 else []
    if family.preemphasis and not settings.get("preemphasis_htk_flavor", True):
        ignored.append("preemphasis_htk_flavor = false")
    if named := normalized + ignored + scaled:
        raise LoadError(f"This checkpoint's features of sound have {named[0]}, which is not computed here.")
    rate = settings.get("sampling_rate", family.rate)
    frame = round(rate * settings.get("frame_length_ms", 1000 * family.frame / family.rate) / 1000)
    hop = round(rate * settings.get("hop_length_ms", 1000 * family.hop / family.rate) / 1000)
    least = 2 ** math.ceil(math.log2(frame))
    overdrive = settings.get("fft_overdrive", family.fft > 2 ** math.ceil(math.log2(family.frame)))
    return replace(
        family, rate=rate, frame=frame, hop=hop, fft=2 * least if overdrive else least,
        mels=mels, low=settings.get("min_frequency", family.low),
        high=settings.get("max_frequency", family.high), preemphasis=settings.get("preemphasis", family.preemphasis),
        floor=settings.get("mel_floor", family.floor),
    )  # fmt: skip


def load_samples(source: Any, rate: int) -> np.ndarray:
    """A clip (n,) float32, of which no more is heard than `MAX_SECONDS`; a notice says what is cut off."""
    samples = load_audio(source, rate)
    if len(samples) > MAX_SECONDS * rate:
        notice(
            f"{describe_source(source)}: this model hears {MAX_SECONDS} seconds, and not the rest of "
            f"{len(samples) / rate:.1f}; cut it in parts"
        )
    return samples[: MAX_SECONDS * rate]


@dataclass(eq=False, repr=False)
class Gemma4AudioProcessor(Gemma4Processor):
    """Of a checkpoint that hears. sound: of its spectrograms.

    Source: transformers' Gemma4AudioFeatureExtractor.
    """

    sound: MelSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {**Gemma4Processor.placeholders, "audio": "<|audio|>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        # The tower's first layer has as many channels as there are bands.
        bands = (config["audio_config"].get("subsampling_conv_channels") or (128,))[0]
        return super().read_fields(settings, config) | {"sound": read_mel(settings.audio, GEMMA4, bands)}

    @property
    def audio_tensors(self) -> AudioTensors:
        return AudioTensors(mask="input_features_mask", bands=self.sound.mels)

    def audio_tokens(self, frames: int) -> int:
        return -(-frames // 4)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        if kind != "audio":
            return super().expand(kind, source, media)
        samples = load_samples(source, self.sound.rate)
        features = log_mel(samples, self.sound)
        count = self.audio_tokens(len(features))
        if not count:
            raise MediaError(f"{describe_source(source)}: too short: {len(samples):,} samples become no token")
        return Expansion(self.delimited(kind, count), (count,), features, (len(features),), (0, 0))
