"""Speculative decoding on the built-in model: tokens a forward of the model, and time against plain decoding.

    python benchmarks/speculation.py [--count 20] [--repeats 3]

"reading" asks for the print in a picture, which the thought spells and the answer repeats; "listing" lets the model
list what it sees before it answers. Guesses come from the text itself (`prompt_lookup`) or from a draft model: here the
built-in model again with weights of 4 bits, which shows how often guesses are right and costs as much as the model
itself, so that it saves no time. Texts must be those of plain decoding; the command fails where one is not.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from mlx_vlgen import Request, SamplingParams, TokenIterator, load
from mlx_vlgen.demo.tasks import sample
from mlx_vlgen.engine.drafters import DraftModel, PromptLookup

TASKS = {"reading": "read", "listing": "thinking"}


class Counted:
    """A drafter that counts how often it is asked, which is before every forward of the model but the prompt's."""

    calls = 0

    def __init__(self, drafter: Any):
        self._drafter = drafter
        self.read, self.update = drafter.read, drafter.update

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        Counted.calls += 1
        return self._drafter.propose(tokens, max_tokens)


def answers(model: Any, processor: Any, requests: list[Request]) -> tuple[list[list[int]], int, int, float]:
    """Token ids, guesses, right guesses, and seconds from the end of the prompts on."""
    token_ids, drafted, accepted, seconds = [], 0, 0, 0.0
    for request in requests:
        with TokenIterator(model, processor) as iterator:
            iterator.add(request)
            *_, (_, last) = iterator
        token_ids.append(list(last.tokens))
        drafted, accepted = drafted + last.drafted_tokens, accepted + last.accepted_tokens
        seconds += last.generation_time
    return token_ids, drafted, accepted, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="questions of each task")
    parser.add_argument("--repeats", type=int, default=3, help="runs, in turn; the median of the ratios counts")
    args = parser.parse_args()
    model, processor = load("demo")
    small, _ = load("demo", quantization=4)
    drafters: dict[str, Callable[[], Any]] = {
        "prompt_lookup=3": lambda: PromptLookup(3),
        "prompt_lookup=10": lambda: PromptLookup(10),
        "draft model, 4 guesses": lambda: DraftModel(small, 4, reads_media=True),
    }
    print("| task | guesses | tokens a forward | right | time, of plain |\n|---|---|---:|---:|---:|")
    for task, kind in TASKS.items():
        examples = [sample(kind, seed) for seed in range(args.count)]
        sampling = SamplingParams(max_tokens=120, logprobs=False)
        plain = [
            Request(example.messages, list(example.images), sampling, enable_thinking=True) for example in examples
        ]
        for name, drafter in drafters.items():
            speculative = [replace(request, drafter=lambda make=drafter: Counted(make())) for request in plain]
            ratios = []
            for _ in range(args.repeats):
                expected, _, _, before = answers(model, processor, plain)
                Counted.calls = 0
                actual, drafted, accepted, after = answers(model, processor, speculative)
                if actual != expected:
                    print(f"{task}, {name}: the answer changed", file=sys.stderr)
                    return 1
                ratios.append(after / before)
            tokens = sum(map(len, expected)) - len(expected)  # the prompt's forward gives the first
            a_forward, right = tokens / Counted.calls, accepted / max(1, drafted)
            print(f"| {task} | {name} | {a_forward:.2f} | {right:.0%} | {median(ratios):.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
