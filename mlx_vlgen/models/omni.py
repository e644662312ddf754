"""What Qwen2.5-Omni and Qwen3-Omni share: the thinker, which hears, sees and writes text, out of a checkpoint that may
also hold what speaks. Speech is not made here; its tensors are passed over."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._runtime import nn
from ..inputs.prompt import Media, Prompt
from .base import Features
from .configuration import thinker_config
from .mrope import MRopeModel
from .omni_audio import AudioTower
from .whisper import join_clips

SPEECH = ("talker.", "token2wav.", "code2wav.")
"""Parts that make speech of the thinker's text."""


class Omni(MRopeModel):
    """A family gives the arguments of its text decoder, its towers and its M-RoPE. Parameters have the thinker's names,
    as in a checkpoint of the thinker alone."""

    renames = (*MRopeModel.renames, ("model.audio_tower.", "audio_tower."), ("model.", "language_model.model."))

    def __init__(
        self,
        config: dict[str, Any],
        text: dict[str, Any],
        vision_tower: nn.Module,
        audio_tower: AudioTower,
        section: Sequence[int],
        interleaved: bool,
        whole_positions: bool,
    ):
        super().__init__(config, text, vision_tower, section, interleaved)
        self.audio_tower = audio_tower
        self._positions_per_second = thinker_config(config).get("position_id_per_seconds", 25)
        self._whole_positions = whole_positions

    @property
    def left_out(self) -> str | None:
        speaks = "talker_config" in self.config and self.config.get("enable_audio_output", True)
        return "this model also speaks; that is not computed here, and its answers are text" if speaks else None

    @classmethod
    def rename(cls, key: str) -> str | None:
        if key.startswith(SPEECH):
            return None
        return super().rename(key.removeprefix("model.thinker.").removeprefix("thinker."))

    def published(self, name: str) -> tuple[str, ...]:
        is_part = name.partition(".")[0] in self  # and no setting of all layers
        return (f"thinker.{name}",) if is_part and "thinker_config" in self.config else (name,)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        if media[0].kind != "audio":
            return super().encode(media)
        frames = media[0].grid[0]
        features = self.audio_tower(join_clips(media)[:, :frames], [frames] * len(media))
        features = features[:, : self.audio_tower.features(frames)]
        return [Features(clip) for clip in features]

    def positions(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        return omni_positions(prompt, self.vision_tower.merge, self._positions_per_second, self._whole_positions)


def omni_positions(prompt: Prompt, merge: int, per_second: float, whole: bool) -> tuple[np.ndarray, float]:
    """TMRoPE positions (3, L) of a prompt, and how far they are ahead of plain ones after it: int32, and float32 where
    a video's times are not whole ones and `whole` does not round them down.

    whole: also whether the two tokens before a video that is heard, and those after it, share a position.
    Text and sound move all three axes on together. A picture stands still in time and spreads over row and column; a
    video's groups of frames are apart by their seconds times `per_second`. What follows starts past the largest
    position of what was before it, in any axis.
    Source: `get_rope_index` of transformers' Qwen2_5OmniThinkerForConditionalGeneration, which counts in float32.
    """
    positions = np.empty((3, len(prompt.tokens)), np.float32)
    after, position = 0, np.float32(0)
    for media in sorted(prompt.media, key=lambda media: media.bounds):
        start, end = media.bounds
        if start < after:  # the sound of a video
            continue
        positions[:, after:start] = position + np.arange(start - after)
        position += start - after
        if media.extent is None:
            offsets = media_positions(media, merge, per_second, whole)
        else:
            offsets = heard_positions(media, prompt.media, merge, per_second, whole)
        positions[:, start:end] = position + offsets
        position = positions[:, end - 1 if media.extent else start : end].max() + 1
        after = end
    positions[:, after:] = position + np.arange(len(prompt.tokens) - after)
    delta = float(position - after)
    if (positions % 1).any() or not delta.is_integer():
        return positions, delta
    return positions.astype(np.int32), int(delta)


def heard_positions(video: Media, media: Sequence[Media], merge: int, per_second: float, whole: bool) -> np.ndarray:
    """(3, n), of a video's extent: both begin after the two tokens before them, and the two after them follow what
    comes last."""
    begin, end = video.bounds
    sound = next(other for other in media if other.kind == "audio" and begin < other.spans[0][0] < end)
    edge = np.array([0, 0 if whole else 1])
    offsets = np.zeros((3, end - begin), np.float32)
    offsets[:, :2] = edge
    for medium in (video, sound):
        places = np.concatenate([np.arange(start - begin, stop - begin) for start, stop in medium.spans])
        offsets[:, places] = edge[1] + 1 + media_positions(medium, merge, per_second, whole)
    last = max(video.spans[-1], sound.spans[-1])
    offsets[:, -2:] = offsets[:, last[0] - begin : last[1] - begin].max() + 1 + edge
    return offsets


def media_positions(media: Media, merge: int, per_second: float, whole: bool) -> np.ndarray:
    """(3, n), of a medium's features among themselves."""
    if media.kind == "audio":
        count = sum(end - start for start, end in media.spans)
        return np.broadcast_to(np.arange(count), (3, count))
    groups, rows, columns = media.grid[0], media.grid[1] // merge, media.grid[2] // merge
    time, row, column = np.indices((groups, rows, columns)).reshape(3, -1)
    seconds = time.astype(np.float32) * np.float32(media.seconds) * np.float32(per_second)
    return np.stack([np.floor(seconds) if whole else seconds, row, column])
