"""Qwen2-Audio's processor: a clip of at most 30 seconds, 25 tokens a second."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import MediaError
from .audio import load_audio
from .audio_tensors import AudioTensors
from .media import describe_source
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .whisper import WhisperSettings, whisper_positions


@dataclass(eq=False, repr=False)
class Qwen2AudioProcessor(Processor):
    """Source: transformers' Qwen2AudioProcessor and WhisperFeatureExtractor."""

    sound: WhisperSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"audio": "<|AUDIO|>"}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"sound": WhisperSettings.of_tower(settings.audio, config["audio_config"])}

    @property
    def audio_tensors(self) -> AudioTensors:
        return self.sound.tensors

    def audio_tokens(self, frames: int) -> int:
        return whisper_positions(frames) // 2

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        samples = load_audio(source, self.sound.mel.rate)
        pixels, frames = self.sound.features(samples, describe_source(source))
        count = self.audio_tokens(frames)
        if not count:
            raise MediaError(f"{describe_source(source)}: too short: {len(samples):,} samples become no token")
        return Expansion(self.placeholders[kind] * count, (count,), pixels, (frames,), (0, 0))
