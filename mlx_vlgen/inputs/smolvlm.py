"""The processor of SmolVLM: Idefics3's, and video as timed frames, each like a whole picture."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import chat_template
from .chat_template import Message
from .idefics3 import IMAGE, LARGEST, Idefics3Processor, TileSettings, longest, pixels_of, whole_text
from .images import resize
from .literal import Segment
from .plain import refuse_pixel_bounds
from .processor import FEWER_FRAMES, Expansion, Kind, read_settings
from .prompt import MediaInputs
from .video import Video, load_video

# The template of most checkpoints passes over videos; with one in the messages, transformers takes another, which
# writes the same as this.
TEMPLATE = (
    "<|im_start|>{% for turn in messages %}{{ turn['role'] | capitalize }}:"
    "{% if turn['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% elif part['type'] == 'video' %}<video>{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class ClipSettings:
    """How a video becomes frames: `frames` says how a picture of it is made; fps: frames a second that are kept of a
    file; most: at most so many."""

    frames: TileSettings
    fps: float
    most: int

    @classmethod
    def read(cls, own: Mapping[str, Any]) -> "ClipSettings":
        """From a video_preprocessor_config.json, or from the preprocessor_config.json that was for both. Where none
        says how a file is sampled, as all published ones do."""
        sampling = own.get("video_sampling") or {}
        size = own.get("size") or sampling.get("video_size")
        return cls(
            TileSettings.read({**own, "size": size}),
            fps=sampling.get("fps") or own.get("fps") or 1,
            most=sampling.get("max_frames") or own.get("num_frames") or 64,
        )


class SmolVLMProcessor(Idefics3Processor):
    """Source: transformers' SmolVLMProcessor and SmolVLMVideoProcessor."""

    placeholders: Mapping[Kind, str] = {"image": IMAGE, "video": "<video>"}
    feature_tokens: Mapping[Kind, str] = {"video": IMAGE}
    clips: ClipSettings

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "SmolVLMProcessor":
        made = super().from_folder(folder, config)
        assert isinstance(made, cls)
        made.clips = ClipSettings.read(read_settings(folder).video)
        return made

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        processor = self
        videos = any(part.kind == "video" for part in chat_template.media_parts(messages))
        if videos and self.placeholders["video"] not in (self.chat_template or ""):
            processor = copy.copy(self)
            processor.chat_template = TEMPLATE
        return super(SmolVLMProcessor, processor).format(messages, **kwargs)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return super().expand(kind, source, media) if kind == "image" else self._video(source, media)

    def _video(self, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        clips = self.clips
        fps = clips.fps if media.video_fps is None else media.video_fps
        most = clips.most if media.max_frames is None else media.max_frames
        video = load_video(
            source, fps=media.video_fps, num_frames=media.num_frames, max_frames=media.max_frames,
            sampler=lambda total, rate: kept_frames(total, rate, fps, most),
        )  # fmt: skip
        count, original = (clips.frames.tile // self.side) ** 2, video.frames.shape[1:3]
        self.check_count("video", original, count * len(video.frames), FEWER_FRAMES)
        frames = np.stack([self._frame(frame, media.resize_shape) for frame in video.frames])
        return Expansion(
            video_text(video, whole_text(count)),
            (count,) * len(frames),
            pixels_of(frames, clips.frames),
            (),
            original,
        )

    def _frame(self, frame: np.ndarray, shape: tuple[int, int] | None) -> np.ndarray:
        """(H, W, 3) -> (tile, tile, 3), by way of the longer side that pictures have."""
        settings = self.clips.frames
        image = Image.fromarray(frame)
        if shape:
            image = resize(image, shape, settings.resample)
        if settings.edge is not None:
            size = longest(image.height, image.width, min(settings.edge, LARGEST))
            image = resize(image, size, settings.resample)
        return np.asarray(resize(image, (settings.tile, settings.tile), settings.resample))


def kept_frames(total: int, rate: float, fps: float, most: int) -> np.ndarray:
    """Which of `total` frames, shown at `rate` a second, to keep: `fps` a second, at most `most`, evenly; of a long
    video without its first and last second. Source: transformers' SmolVLMVideoProcessor.sample_frames."""
    seconds = total / rate
    count = max(1, min(round(fps * seconds), most))
    first, last = 0, total - 1
    if seconds - 2 > most * fps and int(rate) < min(int(total - rate), last):
        first, last = int(rate), min(int(total - rate), last)
    return np.unique(np.linspace(first, last, count, dtype=np.int64))


def video_text(video: Video, frame: str) -> str:
    """The words around the frames, each of which `frame` stands for."""
    length = timedelta(seconds=int(round(len(video.frames) / video.fps, 6)))
    times = "".join(f"\nFrame from {int(at // 60):02d}:{int(at % 60):02d}:{frame}" for at in video.timestamps)
    count = in_words(len(video.frames))
    return f"You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n{times}\n\n"


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number below a million as num2words writes it: "one thousand, two hundred and thirty-four"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = _TENS[number // 10 - 2], number % 10
        return f"{tens}-{_ONES[ones]}" if ones else tens
    if number < 1000:
        head, rest = f"{_ONES[number // 100]} hundred", number % 100
        return f"{head} and {in_words(rest)}" if rest else head
    head, rest = f"{in_words(number // 1000)} thousand", number % 1000
    if not rest:
        return head
    return f"{head}, {in_words(rest)}" if rest >= 100 else f"{head} and {in_words(rest)}"
