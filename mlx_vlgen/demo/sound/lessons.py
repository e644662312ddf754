"""Lessons as arrays: a clip's log-mel spectrogram once, and the dialogues about it as branches that share it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from ...inputs.mel import MelSettings, log_mel
from ..lessons import IGNORE, Encoder, Row, collate_tokens
from .checkpoint import MELS
from .clips import Clip
from .tasks import Lesson

EXTRACTOR = MelSettings(mels=MELS)
FEATURE = 640  # samples a feature stands for: 25 a second
PARTS = 3  # a word's beginning, middle and end
LABELS = 4  # see moments


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """(n,) at 16 kHz -> (frames, MELS)."""
    return log_mel(samples, EXTRACTOR)


def moments(clip: Clip, count: int) -> np.ndarray:
    """(count, LABELS) labels of each feature, IGNORE where unknown: the class of what sounds, the part of it, and the
    phonemes of its first and second half."""
    labels = np.full((count, LABELS), IGNORE, np.int64)
    if clip.spans is None:
        return labels
    labels[:, 0] = 0
    centres = (np.arange(count) + 0.5) * FEATURE
    for span in clip.spans:
        inside = (centres >= span.start) & (centres < span.end)
        labels[inside, 0] = span.label
        labels[inside, 1] = PARTS * (centres[inside] - span.start) / max(1, span.end - span.start)
    if clip.kind == "voice":
        labels[:, 2:] = 0
        for column, offset in ((2, -0.25), (3, 0.25)):
            middles = centres + offset * FEATURE
            for span in clip.phonemes:
                labels[(middles >= span.start) & (middles < span.end), column] = span.label
    return labels


@dataclass
class SoundRow(Row):
    """A row with at most one clip."""

    mel: np.ndarray = field(default_factory=lambda: np.zeros((0, MELS), np.float32))  # (frames, MELS)
    moments: np.ndarray = field(default_factory=lambda: np.zeros((0, LABELS), np.int64))

    def add_sound(self, count: int, token: int) -> None:
        self.feature_positions = list(range(len(self.tokens), len(self.tokens) + count))
        self.add_text([token] * count, 0, False)


class SoundEncoder(Encoder):
    """Lessons to rows, with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.audio_token = tokenizer.encode("<|AUDIO|>").ids[0]

    def sound_row(self, lesson: Lesson) -> SoundRow:
        row = SoundRow()
        if lesson.system:
            self._add_text(row, f"<|im_start|>system\n{lesson.system}<|im_end|>\n")
        self._add_text(row, "<|im_start|>user\n")
        if lesson.clip is not None:
            row.mel = spectrogram(lesson.clip.samples)
            count = feature_count(len(row.mel))
            row.moments = moments(lesson.clip, count)
            self._add_text(row, "<|audio_bos|>")
            row.add_sound(count, self.audio_token)
            self._add_text(row, "<|audio_eos|>")
        shared = row.position
        for branch, dialogue in enumerate(lesson.dialogues, 1):
            row.position = shared
            self._add_dialogue(row, dialogue, branch)
        return row


def feature_count(frames: int) -> int:
    """Features of a clip: the second convolution and the pooling halve the frames."""
    return (frames + 1) // 4


def collate(rows: list[SoundRow], multiple: int = 16) -> dict[str, np.ndarray]:
    """A batch: `collate_tokens`, and B clips of T frames and N features each.

    mel: (B, T, MELS) float16; moments: (B, N, LABELS) int64
    """
    return collate_tokens(rows, multiple) | {
        "mel": np.stack([row.mel for row in rows]).astype(np.float16),
        "moments": np.stack([row.moments for row in rows]),
    }
