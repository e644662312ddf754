"""The processor of Gemma 4 without towers: pictures as squares of pixels, sound as stretches of samples."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import LoadError
from .audio import load_audio
from .audio_tensors import AudioTensors
from .gemma4 import Gemma4ImageSettings, Gemma4Processor
from .processor import Expansion, Kind, ProcessorSettings
from .prompt import MediaInputs


@dataclass(eq=False, repr=False)
class Gemma4UnifiedProcessor(Gemma4Processor):
    """Source: transformers' Gemma4UnifiedProcessor and its image and video processors."""

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        """A token's square is one patch."""
        fields = super().read_fields(settings, config)
        pictures: list[Gemma4ImageSettings] = [fields[f"{kind}_settings"] for kind in ("image", "video")]
        image, video = (replace(each, patch=each.side, pool=1) for each in pictures)
        both_ways = config["text_config"].get("use_bidirectional_attention", "vision") == "vision"
        return fields | {"image_settings": image, "video_settings": video, "bidirectional": both_ways}


@dataclass(eq=False, repr=False)
class Gemma4UnifiedAudioProcessor(Gemma4UnifiedProcessor):
    """Of a checkpoint that hears. rate: samples a second. samples: how many become a token.

    Source: transformers' Gemma4UnifiedAudioFeatureExtractor.
    """

    rate: int
    samples: int

    placeholders: ClassVar[Mapping[Kind, str]] = {**Gemma4Processor.placeholders, "audio": "<|audio|>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        samples = settings.audio.get("audio_samples_per_token", 640)
        if samples != (expected := config["audio_config"].get("audio_embed_dim", 640)):
            raise LoadError(
                f"{samples} samples of this checkpoint's sound become a token and its model takes {expected}: its "
                "processor_config.json does not belong to its config.json."
            )
        if settings.audio.get("padding_value"):
            raise LoadError("This checkpoint's features of sound have padding_value, which is not computed here.")
        rate = settings.audio.get("sampling_rate", 16_000)
        return super().read_fields(settings, config) | {"rate": rate, "samples": samples}

    @property
    def audio_tensors(self) -> AudioTensors:
        return AudioTensors(mask="input_features_mask", bands=self.samples)

    def audio_tokens(self, frames: int) -> int:
        return frames

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        if kind != "audio":
            return super().expand(kind, source, media)
        samples = load_audio(source, self.rate)
        count = -(-len(samples) // self.samples)
        self.check_count(kind, len(samples) / self.rate, count, "cut the clip in parts")
        frames = np.pad(samples, (0, count * self.samples - len(samples))).reshape(count, self.samples)
        return Expansion(self.delimited(kind, count), (count,), frames, (count,), (0, 0))
