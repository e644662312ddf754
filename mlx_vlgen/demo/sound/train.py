"""Train the built-in ear from random weights: `python -m mlx_vlgen.demo.sound.train --out DIR --minutes N`.

Needs the extra `train` (torch, transformers) and espeak-ng. The tower first learns alone what sounds at each moment
(see `lessons.moments`), of clips of one or two words and then of longer ones; then everything is trained together on
answers. The checkpoint has the moving average of the weights, in float16.

The one in `model/` took 5 hours on half a core: 15 minutes of moments alone at rate 1 and 20 at 0.4; 8 on answers; 100
at 0.4 (`--start`), which falls to 0; 38 and 110 at 0.3 with the shares below (before them tones had 0.15). Rate 1 is
too high for batches as small as these.
"""

from __future__ import annotations

import multiprocessing
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from ..network import dense_loss, token_loss
from ..tasks import Dialogue, Turn
from ..training import Arrays, Batch, Course, main
from . import checkpoint, network, words
from .clips import GRID, HELD_OUT, STRANGE, WORD_CLASS, Studio
from .lessons import IGNORE, SoundEncoder, SoundRow, collate
from .network import DENSE, TrainingModel
from .tasks import TASKS, Lesson, corpus, make_lesson, sample

SECONDS = 32  # of sound in a batch
POOL = 480  # lessons that are sorted by length at a time
REUSE = 3  # times that a batch is trained on, each time with other masks
KEPT = 300  # batches
VALIDATION = 40  # examples of each task
DENSE_STAGE = 0.3  # of the time: moments alone
KINDS = ("word", "voice", "tones", "noise", "music", "silence", "text")
DENSE_START = (0.84, 0.0, 0.11, 0.0, 0.05, 0.0, 0.0)  # shares of the kinds, of moments alone: of the first lessons,
DENSE_END = (0.14, 0.70, 0.11, 0.0, 0.05, 0.0, 0.0)  # and from half of DENSE_STAGE on
ANSWERED = (0.18, 0.37, 0.33, 0.03, 0.04, 0.02, 0.03)  # of lessons with answers


def shares(progress: float, errors: dict[str, float], opening: float) -> list[float]:
    """The share of pools of moments alone, then the weight of each kind in these and in the others."""
    dense = 1.0 if progress < opening else max(0.15, 0.4 - (progress - opening) if opening else 0.0)
    part = min(1.0, 2 * progress / opening) if opening else 1.0
    mixed = [(1 - part) * first + part * last for first, last in zip(DENSE_START, DENSE_END, strict=True)]
    return [dense, *mixed, *ANSWERED]


# ---- batches, made in another process


def batches_of(rows: list[SoundRow]) -> Iterator[list[SoundRow]]:
    """Rows whose clips have one length, SECONDS together at most."""
    groups: dict[int, list[SoundRow]] = defaultdict(list)
    for row in rows:
        groups[len(row.mel)].append(row)
    for frames, group in groups.items():
        count = max(1, 100 * SECONDS // max(frames, 60))
        group.sort(key=lambda row: len(row.tokens))
        for start in range(0, len(group), count):
            yield group[start : start + count]


def masked(batch: Arrays, rng: np.random.Generator) -> Arrays:
    """SpecAugment (Park et al., 2019), gentle: up to two bands of mels and short stretches of time at the mean, and
    the whole a little louder or quieter."""
    mel = batch["mel"].astype(np.float32)
    count, frames, mels = mel.shape
    if not frames:
        return batch
    mean = mel.mean((1, 2))
    for i in range(count):
        mel[i] += rng.uniform(-0.15, 0.15)
        for _ in range(rng.integers(0, 3)):
            start, width = rng.integers(0, mels - 16), rng.integers(1, 16)
            mel[i, :, start : start + width] = mean[i]
        if rng.random() < 0.3:
            start = rng.integers(0, frames)
            mel[i, start : start + rng.integers(1, 7)] = mean[i]
    return {**batch, "mel": mel.astype(np.float16)}


def produce_batches(queue: multiprocessing.Queue, weights: Any, tokenizer_json: str, seed: int) -> None:
    """Endless batches into `queue`: fresh ones, each REUSE times in all. weights: see `shares`, in shared memory."""
    encoder = SoundEncoder(Tokenizer.from_str(tokenizer_json))
    studio = Studio()
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    kept: list[Arrays] = []
    while True:
        studio.rest = rng.randrange(GRID)
        share, *both = weights
        dense = rng.random() < share
        kinds = rng.choices(KINDS, both[: len(KINDS)] if dense else both[len(KINDS) :], k=POOL)
        lessons = [make_lesson(studio, kind, rng.getrandbits(48)) for kind in kinds]
        rows = [encoder.sound_row(replace(lesson, dialogues=[]) if dense else lesson) for lesson in lessons]
        fresh = [collate(batch) for batch in batches_of(rows)]
        rng.shuffle(fresh)
        for batch in fresh:
            kept.append(batch)
            queue.put(masked(batch, numbers))
            for _ in range(REUSE - 1):
                queue.put(masked(rng.choice(kept), numbers))
        if len(kept) > KEPT:
            kept = kept[-KEPT:]


def validation(tokenizer: Tokenizer) -> dict[str, list[Arrays]]:
    """VALIDATION examples of each task, by voices that training never hears."""
    encoder, studio = SoundEncoder(tokenizer), Studio(HELD_OUT, words.FOREIGN)
    batches = {}
    for task in TASKS:
        rows = []
        for seed in range(1_000_000, 1_000_000 + VALIDATION):
            example = sample(studio, task, seed)
            lesson = Lesson([Dialogue([Turn(example.question, example.answer)])], example.clip)
            rows.append(encoder.sound_row(lesson))
        batches[task] = [collate(batch) for batch in batches_of(rows)]
    return batches


@torch.no_grad()
def name_words(model: TrainingModel, tokenizer: Tokenizer) -> None:
    """Let the embedding of each word be what the dense head knows it by: to attend to a moment is then to say it."""
    embeddings = model.text.embed_tokens.weight
    for name, label in [*WORD_CLASS.items(), (words.UNKNOWN, STRANGE)]:
        row = model.dense_head.weight[label]
        for text in (name, f" {name}"):
            embeddings[tokenizer.encode(text).ids[0]] = 0.35 * row / row.norm()


def losses(model: TrainingModel, batch: Batch) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The loss of tokens, None for a batch of moments alone, and that of moments."""
    of_tokens = None
    if (batch["labels"] == IGNORE).all():
        dense = model.dense_only(batch)
    else:
        hidden, dense = model(batch)
        of_tokens, _, _ = token_loss(model.hf.lm_head, hidden, batch["labels"])
    of_moments = torch.zeros(())
    if dense is not None and (batch["moments"] != IGNORE).any():
        of_moments = dense_loss(dense, batch["moments"], DENSE)
    return of_tokens, of_moments


COURSE = Course(
    files=checkpoint, corpus=corpus, build=TrainingModel, network=network, compiled=("audio_layer", "text_layer"),
    dtype=torch.float16, produce=produce_batches, shares=shares, opening=DENSE_STAGE,
    opened=name_words, losses=losses, validation=validation, errors=lambda marks: {},
)  # fmt: skip

if __name__ == "__main__":
    main(COURSE, __doc__, minutes=120, threads=1, rate=0.4)  # at 1 the small batches' noise outweighs what is learnt
