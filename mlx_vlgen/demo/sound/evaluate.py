"""How often the built-in ear is right on clips outside its training, by voices that it never heard:
`python -m mlx_vlgen.demo.sound.evaluate [--count 300]`.

Needs espeak-ng. Everything goes through this package's `load` and `batch_generate`. Prints a Markdown table.
"""

from __future__ import annotations

import argparse

from ..evaluate import distance
from . import words
from .clips import HELD_OUT, RATE, Studio
from .tasks import NO_WORDS, STRANGER, TASKS, Example, sample

_TRANSCRIBED = ("words", "phrase", "mixed")


def word_accuracy(examples: list[Example], answers: list[str]) -> float:
    """One less the word error rate: edits for each word that was said. An answer that there are none counts as none."""
    heard: list[list[str]] = [[] if answer in (STRANGER, *NO_WORDS.values()) else answer.split() for answer in answers]
    pairs = [(example.clip.transcript, answer) for example, answer in zip(examples, heard, strict=True)]
    return 1 - sum(distance(truth, answer) for truth, answer in pairs) / sum(len(truth) for truth, _ in pairs)


def answer_all(name: str, examples: list[Example], batch_size: int) -> list[str]:
    """Answers of the named model."""
    from mlx_vlgen import apply_chat_template, batch_generate, load

    model, processor = load(name)
    answers: list[str] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        prompts = [apply_chat_template(processor, model.config, e.question, num_audios=1) for e in batch]
        audios = [[(example.clip.samples, RATE)] for example in batch]
        answers += batch_generate(model, processor, audios=audios, prompts=prompts, max_tokens=40).texts
    return [answer.strip() for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-audio", help="name or folder")
    parser.add_argument("--count", type=int, default=300, help="examples of each task")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--show", type=int, default=0, help="wrong answers of each task to print")
    options = parser.parse_args()
    studio = Studio(HELD_OUT, words.FOREIGN)
    print("| task | exact | words |\n|---|---:|---:|")
    for task in options.tasks:
        examples = [sample(studio, task, seed) for seed in range(options.count)]
        answers = answer_all(options.model, examples, options.batch_size)
        exact = sum(answer == e.answer for e, answer in zip(examples, answers, strict=True)) / len(examples)
        right = f"{word_accuracy(examples, answers):.1%}" if task in _TRANSCRIBED else ""
        print(f"| {task} | {exact:.1%} | {right} |", flush=True)
        wrong = [(e, a) for e, a in zip(examples, answers, strict=True) if a != e.answer]
        for example, answer in wrong[: options.show]:
            print(f"<!-- {example.question!r}: {answer!r}, true is {example.answer!r} -->")


if __name__ == "__main__":
    main()
