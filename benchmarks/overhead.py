"""What the engine costs on top of the forward: time per decoded token, in alternating pairs with a bare loop.

    python benchmarks/overhead.py [--size tiny small] [--rows 1 8] [--vocabulary 151936] [--pairs 7] [--new-tokens 64]

The bare loop is what a careful user would write around `model(token, cache)` and argmax, with mlx-lm's caches
(`KVCache` for one row, `BatchKVCache` for more): no text, no end tokens, no statistics. It comes in two kinds, "eval",
which reads each token before it starts the next step, and "ahead", which starts the next step first
(`mx.async_eval`), as the engine does on a GPU. The ratio of a pair is the engine's time over that of the faster kind,
whichever it is on this machine; its median and quartiles are shown. All prompts have one length; prefill, and the step
in which rows join, are not timed. Weights lie in memory as `load` lays them.

"tiny" is the shape of realistic proportions that a CPU decodes; in "small" the forward takes so little that what the
engine does in between shows. The bare loop stays greedy: the ratio of other settings includes what drawing costs, which
grows with the vocabulary.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from shapes import SIZES, build, request

from mlx_vlgen import Request, SamplingParams, TokenIterator
from mlx_vlgen._mlx_lm import KVCache, models
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.params import PRESETS
from mlx_vlgen.models.base import Embedded, Model

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, logprobs that nobody reads": {"logprobs": True},
    "greedy, a stop string": {"stop": ["\n\nUser:"]},
    "temperature 0.7, top_p 0.9, seed": {"temperature": 0.7, "top_p": 0.9, "seed": 1},
    "Qwen's Instruct settings": {**PRESETS["instruct"], "seed": 1},
}


def speak(model: Any, tokenizer: Any) -> None:
    """Leave no tokens likely but those that are text by themselves: of others the engine would have less to do."""
    embeddings = model.language_model.model.embed_tokens.weight
    spoken = [id for id in range(len(tokenizer)) if "\ufffd" not in tokenizer.decode([id])]
    embeddings[...] = mx.zeros_like(embeddings).at[mx.array(spoken)].add(embeddings[mx.array(spoken)])
    mx.eval(embeddings)


def bare(model: Model, prompt: np.ndarray, rows: int, steps: int, ahead: bool) -> float:
    """Seconds for `steps` decoding steps after the prompt (L,), the same in each row, and a first one."""
    caches = [KVCache() if rows == 1 else models.cache.BatchKVCache([0] * rows) for _ in model.cache_layout()]
    tokens = mx.broadcast_to(mx.array(prompt), (rows, len(prompt)))
    token = mx.argmax(model(Embedded(tokens), caches, at=mx.array([len(prompt) - 1] * rows)), axis=-1)
    mx.eval(token)
    begun = 0.0
    for step in range(steps + 1):
        if step == 1:
            begun = time.perf_counter()
        following = mx.argmax(model(Embedded(token[:, None]), caches)[:, 0], axis=-1)
        if ahead:
            mx.async_eval(following)
            token.tolist()
        else:
            mx.eval(following)
            following.tolist()
        token = following
    token.tolist()
    return time.perf_counter() - begun


def engine(model: Model, processor: Any, requests: Sequence[Request], steps: int) -> float:
    """Seconds from the last row's second token to the last token of all: as many steps."""
    with TokenIterator(model, processor) as iterator:
        for row in [iterator.prepare(one) for one in requests]:  # all there before any begins
            iterator.add(row)
        begun = 0.0
        for _, result in iterator:
            if result.generation_tokens == 2:
                begun = time.perf_counter()
            assert result.error is None and (result.finish_reason is None) == (result.generation_tokens < steps + 2)
        return time.perf_counter() - begun


def alternate(runs: Sequence[Callable[[], float]], times: int) -> list[list[float]]:
    """What each run gives, `times` times in turn, after one round to warm up."""
    rounds = [[run() for run in runs] for _ in range(times + 1)][1:]
    return [list(column) for column in zip(*rounds, strict=True)]


def measure(model: Model, processor: Any, rows: int, sampling: SamplingParams, prompt_tokens: int, pairs: int) -> str:
    """The cells of a line: milliseconds a step (one token a row) of each kind, and the engine's ratio."""
    one = Request(request(None, prompt_tokens, 1).prompt, sampling=sampling)
    prompt, steps = processor.prepare(one.prompt, one.media).tokens, sampling.max_tokens - 2
    columns = alternate(
        [
            lambda: bare(model, prompt, rows, steps, ahead=False),
            lambda: bare(model, prompt, rows, steps, ahead=True),
            lambda: engine(model, processor, [one] * rows, steps),
        ],
        pairs,
    )
    plain, ahead, ours = ([seconds / steps * 1e3 for seconds in column] for column in columns)
    faster = min(plain, ahead, key=statistics.median)
    ratios = [engine_time / bare_time for engine_time, bare_time in zip(ours, faster, strict=True)]
    shown = [f"{statistics.median(column):.2f} ms" for column in (plain, ahead, ours)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return " | ".join([*shown, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--vocabulary", type=int, help="words, instead of the shape's own")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=49)
    args = parser.parse_args()

    print("| shape | rows | settings | bare, eval | bare, ahead | engine | ratio | quartiles |")
    print("|---|---:|---|---:|---:|---:|---:|---|")
    for size in args.size:
        mx.random.seed(0)
        model, processor = build(size, None, args.vocabulary)
        speak(model, processor.tokenizer)
        for rows, name in itertools.product(args.rows, args.settings):
            sampling = SamplingParams(**{"max_tokens": args.new_tokens, "logprobs": False, **SETTINGS[name]})
            line = measure(model, processor, rows, sampling, args.prompt_tokens, args.pairs)
            print(f"| {size} | {rows} | {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
