"""Voxtral's processor: clips of any length, in chunks of 30 seconds of 375 tokens each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import PromptError
from .audio import load_audio
from .audio_tensors import AudioTensors
from .processor import Expansion, Kind, Processor, ProcessorSettings
from .prompt import MediaInputs
from .whisper import WhisperSettings, whisper_positions

FRAMES_A_TOKEN = 8
TEMPLATE = (
    "{{ '<s>' }}{% set has = namespace(instructions=false) %}{% for message in messages %}"
    "{% if message['content'] is string %}{% set content = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% elif message['role'] == 'system' %}{% set has.instructions = true %}{{ '[SYSTEM_PROMPT]' }}"
    "{% elif message['role'] != 'assistant' %}"
    "{{ raise_exception('This model knows no messages with the role ' ~ message['role'] ~ ': give user, system or "
    "assistant') }}{% endif %}"
    "{% for part in content %}{% if part['type'] == 'audio' %}{% if has.instructions %}"
    "{{ raise_exception('This model takes no system message beside sound: put its text into that of the user') }}"
    "{% endif %}{{ '[BEGIN_AUDIO][AUDIO]' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'user' %}{{ '[/INST]' }}{% elif message['role'] == 'system' %}{{ '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ '</s>' }}{% endif %}{% endfor %}"
)
"""Of Mistral's seventh format, for checkpoints that have none. A transcript is asked for by a special prompt; see
`transcription_prompt`."""


def transcription_prompt(language: str | None) -> str:
    """What asks for a transcript of one clip. language: two letters of ISO 639-1; None: that which is heard."""
    if language is not None and not re.fullmatch("[a-z]{2}", language):
        raise PromptError(f'language={language!r:.80}: expected two letters, such as "en", or None')
    return f"<s>[INST][BEGIN_AUDIO][AUDIO][/INST]{f'lang:{language}' if language else ''}[TRANSCRIBE]"


@dataclass(eq=False, repr=False)
class VoxtralProcessor(Processor):
    """Source: transformers' VoxtralProcessor and WhisperFeatureExtractor; mistral-common's audio encoder."""

    sound: WhisperSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"audio": "[AUDIO]"}

    def __post_init__(self) -> None:
        if self.chat_template is None:
            self.chat_template = TEMPLATE

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"sound": WhisperSettings.of_tower(settings.audio, config["audio_config"])}

    @property
    def audio_tensors(self) -> AudioTensors:
        frames = self.sound.samples // self.sound.mel.hop
        return AudioTensors(mask=None, bands=self.sound.mel.mels, bands_first=True, frames=frames, continues=True)

    def audio_tokens(self, frames: int) -> int:
        return whisper_positions(frames) * 2 // FRAMES_A_TOKEN

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        samples = load_audio(source, self.sound.mel.rate)
        chunks = -(-len(samples) // self.sound.samples)
        frames = chunks * self.sound.samples // self.sound.mel.hop
        count = self.audio_tokens(frames)
        self.check_count(kind, len(samples) / self.sound.mel.rate, count, "cut it in parts")
        pixels = self.sound.chunks(samples)
        return Expansion(self.placeholders[kind] * count, (count,), pixels, (frames,), (0, 0))

    def apply_transcription_request(
        self, audio: Any, model_id: str | None = None, language: Any = None, format: Any = None, **kwargs: Any
    ) -> Any:
        """transformers' method: one clip, or a list of them, to all that `generate` takes for their transcripts.

        language: see `transcription_prompt`; one for all, or a list. model_id, format: change nothing here.
        kwargs: of a call of this processor (sampling_rate, return_tensors, …).
        """
        clips = list(audio) if isinstance(audio, list) else [audio]
        languages = list(language) if isinstance(language, list) else [language] * len(clips)
        if len(languages) != len(clips):
            raise PromptError(f"{len(languages)} languages were given for {len(clips)} clips: give one for each")
        text = [transcription_prompt(each) for each in languages]
        return self(text=text, audio=[[clip] for clip in clips], **{"padding": True} | kwargs)
