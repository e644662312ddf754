"""The processors of Qwen2.5-Omni and Qwen3-Omni."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import MediaError, PromptError
from .audio import load_audio
from .audio_tensors import AudioTensors
from .heard_video import HeardVideo
from .media import describe_source
from .mel import log_mel
from .processor import Expansion, Kind
from .processor_files import ProcessorSettings
from .prompt import Media, MediaInputs
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
    seconds_tensor = "video_second_per_grid"
    hears_videos = True
    vision_start: ClassVar[str] = "<|vision_bos|>"
    audio_edges: ClassVar[tuple[str, str]] = ("<|audio_bos|>", "<|audio_eos|>")
    positions_per_second: ClassVar[float] = 25
    seconds_per_chunk: ClassVar[float] = 2

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
        if isinstance(source, HeardVideo):
            return self._expand_heard(source, media)
        return self._expand_audio(source) if kind == "audio" else super().expand(kind, source, media)

    def placed(self, tokens: np.ndarray, media: Sequence[Media]) -> Sequence[Media]:
        """Videos that are heard are known by the tokens before them, and by the sound that follows some of theirs."""
        begin = [self.tokenizer.convert_tokens_to_ids(token) for token in (self.vision_start, self.audio_edges[0])]
        return [self._with_extent(tokens, medium, media, begin) for medium in media]

    def _with_extent(self, tokens: np.ndarray, video: Media, media: Sequence[Media], begin: Sequence[int]) -> Media:
        start = video.spans[0][0] - 2
        if video.kind != "video" or start < 0 or tokens[start : start + 2].tolist() != begin:
            return video
        ends = [end for _, end in video.spans]
        sound = next((other for other in media if other.kind == "audio" and other.spans[0][0] in ends), None)
        if sound is None:
            return video
        end = max(ends[-1], sound.spans[-1][1]) + 2
        if end > len(tokens):
            raise PromptError(f"after a video and its sound two tokens belong: {self.audio_edges[1]} and its own end")
        return video.replace(extent=(start, end))

    def _expand_heard(self, source: HeardVideo, media: MediaInputs) -> Expansion:
        """A video and its sound, by the time of each group of frames and of each of the sound's tokens."""
        seen = super().expand("video", source.video, media)
        try:
            heard = self._expand_audio(source.sound)
        except MediaError as error:
            remedy = "; leave use_audio_in_video out" if source.sound is source.video else ""
            raise MediaError(f"{error}{remedy}") from None
        times = np.repeat(np.arange(seen.grid[0]), seen.counts[0] // seen.grid[0])
        is_sound = self.interleaved(times * seen.seconds * self.positions_per_second, heard.counts[0])
        ends = [*(np.flatnonzero(np.diff(is_sound)) + 1).tolist(), len(is_sound)]
        runs = [(bool(is_sound[end - 1]), end - start) for start, end in zip([0, *ends], ends, strict=False)]
        tokens = "".join(self.placeholders["audio" if sounds else "video"] * count for sounds, count in runs)
        counts = [tuple(count for sounds, count in runs if sounds is wanted) for wanted in (False, True)]
        begin, end = self.audio_edges
        return replace(
            seen, text=f"{begin}{tokens}{end}", counts=counts[0], sound=replace(heard, text="", counts=counts[1])
        )

    def interleaved(self, times: np.ndarray, count: int) -> np.ndarray:
        """times: of a video's tokens, in positions. count: of its sound's tokens, one a position. Returns for each of
        all in their order in the prompt whether it is of the sound: by turns those of some seconds of each."""
        chunks = [self._chunks(times), self._chunks(np.arange(count))]
        is_sound = np.repeat([False, True], [len(times), count])
        return is_sound[np.lexsort((is_sound, np.concatenate(chunks)))]

    def _chunks(self, times: np.ndarray) -> np.ndarray:
        """The chunk of each token: the next one begins with the first token that is at its time or later, even where
        that is the time of one after it."""
        length, chunk = int(self.positions_per_second * self.seconds_per_chunk), 0
        chunks = np.empty(len(times), int)
        for index, time in enumerate(times.tolist()):
            chunk += time >= (chunk + 1) * length
            chunks[index] = chunk
        return chunks

    def _expand_audio(self, source: Any) -> Expansion:
        name = describe_source(source)
        samples = load_audio(source, self.sound.mel.rate)
        pixels, frames = self.features(samples, name)
        count = self.audio_tokens(frames)
        if not count:
            raise MediaError(f"{name}: too short: {len(samples):,} samples become no token")
        self.check_count("audio", len(samples) / self.sound.mel.rate, count, "cut it into shorter clips")
        return Expansion(self.placeholders["audio"] * count, (count,), pixels, (frames,), (0, 0))


@dataclass(eq=False, repr=False)
class Qwen3OmniProcessor(Qwen2_5OmniProcessor):
    """Clips of any length; the end of one is mirrored, and not followed by silence.

    chunk: frames that the tower shortens together.
    Source: transformers' Qwen3OmniMoeProcessor, of one row: in its batches the shorter clips are followed by silence.
    """

    chunk: int = field(default=100, kw_only=True)

    placeholders: ClassVar[Mapping[Kind, str]] = {
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
        "audio": "<|audio_pad|>",
    }
    prompt_tokens = QwenVLProcessor.prompt_tokens
    video_bounds = (128 * 32 * 32, 768 * 32 * 32)
    vision_start = "<|vision_start|>"
    audio_edges = ("<|audio_start|>", "<|audio_end|>")
    positions_per_second = 13

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        audio = config.get("thinker_config", config)["audio_config"]
        return super().read_fields(settings, config) | {"chunk": 2 * audio.get("n_window", 50)}

    @property
    def audio_tensors(self) -> AudioTensors:
        return AudioTensors(bands=self.sound.mel.mels, bands_first=True)

    def audio_tokens(self, frames: int) -> int:
        chunks, rest = divmod(frames, self.chunk)
        return chunks * -(-self.chunk // 8) + -(-rest // 8)

    def features(self, samples: np.ndarray, name: str) -> tuple[np.ndarray, int]:
        mel = log_mel(samples, self.sound.mel)
        return mel, len(mel)

    def interleaved(self, times: np.ndarray, count: int) -> np.ndarray:
        """As there, each token by its time, the video's first."""
        is_sound = np.repeat([False, True], [len(times), count])
        return is_sound[np.lexsort((is_sound, np.concatenate([times, np.arange(count)])))]
