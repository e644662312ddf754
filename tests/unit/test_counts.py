"""What must not grow, counted, since time cannot be tested on shared machines."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from invariants.play import Row, Wrapped
from parity import media

from mlx_vlgen import MediaInputs, Request, SamplingParams, TokenIterator, generate
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import batch
from mlx_vlgen.engine.drafters import DraftModel
from mlx_vlgen.inputs import template_sandbox

TOKENS = 6


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


class Counted:
    """The model of a family, and what was done with it, in order: the shape (B, L) of a forward, the number of media of
    an encoding, and the id of a row whose token was handed out."""

    def __init__(self, family: Family):
        self.events: list[tuple[str, Any]] = []
        self.logits: list[int] = []  # bytes that each forward of a prompt gives
        self.pixels: list[tuple[int, int]] = []  # the place of an encoding among events, and its pixel values

        def forward(inputs: Any, cache: Any, at: mx.array | None = None) -> mx.array:
            logits: mx.array = family.model(inputs, cache, at=at)
            self.events.append(("step" if at is None else "chunk", inputs.tokens.shape))
            if at is not None:
                self.logits.append(logits.nbytes)
            return logits

        def encode(pictures: Sequence[Any]) -> Any:
            self.events.append(("encode", len(pictures)))
            self.pixels.append((len(self.events), sum(picture.pixels.size for picture in pictures)))
            return family.model.encode(pictures)

        self.model: Any = Wrapped(family.model, forward=forward, encode=encode)

    def run(self, iterator: TokenIterator) -> Iterator[int]:
        for id, _ in iterator:
            self.events.append(("token", id))
            yield id

    def number(self, kind: str) -> int:
        return sum(event == kind for event, _ in self.events)


def request(family: Family, name: str = "words5", tokens: int = TOKENS) -> Request:
    ends = dict.fromkeys(family.ends, -1e9)
    return Row(family.asks[name], SamplingParams(max_tokens=tokens, logit_bias=ends)).request


def long_and_pictures(family: Family) -> list[Request]:
    """A long prompt, and ten pictures of three sizes in another."""
    pictures = [media.picture(name) for name in ("upright", "large", "small", *["upright"] * 7)]
    parts = [{"type": "image", "image": picture} for picture in pictures]
    once = SamplingParams(max_tokens=1)
    return [
        Request(" The" * 600, sampling=once),
        Request([{"role": "user", "content": [*parts, {"type": "text", "text": "Compare."}]}], sampling=once),
    ]


@pytest.mark.parametrize("ahead", [False, True])
def test_work_between_two_tokens_of_a_row(family: Family, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    """While a long prompt and ten pictures come in: one chunk, one picture or some of so many pixels, and one step at
    most."""
    monkeypatch.setattr(batch, "LOOKAHEAD", ahead)
    counted, chunk, pixels = Counted(family), 64, 40_000
    sizes = {"decode_prefill_size": chunk, "vision_batch_pixels": pixels}
    with TokenIterator(counted.model, family.processor, **sizes) as iterator:
        rows = [iterator.add(request(family, tokens=50)) for _ in range(2)]
        for count, _ in enumerate(counted.run(iterator)):
            if count == 2:
                for other in long_and_pictures(family):
                    iterator.add(other)
    assert counted.number("encode") >= 3  # one for each size of picture
    tokens = [at for at, event in enumerate(counted.events) if event == ("token", rows[0])]
    assert len(tokens) == 50
    for first, second in pairwise(tokens):
        between = counted.events[first:second]
        kinds = Counter(kind for kind, _ in between)
        assert kinds["step"] <= 1 + ahead and kinds["chunk"] <= 1
        encoded = [count for place, count in counted.pixels if first < place <= second]
        assert len(encoded) <= 1 or sum(encoded) <= pixels
        assert all(shape[0] * shape[1] <= chunk for kind, shape in between if kind == "chunk")


@pytest.mark.parametrize("ahead", [False, True])
def test_a_row_can_be_cancelled_after_each_of_its_tokens(
    family: Family, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Never two of them are under way to the caller, whoever joins."""
    monkeypatch.setattr(batch, "LOOKAHEAD", ahead)
    with TokenIterator(family.model, family.processor) as iterator:
        iterator.add(request(family, tokens=12))
        for count, _ in enumerate(iterator):
            ids = [id for id, _ in iterator._out]
            assert len(set(ids)) == len(ids)
            if count in (2, 4, 9):
                iterator.add(request(family))


def test_a_first_token_leaves_before_anything_else_is_launched(family: Family) -> None:
    counted = Counted(family)
    with TokenIterator(counted.model, family.processor) as iterator:
        iterator.add(request(family))
        assert next(counted.run(iterator)) == 0
    assert counted.events == [("chunk", (1, 6)), ("token", 0)]


def test_a_forward_and_a_read_a_token(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python waits for the device once a step, however many rows there are: where it reads their tokens."""
    counted, waits = Counted(family), Counter[str]()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            waits[name] += name == "eval" or isinstance(args[0], mx.array)
            return function(*args, **keywords)

        return call

    with TokenIterator(counted.model, family.processor) as iterator:
        for _ in range(3):
            iterator.add(request(family))
        ids = counted.run(iterator)
        for _ in range(3):
            next(ids)
        monkeypatch.setattr(mx, "eval", counting("eval", mx.eval))
        monkeypatch.setattr(np, "array", counting("read", np.array))
        list(ids)
    assert counted.number("step") == TOKENS - 1
    assert waits["read"] == TOKENS - 1
    assert waits["eval"] <= 1  # where the rows joined


def test_logits_of_the_last_position_only(family: Family) -> None:
    counted = Counted(family)
    vocabulary = family.answer(family.asks["words5"]).scores.shape[1]
    with TokenIterator(counted.model, family.processor, prefill_step_size=8) as iterator:
        iterator.add(request(family, "words16", tokens=1))
        list(iterator)
    assert len(counted.logits) > 1 and set(counted.logits) == {vocabulary * 4}


def test_a_picture_is_encoded_once_and_equal_ones_together(family: Family) -> None:
    for reuse, encoded in ((False, 4), (True, 1)):
        counted, picture = Counted(family), media.picture("upright")
        with TokenIterator(counted.model, family.processor, reuse=reuse) as iterator:
            for _ in range(4):
                ask = family.asks["upright"]
                iterator.add(Request(ask.text, MediaInputs(images=[picture]), SamplingParams(max_tokens=2)))
            list(iterator)
        assert [event for event in counted.events if event[0] == "encode"] == [("encode", encoded)]


def test_nothing_is_done_twice_for_a_request(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """No scan of the vocabulary or of the added tokens; the template is rendered twice, to tell its text from the
    user's; the prompt is tokenized once, and the two marks of thinking."""
    prompt = [{"role": "user", "content": "What is this?"}]
    generate(family.model, family.processor, prompt, max_tokens=1)
    calls, kind = Counter[str](), type(family.processor.tokenizer)

    def counting(name: str) -> Callable[..., Any]:
        function = getattr(kind, name)

        def call(self: Any, *args: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return function(self, *args, **keywords)

        return call

    for name in ("get_vocab", "encode", "get_added_vocab"):
        monkeypatch.setattr(kind, name, counting(name))
    added = property(lambda self: calls.update(["added_tokens_decoder"]))
    monkeypatch.setattr(kind, "added_tokens_decoder", added)
    render = template_sandbox.render

    def rendering(*args: Any, **keywords: Any) -> str:
        calls["template"] += 1
        return render(*args, **keywords)

    monkeypatch.setattr(template_sandbox, "render", rendering)
    generate(family.model, family.processor, prompt, max_tokens=1)
    assert calls == {"template": 2, "encode": 3}


def test_a_draft_models_forward_a_guess_for_all_rows(family: Family) -> None:
    """Three guesses take a forward on what is new to it, and two more; no guess is read before all are made."""
    counted, draft = Counted(family), Counted(family)
    with TokenIterator(counted.model, family.processor) as iterator:
        for name in ("words5", "img1", "words16"):
            drafter = partial(DraftModel, draft.model, 3, reads_media=True)
            iterator.add(replace(request(family, name, tokens=13), drafter=drafter))
        list(iterator)
    steps = counted.number("step")
    assert steps == 3  # of four tokens each, after the first
    guesses = [shape for _, shape in draft.events if shape in ((3, 1), (3, 4))]
    assert guesses == [(3, 1)] * 3 + [(3, 4), (3, 1), (3, 1)] * (steps - 1)
