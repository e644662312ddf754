"""The processor of GLM-4.1V, GLM-4.5V and GLM-4.6V."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from . import chat_template
from .chat_template import Message
from .images import CLIP_MEAN, CLIP_STD, pixel_bounds, video_size
from .literal import Segment
from .processor import Kind, read_settings
from .prompt import MediaInputs
from .qwen_vl import QwenVLProcessor, bounded
from .video import Sampler, Video


class Glm4vProcessor(QwenVLProcessor):
    """All bounds are of a volume: a picture's of the frames that it stands in. Each group of a video's frames stands
    between the tokens of a picture, and is made of a picture's.

    fps: frames of a video kept a second; longest: seconds past which fewer are. paced: whether, as GLM-4.6V, it keeps
    the fewer the longer the video is, and tells tenths of seconds.
    Source: transformers' Glm4vProcessor, Glm4vImageProcessor and Glm4vVideoProcessor; Glm46VProcessor.
    """

    placeholders: Mapping[Kind, str] = {"image": "<|image|>", "video": "<|video|>"}
    feature_tokens: Mapping[Kind, str] = {"video": "<|image|>"}
    prompt_tokens = r"<\|(begin|end)_of_box\|>"
    picture_bounds = (112 * 112, 28 * 28 * 15000)
    video_bounds = (112 * 112, 28 * 28 * 2 * 30000)
    mean, std = CLIP_MEAN, CLIP_STD
    fps: float = 2
    longest: float = 300
    paced: bool = False

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        processor, settings = super().from_folder(folder, config), read_settings(folder)
        # mlx-vlm names every processor that it saves after GLM-4.6V's, and leaves the files beside it as they were.
        parts = (settings.video, settings.image, settings.own)
        named = next((part["processor_class"] for part in parts if "processor_class" in part), "")
        processor.paced = named == "Glm46VProcessor"
        processor.fps = settings.video.get("fps") or cls.fps
        processor.longest = settings.video.get("max_duration") or cls.longest
        return processor

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """The templates write a list of parts down as it is, but for a user's."""
        texts = [message if message["role"] == "user" else chat_template.words_joined(message) for message in messages]
        return super().format(texts, **kwargs)

    def picture_size(self, height: int, width: int, media: MediaInputs) -> tuple[int, int]:
        settings = self.pictures
        least, most = pixel_bounds(media, settings.min_pixels, settings.max_pixels, settings.frames)
        return video_size(settings.frames, height, width, replace(settings, min_pixels=least, max_pixels=most))

    def frame_size(self, frames: int, height: int, width: int, media: MediaInputs) -> tuple[int, int]:
        return video_size(frames, height, width, bounded(self.videos, media, frames))

    def sampler(self, media: MediaInputs) -> Sampler:
        def sample(total: int, rate: float) -> np.ndarray:
            if self.paced and media.video_fps is None:
                kept = paced_frames(total, rate, self.videos.frames)
            else:
                kept = frames_at(total, rate, media.video_fps or self.fps, self.longest)
            if media.max_frames is not None and len(kept) > media.max_frames:
                kept = kept[np.linspace(0, len(kept) - 1, media.max_frames).round().astype(np.int64)]
            return kept

        return sample

    def video_text(self, video: Video, groups: int, count: int) -> tuple[str, tuple[int, ...]]:
        frame = f"<|begin_of_image|>{self.placeholders['image'] * count}<|end_of_image|>"
        starts = video.timestamps[:: self.videos.frames]
        times = [f"{start:.1f} seconds" if self.paced else str(int(start)) for start in starts]
        return "".join(frame + time for time in times), (count,) * groups


def frames_at(total: int, rate: float, fps: float, longest: float) -> np.ndarray:
    """`fps` frames a second; of a video of more than `longest` seconds, as many as of one that long, evenly. An even
    number of them. Source: transformers' Glm4vVideoProcessor.sample_frames."""
    seconds = total / rate
    if seconds <= longest:
        indices = np.ceil(np.arange(max(1, int(seconds * fps))) * rate / fps)
    elif int(longest * fps) >= total:
        indices = np.arange(total)
    else:
        indices = np.ceil(np.linspace(0, seconds, int(longest * fps)) * rate)
    return _even(indices, total)


PACES = ((30, 3.0), (300, 1.0), (2400, 0.5))
"""Groups of frames a second, of videos up to so many seconds."""
MOST_FRAMES = 640


def paced_frames(total: int, rate: float, group: int) -> np.ndarray:
    """The longer the video, the fewer groups of `group` frames a second. An even number of frames.
    Source: transformers' Glm46VVideoProcessor.sample_frames."""
    seconds = total / rate
    lasting = min(seconds, PACES[-1][0])
    pace = next(pace for most, pace in PACES if lasting <= most)
    count = max(1, min(int(lasting * pace * group), MOST_FRAMES))
    indices: list[int] = []
    due, frame = 0.0, 1 / rate
    for index in range(total):
        if index * frame >= due:
            due += 1 / (group * pace)
            indices.append(index)
            if due >= int(seconds):
                break
    if total < count or len(indices) > count:
        return _even(np.linspace(0, total - 1, count), total)
    return _even(np.linspace(indices[0], indices[-1], count) if len(indices) < count else np.array(indices), total)


def _even(indices: np.ndarray, total: int) -> np.ndarray:
    """Each once, in order; the last one again where they are odd in number."""
    kept = np.unique(np.minimum(indices.astype(np.int64), total - 1))
    return np.append(kept, kept[-1:]) if len(kept) % 2 else kept
