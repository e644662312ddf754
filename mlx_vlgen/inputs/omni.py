"""The processors of Qwen2.5-Omni and Qwen3-Omni."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..errors import MediaError
from .audio import load_audio
from .audio_tensors import AudioTensors
from .media import describe_source
from .processor import Expansion, Kind
from .processor_files import ProcessorSettings
from .prompt import MediaInputs
from .qwen2_vl import Qwen2VLProcessor
from .whisper import WhisperSettings


@dataclass(eq=False, repr=False)
class Qwen2_5OmniProcessor(Qwen2VLProcessor):
    """A video's bounds are the family's, whatever a checkpoint's files say.

    Source: transformers' Qwen2_5OmniProcessor.
    """

    sound: WhisperSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|IMAGE|>", "video": "<|VIDEO|>", "audio": "<|AUDIO|>"}
    prompt_tokens = r"<\|(box|quad)_(start|end)\|>"

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        config = config.get("thinker_config", config)
        fields = super().read_fields(settings, config)
        least, most = cls.video_bounds
        sound = WhisperSettings.read(settings.audio, config["audio_config"].get("num_mel_bins", 128))
        video = replace(fields["video_settings"], min_pixels=least, max_pixels=most)
        return fields | {"video_settings": video, "timed": True, "sound": sound}

    @property
    def audio_tensors(self) -> AudioTensors:
        return self.sound.tensors

    def audio_tokens(self, frames: int) -> int:
        return (frames + 1) // 4

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return self._expand_audio(source) if kind == "audio" else super().expand(kind, source, media)

    def _expand_audio(self, source: Any) -> Expansion:
        name = describe_source(source)
        samples = load_audio(source, self.sound.mel.rate)
        pixels, frames = self.sound.features(samples, name)
        count = self.audio_tokens(frames)
        if not count:
            raise MediaError(f"{name}: too short: {len(samples):,} samples become no token")
        return Expansion(self.placeholders["audio"] * count, (count,), pixels, (frames,), (0, 0))
