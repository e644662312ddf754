"""How rows of the token iterator end: every reason but faults, and cancelling."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from invariants.family import STEPS, Family
from invariants.play import Heard, Row, Wrapped, ask_for, check, collect, play

from mlx_vlgen import SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3")


def run(family: Family, row: Row) -> Heard:
    """The row alone; and between two neighbours, which it must not change."""
    [alone] = play(family, [row])
    neighbours = [ask_for(family, "short"), ask_for(family, "words5")]
    first, output, last = play(family, [neighbours[0], row, neighbours[1]])
    check(family, neighbours, [first, last])
    assert (output.tokens, output.text, output.finish_reason) == (alone.tokens, alone.text, alone.finish_reason)
    return output


# What ends a row


@pytest.mark.parametrize("count", [1, 2, STEPS])
def test_length(family: Family, count: int) -> None:
    output = run(family, ask_for(family, max_tokens=count))
    assert (len(output.tokens), output.finish_reason) == (count, "length")


def test_no_tokens(family: Family) -> None:
    """An empty result, without a forward."""
    output = run(family, ask_for(family, max_tokens=0))
    [result] = output.results
    assert (result.finish_reason, result.text, result.token, result.logprobs) == ("length", "", None, None)
    assert (result.prompt_tokens, result.generation_tokens) == (70, 0)


def test_end_token(family: Family) -> None:
    """It is counted and yielded, and is no part of the text, unless that is asked for."""
    answer = family.answer(family.asks["long"])
    end = answer.tokens[4]
    count = answer.tokens.index(end) + 1
    tokenizer = family.processor.tokenizer
    output = run(family, ask_for(family, eos_tokens=[end]))
    assert (output.tokens, output.finish_reason) == (answer.tokens[:count], "stop")
    assert output.text == tokenizer.decode(answer.tokens[: count - 1])
    shown = run(family, ask_for(family, eos_tokens=[tokenizer.convert_ids_to_tokens(end)], include_eos=True))
    assert (shown.tokens, shown.text) == (output.tokens, tokenizer.decode(answer.tokens[:count]))


def test_end_token_of_the_checkpoint(load_family: Callable[[str], Family]) -> None:
    """This answer of llama's ends by itself."""
    llama = load_family("llama")
    force = force_token(min(llama.ends))
    output = run(llama, Row(llama.asks["words5"], SamplingParams(max_tokens=STEPS, logits_processors=[force])))
    assert (output.tokens, output.text, output.finish_reason) == ([min(llama.ends)], "", "stop")


def force_token(token: int) -> Callable[[mx.array, mx.array], mx.array]:
    return lambda tokens, logits: mx.where(mx.arange(logits.shape[-1]) == token, 0.0, -mx.inf)[None]


def test_stop_string(family: Family) -> None:
    """One that begins in one token and ends in another; all before it comes out."""
    tokens = family.answer(family.asks["long"]).tokens
    text = family.processor.tokenizer.decode(tokens)
    stop = text[2:7]
    output = run(family, ask_for(family, stop=["never there", stop]))
    assert (output.text, output.finish_reason) == (text[: text.index(stop)], "stop")
    assert output.tokens == tokens[: len(output.tokens)] and len(output.tokens) < STEPS


def test_text_held_back_is_flushed(family: Family) -> None:
    """By any end: the last characters might have begun a stop string."""
    tokens = family.answer(family.asks["long"]).tokens
    text = family.processor.tokenizer.decode(tokens)
    output = run(family, ask_for(family, stop=[text[-3:] + "x"]))
    assert (output.text, output.finish_reason) == (text, "length")
    assert output.results[-1].text.endswith(text[-3:])


def test_criterion(family: Family) -> None:
    """It sees the whole text with the new token, and the raw logits; the row ends after that token."""
    prompt = family.processor.prepare(family.asks["long"].text).tokens.tolist()
    calls: list[Any] = []

    def criterion(tokens: mx.array, logits: mx.array) -> bool:
        calls.append((tokens.tolist(), logits.shape))
        return len(tokens) == len(prompt) + 3

    [output] = play(family, [ask_for(family, stopping_criteria=[criterion])])
    assert (len(output.tokens), output.finish_reason) == (3, "stop")
    vocabulary = output.scores[0].shape[0]
    assert calls == [(prompt + output.tokens[:count], (1, vocabulary)) for count in (1, 2, 3)]
    run(family, ask_for(family, stopping_criteria=[lambda tokens, logits: mx.array(len(tokens) > 75)]))


def test_max_time(family: Family) -> None:
    output = run(family, ask_for(family, max_time=0.0))
    assert (len(output.tokens), output.finish_reason) == (1, "length")


def test_max_time_is_counted_from_arrival(family: Family) -> None:
    """Waiting for others takes of it: when its turn comes, the row has the token that its prompt gives."""

    def sleep(tokens: mx.array, logits: mx.array) -> mx.array:
        time.sleep(0.02)
        return logits

    rows = [ask_for(family, logits_processors=[sleep]), ask_for(family, "words5", max_time=0.1)]
    first, second = play(family, rows, max_batch_size=1)
    check(family, rows[:1], [first])
    assert (len(second.tokens), second.finish_reason) == (1, "length")


def test_max_time_counts_reading(family: Family) -> None:
    def prepare(*args: Any, **keywords: Any) -> Any:
        time.sleep(0.05)
        return family.processor.prepare(*args, **keywords)

    slow = Family(family.name, family.folder, family.model, Wrapped(family.processor, prepare=prepare))
    [output] = play(slow, [ask_for(family, max_time=0.04)])
    assert (len(output.tokens), output.finish_reason) == (1, "length")


def test_max_time_ends_a_prefill(family: Family) -> None:
    """In the middle of a long prompt: no chunk more, and no token. The rows beside it go on."""
    chunks = []

    def forward(inputs: Any, *args: Any, **keywords: Any) -> Any:
        if len(inputs) == 5:
            chunks.append(time.sleep(0.02))
        return family.model(inputs, *args, **keywords)

    wrapped = Family(family.name, family.folder, Wrapped(family.model, forward=forward), family.processor)
    rows = [ask_for(family, "words2"), ask_for(family, max_time=0.05)]
    first, second = play(wrapped, rows, prefill_step_size=5)
    check(family, rows[:1], [first])
    [result] = second.results
    assert (result.finish_reason, result.tokens, result.prompt_tokens, result.error) == ("length", [], 70, None)
    assert 1 <= len(chunks) <= 3


# The iterator itself


def test_nothing_to_do(family: Family) -> None:
    with TokenIterator(family.model, family.processor) as iterator:
        assert list(iterator) == []


def test_more_after_the_end(family: Family) -> None:
    row = ask_for(family)
    with TokenIterator(family.model, family.processor) as iterator:
        for _ in range(2):
            id = iterator.add(row.request)
            heard = [(id, result.token) for id, result in iterator]
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
        assert [result.finish_reason for _, result in iterator if result.finish_reason] == ["cancelled"] * 3
    check(family, rows, play(family, rows))


@pytest.mark.parametrize("name", ["max_batch_size", "prefill_step_size"])
def test_sizes_out_of_range(family: Family, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        TokenIterator(family.model, family.processor, **{name: 0})  # type: ignore[arg-type]


# Cancelling


@pytest.mark.parametrize("settings", [{}, {"max_batch_size": 1}, {"prefill_step_size": 5}], ids=str)
def test_cancel_before_admission(family: Family, settings: dict[str, Any]) -> None:
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
    """A long prompt in small chunks while another row decodes: the other chunks are not computed."""
    rows = [ask_for(family, "words5"), ask_for(family, "long")]
    chunks = []

    def forward(inputs: Any, *args: Any, **keywords: Any) -> Any:
        chunks.append(len(inputs) == 5)
        return family.model(inputs, *args, **keywords)

    wrapped: Any = Wrapped(family.model, forward=forward)
    with TokenIterator(wrapped, family.processor, prefill_step_size=5) as iterator:
        short, long = [iterator.add(row.request) for row in rows]
        heard = {short: Heard(), long: Heard()}
        for id, result in iterator:
            heard[id].add(result)
            if len(heard[short].tokens) == 4:
                iterator.cancel(long)
    check(family, rows[:1], [heard[short]])
    assert sum(chunks) < 10
    [result] = heard[long].results
    assert (result.finish_reason, result.tokens, result.prompt_tokens) == ("cancelled", [], 70)


@pytest.mark.parametrize("after", [1, 2, STEPS - 1])
def test_cancel_during_decode(family: Family, after: int) -> None:
    """The last result brings no token, and keeps those that came."""
    [output] = play(family, [Row(family.asks["long"], leaves=after)])
    last = output.results[-1]
    assert (last.finish_reason, last.token, last.logprobs) == ("cancelled", None, None)
    assert last.tokens == output.tokens == family.answer(family.asks["long"]).tokens[:after]
    assert output.text == family.processor.tokenizer.decode(output.tokens)


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
