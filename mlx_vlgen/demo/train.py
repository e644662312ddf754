"""Train the built-in checkpoint from random weights: `python -m mlx_vlgen.demo.train --out DIR --minutes N`.

Needs the extra `train` (torch, transformers). Two CPU cores are enough. The tower first learns dense labels (what lies
under each patch, and its rank in reading order), then everything is trained together on answers. What is saved is the
running average of the weights, in bfloat16, next to all the other files of a Qwen3-VL checkpoint.

The checkpoint in `model/` comes from two trainings with `--compile` on two busy cores. The first, 113 minutes, was
resumed several times while the plan below was found: the batch was 48 for the first 950 steps, pictures of dense labels
alone were mixed in after step 1,600, and the labels of place and the position table's waves came at steps 2,800 and
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from . import checkpoint, network
from .lessons import IGNORE, Encoder, Row, collate
from .network import Trainee, dense_loss, word_loss
from .optimizer import Muon
from .tasks import LESSONS, TASKS, Dialogue, Lesson, Turn, lesson, sample

BATCH = 24
POOL = 12  # batches that are cut from one pool sorted by length
DENSE_STAGE = 0.1  # of the time: dense labels alone
WARM_MINUTES, DECAY_SHARE = 0.7, 0.75
AVERAGE = 0.995
DENSE_MIX = {"glyph": 0.38, "shapes": 0.1, "crowd": 0.07, "print": 0.3, "mixed": 0.15}
MIX = {"shapes": 0.18, "crowd": 0.25, "print": 0.30, "mixed": 0.11, "compare": 0.04, "video": 0.06, "photo": 0.03,
       "text": 0.03}  # fmt: skip


def corpus(lessons: int = 400) -> Iterator[str]:
    """What the tokenizer is trained on."""
    for kind in LESSONS:
        for seed in range(lessons):
            for dialogue in lesson(kind, seed).dialogues:
                for turn in dialogue.turns:
                    yield from (turn.question, turn.answer, turn.thought or "")


# ---- batches, drawn in a process of their own


def draw_batches(queue: multiprocessing.Queue, plan: Any, tokenizer_json: str, seed: int) -> None:
    """Endless batches into `queue`. `plan` (shared memory): the share of batches of dense labels alone, then the
    current weight of each kind of lesson."""
    encoder = Encoder(Tokenizer.from_str(tokenizer_json))
    rng = random.Random(seed)
    kinds = list(LESSONS)

    def rows_of(weights: list[float], count: int, dialogues: bool) -> list[Row]:
        rows = []
        for kind in rng.choices(kinds, weights, k=count):
            drawn = lesson(kind, rng.getrandbits(48))
            rows.append(encoder.row(drawn if dialogues else replace(drawn, dialogues=[]), rng))
        return rows

    while True:
        dense, *weights = plan
        batches = [rows_of([DENSE_MIX.get(kind, 0) for kind in kinds], BATCH, False)
                   for _ in range(POOL) if rng.random() < dense]  # fmt: skip
        rows = rows_of(weights, BATCH * (POOL - len(batches)), True)
        rows.sort(key=lambda row: len(row.tokens) + 40 * len(row.units) + rng.uniform(-15, 15))
        batches += [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(batches)
        for batch in batches:
            queue.put(collate(batch, multiple=32))


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


# ---- evaluation: a greedy answer is exact when each of its tokens is the likeliest after the true ones before it


def exam(encoder: Encoder, count: int) -> list[tuple[str, list[Row]]]:
    """`count` rows of each task, one question each."""
    rng = random.Random(0)
    papers = []
    for task in TASKS:
        rows = []
        for seed in range(count):
            example = sample(task, seed)
            dialogue = Dialogue([Turn(example.question, example.answer, example.thinking)], opened=task == "thinking")
            rows.append(encoder.row(Lesson([dialogue], example.images, example.video), rng))
        papers.append((task, rows))
    return papers


@torch.no_grad()
def grade(model: Trainee, papers: list[tuple[str, list[Row]]]) -> dict[str, tuple[float, float]]:
    """Per task: share of answers that are right as a whole, and of tokens."""
    marks = {}
    for task, rows in papers:
        exact, right, total = 0, 0, 0
        for start in range(0, len(rows), 48):
            batch = tensors(collate(rows[start : start + 48], multiple=32))
            with torch.autocast("cpu", torch.bfloat16):
                hidden, _ = model(batch)
                _, correct, row = word_loss(model.hf.lm_head, hidden, batch["labels"])
            wrong = torch.zeros(len(batch["tokens"])).index_add_(0, row, (~correct).float())
            exact += int((wrong == 0).sum())
            right, total = right + int(correct.sum()), total + len(correct)
        marks[task] = (exact / len(rows), right / total)
    return marks


# ---- the checkpoint


def save_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """model.safetensors under the Hub's names, bfloat16, without the tied head. Complete or absent: written aside."""
    kept = {
        name.removeprefix("hf."): value.to(torch.bfloat16).contiguous()
        for name, value in weights.items()
        if name.startswith("hf.") and not name.endswith("lm_head.weight")
    }
    aside = folder / "model.safetensors.part"
    save_file(kept, aside, metadata={"format": "pt"})
    aside.rename(folder / "model.safetensors")


def load_weights(model: Trainee, folder: Path) -> None:
    """The weights of a checkpoint that `save_weights` wrote; the dense head, which it does not hold, stays random."""
    saved = {f"hf.{name}": value.float() for name, value in load_file(folder / "model.safetensors").items()}
    missing, unknown = model.load_state_dict(saved, strict=False)
    left = [name for name in missing if name.startswith("hf.") and not name.startswith("hf.lm_head.")]
    if left or unknown:
        raise ValueError(f"{folder} holds another model: missing {left[:3]}, unknown {unknown[:3]}")


class Average:
    """Exponential running average of a model's weights, quick to follow at first."""

    def __init__(self, model: Trainee):
        self.values = [p.detach().clone() for p in model.parameters()]
        self.steps = 0

    @torch.no_grad()
    def update(self, model: Trainee) -> None:
        self.steps += 1
        keep = min(AVERAGE, self.steps / (self.steps + 20))
        torch._foreach_lerp_(self.values, [p.detach() for p in model.parameters()], 1 - keep)

    def swap(self, model: Trainee) -> None:
        """Exchange the averages with the model's weights (twice restores both)."""
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            value_copy = value.clone()
            value.copy_(parameter.data)
            parameter.data.copy_(value_copy)


def schedule(minutes: float, total: float) -> float:
    """Warm up, hold, then fall linearly to nothing."""
    return min(1.0, minutes / WARM_MINUTES, max(0.0, (total - minutes) / (DECAY_SHARE * total)))


def train(
    out: Path, minutes: float, seed: int, resume: bool, start: Path | None, rate: float, threads: int, compiled: bool,
    every: float,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    state_file = out / "training.pt"
    given = out if resume else start
    tokenizer = Tokenizer.from_file(str(given / "tokenizer.json")) if given else checkpoint.train_tokenizer(corpus())
    checkpoint.write(out, tokenizer)
    model = Trainee(checkpoint.model_config(tokenizer))
    if start:
        load_weights(model, start)
    opening = 0.0 if start else DENSE_STAGE
    optimizer, average = Muon(model), Average(model)
    spent, step, errors = 0.0, 0, dict.fromkeys(LESSONS, 1.0)
    if resume:
        state = torch.load(state_file, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.steps = state["average"], state["average_steps"]
        spent, step, errors = state["minutes"], state["step"], state["errors"]
        seed += step
    print(f"{sum(p.numel() for p in model.hf.parameters()):,} parameters", flush=True)
    if compiled:
        network.vision_block = torch.compile(network.vision_block, dynamic=True)
        network.text_layer = torch.compile(network.text_layer, dynamic=True)

    context = multiprocessing.get_context("spawn")
    plan = context.Array("d", next_plan(spent / minutes, errors, opening))
    queue: Any = context.Queue(maxsize=2 * POOL)
    drawer = context.Process(target=draw_batches, args=(queue, plan, tokenizer.to_str(), seed + 1), daemon=True)
    drawer.start()
    papers = exam(Encoder(tokenizer), 48)
    log = (out / "log.jsonl").open("a")
    begun = time.monotonic() - 60 * spent
    saved = reported = time.monotonic()
    seen, waited, losses = 0, 0.0, []
    while spent < minutes:
        spent = (time.monotonic() - begun) / 60
        asked = time.monotonic()
        batch = tensors(queue.get())
        waited += time.monotonic() - asked
        dense = bool((batch["labels"] == IGNORE).all())
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if dense:
                word, patch = torch.zeros(()), model.dense_only(batch)
            else:
                hidden, patch = model(batch)
                word, _, _ = word_loss(model.hf.lm_head, hidden, batch["labels"])
            extra = torch.zeros(())
            if patch is not None and (batch["dense"] >= 0).any():
                extra = dense_loss(patch, batch["dense"])
        loss = extra if dense else word + 0.5 * extra
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate * schedule(spent, minutes))
        average.update(model)
        step, seen = step + 1, seen + len(batch["tokens"])
        losses.append((float("nan") if dense else float(word.detach()), float(extra.detach())))
        now = time.monotonic()
        if now - reported > 20:
            mean = np.nanmean([(np.nan, np.nan), *losses], 0)
            print(
                f"{spent:6.1f} min, step {step}, words {mean[0]:.4f}, patches {mean[1]:.4f}, "
                f"{seen / (now - reported):.0f} lessons/s, waiting {waited / (now - reported):.0%}",
                flush=True,
            )
            reported, seen, waited, losses = now, 0, 0.0, []
            plan[:] = next_plan(spent / minutes, errors, opening)
        if now - saved > 60 * every or spent >= minutes:
            average.swap(model)
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            if spent > opening * minutes:
                save_weights(weights, out)
                marks = grade(model, papers)
                print("   ", ", ".join(f"{t} {100 * e:.0f} ({100 * r:.1f})" for t, (e, r) in marks.items()), flush=True)
                log.write(json.dumps({"minutes": spent, "step": step, "marks": marks}) + "\n")
                log.flush()
                errors = lesson_errors(marks)
            average.swap(model)
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.values,
                    "average_steps": average.steps,
                    "minutes": spent,
                    "step": step,
                    "errors": errors,
                },
                state_file,
            )
            saved = time.monotonic()
    drawer.terminate()


def next_plan(done: float, errors: dict[str, float], opening: float) -> list[float]:
    """For `draw_batches`: after the opening of dense labels alone their share falls as the tower learns (a tower that
    starts without one has learnt); lessons half as planned, half where errors are."""
    dense = 1.0 if done < opening else max(0.1, 0.95 - done) if opening else 0.1
    return [dense, *(MIX.get(kind, 0.0) * (0.4 + 0.6 * errors[kind]) for kind in LESSONS)]


def lesson_errors(marks: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The error rate that stands for each kind of lesson."""
    wrong = {task: 1 - exact for task, (exact, _) in marks.items()}
    return {"shapes": max(wrong["describe"], wrong["detail"]), "crowd": wrong["count"], "print": wrong["read"],
            "mixed": wrong["mixed"], "compare": wrong["compare"], "video": wrong["video"], "photo": wrong["photo"],
            "text": wrong["text"], "glyph": 0.0}  # fmt: skip


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
