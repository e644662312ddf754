"""Gemma 3n's processor: one square image, and clips of at most 30 seconds, all of as many tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import LoadError, MediaError
from .audio_tensors import AudioTensors
from .fixed_size import FixedSizeSettings
from .gemma_audio import load_samples, read_mel
from .images import SIGLIP_MEAN, SIGLIP_STD
from .media import describe_source
from .mel import MelSettings, log_mel
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs

GEMMA3N = MelSettings(
    mels=128, low=125.0, high=7600.0, frame=512, fft=1024, padding="none", preemphasis=0.97, power=1.0, scale="htk",
    floor=1e-5, single=True, single_window=True, log="natural",
)  # fmt: skip
MULTIPLE = 128
"""Clips are filled up with silence to so many samples, or twice, three times as many."""


@dataclass(eq=False, repr=False)
class Gemma3nProcessor(Processor):
    """counts: tokens of an image and of a clip. frames: those of a spectrogram that become one token.

    Source: transformers' Gemma3nProcessor, SiglipImageProcessor and Gemma3nAudioFeatureExtractor.
    """

    image_settings: FixedSizeSettings
    sound: MelSettings
    counts: Mapping[Kind, int]
    frames: int

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<image_soft_token>", "audio": "<audio_soft_token>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        audio, counts = config["audio_config"], dict[Kind, int]()
        families: tuple[tuple[Kind, str, int], ...] = (("image", "vision", 256), ("audio", "audio", 188))
        for kind, part, default in families:
            counts[kind] = config.get(f"{part}_soft_tokens_per_image", default)
            if (written := settings.processor.get(f"{kind}_seq_length", counts[kind])) != counts[kind]:
                raise LoadError(
                    f"This checkpoint's processor writes {written} tokens for {kind} and its model takes "
                    f"{counts[kind]}: its processor_config.json does not belong to its config.json."
                )
        image = {"resample": Image.Resampling.BILINEAR, "do_normalize": False, **settings.image}
        return {
            "image_settings": FixedSizeSettings.read(image, 768, SIGLIP_MEAN, SIGLIP_STD),
            "sound": read_mel(settings.audio, GEMMA3N, audio.get("input_feat_size", 128)),
            "counts": counts,
            "frames": 4 * audio.get("conf_reduction_factor", 4),
        }

    @property
    def audio_tensors(self) -> AudioTensors:
        return AudioTensors(mask="input_features_mask", bands=self.sound.mels)

    def audio_tokens(self, frames: int) -> int:
        return self.counts["audio"]

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        count = self.counts[kind]
        text = f"\n\n<start_of_{kind}>{self.placeholders[kind] * count}<end_of_{kind}>\n\n"
        if kind == "image":
            pixels, original = self.image_settings.load_pixels(source, media)
            return Expansion(text, (count,), pixels, (), original, normalization=self.image_settings.normalization)
        samples = load_samples(source, self.sound.rate)
        features = log_mel(np.pad(samples, (0, -len(samples) % MULTIPLE)), self.sound)
        if not 0 < -(-len(features) // self.frames) <= count:
            raise MediaError(
                f"{describe_source(source)}: {len(samples):,} samples make {len(features):,} frames; expected 1 to "
                f"{self.frames * count:,}"
            )
        return Expansion(text, (count,), features, (len(features),), (0, 0))
