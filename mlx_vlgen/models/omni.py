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
    ):
        super().__init__(config, text, vision_tower, section, interleaved)
        self.audio_tower = audio_tower
        self._positions_per_second = thinker_config(config).get("position_id_per_seconds", 25)

    @classmethod
    def rename(cls, key: str) -> str | None:
        if key.startswith(SPEECH):
            return None
        return super().rename(key.removeprefix("model.thinker.").removeprefix("thinker."))

    def published(self, name: str) -> tuple[str, ...]:
        return (f"thinker.{name}",) if "thinker_config" in self.config else (name,)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        if media[0].kind != "audio":
            return super().encode(media)
        frames = media[0].grid[0]
        features = self.audio_tower(join_clips(media)[:, :frames], [frames] * len(media))
        return [Features(clip) for clip in features[:, : self.audio_tower.features(frames)]]

    def positions(self, prompt: Prompt) -> tuple[np.ndarray, int]:
        return omni_positions(prompt, self.vision_tower.merge, self._positions_per_second)


def omni_positions(prompt: Prompt, merge: int, per_second: float) -> tuple[np.ndarray, int]:
    """TMRoPE positions (3, L) int32 of a prompt, and how far they are ahead of plain ones after it.

    Text and sound move all three axes on together. A picture stands still in time and spreads over row and column; a
    video's groups of frames are apart by their seconds times `per_second`. What follows starts past the largest
    position of what was before it, in any axis.
    Source: `get_rope_index` of transformers' Qwen2_5OmniThinkerForConditionalGeneration, which counts in float32.
    """
    positions = np.empty((3, len(prompt.tokens)), np.int32)
    spans = sorted((*span, index) for index, media in enumerate(prompt.media) for span in media.spans)
    after, position = 0, 0
    for start, end, index in spans:
        positions[:, after:start] = position + np.arange(start - after)
        position += start - after
        media = prompt.media[index]
        positions[:, start:end] = position + media_positions(media, end - start, merge, per_second)
        position = int(positions[:, start:end].max()) + 1
        after = end
    positions[:, after:] = position + np.arange(len(prompt.tokens) - after)
    return positions, position - after


def media_positions(media: Media, count: int, merge: int, per_second: float) -> np.ndarray:
    """(3, count), of a medium's features among themselves."""
    if media.kind == "audio":
        return np.broadcast_to(np.arange(count), (3, count))
    groups, rows, columns = media.grid[0], media.grid[1] // merge, media.grid[2] // merge
    time, row, column = np.indices((groups, rows, columns)).reshape(3, -1)
    seconds = time.astype(np.float32) * np.float32(media.seconds) * np.float32(per_second)
    return np.stack([seconds.astype(np.int32), row, column])
