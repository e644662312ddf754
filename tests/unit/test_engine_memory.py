"""When memory does not suffice, and how far a prefill is told to be."""

import gc
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from invariants.family import Family
from invariants.play import Row, Wrapped, check, play

from mlx_vlgen import Request, SamplingParams, TokenIterator, batch_generate, generate, stream_generate
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.scheduling import Slots, is_out_of_memory


@pytest.fixture
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


def starved(family: Family, max_rows: int) -> Family:
    """A model that has memory for max_rows rows in one forward."""

    def forward(inputs: Any, *args: Any, **keywords: Any) -> mx.array:
        if inputs.tokens.shape[0] > max_rows:
            raise RuntimeError("[malloc] Unable to allocate 1234 bytes.")
        return family.model(inputs, *args, **keywords)

    return Family(family.name, family.folder, Wrapped(family.model, forward=forward), family.processor)


@pytest.mark.parametrize("max_rows", [1, 2, 3])
def test_rows_that_do_not_fit_wait(family: Family, max_rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A pack that is too large is halved until it fits; each row's answer is what it is alone."""
    rows = [Row(family.asks[name]) for name in ("words5", "turned5", "words2", "turned5", "words5")]
    check(family, rows, play(starved(family, max_rows), rows))
    assert "memory does not suffice" in capsys.readouterr().err


def test_a_row_that_never_fits_ends_alone(family: Family) -> None:
    [output] = play(starved(family, 0), [Row(family.asks["text"])])
    assert output.finish_reason == "error" and "allocate" in str(output.results[-1].error)


def lacking(function: Callable[..., Any], *at: int) -> Callable[..., Any]:
    """A function whose calls of these numbers find no memory; without numbers, all."""
    calls = itertools.count()

    def limited(*args: Any, **keywords: Any) -> Any:
        if next(calls) in at or not at:
            raise RuntimeError("[malloc] Unable to allocate 1234 bytes.")
        return function(*args, **keywords)

    return limited


@pytest.mark.parametrize("where", ["encode", "embed", "join"])
def test_a_row_that_lacks_memory_on_its_way_in_waits_for_others(
    family: Family, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One joins two that decode: all answer as alone."""
    rows = [Row(family.asks["words5"]), Row(family.asks["text"]), Row(family.asks["img1"], joins=5)]
    expected = [family.answer(row.ask) for row in rows]
    if where == "join":
        monkeypatch.setattr(kv, "join", lacking(kv.join, 0))
    methods = {
        "encode": {"encode": lacking(family.model.encode, 0)},
        "embed": {"embed": lacking(family.model.embed, 2)},
        "join": {},
    }[where]
    heard = play(replace(family, model=Wrapped(family.model, **methods)), rows)
    assert [output.tokens for output in heard] == [answer.tokens for answer in expected]
    check(family, rows, heard)
    assert "not suffice for more than 2 rows" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["encode", "embed"])
def test_a_picture_that_never_fits_ends_alone(family: Family, where: str) -> None:
    starved = replace(family, model=Wrapped(family.model, **{where: lacking(getattr(family.model, where))}))
    [output] = play(starved, [Row(family.asks["img1"])])
    assert output.finish_reason == "error" and is_out_of_memory(output.results[-1].error)  # type: ignore[arg-type]


def test_memory_that_fails_while_rows_decode_ends_those_rows_only(
    family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows with other caches, and those that still wait, are answered; so many never run together again."""
    sizes: list[int] = []  # of decoding steps, from the one that fails on

    def forward(inputs: Any, *args: Any, **keywords: Any) -> mx.array:
        rows = inputs.tokens.shape[0]
        if not keywords and (sizes or rows == 4):
            sizes.append(rows)
            if len(sizes) == 1:
                raise RuntimeError("[malloc] Unable to allocate 1234 bytes.")
        return family.model(inputs, *args, **keywords)

    lost = [Row(family.asks[name]) for name in ("words5", "text", "words2", "img1")]
    other = Row(family.asks["words11"], SamplingParams(max_tokens=2), kv=KVSettings(bits=8, group_size=32))
    late = [Row(family.asks["words5"], joins=5)] * 6
    heard = play(replace(family, model=Wrapped(family.model, forward=forward)), [*lost, other, *late])
    for row, output in zip(lost, heard[:4], strict=True):
        assert output.finish_reason == "error" and is_out_of_memory(output.results[-1].error)  # type: ignore[arg-type]
        assert output.tokens == family.answer(row.ask).tokens[: len(output.tokens)]
        assert output.text == family.processor.tokenizer.decode(output.tokens)
    check(family, [other, *late], heard[4:])
    assert max(sizes[1:]) == 3
    assert "not suffice for more than 3 rows" in capsys.readouterr().err


def test_pixels_are_let_go_once_they_are_encoded(family: Family) -> None:
    pixels: list[weakref.ref[Any]] = []

    def prepare(*args: Any, **keywords: Any) -> Any:
        prompt = family.processor.prepare(*args, **keywords)
        pixels.extend(weakref.ref(media.pixels) for media in prompt.media)
        return prompt

    with TokenIterator(family.model, Wrapped(family.processor, prepare=prepare)) as iterator:
        iterator.add(Row(family.asks["img2"]).request)
        next(iterator)
        assert [ref() for ref in pixels] == [None, None]


def test_fewer_rows_run_together_for_a_time() -> None:
    slots = Slots(5)
    slots.shrink(2)
    limits = []
    for _ in range(12):
        slots.row_ended()
        limits.append(slots.now)
    assert limits == [2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5]
    slots.shrink(0)
    assert slots.now == 1


def test_a_kept_error_keeps_no_arrays(family: Family) -> None:
    """A traceback's frames would: the rows' caches, and those of all that called them."""

    def fail(*_: Any) -> Any:
        raise ArithmeticError("mine")

    rows = [
        replace(Row(family.asks[name]), sampling=SamplingParams(max_tokens=4, logits_processors=[fail]))
        for name in ("img1", "words5")
    ]
    play(family, rows)
    gc.collect()
    before = mx.get_active_memory()
    heard = play(family, rows)
    gc.collect()
    assert mx.get_active_memory() - before < 100
    assert all("in fail" in output.results[-1].error.__notes__[0] for output in heard)  # type: ignore[union-attr]


def test_other_faults_of_a_model_are_not_taken_for_it(family: Family) -> None:
    def forward(*args: Any, **keywords: Any) -> mx.array:
        raise RuntimeError("shapes do not match")

    broken = Family(family.name, family.folder, Wrapped(family.model, forward=forward), family.processor)
    [output] = play(broken, [Row(family.asks["text"])])
    assert str(output.results[-1].error) == "shapes do not match"
    assert not is_out_of_memory(ValueError("x")) and is_out_of_memory(MemoryError())


def test_progress_of_a_chunked_prefill(family: Family) -> None:
    progress: list[tuple[int, int]] = []
    ask = family.asks["dialogue"]
    settings: dict[str, Any] = {"max_tokens": 2, "prefill_step_size": 10}
    result = generate(
        family.model, family.processor, ask.text, prompt_progress_callback=lambda *now: progress.append(now), **settings
    )
    total = result.prompt_tokens
    assert progress == [*((done, total) for done in range(10, total, 10)), (total, total)]
    list(stream_generate(family.model, family.processor, ask.text, prompt_progress_callback=print, **settings))


def test_progress_of_a_batch_is_the_sum(family: Family) -> None:
    progress: list[tuple[int, int]] = []
    asks = [family.asks[name] for name in ("dialogue", "words5", "words11")]
    response = batch_generate(
        family.model, family.processor, prompts=[ask.text for ask in asks], max_tokens=2,
        prompt_progress_callback=lambda *now: progress.append(now),
    )  # fmt: skip
    assert progress[-1] == (response.stats.prompt_tokens,) * 2
    assert all(done <= total for done, total in progress)


def test_a_full_batch_holds_its_rows_and_no_logits(family: Family) -> None:
    """Rows that come one after another get no slot beyond those that may run; what a token was drawn from is let go
    when that is handed out, which matters with 150,000 words."""
    asks = [family.asks[name] for name in ("text", "words5")]
    with TokenIterator(family.model, family.processor, max_batch_size=2) as iterator:
        for ask in asks:
            iterator.add(Request(ask.text, ask.media, sampling=SamplingParams(max_tokens=24, eos_tokens=())))
            next(iterator)
        [batch] = iterator._executor.batches
        while len(batch.rows) < 2:
            next(iterator)
            [batch] = iterator._executor.batches
        assert {layer.state[0].shape[0] for layer in batch.cache} == {2}
        if mx.default_device().type.name == "cpu":  # a GPU is a step ahead
            assert not batch.scores


def test_a_long_prompt_takes_memory_for_its_chunk_and_cache_only(load_family: Callable[[str], Family]) -> None:
    """Neither length x vocabulary nor length squared: both would be many times the bound."""
    from mlx_vlgen.models.qwen3_vl import Qwen3VL

    length, chunk, vocabulary = 6000, 64, 50_000
    base = load_family("qwen3_vl")
    text = {**base.model.config["text_config"], "vocab_size": vocabulary, "max_position_embeddings": length}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen3VL({**base.model.config, "text_config": text})
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    with TokenIterator(model, base.processor, prefill_step_size=chunk) as iterator:
        iterator.add(Request(" The" * (length // 2 - 1), sampling=SamplingParams(max_tokens=1)))
        [(_, result)] = list(iterator)
    assert result.finish_reason == "length" and length / 2 < result.prompt_tokens < length, result.error
    embeddings = 4 * result.prompt_tokens * text["hidden_size"] * 4  # with positions and room
    scores = 4 * 2 * chunk * result.prompt_tokens * 4
    assert result.peak_memory * 1e9 - before < embeddings + scores + 16e6
    assert embeddings + scores + 16e6 < 4 * result.prompt_tokens * vocabulary / 10  # so that the bound means something
