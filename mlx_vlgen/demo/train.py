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

import argparse
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from . import checkpoint, network
from .lessons import IGNORE, Encoder, Row, collate
from .network import TrainingModel, dense_loss, token_loss
from .optimizer import Muon
from .tasks import LESSONS, TASKS, Dialogue, Lesson, Turn, make_lesson, sample

BATCH = 24
POOL = 12  # batches that are cut from one pool sorted by length
DENSE_STAGE = 0.1  # of the time: dense labels alone
WARM_MINUTES, DECAY_SHARE = 0.7, 0.75
AVERAGE = 0.995
VALIDATION = 48  # examples of each task
PRINT_SECONDS = 20
DENSE_MIX = {"glyph": 0.38, "shapes": 0.1, "crowd": 0.07, "print": 0.3, "mixed": 0.15}
MIX = {"shapes": 0.18, "crowd": 0.25, "print": 0.30, "mixed": 0.11, "compare": 0.04, "video": 0.06, "photo": 0.03,
       "text": 0.03}  # fmt: skip

Batch = dict[str, torch.Tensor]


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


def as_tensors(arrays: dict[str, np.ndarray]) -> Batch:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


# ---- validation: a greedy answer is exact when each of its tokens is the likeliest after the true ones before it


def validation_rows(encoder: Encoder, count: int) -> dict[str, list[Row]]:
    """`count` rows of each task, one question each."""
    rng = random.Random(0)
    rows: dict[str, list[Row]] = {}
    for task in TASKS:
        rows[task] = []
        for seed in range(count):
            example = sample(task, seed)
            turn = Turn(example.question, example.answer, example.thinking)
            dialogue = Dialogue([turn], thinking_opened=task == "thinking")
            rows[task].append(encoder.row(Lesson([dialogue], example.images, example.video), rng))
    return rows


@torch.no_grad()
def validate(model: TrainingModel, rows_of_task: dict[str, list[Row]]) -> dict[str, tuple[float, float]]:
    """Of each task: the share of answers that are right as a whole, and of tokens."""
    accuracy = {}
    for task, rows in rows_of_task.items():
        exact, right, total = 0, 0, 0
        for start in range(0, len(rows), 48):
            batch = as_tensors(collate(rows[start : start + 48], multiple=32))
            with torch.autocast("cpu", torch.bfloat16):
                hidden, _ = model(batch)
                _, correct, row = token_loss(model.hf.lm_head, hidden, batch["labels"])
            wrong = torch.zeros(len(batch["tokens"])).index_add_(0, row, (~correct).float())
            exact += int((wrong == 0).sum())
            right, total = right + int(correct.sum()), total + len(correct)
        accuracy[task] = (exact / len(rows), right / total)
    return accuracy


def lesson_errors(accuracy: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The error rate of each kind of lesson, from those of the tasks."""
    wrong = {task: 1 - exact for task, (exact, _) in accuracy.items()}
    return {"shapes": max(wrong["describe"], wrong["detail"]), "crowd": wrong["count"], "print": wrong["read"],
            "mixed": wrong["mixed"], "compare": wrong["compare"], "video": wrong["video"], "photo": wrong["photo"],
            "text": wrong["text"], "glyph": 0.0}  # fmt: skip


# ---- the checkpoint


def save_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """model.safetensors under the Hub's names, in bfloat16, without the tied head. Renamed when it is complete."""
    tensors = {
        name.removeprefix("hf."): value.to(torch.bfloat16).contiguous()
        for name, value in weights.items()
        if name.startswith("hf.") and not name.endswith("lm_head.weight")
    }
    partial = folder / "model.safetensors.part"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


def load_weights(model: TrainingModel, folder: Path) -> None:
    """The weights of a checkpoint that `save_weights` wrote; the dense head, which is not in it, stays random."""
    saved = {f"hf.{name}": value.float() for name, value in load_file(folder / "model.safetensors").items()}
    missing, unknown = model.load_state_dict(saved, strict=False)
    absent = [name for name in missing if name.startswith("hf.") and not name.startswith("hf.lm_head.")]
    if absent or unknown:
        raise ValueError(f"{folder} holds another model: missing {absent[:3]}, unknown {unknown[:3]}")


class Average:
    """Exponential moving average of a model's weights; over fewer steps at first."""

    def __init__(self, model: TrainingModel):
        self.values = [p.detach().clone() for p in model.parameters()]
        self.steps = 0

    @torch.no_grad()
    def update(self, model: TrainingModel) -> None:
        self.steps += 1
        decay = min(AVERAGE, self.steps / (self.steps + 20))
        torch._foreach_lerp_(self.values, [p.detach() for p in model.parameters()], 1 - decay)

    def swap(self, model: TrainingModel) -> None:
        """Exchange the averages with the model's weights (twice restores both)."""
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            value_copy = value.clone()
            value.copy_(parameter.data)
            parameter.data.copy_(value_copy)


def learning_rate_factor(minutes: float, total: float) -> float:
    """Warm up, stay, then fall linearly to nothing."""
    return min(1.0, minutes / WARM_MINUTES, max(0.0, (total - minutes) / (DECAY_SHARE * total)))


# ---- training


@dataclass
class State:
    """All that a resumed training needs."""

    model: TrainingModel
    optimizer: Muon
    average: Average
    errors: dict[str, float]
    minutes: float = 0.0
    step: int = 0

    def save(self, file: Path) -> None:
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.values,
                "average_steps": self.average.steps,
                "minutes": self.minutes,
                "step": self.step,
                "errors": self.errors,
            },
            file,
        )

    def load(self, file: Path) -> None:
        state = torch.load(file, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values, self.average.steps = state["average"], state["average_steps"]
        self.minutes, self.step, self.errors = state["minutes"], state["step"], state["errors"]


def losses(model: TrainingModel, batch: Batch) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The loss of tokens, None for a batch of dense labels alone, and the loss of dense labels."""
    with torch.autocast("cpu", torch.bfloat16):
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


def train_step(state: State, batch: Batch, factor: float) -> tuple[float, float]:
    """One step of the optimizer; the two losses, NaN for the one of tokens where there is none."""
    state.optimizer.zero_grad()
    of_tokens, of_patches = losses(state.model, batch)
    loss = of_patches if of_tokens is None else of_tokens + 0.5 * of_patches
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step(factor)
    state.average.update(state.model)
    state.step += 1
    return float("nan") if of_tokens is None else float(of_tokens.detach()), float(of_patches.detach())


def save_and_validate(state: State, rows: dict[str, list[Row]], out: Path, log: TextIO) -> None:
    """Write the averaged weights as a checkpoint and measure them."""
    state.average.swap(state.model)
    save_weights(state.model.state_dict(), out)
    accuracy = validate(state.model, rows)
    state.average.swap(state.model)
    state.errors = lesson_errors(accuracy)
    print("   ", ", ".join(f"{t} {100 * e:.0f} ({100 * r:.1f})" for t, (e, r) in accuracy.items()), flush=True)
    log.write(json.dumps({"minutes": state.minutes, "step": state.step, "marks": accuracy}) + "\n")
    log.flush()


def train(
    out: Path, minutes: float, seed: int, resume: bool, start: Path | None, rate: float, threads: int, compiled: bool,
    every: float,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    source = out if resume else start
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json")) if source else checkpoint.train_tokenizer(corpus())
    checkpoint.write(out, tokenizer)
    model = TrainingModel(checkpoint.model_config(tokenizer))
    if start:
        load_weights(model, start)
    opening = 0.0 if start else DENSE_STAGE
    state = State(model, Muon(model), Average(model), dict.fromkeys(LESSONS, 1.0))
    if resume:
        state.load(out / "training.pt")
        seed += state.step
    print(f"{sum(p.numel() for p in model.hf.parameters()):,} parameters", flush=True)
    if compiled:
        network.vision_block = torch.compile(network.vision_block, dynamic=True)
        network.text_layer = torch.compile(network.text_layer, dynamic=True)

    context = multiprocessing.get_context("spawn")
    shares = context.Array("d", batch_shares(state.minutes / minutes, state.errors, opening))
    queue: Any = context.Queue(maxsize=2 * POOL)
    producer = context.Process(target=produce_batches, args=(queue, shares, tokenizer.to_str(), seed + 1), daemon=True)
    producer.start()
    rows = validation_rows(Encoder(tokenizer), VALIDATION)
    log = (out / "log.jsonl").open("a")
    started = time.monotonic() - 60 * state.minutes
    saved = printed = time.monotonic()
    num_lessons, waited, recent = 0, 0.0, []
    while state.minutes < minutes:
        wait_started = time.monotonic()
        state.minutes = (wait_started - started) / 60
        batch = as_tensors(queue.get())
        waited += time.monotonic() - wait_started
        recent.append(train_step(state, batch, rate * learning_rate_factor(state.minutes, minutes)))
        num_lessons += len(batch["tokens"])
        now = time.monotonic()
        if now - printed > PRINT_SECONDS:
            mean = np.nanmean([(np.nan, np.nan), *recent], 0)
            print(
                f"{state.minutes:6.1f} min, step {state.step}, tokens {mean[0]:.4f}, patches {mean[1]:.4f}, "
                f"{num_lessons / (now - printed):.0f} lessons/s, waiting {waited / (now - printed):.0%}",
                flush=True,
            )
            printed, num_lessons, waited, recent = now, 0, 0.0, []
            shares[:] = batch_shares(state.minutes / minutes, state.errors, opening)
        if now - saved > 60 * every or state.minutes >= minutes:
            if state.minutes > opening * minutes:
                save_and_validate(state, rows, out, log)
            state.save(out / "training.pt")
            saved = time.monotonic()
    producer.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of the training state")
    parser.add_argument("--minutes", type=float, default=90, help="in all, earlier runs counted in with --resume")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="begin with the weights of this checkpoint, not with random ones")
    parser.add_argument("--rate", type=float, default=1, help="factor on the learning rates: less for a --start")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler)")
    parser.add_argument("--every", type=float, default=6, help="minutes between saves")
    options = parser.parse_args()
    train(
        options.out, options.minutes, options.seed, options.resume, options.start, options.rate, options.threads,
        options.compile, options.every,
    )  # fmt: skip


if __name__ == "__main__":
    main()
