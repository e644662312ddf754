"""How rows of the token iterator end: every reason, cancelling, and faults that stay their own."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from invariants.family import STEPS, Family
from invariants.play import Heard, Row, check, play

from mlx_vlgen import MediaInputs, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import MediaError, PromptError, UnsupportedError


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3")


@pytest.fixture(scope="module")
def vision(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


def ask_for(family: Family, name: str = "long", **sampling: Any) -> Row:
    return Row(family.asks[name], SamplingParams(**{"max_tokens": STEPS, **sampling}))


def run(family: Family, row: Row) -> Heard:
    """The row alone; and between two neighbours, which it must not change."""
    [alone] = play(family, [row])
    neighbours = [ask_for(family, "short"), ask_for(family, "words5")]
    first, own, last = play(family, [neighbours[0], row, neighbours[1]])
    check(family, neighbours, [first, last])
    assert (own.tokens, own.text, own.finish_reason) == (alone.tokens, alone.text, alone.finish_reason)
    return own


# What ends a row


@pytest.mark.parametrize("count", [1, 2, STEPS])
def test_length(family: Family, count: int) -> None:
    own = run(family, ask_for(family, max_tokens=count))
    assert (len(own.tokens), own.finish_reason) == (count, "length")


def test_no_tokens(family: Family) -> None:
    """An empty result, without a forward."""
    own = run(family, ask_for(family, max_tokens=0))
    [result] = own.results
    assert (result.finish_reason, result.text, result.token, result.logprobs) == ("length", "", None, None)
    assert (result.prompt_tokens, result.generation_tokens) == (70, 0)


def test_end_token(family: Family) -> None:
    """It is counted and yielded, and is no part of the text, unless that is asked for."""
    answer = family.answer(family.asks["long"])
    end = answer.tokens[4]
    count = answer.tokens.index(end) + 1
    tokenizer = family.processor.tokenizer
    own = run(family, ask_for(family, eos_tokens=[end]))
    assert (own.tokens, own.finish_reason) == (answer.tokens[:count], "stop")
    assert own.text == tokenizer.decode(answer.tokens[: count - 1])
    shown = run(family, ask_for(family, eos_tokens=[tokenizer.convert_ids_to_tokens(end)], include_eos=True))
    assert (shown.tokens, shown.text) == (own.tokens, tokenizer.decode(answer.tokens[:count]))


def test_end_token_of_the_checkpoint(load_family: Callable[[str], Family]) -> None:
    """This answer of llama's ends by itself."""
    llama = load_family("llama")
    force = force_token(min(llama.ends))
    own = run(llama, Row(llama.asks["words5"], SamplingParams(max_tokens=STEPS, logits_processors=force)))
    assert (own.tokens, own.text, own.finish_reason) == ([min(llama.ends)], "", "stop")


def force_token(token: int) -> Callable[[mx.array, mx.array], mx.array]:
    return lambda tokens, logits: mx.where(mx.arange(logits.shape[-1]) == token, 0.0, -mx.inf)[None]


def test_stop_string(family: Family) -> None:
    """One that begins in one token and ends in another; all before it comes out."""
    tokens = family.answer(family.asks["long"]).tokens
    text = family.processor.tokenizer.decode(tokens)
    stop = text[2:7]
    own = run(family, ask_for(family, stop=["never there", stop]))
    assert (own.text, own.finish_reason) == (text[: text.index(stop)], "stop")
    assert own.tokens == tokens[: len(own.tokens)] and len(own.tokens) < STEPS


def test_text_held_back_is_flushed(family: Family) -> None:
    """By any end: the last characters might have begun a stop string."""
    tokens = family.answer(family.asks["long"]).tokens
    text = family.processor.tokenizer.decode(tokens)
    own = run(family, ask_for(family, stop=[text[-3:] + "x"]))
    assert (own.text, own.finish_reason) == (text, "length")
    assert own.results[-1].text.endswith(text[-3:])


def test_criterion(family: Family) -> None:
    """It sees the whole text with the new token, and the raw logits; the row ends after that token."""
    prompt = family.processor.prepare(family.asks["long"].text).tokens.tolist()
    seen: list[tuple[list[int], tuple[int, ...]]] = []

    def criterion(tokens: mx.array, logits: mx.array) -> bool:
        seen.append((tokens.tolist(), logits.shape))
        return len(tokens) == len(prompt) + 3

    [own] = play(family, [ask_for(family, stopping_criteria=[criterion])])
    assert (len(own.tokens), own.finish_reason) == (3, "stop")
    vocabulary = own.scores[0].shape[0]
    assert seen == [(prompt + own.tokens[:count], (1, vocabulary)) for count in (1, 2, 3)]
    run(family, ask_for(family, stopping_criteria=[lambda tokens, logits: mx.array(len(tokens) > 75)]))


def test_max_time(family: Family) -> None:
    own = run(family, ask_for(family, max_time=0.0))
    assert (len(own.tokens), own.finish_reason) == (1, "length")


def test_max_time_is_counted_from_admission(family: Family) -> None:
    """Waiting for others costs a row nothing."""

    def sleep(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits if waited.wait(0.05) else logits

    waited = threading.Event()
    rows = [ask_for(family, logits_processors=[sleep]), ask_for(family, max_time=0.3)]
    _, second = play(family, rows, max_batch_size=1)
    assert len(second.tokens) == STEPS


# The iterator itself


def test_nothing_to_do(family: Family) -> None:
    with TokenIterator(family.model, family.processor) as iterator:
        assert list(iterator) == []


def test_more_after_the_end(family: Family) -> None:
    row = ask_for(family)
    with TokenIterator(family.model, family.processor) as iterator:
        for _ in range(2):
            id = iterator.add(row.request)
            heard = [(own, result.token) for own, result in iterator]
            assert heard == [(id, token) for token in family.answer(row.ask).tokens]


def test_close_in_the_middle(family: Family) -> None:
    """Whatever a row is doing; the next iterator of the model knows nothing of it."""
    rows = [ask_for(family), ask_for(family, "short"), ask_for(family, "words5")]
    for count in (0, 1, 4):
        iterator = TokenIterator(family.model, family.processor, prefill_step_size=9)
        for row in rows:
            iterator.add(row.request)
        for _ in range(count):
            next(iterator)
        iterator.close()
        assert list(iterator) == []
    check(family, rows, play(family, rows))


@pytest.mark.parametrize("name", ["max_batch_size", "prefill_step_size"])
def test_sizes_out_of_range(family: Family, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        TokenIterator(family.model, family.processor, **{name: 0})


# Cancelling


def collect(iterator: TokenIterator) -> dict[int, Heard]:
    heard: dict[int, Heard] = {}
    for id, result in iterator:
        heard.setdefault(id, Heard()).add(result)
    return heard


@pytest.mark.parametrize("settings", [{}, {"max_batch_size": 1}, {"prefill_step_size": 5}], ids=str)
def test_cancel_before_admission(family: Family, settings: dict) -> None:
    """One empty result; it was never read."""
    rows = [ask_for(family, "short"), ask_for(family), ask_for(family, "words5")]
    with TokenIterator(family.model, family.processor, **settings) as iterator:
        ids = [iterator.add(row.request) for row in rows]
        iterator.cancel(ids[1])
        heard = collect(iterator)
    check(family, [rows[0], rows[2]], [heard[ids[0]], heard[ids[2]]])
    [result] = heard[ids[1]].results
    assert (result.finish_reason, result.text, result.tokens) == ("cancelled", "", [])


def test_cancel_during_prefill(family: Family) -> None:
    """A long prompt in small chunks while another row decodes."""
    rows = [ask_for(family, "words5"), ask_for(family, "long")]
    with TokenIterator(family.model, family.processor, prefill_step_size=5) as iterator:
        short, long = [iterator.add(row.request) for row in rows]
        heard = {short: Heard(), long: Heard()}
        for id, result in iterator:
            heard[id].add(result)
            if len(heard[short].tokens) == 4:
                iterator.cancel(long)
    check(family, rows[:1], [heard[short]])
    [result] = heard[long].results
    assert (result.finish_reason, result.tokens, result.prompt_tokens) == ("cancelled", [], 70)


@pytest.mark.parametrize("after", [1, 2, STEPS - 1])
def test_cancel_during_decode(family: Family, after: int) -> None:
    """The last result brings no token, and keeps those that came."""
    [own] = play(family, [Row(family.asks["long"], leaves=after)])
    last = own.results[-1]
    assert (last.finish_reason, last.token, last.logprobs) == ("cancelled", None, None)
    assert last.tokens == own.tokens == family.answer(family.asks["long"]).tokens[:after]
    assert own.text == family.processor.tokenizer.decode(own.tokens)


def test_cancel_twice_and_unknown(family: Family) -> None:
    row = ask_for(family, max_tokens=2)
    with TokenIterator(family.model, family.processor) as iterator:
        id = iterator.add(row.request)
        iterator.cancel(id + 7)
        next(iterator)
        iterator.cancel(id)
        iterator.cancel(id)
        [(_, last)] = iterator
        assert last.finish_reason == "cancelled"
        iterator.cancel(id)
        assert list(iterator) == []


def test_cancel_and_add_from_another_thread(family: Family) -> None:
    """A row that would never end is cancelled while it runs, and another one comes."""
    endless = Row(family.asks["short"], SamplingParams(max_tokens=1_000_000))
    row = ask_for(family)
    with TokenIterator(family.model, family.processor) as iterator:
        first = iterator.add(endless.request)
        added: list[int] = []

        def meddle() -> None:
            added.append(iterator.add(row.request))
            iterator.cancel(first)

        timer = threading.Timer(0.05, meddle)
        timer.start()
        heard = collect(iterator)
        timer.join()
        heard |= collect(iterator)
    assert heard[first].finish_reason == "cancelled"
    check(family, [row], [heard[added[0]]])


# Faults


class Fault(Exception):
    pass


def fail(*_: Any) -> Any:
    raise Fault("mine")


def fail_at(count: int, result: Any = None) -> Callable[[mx.array, mx.array], Any]:
    """Fails at its `count`-th call; else gives the logits, or `result`."""
    calls = iter(range(count))

    def function(tokens: mx.array, logits: mx.array) -> Any:
        next(calls, None) is not None or fail()
        return logits if result is None else result

    return function


def faulty(family: Family, **sampling: Callable[[], Any]) -> Heard:
    """A row with user code, made anew for each run by the given functions."""
    row = ask_for(family, **{name: make() for name, make in sampling.items()})
    neighbours = [ask_for(family, "short"), ask_for(family, "words5")]
    first, own, last = play(family, [neighbours[0], row, neighbours[1]])
    check(family, neighbours, [first, last])
    assert own.finish_reason == "error"
    return own


@pytest.mark.parametrize("count", [0, 1, 5])
def test_fault_in_a_logits_processor(family: Family, count: int) -> None:
    """The tokens before it stay, with their text."""
    own = faulty(family, logits_processors=lambda: [fail_at(count)])
    assert isinstance(own.results[-1].error, Fault)
    assert own.tokens == family.answer(family.asks["long"]).tokens[:count]
    assert own.text == family.processor.tokenizer.decode(own.tokens)


@pytest.mark.parametrize("count", [0, 3])
def test_fault_in_a_criterion(family: Family, count: int) -> None:
    own = faulty(family, stopping_criteria=lambda: [fail_at(count, result=False)])
    assert isinstance(own.results[-1].error, Fault)
    tokens = family.answer(family.asks["long"]).tokens[: count + 1]
    assert own.results[-1].tokens == tokens
    assert own.text == family.processor.tokenizer.decode(tokens)


def test_fault_in_a_sampler(family: Family) -> None:
    own = faulty(family, sampler=lambda: fail)
    assert isinstance(own.results[-1].error, Fault) and own.tokens == []


@pytest.mark.parametrize(
    "result", [None, 3, mx.zeros((7,)), mx.zeros((1, 7)), mx.zeros((2, 512))], ids=["none", "int", "1d", "short", "two"]
)
def test_processor_that_gives_no_logits(family: Family, result: Any) -> None:
    """What comes back is not (1, V): said with what was expected."""
    own = faulty(family, logits_processors=lambda: [lambda tokens, logits: result])
    assert "(1, " in str(own.results[-1].error)


@pytest.mark.parametrize("result", [None, mx.array([1, 2]), mx.array([-1]), mx.array([10**6])], ids=str)
def test_sampler_that_gives_no_token(family: Family, result: Any) -> None:
    own = faulty(family, sampler=lambda: lambda scores: result)
    assert "sampler" in str(own.results[-1].error)


def test_fault_in_media(vision: Family) -> None:
    """A picture that is none; placeholders without pictures; a picture for a model that takes none."""
    good = [Row(vision.asks["upright"]), Row(vision.asks["video"])]
    for media, error in ((b"no picture", MediaError), (MediaInputs(), PromptError), ("/nowhere.png", MediaError)):
        bad = Row(vision.asks["upright"], media=media)
        first, own, last = play(vision, [good[0], bad, good[1]])
        check(vision, good, [first, last])
        assert own.finish_reason == "error" and isinstance(own.results[-1].error, error)
        assert own.results[-1].tokens == []


def test_picture_for_a_text_model(family: Family) -> None:
    row = Row(family.asks["short"], media=MediaInputs(images=[b""]))
    first, own = play(family, [ask_for(family), row])
    check(family, [ask_for(family)], [first])
    assert isinstance(own.results[-1].error, UnsupportedError)


class Wrapped:
    """A model with one method in another's place."""

    def __init__(self, model: Any, **methods: Callable[..., Any]):
        self._model = model
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._model, name)

    def __call__(self, *given: Any, **keywords: Any) -> Any:
        return self._methods.get("forward", self._model)(*given, **keywords)


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
        ([{"role": "nobody"}], {}, ""),
    ],
)
def test_faults_of_a_request(family: Family, prompt: Any, sampling: dict, words: str) -> None:
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
    """It is nobody's request's fault: it comes out of the iteration, which is then over."""
    calls = iter(range(at - 1))

    def forward(*given: Any, **keywords: Any) -> Any:
        return family.model(*given, **keywords) if next(calls, None) is not None else fail()

    iterator = TokenIterator(Wrapped(family.model, forward=forward), family.processor)  # type: ignore[arg-type]
    iterator.add(ask_for(family).request)
    iterator.add(ask_for(family, "words5").request)
    with pytest.raises(Fault):
        list(iterator)
    assert next(iterator, None) is None
