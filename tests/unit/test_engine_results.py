"""What the token iterator hands out with each token, and what it computes for it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from invariants.family import STEPS, Family
from invariants.play import Row, Wrapped, ask_for, check, play

from mlx_vlgen import GenerationResult, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import batch
from mlx_vlgen.engine.logits import log_softmax
from mlx_vlgen.engine.sampling import top


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3")


def counting(model: Any, shapes: list[tuple[int, ...]]) -> Any:
    """The model, noting the shape (B, L) of every forward."""

    def forward(inputs: Any, *args: Any, **keywords: Any) -> Any:
        shapes.append(inputs.tokens.shape)
        return model(inputs, *args, **keywords)

    return Wrapped(model, forward=forward)


def counted(family: Family, rows: list[Row], **settings: Any) -> list[tuple[int, ...]]:
    """Forwards that these rows cost, each of which is checked."""
    shapes: list[tuple[int, ...]] = []
    model = counting(family.model, shapes)
    check(family, rows, play(Family(family.name, family.folder, model, family.processor), rows, **settings))
    return shapes


# What is computed


@pytest.mark.parametrize("count", [1, 2, 7])
def test_forwards_of_one_row(family: Family, count: int) -> None:
    """max_tokens = N: the prompt, and N - 1 steps."""
    assert counted(family, [ask_for(family, max_tokens=count)]) == [(1, 70)] + [(1, 1)] * (count - 1)


def test_forwards_of_chunks(family: Family) -> None:
    shapes = counted(family, [ask_for(family, max_tokens=1)], prefill_step_size=32)
    assert shapes == [(1, 32), (1, 32), (1, 6)]


def test_forwards_of_a_batch(family: Family) -> None:
    """One pack; then a step is as wide as the rows that still need one."""
    rows = [ask_for(family, name, max_tokens=n) for name, n in (("words5", 1), ("turned5", 3), ("words2", 6))]
    length = len(family.processor.prepare(rows[0].ask.text).tokens)
    assert counted(family, rows) == [(3, length), (2, 1), (2, 1), (1, 1), (1, 1), (1, 1)]


def test_forwards_with_user_code(family: Family) -> None:
    """Rows that run the user's code cost no more."""
    row = ask_for(family, max_tokens=5, logits_processors=[lambda tokens, logits: logits])
    assert counted(family, [row]) == [(1, 70)] + [(1, 1)] * 4


@pytest.mark.parametrize("ahead", [False, True])
def test_an_end_that_its_token_tells(family: Family, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    """It costs one forward in vain where steps start before the last one is read, and none where they do not."""
    monkeypatch.setattr(batch, "LOOKAHEAD", ahead)
    tokens = family.answer(family.asks["long"]).tokens
    end = tokens[4]
    count = tokens.index(end) + 1
    shapes: list[tuple[int, ...]] = []
    with TokenIterator(counting(family.model, shapes), family.processor) as iterator:
        iterator.add(ask_for(family, eos_tokens=[end]).request)
        assert len(list(iterator)) == count
    assert len(shapes) == count + ahead


@pytest.mark.parametrize("chunk", [1, 16, 2048])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_processors_see_everything_once(family: Family, chunk: int, neighbours: int) -> None:
    """Called once for each token that comes out, with prompt and text so far, whatever the chunk."""
    calls: list[Any] = []
    shapes = set()

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        calls.append(tokens.tolist())
        shapes.add(logits.shape)
        return logits

    row = ask_for(family, max_tokens=6, logits_processors=processor)
    others = [ask_for(family, name) for name in ("short", "words5")[:neighbours]]
    heard = play(family, [*others, row], prefill_step_size=chunk)
    check(family, [*others, row], heard)
    prompt = family.processor.prepare(row.ask.text).tokens.tolist()
    assert calls == [prompt + heard[-1].tokens[:count] for count in range(6)]
    assert shapes == {(1, heard[-1].scores[0].size)}


def test_processors_in_their_order(family: Family) -> None:
    """Each gets what the one before gave; the last one's is what is drawn from, and logprobs stay the raw ones."""
    one, two = 7, 9
    row = ask_for(
        family,
        max_tokens=3,
        logits_processors=[
            lambda tokens, logits: logits + 1e4 * (mx.arange(logits.shape[-1]) == one),
            lambda tokens, logits: logits + 1e5 * (mx.arange(logits.shape[-1]) == two) * (logits[0, one] > 5e3),
        ],
    )
    [output] = play(family, [row])
    assert output.tokens == [two] * 3
    assert np.abs(np.stack(output.scores) - family.scores(row.ask, output.tokens)).max() < 1e-4


def test_processor_that_writes_in_place(family: Family) -> None:
    """Neither the logprobs of its row nor its neighbours change."""

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        logits[:, 7] = 1e4
        return logits

    neighbour = ask_for(family, "short")
    first, output = play(family, [neighbour, ask_for(family, logits_processors=processor)])
    check(family, [neighbour], [first])
    assert output.tokens == [7] * STEPS
    assert np.abs(output.scores[0] - family.answer(family.asks["long"]).scores[0]).max() < 1e-4


def test_own_sampler(family: Family) -> None:
    """It gets log-probabilities (1, V), in the place of all other settings."""
    answer = family.answer(family.asks["long"])

    def second_best(scores: mx.array) -> mx.array:
        assert scores.shape == (1, answer.scores.shape[1]) and abs(mx.logsumexp(scores).item()) < 1e-4
        return mx.argsort(-scores, axis=-1)[:, 1]

    first, output = play(family, [ask_for(family, "short"), ask_for(family, sampler=second_best, temperature=2.0)])
    check(family, [ask_for(family, "short")], [first])
    assert output.tokens[0] == np.argsort(-answer.scores[0])[1]


# What comes out


def test_order_of_arrival(family: Family) -> None:
    """First tokens come in the order of the requests; a small request does not overtake one that waits."""
    names = ["long", "words5", "short", "words2", "long", "word"]
    every: list[dict[str, Any]] = [{}, {"max_batch_size": 2}, {"kv_token_budget": 100}, {"prefill_step_size": 8}]
    for settings in every:
        with TokenIterator(family.model, family.processor, **settings) as iterator:
            ids = [iterator.add(ask_for(family, name).request) for name in names]
            came = list(dict.fromkeys(id for id, _ in iterator))
        assert came == ids, settings


def test_numbers(family: Family) -> None:
    """Cumulative, consistent, and each result keeps its values."""
    rows = [ask_for(family, max_tokens=5), ask_for(family, "words5", max_tokens=8)]
    for row, output in zip(rows, play(family, rows), strict=True):
        length = len(family.processor.prepare(row.ask.text).tokens)
        for count, result in enumerate(output.results, 1):
            assert result.prompt_tokens == length
            assert result.generation_tokens == count == len(result.tokens)
            assert result.total_tokens == length + count
            assert result.tokens == output.tokens[:count] and result.token == output.tokens[count - 1]
            assert result.prompt_tps > 0 and result.generation_tps >= 0 and result.peak_memory > 0
            assert result.cached_tokens == 0 and result.error is None
            assert (result.finish_reason is None) == (count < row.sampling.max_tokens)
        assert output.results[-1].generation_tps > 0
        assert output.text == family.processor.tokenizer.decode(output.tokens)


def test_tokens_may_be_changed(family: Family) -> None:
    """A result is the caller's."""
    row = ask_for(family)
    tokens = []
    with TokenIterator(family.model, family.processor) as iterator:
        iterator.add(row.request)
        for _, result in iterator:
            tokens.append(result.token)
            result.tokens.clear()
    assert tokens == family.answer(row.ask).tokens


def test_times(family: Family) -> None:
    with TokenIterator(family.model, family.processor) as iterator:
        assert (iterator.prompt_time, iterator.generation_time) == (0.0, 0.0)
        iterator.add(ask_for(family).request)
        list(iterator)
        assert iterator.prompt_time > 0 and iterator.generation_time > 0


def test_media_numbers(load_family: Callable[[str], Family]) -> None:
    """Sizes of the pictures as they were given, in order, and the time that encoding took."""
    vision = load_family("qwen3_vl")
    first, second = play(vision, [Row(vision.asks["img2"]), Row(vision.asks["text"])])
    assert first.results[0].image_sizes == [(112, 64), (130, 150)] and first.results[0].encode_time > 0
    assert second.results[0].image_sizes == [] and second.results[0].encode_time == 0


def results(family: Family, **sampling: Any) -> list[Any]:
    with TokenIterator(family.model, family.processor) as iterator:
        iterator.add(ask_for(family, **sampling).request)
        return [result for _, result in iterator]


def test_only_the_newest_result_has_logprobs(family: Family) -> None:
    """A list of all results holds one vocabulary, not one a token."""
    *earlier, last = results(family, top_logprobs=3)
    assert all(result.logprobs is None for result in earlier)
    assert last.logprobs.shape == family.answer(family.asks["long"]).scores[0].shape
    assert last.logprobs.dtype == mx.float32 and len(last.top_logprobs) == 3


def test_no_logprobs(family: Family) -> None:
    last = results(family, logprobs=False)[-1]
    assert last.logprobs is None and last.top_logprobs is None


def test_logprobs_from_another_thread(family: Family) -> None:
    """While the iterator goes on, and after it was closed."""

    def read_scores(result: GenerationResult) -> tuple[np.ndarray, list[tuple[int, float]]]:
        return np.array(result.logprobs), result.top_logprobs

    answer = family.answer(family.asks["long"])
    with ThreadPoolExecutor(1) as other, TokenIterator(family.model, family.processor) as iterator:
        iterator.add(ask_for(family, top_logprobs=2).request)
        for step, (_, result) in enumerate(iterator):
            scores, best = other.submit(read_scores, result).result()
            assert np.abs(scores - answer.scores[step]).max() < 1e-4
            assert best[0][0] == answer.tokens[step]
    later = results(family, top_logprobs=2)[-1]
    with ThreadPoolExecutor(1) as other:
        assert np.abs(other.submit(read_scores, later).result()[0] - answer.scores[-1]).max() < 1e-4


def test_logprobs_from_another_thread_while_rows_come_and_go(family: Family) -> None:
    """Also at the step after one joined or ended, which no forward of the remaining rows had foreseen."""
    end = family.answer(family.asks["long"]).tokens[3]
    rows = [ask_for(family, eos_tokens=[end]), ask_for(family, "words5"), ask_for(family, "short")]
    late = [ask_for(family, "words2"), ask_for(family, "word")]
    with ThreadPoolExecutor(1) as other, TokenIterator(family.model, family.processor) as iterator:
        rows_by_id = {iterator.add(row.request): row for row in rows}
        for step, (id, result) in enumerate(iterator):
            if late and step % 5 == 4:
                row = late.pop()
                rows_by_id[iterator.add(row.request)] = row
            scores = other.submit(lambda result=result: np.array(result.logprobs)).result()
            answer = family.answer(rows_by_id[id].ask).scores[result.generation_tokens - 1]
            assert np.abs(scores - answer).max() < 1e-4


@pytest.mark.parametrize("count", [1, 5, 10_000])
def test_top_logprobs(family: Family, count: int) -> None:
    """The sorted log-softmax."""
    answer = family.answer(family.asks["long"])
    with TokenIterator(family.model, family.processor) as iterator:
        iterator.add(ask_for(family, top_logprobs=count).request)
        for step, (_, result) in enumerate(iterator):
            values = np.sort(answer.scores[step])[::-1][:count]
            assert [value for _, value in result.top_logprobs] == pytest.approx(values, abs=1e-4)
            assert result.top_logprobs[0] == (result.token, pytest.approx(values[0], abs=1e-4))
            assert all(value == pytest.approx(answer.scores[step][id], abs=1e-4) for id, value in result.top_logprobs)


def test_top_logprobs_stay(family: Family) -> None:
    """Every result keeps its few, without the vocabulary that they are of: also one that nobody looked at before."""
    answer = family.answer(family.asks["long"])
    stored = results(family, top_logprobs=3, logprobs=False)
    assert all(callable(vars(result)["_top_logprobs"].compute) for result in stored)
    for result, scores in zip(stored, answer.scores, strict=True):
        best = np.argsort(-scores)[:3]
        assert [id for id, _ in result.top_logprobs] == best.tolist()
        assert [value for _, value in result.top_logprobs] == pytest.approx(scores[best], abs=1e-4)


def test_top_logprobs_hold_no_vocabulary() -> None:
    """A hundred of them, of 50,000 tokens, take less than one of these."""
    logits = mx.random.normal((50_000,))
    mx.eval(logits)
    before = mx.get_active_memory()
    stored = [top(logits + step, 3) for step in range(100)]
    mx.synchronize()
    assert mx.get_active_memory() - before < 50_000 * 4
    assert stored[0]() == [(id, pytest.approx(value, abs=1e-4)) for id, value in stored[7]()]


def test_logprobs_are_of_the_raw_logits(family: Family) -> None:
    """Whatever temperature and truncation did to them."""
    *_, last = results(family, temperature=5.0, top_k=1)
    answer = family.answer(family.asks["long"])
    assert last.tokens == answer.tokens
    assert np.abs(np.array(last.logprobs) - answer.scores[-1]).max() < 1e-4
    assert np.array(log_softmax(last.logprobs)) == pytest.approx(np.array(last.logprobs), abs=1e-5)


def test_messages(family: Family) -> None:
    """Messages are formatted by the chat template."""
    request = Request([{"role": "user", "content": "Describe the user."}], sampling=SamplingParams(max_tokens=STEPS))
    with TokenIterator(family.model, family.processor) as iterator:
        iterator.add(request)
        *_, (_, last) = iterator
    assert last.tokens == family.answer(family.asks["short"]).tokens
