"""The training of a built-in model, whatever it perceives: a `Course` says what is learnt, `main` runs it.

Batches are made in another process. The checkpoint holds the moving average of the weights; a training can be resumed,
or begin with the weights of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .network import token_loss
from .optimizer import Muon

WARM_MINUTES, DECAY_SHARE = 0.7, 0.75
AVERAGE = 0.995
PRINT_SECONDS = 20

Arrays = dict[str, np.ndarray]
Batch = dict[str, torch.Tensor]
Marks = dict[str, tuple[float, float]]  # task -> the share of answers that are right as a whole, and of tokens


@dataclass(frozen=True)
class Course:
    """What is trained. The model has the Hub's modules as `hf`; `model(batch)` gives hidden states and dense logits.

    files: the module with `train_tokenizer`, `model_config` and `write`. corpus: texts for the tokenizer.
    network: the module of the model's layers; `compiled` names the functions that torch.compile takes.
    produce(queue, shares, tokenizer_json, seed): endless batches. shares(progress, errors, opening): what it draws.
    opening: the share of the time before the first checkpoint. opened(model, tokenizer): done once when it is over.
    losses(model, batch): of tokens, or None, and dense. validation(tokenizer): batches of each task. errors(marks):
    what `shares` is told.
    """

    files: ModuleType
    corpus: Callable[[], Any]
    build: Callable[[dict[str, Any]], Any]
    network: ModuleType
    compiled: Sequence[str]
    dtype: torch.dtype
    produce: Callable[[Any, Any, str, int], None]
    shares: Callable[[float, dict[str, float], float], list[float]]
    opening: float
    opened: Callable[[Any, Tokenizer], None]
    losses: Callable[[Any, Batch], tuple[torch.Tensor | None, torch.Tensor]]
    validation: Callable[[Tokenizer], Mapping[str, Sequence[Arrays]]]
    errors: Callable[[Marks], dict[str, float]]


def as_tensors(arrays: Arrays) -> Batch:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@torch.no_grad()
def validate(model: Any, batches_of_task: Mapping[str, Sequence[Arrays]]) -> Marks:
    """A greedy answer is exact when each of its tokens is the likeliest after the true ones before it."""
    marks = {}
    for task, batches in batches_of_task.items():
        exact, answers, right, total = 0, 0, 0, 0
        for arrays in batches:
            batch = as_tensors(arrays)
            with torch.autocast("cpu", torch.bfloat16):
                hidden, _ = model(batch)
                _, correct, row = token_loss(model.hf.lm_head, hidden, batch["labels"])
            wrong = torch.zeros(len(batch["tokens"])).index_add_(0, row, (~correct).float())
            exact, answers = exact + int((wrong == 0).sum()), answers + len(wrong)
            right, total = right + int(correct.sum()), total + len(correct)
        marks[task] = (exact / answers, right / total)
    return marks


# ---- the checkpoint


def save_weights(weights: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
    """model.safetensors under transformers' names, without the tied head. Renamed when it is complete."""
    tensors = {
        name.removeprefix("hf."): value.to(dtype).contiguous()
        for name, value in weights.items()
        if name.startswith("hf.") and not name.endswith("lm_head.weight")
    }
    partial = folder / "model.safetensors.part"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


def load_weights(model: Any, folder: Path) -> None:
    """The weights of a checkpoint that `save_weights` wrote; the dense head, which is not in it, stays random."""
    saved = {f"hf.{name}": value.float() for name, value in load_file(folder / "model.safetensors").items()}
    missing, unknown = model.load_state_dict(saved, strict=False)
    absent = [name for name in missing if name.startswith("hf.") and not name.startswith("hf.lm_head.")]
    if absent or unknown:
        raise ValueError(f"{folder} holds another model: missing {absent[:3]}, unknown {unknown[:3]}")


class Average:
    """Exponential moving average of a model's weights; over fewer steps at first."""

    def __init__(self, model: Any):
        self.values = [p.detach().clone() for p in model.parameters()]
        self.steps = 0

    @torch.no_grad()
    def update(self, model: Any) -> None:
        self.steps += 1
        decay = min(AVERAGE, self.steps / (self.steps + 20))
        torch._foreach_lerp_(self.values, [p.detach() for p in model.parameters()], 1 - decay)

    def swap(self, model: Any) -> None:
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

    model: Any
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


def train_step(course: Course, state: State, batch: Batch, factor: float) -> tuple[float, float]:
    """One step of the optimizer; the two losses, NaN for the one of tokens where there is none."""
    state.optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        of_tokens, dense = course.losses(state.model, batch)
    loss = dense if of_tokens is None else of_tokens + 0.5 * dense
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step(factor)
    state.average.update(state.model)
    state.step += 1
    return float("nan") if of_tokens is None else float(of_tokens.detach()), float(dense.detach())


def save_and_validate(
    course: Course, state: State, batches: Mapping[str, Sequence[Arrays]], out: Path, log: TextIO
) -> None:
    """Write the averaged weights as a checkpoint and measure them."""
    state.average.swap(state.model)
    save_weights(state.model.state_dict(), out, course.dtype)
    marks = validate(state.model, batches)
    state.average.swap(state.model)
    state.errors = course.errors(marks)
    print("   ", ", ".join(f"{t} {100 * e:.0f} ({100 * r:.1f})" for t, (e, r) in marks.items()), flush=True)
    log.write(json.dumps({"minutes": state.minutes, "step": state.step, "marks": marks}) + "\n")
    log.flush()


def train(
    course: Course, out: Path, minutes: float, seed: int, resume: bool, start: Path | None, rate: float, threads: int,
    compiled: bool, every: float,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    source = out if resume else start
    if source:
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    else:
        tokenizer = course.files.train_tokenizer(course.corpus())
    course.files.write(out, tokenizer)
    model = course.build(course.files.model_config(tokenizer))
    if start:
        load_weights(model, start)
    opening = 0.0 if start else course.opening
    state = State(model, Muon(model), Average(model), course.errors({}))
    if resume:
        state.load(out / "training.pt")
        seed += state.step
    print(f"{sum(p.numel() for p in model.hf.parameters()):,} parameters", flush=True)
    if compiled:
        for name in course.compiled:
            setattr(course.network, name, torch.compile(getattr(course.network, name), dynamic=True))

    def shares_now() -> list[float]:
        return course.shares(state.minutes / minutes, state.errors, opening)

    context = multiprocessing.get_context("spawn")
    shares = context.Array("d", shares_now())
    queue: Any = context.Queue(maxsize=24)
    arguments = (queue, shares, tokenizer.to_str(), seed + 1)
    producer = context.Process(target=course.produce, args=arguments, daemon=True)
    producer.start()
    batches = course.validation(tokenizer)
    log = (out / "log.jsonl").open("a")
    started = time.monotonic() - 60 * state.minutes
    saved = printed = time.monotonic()
    num_lessons, waited, recent = 0, 0.0, []
    in_opening = state.minutes < opening * minutes
    while state.minutes < minutes:
        wait_started = time.monotonic()
        state.minutes = (wait_started - started) / 60
        if in_opening and state.minutes >= opening * minutes:
            course.opened(model, tokenizer)
            in_opening = False
        batch = as_tensors(queue.get())
        waited += time.monotonic() - wait_started
        recent.append(train_step(course, state, batch, rate * learning_rate_factor(state.minutes, minutes)))
        num_lessons += len(batch["tokens"])
        now = time.monotonic()
        if now - printed > PRINT_SECONDS:
            mean = np.nanmean([(np.nan, np.nan), *recent], 0)
            print(
                f"{state.minutes:6.1f} min, step {state.step}, tokens {mean[0]:.4f}, dense {mean[1]:.4f}, "
                f"{num_lessons / (now - printed):.0f} lessons/s, waiting {waited / (now - printed):.0%}",
                flush=True,
            )
            printed, num_lessons, waited, recent = now, 0, 0.0, []
            shares[:] = shares_now()
        if now - saved > 60 * every or state.minutes >= minutes:
            if state.minutes > opening * minutes:
                save_and_validate(course, state, batches, out, log)
            state.save(out / "training.pt")
            saved = time.monotonic()
    producer.terminate()


def main(course: Course, description: str | None, minutes: float, threads: int, rate: float = 1.0) -> None:
    """The command line of a training; `minutes`, `threads` and `rate` are its defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of the training state")
    parser.add_argument("--minutes", type=float, default=minutes, help="in all, earlier runs counted in with --resume")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="begin with the weights of this checkpoint, not with random ones")
    parser.add_argument("--rate", type=float, default=rate, help="factor on the learning rates: less for a --start")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler)")
    parser.add_argument("--every", type=float, default=6, help="minutes between saves")
    options = parser.parse_args()
    train(
        course, options.out, options.minutes, options.seed, options.resume, options.start, options.rate,
        options.threads, options.compile, options.every,
    )  # fmt: skip
