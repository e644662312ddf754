"""Videos that are heard, too."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError
from .fetch import Limits
from .media import SourceBytes, describe_source, file_key, file_on_disk, read_source
from .video import has_raw_frames


@dataclass(frozen=True, eq=False)
class HeardVideo:
    """video: anything `load_video` takes. sound: anything `load_audio` takes; the video, where it is its file's."""

    video: Any
    sound: Any

    @property
    def content_key(self) -> Hashable:
        """See `identified`; only files on disk tell their content."""
        if has_raw_frames(self.video):
            return None
        files = [file_on_disk(source) for source in (self.video, self.sound)]
        keys = [None if file is None else file_key(file) for file in files]
        return None if None in keys else tuple(keys)


def heard_videos(videos: Sequence[Any], sounds: Sequence[Any]) -> list[HeardVideo]:
    """Each video with its sound: one of `sounds`, or where there are none that of its file.

    PromptError where they do not match, and for frames without sound.
    """
    if sounds and len(sounds) != len(videos):
        raise PromptError(
            f"use_audio_in_video: {len(sounds)} audio clips and {len(videos)} videos were given: give one clip a "
            "video, in order, or none, so that the sound of each file is read"
        )
    if sounds:
        return [HeardVideo(*pair) for pair in zip(videos, sounds, strict=True)]
    return [_with_its_sound(video) for video in videos]


def _with_its_sound(video: Any) -> HeardVideo:
    if has_raw_frames(video):
        raise PromptError(
            f"use_audio_in_video: {describe_source(video)} is frames, which have no sound: give it as audio=, or a file"
        )
    if file_on_disk(video) is None:  # read once, for both
        video = SourceBytes(describe_source(video), read_source(video, Limits()))
    return HeardVideo(video, video)
