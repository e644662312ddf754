"""The processor of GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from .chat_template import Message, parts_to_string
from .images import CLIP_MEAN, CLIP_STD, Size, pixel_bounds, video_size
from .literal import Segment
from .processor import Kind, ProcessorSettings
from .prompt import MediaInputs
from .qwen_vl import QwenVLProcessor, bounded
from .video import Sampler, Video


@dataclass(eq=False, repr=False)
class Glm4vProcessor(QwenVLProcessor):
    """All bounds are of a volume: an image's of the frames that it stands in. Each group of a video's frames stands
    between the tokens of an image, and is made of an image's.

    fps: frames of a video kept a second; max_duration: seconds past which fewer are. paced: whether, as GLM-4.6V, it
    keeps the fewer the longer the video is, and writes tenths of seconds.
    Source: transformers' Glm4vProcessor, Glm4vImageProcessor and Glm4vVideoProcessor; Glm46VProcessor.
    """

    fps: float = field(default=2, kw_only=True)
    max_duration: float = field(default=300, kw_only=True)
    paced: bool = field(default=False, kw_only=True)

    placeholders: ClassVar[Mapping[Kind, str]] = {"image": "<|image|>", "video": "<|video|>"}
    feature_tokens: ClassVar[Mapping[Kind, str]] = {"video": "<|image|>"}
    prompt_tokens = r"<\|(begin|end)_of_box\|>"
    image_bounds = (112 * 112, 28 * 28 * 15000)
    video_bounds = (112 * 112, 28 * 28 * 2 * 30000)
    duration: ClassVar[float] = 300
    """max_duration where a checkpoint has none."""
    mean, std = CLIP_MEAN, CLIP_STD

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        # mlx-vlm names every processor that it saves after GLM-4.6V's, and leaves the files beside it as they were.
        parts = (settings.video, settings.image, settings.processor)
        unsaid = "Glm4vProcessor" if str(config.get("model_type")).startswith("glm4v") else "Glm46VProcessor"
        name = next((part["processor_class"] for part in parts if "processor_class" in part), unsaid)
        duration = settings.video.get("max_duration")
        if duration == 0 and cls.duration > 0:
            raise ValueError("max_duration = 0; expected more seconds, by which frames are chosen")
        return super().read_fields(settings, config) | {
            "paced": name == "Glm46VProcessor",
            "fps": settings.video.get("fps") or 2,
            "max_duration": cls.duration if duration is None else duration,
        }

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """The templates write a list of parts down as it is, but for a user's."""
        messages = [message if message["role"] == "user" else parts_to_string(message) for message in messages]
        return super().format(messages, **kwargs)

    def image_size(self, height: int, width: int, media: MediaInputs) -> Size:
        settings = self.image_settings
        bounds = pixel_bounds(media, settings.min_pixels, settings.max_pixels, settings.frames)
        settings = replace(settings, min_pixels=bounds[0], max_pixels=bounds[1])
        return video_size(settings.frames, height, width, settings)

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> Size:
        return video_size(frames, height, width, bounded(self.video_settings, media, frames))

    def sampler(self, media: MediaInputs) -> Sampler:
        def sample(total: int, rate: float) -> np.ndarray:
            if self.paced and media.video_fps is None:
                indices = paced_frames(total, rate, self.video_settings.frames)
            else:
                indices = frames_at(total, rate, media.video_fps or self.fps, self.max_duration)
            if media.max_frames is not None and len(indices) > media.max_frames:
                indices = indices[np.linspace(0, len(indices) - 1, media.max_frames).round().astype(np.int64)]
            return indices

        return sample

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        frame = f"<|begin_of_image|>{self.placeholders['image'] * count}<|end_of_image|>"
        starts = video.timestamps[:: self.video_settings.frames]
        times = [f"{start:.1f} seconds" if self.paced else str(int(start)) for start in starts]
        return "".join(frame + time for time in times), (count,) * groups


def frames_at(total: int, rate: float, fps: float, max_duration: float) -> np.ndarray:
    """`fps` frames a second; of a video of more than `max_duration` seconds, as many as of one that long, evenly. Their
    number is even. Source: transformers' Glm4vVideoProcessor.sample_frames."""
    seconds = total / rate
    if seconds <= max_duration:
        indices = np.ceil(np.arange(max(1, int(seconds * fps))) * rate / fps)
    elif int(max_duration * fps) >= total:
        indices = np.arange(total)
    else:
        indices = np.ceil(np.linspace(0, seconds, int(max_duration * fps)) * rate)
    return _even(indices, total)


PACES = ((30, 3.0), (300, 1.0), (2400, 0.5))
"""Groups of frames a second, of videos up to so many seconds."""
MAX_FRAMES = 640


def paced_frames(total: int, rate: float, group: int) -> np.ndarray:
    """The longer the video, the fewer groups of `group` frames a second. An even number of frames.
    Source: transformers' Glm46VVideoProcessor.sample_frames."""
    seconds = total / rate
    duration = min(seconds, PACES[-1][0])
    pace = next(pace for max_duration, pace in PACES if duration <= max_duration)
    return due_frames(total, rate, group * pace, min(int(duration * pace * group), MAX_FRAMES))


def due_frames(total: int, rate: float, fps: float, count: int) -> np.ndarray:
    """`count` frames: the first that are due, of `fps` a second; or spread evenly, where those are more or less. An
    even number of frames."""
    count = max(1, count)
    indices: list[int] = []
    due, frame = 0.0, 1 / rate
    for index in range(total):
        if index * frame >= due:
            due += 1 / fps
            indices.append(index)
            if due >= int(total / rate):
                break
    if total < count or len(indices) > count:
        return _even(np.linspace(0, total - 1, count), total)
    return _even(np.linspace(indices[0], indices[-1], count) if len(indices) < count else np.array(indices), total)


def _even(indices: np.ndarray, total: int) -> np.ndarray:
    """Each index once, in order; the last one again where their number is odd."""
    unique = np.unique(np.minimum(indices.astype(np.int64), total - 1))
    return np.append(unique, unique[-1:]) if len(unique) % 2 else unique
