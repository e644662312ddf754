"""Train the built-in ear from random weights: `python -m mlx_vlgen.demo.sound.train --out DIR --minutes N`.

Needs the extra `train` (torch, transformers) and espeak-ng. The tower learns from the first step on what sounds at each
moment (see `lessons.moments`), and the decoder what is answered. Clips of one or two words come first, then longer
ones. The checkpoint has the moving average of the weights, in float16.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from ..network import dense_loss, token_loss
from ..optimizer import Muon
from ..tasks import Dialogue, Turn
from ..train import Average, Batch, State, as_tensors, learning_rate_factor, load_weights, save_weights
from . import checkpoint, network, words
from .clips import GRID, HELD_OUT, Studio
from .lessons import IGNORE, SoundEncoder, SoundRow, collate
from .network import DENSE, TrainingModel
from .tasks import TASKS, Lesson, corpus, make_lesson, sample

SECONDS = 96  # of sound in a batch
POOL = 240  # lessons that are sorted by length at a time
REUSE = 2  # times that a batch is trained on, each time with other masks
KEPT = 200  # batches
VALIDATION = 40  # examples of each task
PRINT_SECONDS = 30
KINDS = ("word", "voice", "tones", "noise", "music", "silence", "text")
START = (0.66, 0.0, 0.18, 0.05, 0.06, 0.02, 0.03)  # shares of the kinds: of the first lessons
END = (0.13, 0.58, 0.15, 0.04, 0.05, 0.02, 0.03)  # and from SHIFT of the time on
SHIFT = 0.2


def shares(progress: float) -> list[float]:
    part = min(1.0, progress / SHIFT)
    return [(1 - part) * first + part * last for first, last in zip(START, END, strict=True)]


# ---- batches, made in another process


def batches_of(rows: list[SoundRow]) -> Iterator[list[SoundRow]]:
    """Rows whose clips have one length, SECONDS together at most."""
    groups: dict[int, list[SoundRow]] = defaultdict(list)
    for row in rows:
        groups[len(row.mel)].append(row)
    for frames, group in groups.items():
        count = max(1, 100 * SECONDS // max(frames, 60))
        for start in range(0, len(group), count):
            yield group[start : start + count]


def masked(batch: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
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
    """Endless batches into `queue`: fresh ones, each REUSE times in all. weights: of KINDS, in shared memory."""
    encoder = SoundEncoder(Tokenizer.from_str(tokenizer_json))
    studio = Studio()
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    kept: list[dict[str, np.ndarray]] = []
    while True:
        studio.rest = rng.randrange(GRID)
        kinds = rng.choices(KINDS, weights, k=POOL)
        rows = [encoder.sound_row(make_lesson(studio, kind, rng.getrandbits(48))) for kind in kinds]
        fresh = [collate(batch) for batch in batches_of(rows)]
        rng.shuffle(fresh)
        for batch in fresh:
            kept.append(batch)
            queue.put(masked(batch, numbers))
            for _ in range(REUSE - 1):
                queue.put(masked(rng.choice(kept), numbers))
        if len(kept) > KEPT:
            kept = kept[-KEPT:]


# ---- validation: a greedy answer is exact when each of its tokens is the likeliest after the true ones before it


def validation_batches(encoder: SoundEncoder, count: int) -> dict[str, list[dict[str, np.ndarray]]]:
    """`count` examples of each task, by voices that training never hears."""
    studio = Studio(HELD_OUT, words.FOREIGN)
    table = {}
    for task in TASKS:
        rows = []
        for seed in range(count):
            example = sample(studio, task, 1_000_000 + seed)
            lesson = Lesson([Dialogue([Turn(example.question, example.answer)])], example.clip)
            rows.append(encoder.sound_row(lesson))
        table[task] = [collate(batch) for batch in batches_of(rows)]
    return table


@torch.no_grad()
def validate(model: TrainingModel, table: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, tuple[float, float]]:
    """Of each task: the share of answers that are right as a whole, and of tokens."""
    accuracy = {}
    for task, batches in table.items():
        exact, examples, right, total = 0, 0, 0, 0
        for arrays in batches:
            batch = as_tensors(arrays)
            with torch.autocast("cpu", torch.bfloat16):
                hidden, _ = model(batch)
                _, correct, row = token_loss(model.hf.lm_head, hidden, batch["labels"])
            wrong = torch.zeros(len(batch["tokens"])).index_add_(0, row, (~correct).float())
            exact, examples = exact + int((wrong == 0).sum()), examples + len(wrong)
            right, total = right + int(correct.sum()), total + len(correct)
        accuracy[task] = (exact / examples, right / total)
    return accuracy


# ---- training


def train_step(state: State, batch: Batch, factor: float) -> tuple[float, float]:
    """One step of the optimizer; the losses of tokens and of moments."""
    state.optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        hidden, dense = state.model(batch)
        of_tokens, _, _ = token_loss(state.model.hf.lm_head, hidden, batch["labels"])
        of_moments = torch.zeros(())
        if dense is not None and (batch["moments"] != IGNORE).any():
            of_moments = dense_loss(dense, batch["moments"], DENSE)
    (of_tokens + 0.5 * of_moments).backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step(factor)
    state.average.update(state.model)
    state.step += 1
    return float(of_tokens.detach()), float(of_moments.detach())


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
    state = State(model, Muon(model), Average(model), {})
    if resume:
        state.load(out / "training.pt")
        seed += state.step
    print(f"{sum(p.numel() for p in model.hf.parameters()):,} parameters", flush=True)
    if compiled:
        network.audio_layer = torch.compile(network.audio_layer, dynamic=True)
        network.text_layer = torch.compile(network.text_layer, dynamic=True)

    context = multiprocessing.get_context("spawn")
    weights = context.Array("d", shares(1.0 if start else state.minutes / minutes))
    queue: Any = context.Queue(maxsize=24)
    producer = context.Process(target=produce_batches, args=(queue, weights, tokenizer.to_str(), seed + 1), daemon=True)
    producer.start()
    table = validation_batches(SoundEncoder(tokenizer), VALIDATION)
    log = (out / "log.jsonl").open("a")
    started = time.monotonic() - 60 * state.minutes
    saved = printed = time.monotonic()
    clips, seconds, waited, recent = 0, 0.0, 0.0, []
    while state.minutes < minutes:
        wait_started = time.monotonic()
        state.minutes = (wait_started - started) / 60
        arrays = queue.get()
        waited += time.monotonic() - wait_started
        recent.append(train_step(state, as_tensors(arrays), rate * learning_rate_factor(state.minutes, minutes)))
        clips, seconds = clips + len(arrays["mel"]), seconds + arrays["mel"][..., 0].size / 100
        now = time.monotonic()
        if now - printed > PRINT_SECONDS:
            mean = np.mean(recent, 0)
            print(
                f"{state.minutes:6.1f} min, step {state.step}, tokens {mean[0]:.4f}, moments {mean[1]:.4f}, "
                f"{clips / (now - printed):.0f} clips/s ({seconds / (now - printed):.0f} s/s), "
                f"waiting {waited / (now - printed):.0%}",
                flush=True,
            )
            printed, clips, seconds, waited, recent = now, 0, 0.0, 0.0, []
            weights[:] = shares(1.0 if start else state.minutes / minutes)
        if now - saved > 60 * every or state.minutes >= minutes:
            state.average.swap(model)
            save_weights(model.state_dict(), out)
            accuracy = validate(model, table)
            state.average.swap(model)
            print("   ", ", ".join(f"{t} {100 * e:.0f} ({100 * r:.1f})" for t, (e, r) in accuracy.items()), flush=True)
            log.write(json.dumps({"minutes": state.minutes, "step": state.step, "marks": accuracy}) + "\n")
            log.flush()
            state.save(out / "training.pt")
            saved = time.monotonic()
    producer.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of the training state")
    parser.add_argument("--minutes", type=float, default=120, help="in all, earlier runs counted in with --resume")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="begin with the weights of this checkpoint, not with random ones")
    parser.add_argument("--rate", type=float, default=1, help="factor on the learning rates: less for a --start")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler)")
    parser.add_argument("--every", type=float, default=6, help="minutes between saves")
    options = parser.parse_args()
    train(
        options.out, options.minutes, options.seed, options.resume, options.start, options.rate, options.threads,
        options.compile, options.every,
    )  # fmt: skip


if __name__ == "__main__":
    main()
