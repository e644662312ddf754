"""When memory does not suffice, and how far a prefill is told to be."""

from collections.abc import Callable
from typing import Any

import pytest
from invariants.family import Family
from invariants.play import Row, Wrapped, check, play

from mlx_vlgen import batch_generate, generate, stream_generate
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.prefill import is_out_of_memory


@pytest.fixture
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


def starved(family: Family, most: int) -> Family:
    """A model that has memory for `most` rows in one forward."""

    def forward(inputs: Any, *given: Any, **keywords: Any) -> mx.array:
        if inputs.tokens.shape[0] > most:
            raise RuntimeError("[malloc] Unable to allocate 1234 bytes.")
        return family.model(inputs, *given, **keywords)

    return Family(family.name, family.folder, Wrapped(family.model, forward=forward), family.processor)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_rows_that_do_not_fit_wait(family: Family, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A pack that is too large is halved until it fits; each row's answer is what it is alone."""
    rows = [Row(family.asks[name]) for name in ("words5", "img1", "words2", "turned5", "text")]
    check(family, rows, play(starved(family, most), rows))
    assert "memory does not suffice" in capsys.readouterr().err


def test_a_row_that_never_fits_ends_alone(family: Family) -> None:
    [own] = play(starved(family, 0), [Row(family.asks["text"])])
    assert own.finish_reason == "error" and "allocate" in str(own.results[-1].error)


def test_other_faults_of_a_model_are_not_taken_for_it(family: Family) -> None:
    def forward(*given: Any, **keywords: Any) -> mx.array:
        raise RuntimeError("shapes do not match")

    broken = Family(family.name, family.folder, Wrapped(family.model, forward=forward), family.processor)
    with pytest.raises(RuntimeError, match="shapes"):
        play(broken, [Row(family.asks["text"])])
    assert not is_out_of_memory(ValueError("x")) and is_out_of_memory(MemoryError())


def test_progress_of_a_chunked_prefill(family: Family) -> None:
    told: list[tuple[int, int]] = []
    ask = family.asks["dialogue"]
    settings: dict[str, Any] = {"max_tokens": 2, "prefill_step_size": 10}
    result = generate(
        family.model, family.processor, ask.text, prompt_progress_callback=lambda *now: told.append(now), **settings
    )
    total = result.prompt_tokens
    assert told == [*((done, total) for done in range(10, total, 10)), (total, total)]
    list(stream_generate(family.model, family.processor, ask.text, prompt_progress_callback=print, **settings))


def test_progress_of_a_batch_is_the_sum(family: Family) -> None:
    told: list[tuple[int, int]] = []
    asks = [family.asks[name] for name in ("dialogue", "words5", "words11")]
    response = batch_generate(
        family.model, family.processor, prompts=[ask.text for ask in asks], max_tokens=2,
        prompt_progress_callback=lambda *now: told.append(now),
    )  # fmt: skip
    assert told[-1] == (response.stats.prompt_tokens,) * 2
    assert all(done <= total for done, total in told)


def test_a_long_prompt_takes_memory_for_its_chunk_and_cache_only(load_family: Callable[[str], Family]) -> None:
    """Neither length x vocabulary nor length squared: both would be many times the bound."""
    from mlx_vlgen import Request, SamplingParams, TokenIterator
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
