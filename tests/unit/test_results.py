"""Results copied, pickled and as JSON; thinking and answer of a stream; notices of failed rows."""

import copy
import dataclasses
import itertools
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family

from mlx_vlgen import BatchResponse, BatchStats, GenerationResult, batch_generate, generate, stream_generate
from mlx_vlgen.errors import MediaError
from mlx_vlgen.results import Beam

THINK = {"thinking_start_token": "<a>", "thinking_end_token": "</a>"}


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def response(family: Family) -> BatchResponse:
    return batch_generate(
        family.model, family.processor, ["no.png", None, None], None, [ask("A"), ask("B"), ask("C")], 4, top_logprobs=2
    )


class Odd(Exception):
    """As a user's code may raise it: unpickling calls it with one argument."""

    def __init__(self, one: str, two: str):
        super().__init__(one + two)


def test_a_response_is_pickled_without_the_vocabulary(response: BatchResponse) -> None:
    again = pickle.loads(pickle.dumps(response))
    assert again.texts == response.texts and again.stats == response.stats
    assert again == response and again.results[1] != response.results[2]
    assert type(again.results[0].error) is MediaError
    assert all(type(result) is GenerationResult and result.logprobs is None for result in again.results)
    assert len(pickle.dumps(response.results[1])) < 2_000
    odd = pickle.loads(pickle.dumps(GenerationResult(error=Odd("a", "b")))).error
    assert str(odd) == "Odd: ab"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_are_equal_and_keep_the_vocabulary(response: BatchResponse, copied: Callable[[Any], Any]) -> None:
    for result in response.results[1:]:
        again = copied(result)
        assert again == result and again is not result
        assert np.array_equal(np.array(again.logprobs), np.array(result.logprobs))
    assert copied(response).texts == response.texts and copied(response.stats) == response.stats


def test_as_dict_and_replace_work(response: BatchResponse) -> None:
    for result in response.results:
        fields = dataclasses.asdict(result)
        assert fields.keys() == {field.name for field in dataclasses.fields(GenerationResult)}
        assert fields["tokens"] == result.tokens and fields["tokens"] is not result.tokens
        assert dataclasses.replace(result, text="x").tokens == result.tokens


def test_to_dict_is_json(response: BatchResponse) -> None:
    fields = response.to_dict()
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    assert fields["stats"] == response.stats.to_dict() == dataclasses.asdict(response.stats)
    failed, whole, _ = fields["results"]
    assert failed["error"] == "MediaError: no.png: no such file" and failed["finish_reason"] == "error"
    assert whole == response.results[1].to_dict() and "logprobs" not in whole
    assert (whole["text"], whole["tokens"], len(whole["top_logprobs"])) == (
        response.texts[1], response.results[1].tokens, 2,
    )  # fmt: skip
    odd = GenerationResult(top_logprobs=[(1, -math.inf)], beams=[Beam([1], 0.5, [0])], image_sizes=[(2, 3)]).to_dict()
    assert odd["top_logprobs"] == [[1, None]] and odd["image_sizes"] == [[2, 3]]
    assert odd["beams"] == [{"tokens": [1], "score": 0.5, "origins": [0]}]
    assert BatchResponse(["a"]).to_dict()["stats"] == BatchStats().to_dict()


def test_a_field_is_what_it_was_set_to() -> None:
    """A function too."""
    result = GenerationResult()
    result.logprobs = print
    assert result.logprobs is print


def test_a_result_looks_like_one(response: BatchResponse) -> None:
    shown = repr(response.results[1])
    assert shown.startswith("GenerationResult(text=") and "logprobs=array" not in shown


# Thinking


@pytest.mark.parametrize(
    ("text", "stop", "thinking", "answer"),
    [
        ("plain text ", None, None, "plain text "),
        ("<a>one two</a>\n three ", None, "one two", "three"),
        ("<a>one", None, "one", ""),
        ("<a>", None, "", ""),
        ("x<a>one</a>y<a> two</a>z", None, "one two", "z"),
        ("<a>one</a>y</", None, "one", "y</"),
        ("<a>one</a>ab<|stop", ["<|stop"], "one", "ab"),
        ("<a>one<|stop", ["<|stop"], "one", ""),
        ("<a>on<|</a>ab<|", ["<|stop"], "on<|", "ab<|"),
        ("<a>é🙂</a>🙂", None, "é🙂", "🙂"),
    ],
)
def test_thinking_and_answer_grow_and_hold_no_mark(
    family: Family, text: str, stop: list[str] | None, thinking: str | None, answer: str
) -> None:
    """Neither the marks nor a beginning of one, which takes several tokens here, is ever in a result."""
    tokens = [token for piece in split(text) for token in family.processor.tokenizer.encode(piece)]
    steps = list(
        stream_generate(
            family.model, family.processor, "Hi", logits_processors=[Forced(tokens)], stop=stop,
            max_tokens=len(tokens), **THINK,
        )
    )  # fmt: skip
    whole = generate(
        family.model, family.processor, "Hi", logits_processors=[Forced(tokens)], stop=stop, max_tokens=len(tokens),
        **THINK,
    )  # fmt: skip
    assert (whole.thinking, whole.answer) == (steps[-1].thinking, steps[-1].answer) == (thinking, answer)
    assert whole.thinking_tokens + whole.answer_tokens <= len(tokens)
    before = ""
    for step in steps:
        assert "<" not in (step.thinking or "").replace("<|", "") and (step.answer or "").replace("</", "<|")[:1] != "<"
        assert step.answer.startswith(before) or step.answer == ""
        before = step.answer
    thoughts = [step.thinking or "" for step in steps]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(thoughts))


def split(text: str) -> list[str]:
    """Parts that are encoded apart, so that each mark is several tokens."""
    for mark in ("<a>", "</a>"):
        text = text.replace(mark, f"\0{mark}\0")
    return [piece for piece in text.split("\0") if piece]


class Forced:
    """A logits processor that forces these tokens."""

    def __init__(self, tokens: list[int]):
        self._tokens, self._count = tokens, 0

    def __call__(self, tokens: Any, logits: Any) -> Any:
        from mlx_vlgen._runtime import mx

        scores = mx.full(logits.shape, -1e9)
        scores[:, self._tokens[self._count]] = 0
        self._count += 1
        return scores


# Failures


def test_failed_rows_are_told(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(images: list[Any]) -> str:
        batch_generate(family.model, family.processor, images, None, [ask("A")] * len(images), 1)
        out, error = capsys.readouterr()
        assert out == ""
        return error

    assert fails([None, None]) == ""
    assert fails([None, "no.png"]) == "mlx_vlgen: 1 of 2 failed: results[1]: no.png: no such file\n"
    message = fails(["no.png", None, "neither.png", "nor.png"])
    assert (
        message
        == "mlx_vlgen: 3 of 4 failed: results[0]: no.png: no such file (the others' are in results[2].error …)\n"
    )
