"""How often the built-in model is right on pictures outside its training:
`python -m mlx_vlgen.demo.evaluate [--count 500]`.

Everything goes through this package's `load` and `batch_generate`. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .tasks import TASKS, Example, sample

_OBJECT = re.compile(r"an? (\w+ (?:circle|square|triangle)) ((?:on|in|at) the [a-z ]+?)(?=,| and |\.)")
_QUOTED = re.compile(r'"([^"]*)"')


def objects(sentence: str) -> Counter[tuple[str, str]]:
    """(name, place) of each shape that a description names."""
    return Counter((name, place) for name, place in _OBJECT.findall(sentence))


def distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance, of strings or of lists of words."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def quoted(sentence: str) -> str:
    match = _QUOTED.search(sentence)
    return match.group(1) if match else ""


def table(examples: Iterable[Example], answers: Iterable[str]) -> list[tuple[str, float, str]]:
    """(task, share of exact answers, another measure or "") in the order of TASKS."""
    pairs: dict[str, list[tuple[Example, str]]] = {}
    for example, answer in zip(examples, answers, strict=True):
        pairs.setdefault(example.task, []).append((example, answer.strip()))
    lines = []
    for task, answered in pairs.items():
        exact = sum(answer == example.answer for example, answer in answered) / len(answered)
        more = ""
        if task == "describe":
            truth = [objects(example.answer) for example, _ in answered]
            named = sum((t & objects(answer)).total() for t, (_, answer) in zip(truth, answered, strict=True))
            more = f"{named / sum(t.total() for t in truth):.1%} of the shapes"
        elif task == "read":
            wrong = sum(distance(quoted(e.answer), quoted(answer)) for e, answer in answered)
            more = f"{1 - wrong / sum(len(quoted(e.answer)) for e, _ in answered):.1%} of the characters"
        lines.append((task, exact, more))
    return lines


def answer_all(examples: list[Example], batch_size: int) -> list[str]:
    """Answers of the built-in model, without its thoughts."""
    from mlx_vlgen import apply_chat_template, batch_generate, generate, load

    model, processor = load("demo")
    answers: list[str] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        thinks = batch[0].task == "thinking"
        prompts = [
            apply_chat_template(
                processor, model.config, example.question, num_images=len(example.images),
                video=example.video, enable_thinking=thinks,
            )
            for example in batch
        ]  # fmt: skip
        if batch[0].video is not None:
            results = [
                generate(model, processor, prompt, video=[example.video], max_tokens=160)
                for prompt, example in zip(prompts, batch, strict=True)
            ]
        else:
            images = [example.images for example in batch] if batch[0].images else None
            results = batch_generate(
                model, processor, images=images, prompts=prompts, max_tokens=160, enable_thinking=thinks
            ).results
        answers += [result.answer or result.text for result in results]
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="examples of each task")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--show", type=int, default=0, help="wrong answers of each task to print")
    options = parser.parse_args()
    print("| task | exact | |\n|---|---|---|")
    for task in options.tasks:
        examples = [sample(task, seed) for seed in range(options.count)]
        answers = answer_all(examples, options.batch_size)
        for name, exact, more in table(examples, answers):
            print(f"| {name} | {exact:.1%} | {more} |", flush=True)
        wrong = [(e, a) for e, a in zip(examples, answers, strict=True) if a.strip() != e.answer]
        for example, answer in wrong[: options.show]:
            print(f"<!-- {example.question!r}: {answer!r}, true is {example.answer!r} -->")


if __name__ == "__main__":
    main()
