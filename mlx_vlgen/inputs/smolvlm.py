"""The processor of SmolVLM: Idefics3's, and video as timed frames, each like a whole image."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from . import chat_template
from .chat_template import Message
from .idefics3 import IMAGE, MAX_EDGE, Idefics3ImageSettings, Idefics3Processor, longest, whole_text
from .images import refuse_pixel_bounds
from .literal import Segment
from .processor import FEWER_FRAMES, Expansion, Kind, ProcessorSettings
from .prompt import MediaInputs
from .video import Video, load_clip

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
class SmolVLMVideoSettings:
    """How a video becomes frames. frame: how each is made; fps: frames a second that are kept of a file; max_frames: at
    most so many."""

    frame: Idefics3ImageSettings
    fps: float
    max_frames: int

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """From a video_preprocessor_config.json, or from the preprocessor_config.json that was for both. Where none
        says how a file is sampled, as all published ones do."""
        sampling = settings.get("video_sampling") or {}
        size = settings.get("size") or sampling.get("video_size")
        return cls(
            Idefics3ImageSettings.read({**settings, "size": size}),
            fps=sampling.get("fps") or settings.get("fps") or 1,
            max_frames=sampling.get("max_frames") or settings.get("num_frames") or 64,
        )

    def frame_levels(self, image: Image.Image) -> np.ndarray:
        """A frame -> (tile, tile, 3) uint8, by way of the longer side that images have."""
        if self.frame.edge is not None:
            image = self.frame.resize(image, longest(image.height, image.width, min(self.frame.edge, MAX_EDGE)))
        return np.asarray(self.frame.resize(image, (self.frame.tile, self.frame.tile)))


@dataclass(eq=False, repr=False)
class SmolVLMProcessor(Idefics3Processor):
    """Source: transformers' SmolVLMProcessor and SmolVLMVideoProcessor."""

    video_settings: SmolVLMVideoSettings

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": IMAGE, "video": "<video>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"video": IMAGE}

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        video = SmolVLMVideoSettings.read(settings.video)
        return super().read_fields(settings, config) | {"video_settings": video}

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        processor = self
        videos = any(part.kind == "video" for part in chat_template.media_parts(messages))
        if videos and self.placeholders["video"] not in (self.chat_template or ""):
            processor = copy.copy(self)
            processor.chat_template = TEMPLATE
        return super(SmolVLMProcessor, processor).format(messages, **kwargs)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        return super().expand(kind, source, media) if kind == "image" else self._expand_video(source, media)

    def _expand_video(self, source: Any, media: MediaInputs) -> Expansion:
        refuse_pixel_bounds(media)
        settings, frame = self.video_settings, self.video_settings.frame
        fps = settings.fps if media.video_fps is None else media.video_fps
        max_frames = settings.max_frames if media.max_frames is None else media.max_frames
        video = load_clip(source, media, sampler=lambda total, rate: sample_frames(total, rate, fps, max_frames))
        count, original = (frame.tile // self.side) ** 2, video.frames.shape[1:3]
        self.check_count("video", original, count * len(video.frames), FEWER_FRAMES)
        levels = np.stack([settings.frame_levels(image) for image in frame.frame_images(video.frames, media)])
        text = video_text(video, whole_text(count))
        return Expansion(text, (count,) * len(levels), levels, (), original, normalization=frame.normalization)


def sample_frames(total: int, rate: float, fps: float, max_frames: int) -> np.ndarray:
    """Indices of the frames to keep of `total`, shown at `rate` a second: `fps` a second, at most `max_frames`, evenly;
    of a long video without its first and last second. Source: transformers' SmolVLMVideoProcessor.sample_frames."""
    seconds = total / rate
    count = max(1, min(round(fps * seconds), max_frames))
    first, last = 0, total - 1
    if seconds - 2 > max_frames * fps and int(rate) < min(int(total - rate), last):
        first, last = int(rate), min(int(total - rate), last)
    return np.unique(np.linspace(first, last, count, dtype=np.int64))


def video_text(video: Video, frame: str) -> str:
    """The text of a video, `frame` for each frame."""
    length = timedelta(seconds=int(round(len(video.frames) / video.fps, 6)))
    times = "".join(f"\nFrame from {int(at // 60):02d}:{int(at % 60):02d}:{frame}" for at in video.timestamps)
    count = spell_number(len(video.frames))
    return f"You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n{times}\n\n"


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell_number(number: int) -> str:
    """A number below a million as num2words writes it: "one thousand, two hundred and thirty-four"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = _TENS[number // 10 - 2], number % 10
        return f"{tens}-{_ONES[ones]}" if ones else tens
    if number < 1000:
        head, rest = f"{_ONES[number // 100]} hundred", number % 100
        return f"{head} and {spell_number(rest)}" if rest else head
    head, rest = f"{spell_number(number // 1000)} thousand", number % 1000
    if not rest:
        return head
    return f"{head}, {spell_number(rest)}" if rest >= 100 else f"{head} and {spell_number(rest)}"
