"""`python stand_in_chat.py ARGUMENTS`: a chat whose model is none, answers at once, and takes its time when asked to.

Its answer says what it was given, so that a test sees every message of the talk.
"""

import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx_vlgen
from mlx_vlgen.errors import PromptError, UnsupportedError
from mlx_vlgen.results import GenerationResult


class Model:
    max_positions = 1000
    config = {"model_type": "stand_in"}  # noqa: RUF012


class Processor:
    placeholders = {"image": "<image>", "video": "<video>"}  # noqa: RUF012

    def unsupported(self, kind: str) -> UnsupportedError:
        return UnsupportedError(f"an {kind} was given, and this model takes only text")


class TextProcessor(Processor):
    placeholders = {}  # noqa: RUF012


def load(name: str, **options: Any) -> tuple[Any, Any]:
    if name == "missing":
        raise mlx_vlgen.errors.LoadError("missing: no such model")  # type: ignore[attr-defined]
    return Model(), TextProcessor() if name == "text" else Processor()


def stream_generate(model: Model, processor: Processor, messages: Any, **keywords: Any) -> Iterator[GenerationResult]:
    """Of the last question: "wait" never begins to answer, "count" counts for ever, "think" and "ponder" think first,
    the second for ever; "long N" and "count N" take N tokens of the context; anything else is repeated."""
    text = messages[-1]["content"][-1]["text"]
    pictures = sum(part["type"] == "image" for message in messages for part in message["content"] if type(part) is dict)
    length = 10 * len(messages) + (int(text.split()[1]) if text.startswith(("long ", "count ")) else 0)
    if length > model.max_positions:
        raise PromptError(
            f"the prompt has {length} tokens and the model has {model.max_positions} positions: shorten it"
        )
    if text == "wait":
        keywords["prompt_progress_callback"](1, length)
        time.sleep(600)
    thinking, answer, count = None, "", 0
    if text in ("think", "ponder"):
        thinking = ""
        while len(thinking) < 200 or text == "ponder":
            thinking, count = f"{thinking}thought {count}\n", count + 1
            yield _result(thinking.strip(), answer, length, count)
            time.sleep(0.005)
    roles = "".join(message["role"][0] for message in messages)
    pieces = [f"{roles}{pictures}: ", text, f" t={keywords.get('temperature')}"]
    goes_on = text.startswith("count")
    while pieces or goes_on:
        answer, count = answer + (pieces.pop(0) if pieces else f" {count}"), count + 1
        yield _result(
            thinking and thinking.strip(),
            answer,
            length,
            count,
            finish_reason=None if pieces or goes_on else "stop",
        )
        time.sleep(0.02 if goes_on else 0)


def _result(thinking: str | None, answer: str, length: int, count: int, **more: Any) -> GenerationResult:
    thoughts = len(thinking.splitlines()) if thinking else 0
    return GenerationResult(answer, 0, thinking=thinking, thinking_tokens=thoughts, answer=answer, prompt_tokens=length,
                            generation_tokens=count, generation_tps=50.0, **more)  # fmt: skip


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    import no_models  # noqa: F401

    stand_in = types.ModuleType("mlx_vlgen.generate")
    stand_in.stream_generate = stream_generate  # type: ignore[attr-defined]
    sys.modules["mlx_vlgen.generate"] = stand_in
    mlx_vlgen.load = load

    from mlx_vlgen.entry import chat, handle_interrupts

    handle_interrupts()
    chat()
