"""Faults end one row only: user code, media, prompts. Its neighbours answer as if it were not there."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from invariants.family import Family
from invariants.play import Heard, Row, Wrapped, ask_for, check, collect, play

from mlx_vlgen import MediaInputs, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import batch
from mlx_vlgen.errors import MediaError, PromptError, UnsupportedError


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3")


@pytest.fixture(scope="module")
def vision(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


class Fault(Exception):
    pass


def fail(*_: Any) -> Any:
    raise Fault("mine")


def fail_after(count: int, result: Any = None) -> Callable[[mx.array, mx.array], Any]:
    """Gives the logits, or `result`, so many times; then it fails."""
    calls = itertools.count()

    def function(tokens: mx.array, logits: mx.array) -> Any:
        if next(calls) == count:
            fail()
        return logits if result is None else result

    return function


def faulty(family: Family, **sampling: Callable[[], Any]) -> Heard:
    """A row with user code, made anew for each run by the given functions."""
    row = ask_for(family, **{name: make() for name, make in sampling.items()})
    neighbours = [ask_for(family, "short"), ask_for(family, "words5")]
    first, output, last = play(family, [neighbours[0], row, neighbours[1]])
    check(family, neighbours, [first, last])
    assert output.finish_reason == "error"
    return output


@pytest.mark.parametrize("count", [0, 1, 5])
def test_fault_in_a_logits_processor(family: Family, count: int) -> None:
    """The tokens before it stay, with their text."""
    output = faulty(family, logits_processors=lambda: [fail_after(count)])
    assert isinstance(output.results[-1].error, Fault)
    assert output.tokens == family.answer(family.asks["long"]).tokens[:count]
    assert output.text == family.processor.tokenizer.decode(output.tokens)


@pytest.mark.parametrize("count", [0, 3])
def test_fault_in_a_criterion(family: Family, count: int) -> None:
    output = faulty(family, stopping_criteria=lambda: [fail_after(count, result=False)])
    assert isinstance(output.results[-1].error, Fault)
    tokens = family.answer(family.asks["long"]).tokens[: count + 1]
    assert output.results[-1].tokens == tokens
    assert output.text == family.processor.tokenizer.decode(tokens)


def test_fault_in_a_sampler(family: Family) -> None:
    output = faulty(family, sampler=lambda: fail)
    assert isinstance(output.results[-1].error, Fault) and output.tokens == []


@pytest.mark.parametrize(
    "result", [None, 3, mx.zeros((7,)), mx.zeros((1, 7)), mx.zeros((2, 512))], ids=["none", "int", "1d", "short", "two"]
)
def test_processor_that_gives_no_logits(family: Family, result: Any) -> None:
    """What comes back is not (1, V): said with what was expected."""
    output = faulty(family, logits_processors=lambda: [lambda tokens, logits: result])
    assert "(1, " in str(output.results[-1].error)


@pytest.mark.parametrize(
    "result",
    [None, mx.array([1, 2]), mx.array([-1]), mx.array([10**6]), mx.array([1.5]), mx.array([True])],
    ids=str,
)
def test_sampler_that_gives_no_token(family: Family, result: Any) -> None:
    output = faulty(family, sampler=lambda: lambda scores: result)
    assert "sampler" in str(output.results[-1].error)


def test_fault_in_media(vision: Family) -> None:
    """A picture that is none; placeholders without pictures; a picture for a model that takes none."""
    good = [Row(vision.asks["upright"]), Row(vision.asks["video"])]
    for media, error in ((b"no picture", MediaError), (MediaInputs(), PromptError), ("/nowhere.png", MediaError)):
        bad = Row(vision.asks["upright"], media=media)
        first, output, last = play(vision, [good[0], bad, good[1]])
        check(vision, good, [first, last])
        assert output.finish_reason == "error" and isinstance(output.results[-1].error, error)
        assert output.results[-1].tokens == []


def test_picture_for_a_text_model(family: Family) -> None:
    row = Row(family.asks["short"], media=MediaInputs(images=[b""]))
    first, output = play(family, [ask_for(family), row])
    check(family, [ask_for(family)], [first])
    assert isinstance(output.results[-1].error, UnsupportedError)


def test_fault_in_the_vision_tower(vision: Family) -> None:
    """The rows of that group of pictures end; the others are answered."""

    def encode(media: Sequence[Any]) -> Any:
        return fail() if media[0].kind == "video" else vision.model.encode(media)

    wrapped = Family("wrapped", vision.folder, Wrapped(vision.model, encode=encode), vision.processor)
    names = ("upright", "video", "text", "img_video", "img2")
    rows = [Row(vision.asks[name]) for name in names]
    heard = dict(zip(names, play(wrapped, rows), strict=True))
    for name in ("video", "img_video"):
        assert heard[name].finish_reason == "error" and isinstance(heard[name].results[-1].error, Fault)
    fine = [row for row in rows if not row.ask.videos]
    check(vision, fine, [heard[row.ask.name] for row in fine])


def test_prompt_longer_than_the_model(family: Family) -> None:
    """An error that names both lengths, before anything is computed."""
    long = Row(family.asks["short"])
    request = Request("word " * 5000, sampling=SamplingParams(max_tokens=3))
    with TokenIterator(family.model, family.processor) as iterator:
        bad, good = iterator.add(request), iterator.add(long.request)
        heard = collect(iterator)
    check(family, [long], [heard[good]])
    error = heard[bad].results[-1].error
    assert (
        isinstance(error, PromptError)
        and "4096" in str(error)
        and str(heard[bad].results[-1].prompt_tokens) in str(error)
    )


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ("", {}, "empty"),
        ("x", {"eos_tokens": ["several words of text"]}, "stop="),
        ([{"role": "user", "content": [{"type": "hologram"}]}], {}, "hologram"),
    ],
)
def test_faults_of_a_request(family: Family, prompt: Any, sampling: dict[str, Any], words: str) -> None:
    """Come out of the iteration, not out of `add`."""
    good = ask_for(family)
    with TokenIterator(family.model, family.processor) as iterator:
        bad = iterator.add(Request(prompt, sampling=SamplingParams(**sampling)))
        id = iterator.add(good.request)
        heard = collect(iterator)
    check(family, [good], [heard[id]])
    assert heard[bad].finish_reason == "error" and words in str(heard[bad].results[-1].error)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_fault_of_the_model(family: Family, at: int) -> None:
    """It ends the rows that were in that forward, with the tokens that they had; one that comes later is answered."""
    calls = itertools.count(1)

    def forward(*args: Any, **keywords: Any) -> Any:
        return fail() if next(calls) == at else family.model(*args, **keywords)

    rows = [ask_for(family), ask_for(family, "words5")]
    with TokenIterator(Wrapped(family.model, forward=forward), family.processor) as iterator:  # type: ignore[arg-type]
        ids = [iterator.add(row.request) for row in rows]
        heard = collect(iterator)
        late = iterator.add(rows[0].request)
        check(family, rows[:1], [collect(iterator)[late]])
    for id, row in zip(ids, rows, strict=True):
        assert isinstance(heard[id].results[-1].error, Fault)
        had = at - 1 - (batch.LOOKAHEAD and at > 2)  # with it, the forward fails before the last token is read
        assert heard[id].tokens == family.answer(row.ask).tokens[:had]
