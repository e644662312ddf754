"""Statistics that add up, on a clock that passes only when what was computed is waited for; and log-probabilities that
cost nothing until somebody looks."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from invariants.play import Wrapped

from mlx_vlgen import (
    BatchStats,
    GenerationResult,
    Request,
    SamplingParams,
    TokenIterator,
    batch_generate,
    generate,
    stream_generate,
)
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import batch
from mlx_vlgen.models.qwen3_vl import Qwen3VL

ENCODE, PREFILL, DECODE = 4.0, 2.0, 0.25  # seconds that a call of the vision tower, a prefill and a step take
STEPS = 6


class Clock:
    """In the place of time.perf_counter. Work takes its time when it is waited for, not when its graph is built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.queued = 1.0, 0.0
        evaluate, read = mx.eval, np.array

        def waiting(wrapped: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **keywords: Any) -> Any:
                value = wrapped(*args, **keywords)
                self.now, self.queued = self.now + self.queued, 0.0
                return value

            return call

        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(mx, "eval", waiting(evaluate))
        monkeypatch.setattr(np, "array", waiting(read))

    def slow(self, model: Any) -> Any:
        """The model, whose every call is known to take long."""

        def forward(inputs: Any, *args: Any, **keywords: Any) -> mx.array:
            self.queued += PREFILL if inputs.tokens.shape[1] > 1 else DECODE
            return model(inputs, *args, **keywords)

        def encode(media: Any) -> Any:
            self.queued += ENCODE
            return model.encode(media)

        return Wrapped(model, forward=forward, encode=encode)


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


@pytest.fixture
def slow(family: Family, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Model and processor on a clock."""
    return Clock(monkeypatch).slow(family.model), family.processor


def keywords_of(family: Family, *names: str) -> dict[str, Any]:
    """The keywords of `batch_generate` for these asks."""
    asks = [family.asks[name] for name in names]
    return {"prompts": [ask.text for ask in asks], "images": [list(ask.media.images) for ask in asks]}


def length(family: Family, name: str) -> int:
    ask = family.asks[name]
    return len(family.processor.prepare(ask.text, ask.media).tokens)


def numbers(result: GenerationResult | BatchStats) -> dict[str, float]:
    """What rows and batches both tell."""
    names = ["prompt_tokens", "prompt_tps", "prompt_time", "generation_tokens", "generation_tps", "generation_time"]
    return {name: getattr(result, name) for name in [*names, "cached_tokens", "encode_time"]}


def expected(tokens: int, prompt_time: float, count: int, generation_time: float, encode: float) -> dict[str, float]:
    return {
        "prompt_tokens": tokens,
        "prompt_tps": tokens / prompt_time,
        "prompt_time": prompt_time,
        "generation_tokens": count,
        "generation_tps": count / generation_time if generation_time else 0.0,
        "generation_time": generation_time,
        "cached_tokens": 0,
        "encode_time": encode,
    }


# Times and speeds


@pytest.mark.parametrize("name", ["text", "img1", "img2"])
@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_each_time_is_its_own(slow: tuple[Any, Any], family: Family, name: str, steps: int) -> None:
    """The prompt's time ends with its forward, wherever the next step is already under way; pictures are apart."""
    ask = family.asks[name]
    result = generate(*slow, ask.text, list(ask.media.images), max_tokens=steps)
    spent = PREFILL, steps, (steps - 1) * DECODE, ENCODE * bool(ask.media.images)  # of any shapes together
    assert numbers(result) == expected(length(family, name), *spent)
    assert result.total_tokens == length(family, name) + steps


def test_a_prompt_in_chunks_takes_the_time_of_all(slow: tuple[Any, Any], family: Family) -> None:
    ask, tokens = family.asks["text"], length(family, "text")
    result = generate(*slow, ask.text, max_tokens=STEPS, prefill_step_size=tokens // 3 + 1)
    assert numbers(result) == expected(tokens, 3 * PREFILL, STEPS, (STEPS - 1) * DECODE, 0)


def test_numbers_of_a_stream_are_cumulative(slow: tuple[Any, Any], family: Family) -> None:
    """With lookahead the next step is under way when a token is read, and has to be waited for where the device does
    one thing at a time, as this clock does: k tokens are out after k steps, except the first, which is read before any,
    and the last, after which none follows."""
    ask, tokens = family.asks["img1"], length(family, "img1")
    results = list(stream_generate(*slow, ask.text, list(ask.media.images), max_tokens=STEPS))
    waited = [0, *(count + batch.LOOKAHEAD for count in range(1, STEPS - 1)), STEPS - 1]
    for count, (steps, result) in enumerate(zip(waited, results, strict=True), 1):
        assert numbers(result) == expected(tokens, PREFILL, count, steps * DECODE, ENCODE)
        assert result.total_tokens == tokens + count == tokens + len(result.tokens)
    for name in ("generation_time", "peak_memory"):
        values = [getattr(result, name) for result in results]
        assert values == sorted(values), name


def test_a_batch_is_the_sum_of_its_rows(slow: tuple[Any, Any], family: Family) -> None:
    """Tokens and the pictures' times add up; rows that run together share the others, which pass once."""
    names, steps = ("img1", "text", "img1", "words5"), (STEPS, 2, 1, 3)
    response = batch_generate(*slow, max_tokens=steps, **keywords_of(family, *names))
    lengths, total = [length(family, name) for name in names], sum(steps)
    assert numbers(response.stats) == expected(sum(lengths), PREFILL, total, (STEPS - 1) * DECODE, ENCODE)
    for row, (result, tokens, count) in enumerate(zip(response.results, lengths, steps, strict=True)):
        encode = ENCODE / 2 if names[row] == "img1" else 0  # equal pictures went through the tower together
        waited = count - 1 + (batch.LOOKAHEAD and 1 < count < STEPS)  # a step for the others is under way
        assert numbers(result) == expected(tokens, PREFILL, count, waited * DECODE, encode)


def test_rows_one_after_another_add_up_in_all(slow: tuple[Any, Any], family: Family) -> None:
    names = ("img1", "text", "img2")
    response = batch_generate(*slow, max_tokens=STEPS, max_batch_size=1, **keywords_of(family, *names))
    rows, stats = [numbers(result) for result in response.results], numbers(response.stats)
    for name in stats.keys() - {"prompt_tps", "generation_tps"}:
        assert stats[name] == sum(row[name] for row in rows), name
    assert stats["prompt_tps"] == stats["prompt_tokens"] / stats["prompt_time"]
    assert stats["generation_tps"] == stats["generation_tokens"] / stats["generation_time"]


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_a_batch_of_one_is_generate(slow: tuple[Any, Any], family: Family, steps: int) -> None:
    ask = family.asks["img1"]
    alone = generate(*slow, ask.text, list(ask.media.images), max_tokens=steps)
    response = batch_generate(*slow, max_tokens=steps, **keywords_of(family, "img1"))
    assert numbers(response.stats) == numbers(response.results[0]) == numbers(alone)


def test_a_first_token_is_no_speed(family: Family) -> None:
    """It comes with the prompt: what passes until it is told is not the time that tokens take."""
    response = batch_generate(family.model, family.processor, max_tokens=1, **keywords_of(family, "text", "words5"))
    for output in (response.stats, *response.results):
        assert (
            (output.generation_time, output.generation_tps) == (0.0, 0.0)
            and output.generation_tokens
            and output.prompt_tps
        )


def test_a_row_that_waited_counts_from_its_own_prompt(slow: tuple[Any, Any], family: Family) -> None:
    """Not the time before, while another decoded."""
    with TokenIterator(*slow) as iterator:
        iterator.add(Request(family.asks["text"].text, sampling=SamplingParams(max_tokens=STEPS)))
        next(iterator)
        late = iterator.add(Request(family.asks["words5"].text, sampling=SamplingParams(max_tokens=2)))
        last = {id: result for id, result in iterator if result.finish_reason}
        assert (iterator.prompt_time, iterator.generation_time) == (2 * PREFILL, (STEPS - 1) * DECODE)
    assert all(result.prompt_time == PREFILL for result in last.values())
    assert last[late].generation_time == (1 + batch.LOOKAHEAD) * DECODE  # its step, and a next one that is under way
    assert last[1 - late].generation_time == (STEPS - 1) * DECODE + PREFILL  # it had to wait for the other's prompt


def test_printed_lines_are_the_numbers(
    slow: tuple[Any, Any], family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, ask = length(family, "text"), family.asks["text"]
    lines = (
        f"==========\nPrompt: {{}} tokens, {tokens / PREFILL:.3f} tokens-per-sec\n"
        f"Generation: {STEPS} tokens, {STEPS / (STEPS - 1) / DECODE:.3f} tokens-per-sec\nPeak memory: {{:.3f}} GB\n"
    )
    result = generate(*slow, ask.text, max_tokens=STEPS, verbose=True)
    assert capsys.readouterr().out.endswith(lines.format(tokens, result.peak_memory))
    response = batch_generate(*slow, max_tokens=STEPS, verbose=True, **keywords_of(family, "text"))
    assert capsys.readouterr().out == lines.format(tokens, response.stats.peak_memory)


def test_peak_memory_is_of_this_run(family: Family) -> None:
    """All that was held at once, the caches included, and not what an earlier run needed."""
    sizes: list[int] = []

    def forward(inputs: Any, cache: Any, **keywords: Any) -> mx.array:
        logits = family.model(inputs, cache, **keywords)
        sizes.append(sum(layer.nbytes for layer in cache))
        return logits

    watched, text = Wrapped(family.model, forward=forward), family.asks["text"].text
    before = mx.get_active_memory()
    large = batch_generate(watched, family.processor, prompts=[text] * 16, max_tokens=3)
    small = generate(watched, family.processor, text, max_tokens=3)
    assert large.stats.peak_memory * 1e9 >= before + max(sizes) > before
    assert large.stats.peak_memory == max(result.peak_memory for result in large.results)
    assert small.peak_memory < large.stats.peak_memory - 14 / 16 * max(sizes) / 1e9


# Log-probabilities


class Calls:
    """Counts the calls of some of MLX's functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str):
        self.count = dict.fromkeys(names, 0)
        for name in names:
            monkeypatch.setattr(mx, name, self._counting(name, getattr(mx, name)))

    def _counting(self, name: str, wrapped: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            self.count[name] += 1
            return wrapped(*args, **keywords)

        return call


def test_logprobs_are_computed_when_looked_at_and_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few best are computed with the token, since every result keeps them."""
    calls = Calls(monkeypatch, "logsumexp", "argpartition", "sort", "argsort", "topk")
    ask, settings = family.asks["text"], {"max_tokens": 4, "logprobs": True, "top_logprobs": 5}
    vocab_size = family.model.config["text_config"]["vocab_size"]
    result = generate(family.model, family.processor, ask.text, **settings)
    *_, streamed = stream_generate(family.model, family.processor, ask.text, **settings)
    response = batch_generate(family.model, family.processor, prompts=[ask.text] * 3, **settings)
    count = 4 + 4 + 3 * 4
    assert calls.count == {"logsumexp": count, "argpartition": count, "sort": 0, "argsort": 0, "topk": 0}
    for reads, output in enumerate([result, streamed, *response.results], 1):
        for _ in range(2):
            assert output.logprobs.shape == (vocab_size,) and len(output.top_logprobs) == 5
        assert calls.count == {"logsumexp": count + reads, "argpartition": count, "sort": 0, "argsort": 0, "topk": 0}


def test_logprobs_that_nobody_reads_evaluate_nothing(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arrays as without them."""
    evaluated: list[Any] = []
    start = mx.async_eval

    def async_eval(*arrays: mx.array) -> None:
        evaluated.append([array.shape for array in arrays])
        start(*arrays)

    monkeypatch.setattr(mx, "async_eval", async_eval)
    calls = Calls(monkeypatch, "eval")
    records = []
    for settings in ({"logprobs": True}, {"logprobs": False}):
        generate(family.model, family.processor, family.asks["text"].text, max_tokens=4, **settings)
        records.append((list(evaluated), dict(calls.count)))
        evaluated.clear()
        calls.count = dict.fromkeys(calls.count, 0)
    assert records[0] == records[1] and len(records[0][0]) == 4


def test_results_that_are_kept_hold_one_vocabulary_a_row(family: Family) -> None:
    """A stream's, however long; and of rows that decoded together and ended one by one, each only its scores."""
    vocab_size, rows = 50_000, 8
    model = Qwen3VL(
        {**family.model.config, "text_config": {**family.model.config["text_config"], "vocab_size": vocab_size}}
    )
    mx.eval(model.parameters())
    stored: list[GenerationResult] = []
    mx.clear_cache()
    before = mx.get_active_memory()
    with TokenIterator(model, family.processor) as iterator:
        for row in range(rows):
            sampling = SamplingParams(max_tokens=4 + row, top_logprobs=2)
            iterator.add(Request(family.asks["words5"].text, sampling=sampling))
        stored += (result for _, result in iterator)
    assert mx.get_active_memory() - before < (rows + 1) * vocab_size * 4
    assert len(stored) == sum(4 + row for row in range(rows))
    assert sum(result.logprobs is not None and len(result.top_logprobs) == 2 for result in stored) == rows
