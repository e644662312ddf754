"""Train the built-in checkpoint from random weights: `python -m mlx_vlgen.demo.train --out DIR --minutes N`.

Needs the extra `train` (torch, transformers). Two CPU cores are enough. The tower first learns dense labels (the class
of each patch and more, see `lessons.dense_labels`), then everything is trained together on answers. The checkpoint has
the moving average of the weights, in bfloat16, next to all other files of a Qwen3-VL checkpoint.

The checkpoint in `model/` comes from two trainings with `--compile` on two busy cores. The first, 113 minutes, was
resumed several times while the settings below were sought: the batch was 48 for the first 950 steps, pictures of dense
labels alone were mixed in after step 1,600, and the labels of place and the position waves came at steps 2,800 and
3,270. The second, 107 minutes (5,727 steps), began with its weights (`--start`, `--rate 0.5`, resumed at 0.6); the
labels of number and most questions about crowds are new in it. It was then resumed for 109 minutes more (6,901 steps,
`--rate` 0.7 to 1) with the present MIX, which has more crowds and print. A run of this file as it stands starts with
all of that.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer

from . import checkpoint, network
from .lessons import IGNORE, Encoder, Row, collate
from .network import TrainingModel, dense_loss, token_loss
from .tasks import LESSONS, TASKS, Dialogue, Lesson, Turn, make_lesson, sample
from .training import Arrays, Batch, Course, Marks, main

BATCH = 24
POOL = 12  # batches that are cut from one pool sorted by length
DENSE_STAGE = 0.1  # of the time: dense labels alone
VALIDATION = 48  # examples of each task
DENSE_MIX = {"glyph": 0.38, "shapes": 0.1, "crowd": 0.07, "print": 0.3, "mixed": 0.15}
MIX = {"shapes": 0.18, "crowd": 0.25, "print": 0.30, "mixed": 0.11, "compare": 0.04, "video": 0.06, "photo": 0.03,
       "text": 0.03}  # fmt: skip


def corpus(lessons: int = 400) -> Iterator[str]:
    """The texts that the tokenizer is trained on."""
    for kind in LESSONS:
        for seed in range(lessons):
            for dialogue in make_lesson(kind, seed).dialogues:
                for turn in dialogue.turns:
                    yield from (turn.question, turn.answer, turn.thought or "")


# ---- batches, drawn in another process


def produce_batches(queue: multiprocessing.Queue, shares: Any, tokenizer_json: str, seed: int) -> None:
    """Endless batches into `queue`. shares: see `batch_shares`; in shared memory, since training changes them."""
    encoder = Encoder(Tokenizer.from_str(tokenizer_json))
    rng = random.Random(seed)
    kinds = list(LESSONS)

    def draw_rows(weights: list[float], count: int, dialogues: bool) -> list[Row]:
        rows = []
        for kind in rng.choices(kinds, weights, k=count):
            lesson = make_lesson(kind, rng.getrandbits(48))
            rows.append(encoder.row(lesson if dialogues else replace(lesson, dialogues=[]), rng))
        return rows

    while True:
        dense, *weights = shares
        batches = [draw_rows([DENSE_MIX.get(kind, 0) for kind in kinds], BATCH, False)
                   for _ in range(POOL) if rng.random() < dense]  # fmt: skip
        rows = draw_rows(weights, BATCH * (POOL - len(batches)), True)
        rows.sort(key=lambda row: len(row.tokens) + 40 * len(row.images) + rng.uniform(-15, 15))
        batches += [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(batches)
        for batch in batches:
            queue.put(collate(batch, multiple=32))


def batch_shares(progress: float, errors: dict[str, float], opening: float) -> list[float]:
    """The share of batches of dense labels alone, then the weight of each kind of lesson.

    After the opening, which is dense labels only, their share falls as the tower learns; a run without an opening has a
    trained tower. Kinds with many errors weigh more: the planned weight times 0.4 to 1.
    """
    if progress < opening:
        dense = 1.0
    elif opening:
        dense = max(0.1, 0.95 - progress)
    else:
        dense = 0.1
    return [dense, *(MIX.get(kind, 0.0) * (0.4 + 0.6 * errors[kind]) for kind in LESSONS)]


def validation(tokenizer: Tokenizer) -> dict[str, list[Arrays]]:
    """VALIDATION examples of each task, one question each, as one batch."""
    encoder, rng = Encoder(tokenizer), random.Random(0)
    batches: dict[str, list[Arrays]] = {}
    for task in TASKS:
        rows: list[Row] = []
        for seed in range(VALIDATION):
            example = sample(task, seed)
            turn = Turn(example.question, example.answer, example.thinking)
            dialogue = Dialogue([turn], thinking_opened=task == "thinking")
            rows.append(encoder.row(Lesson([dialogue], example.images, example.video), rng))
        batches[task] = [collate(rows, multiple=32)]
    return batches


def lesson_errors(marks: Marks) -> dict[str, float]:
    """The error rate of each kind of lesson, from those of the tasks; 1 before the first marks."""
    if not marks:
        return dict.fromkeys(LESSONS, 1.0)
    wrong = {task: 1 - exact for task, (exact, _) in marks.items()}
    return {"shapes": max(wrong["describe"], wrong["detail"]), "crowd": wrong["count"], "print": wrong["read"],
            "mixed": wrong["mixed"], "compare": wrong["compare"], "video": wrong["video"], "photo": wrong["photo"],
            "text": wrong["text"], "glyph": 0.0}  # fmt: skip


def losses(model: TrainingModel, batch: Batch) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The loss of tokens, None for a batch of dense labels alone, and the loss of dense labels."""
    of_tokens = None
    if (batch["labels"] == IGNORE).all():
        dense_logits = model.dense_only(batch)
    else:
        hidden, dense_logits = model(batch)
        of_tokens, _, _ = token_loss(model.hf.lm_head, hidden, batch["labels"])
    of_patches = torch.zeros(())
    if dense_logits is not None and (batch["dense"] >= 0).any():
        of_patches = dense_loss(dense_logits, batch["dense"])
    return of_tokens, of_patches


COURSE = Course(
    files=checkpoint, corpus=corpus, build=TrainingModel, network=network, compiled=("vision_block", "text_layer"),
    dtype=torch.bfloat16, produce=produce_batches, shares=batch_shares, opening=DENSE_STAGE,
    opened=lambda model, tokenizer: None, losses=losses, validation=validation, errors=lesson_errors,
)  # fmt: skip

if __name__ == "__main__":
    main(COURSE, __doc__, minutes=90, threads=2)
