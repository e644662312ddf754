"""The processors of Qwen2.5-Omni and Qwen3-Omni."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import MediaError
from .audio import load_audio
from .audio_tensors import AudioTensors
from .media import describe_source
from .mel import log_mel
from .processor import Expansion, Kind
from .processor_files import ProcessorSettings
from .prompt import MediaInputs
from .qwen2_vl import Qwen2VLProcessor
from .qwen_vl import QwenVLProcessor
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

    def features(self, samples: np.ndarray, name: str) -> tuple[np.ndarray, int]:
        """See `WhisperSettings.features`."""
        return self.sound.features(samples, name)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return self._expand_audio(source) if kind == "audio" else super().expand(kind, source, media)

    def _expand_audio(self, source: Any) -> Expansion:
        name = describe_source(source)
        samples = load_audio(source, self.sound.mel.rate)
        pixels, frames = self.features(samples, name)
        count = self.audio_tokens(frames)
        if not count:
            raise MediaError(f"{name}: too short: {len(samples):,} samples become no token")
        return Expansion(self.placeholders["audio"] * count, (count,), pixels, (frames,), (0, 0))


@dataclass(eq=False, repr=False)
class Qwen3OmniProcessor(Qwen2_5OmniProcessor):
    """Clips of any length; the end of one is mirrored, and not followed by silence.

    chunk: frames that the tower shortens together.
    Source: transformers' Qwen3OmniMoeProcessor, of one row: in its batches the shorter clips are followed by silence.
    """

    chunk: int = field(default=100, kw_only=True)

    placeholders = {"image": "<|image_pad|>", "video": "<|video_pad|>", "audio": "<|audio_pad|>"}
    prompt_tokens = QwenVLProcessor.prompt_tokens
    video_bounds = (128 * 32 * 32, 768 * 32 * 32)

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        audio = config.get("thinker_config", config)["audio_config"]
        return super().read_fields(settings, config) | {"chunk": 2 * audio.get("n_window", 50)}

    @property
    def audio_tensors(self) -> AudioTensors:
        return AudioTensors(bands_first=True)

    def audio_tokens(self, frames: int) -> int:
        chunks, rest = divmod(frames, self.chunk)
        return chunks * -(-self.chunk // 8) + -(-rest // 8)

    def features(self, samples: np.ndarray, name: str) -> tuple[np.ndarray, int]:
        mel = log_mel(samples, self.sound.mel)
        return mel, len(mel)
