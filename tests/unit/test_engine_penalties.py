"""Penalties and biases against a plain computation per row, alone and in a batch, with and without an unread token."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen import Request, SamplingParams
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.penalties import Penalties
from mlx_vlgen.engine.request import Row
from mlx_vlgen.engine.text import TextStream
from mlx_vlgen.inputs.prompt import Media, Prompt

VOCABULARY = 23
tokens = st.integers(0, VOCABULARY - 1)


def row(prompt: list[int], generated: list[int], spans: tuple[tuple[int, int], ...] = (), **settings: Any) -> Row:
    new_row = Row(0, Request("", sampling=SamplingParams(**settings)), TextStream(None), seed=0)
    media = (Media("image", np.zeros((1, 1), np.float32), (1, 1, 1), spans, (1, 1)),) if spans else ()
    new_row.prompt = Prompt(np.array(prompt, dtype=np.int32), media)
    for token in generated:
        new_row.record(token)
    return new_row


def plain(logits: np.ndarray, text: list[int], generated: list[int], settings: SamplingParams) -> np.ndarray:
    """One row, as the documentation has it."""
    out = logits.astype(np.float64).copy()
    size = settings.repetition_context_size
    past = [*text, *generated]
    recent = past if size is None else past[len(past) - size :] if 0 < size < len(past) else past if size else []
    for token in set(recent):
        factor = settings.repetition_penalty or 1.0
        out[token] = out[token] * factor if out[token] < 0 else out[token] / factor
    for token, count in Counter(generated).items():
        out[token] -= (settings.presence_penalty or 0) + count * (settings.frequency_penalty or 0)
    for token, bias in settings.logit_bias.items():
        out[token] += bias
    return out


settings = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3, 3.0]),
        "repetition_context_size": st.sampled_from([None, 0, 1, 2, 5, 20]),
        "presence_penalty": st.sampled_from([-0.5, 0.0, 1.5]),
        "frequency_penalty": st.sampled_from([-0.2, 0.0, 0.7]),
        "logit_bias": st.dictionaries(tokens, st.sampled_from([-100.0, 2.0, 5.0]), max_size=3),
    },
)
histories = st.tuples(st.lists(tokens, min_size=1, max_size=9), st.lists(tokens, max_size=9), settings)


@given(rows=st.lists(histories, min_size=1, max_size=4), unread=st.booleans(), seed=st.integers(0, 99))
def test_each_row_as_if_alone(rows: list[tuple[list[int], list[int], dict[str, Any]]], unread: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(len(rows), VOCABULARY)).astype(np.float32) * 3
    drawn = draw.integers(0, VOCABULARY, len(rows))
    penalized = [row(prompt, generated, **kw) for prompt, generated, kw in rows]
    penalties = Penalties.of(penalized, VOCABULARY)
    if unread:
        penalties.add(mx.array(drawn.astype(np.int32)))
    got = np.array(penalties(mx.array(logits)))
    for place, (prompt, generated, kw) in enumerate(rows):
        said = [*generated, int(drawn[place])] if unread else generated
        np.testing.assert_allclose(got[place], plain(logits[place], prompt, said, SamplingParams(**kw)), atol=1e-4)


@given(
    rows=st.lists(histories, min_size=2, max_size=4),
    drawn=st.lists(st.lists(tokens, min_size=4, max_size=4), min_size=1, max_size=12),
    left=st.integers(0, 11),
    late=st.booleans(),
)
def test_counts_that_are_advanced(
    rows: list[tuple[list[int], list[int], dict[str, Any]]], drawn: list[list[int]], left: int, late: bool
) -> None:
    """To the bit what is built anew after each step, read a step late or at once, when a row joins and one leaves."""
    penalized = [row(prompt, generated, **kw) for prompt, generated, kw in rows]
    penalties = Penalties.of(penalized[:1], VOCABULARY).join(Penalties.of(penalized[1:], VOCABULARY))
    logits = mx.random.normal((len(rows), VOCABULARY), key=mx.random.key(left))
    unread: list[int] = []
    for step, said in enumerate(drawn):
        for one, token in zip(penalized, unread, strict=False):
            one.record(token)
        unread = said[: len(penalized)]
        if not late:
            for one, token in zip(penalized, unread, strict=True):
                one.record(token)
        penalties.add(mx.array(unread, dtype=mx.int32))
        got = np.array(penalties(logits))
        if late:
            again = Penalties.of(penalized, VOCABULARY)
            again.add(mx.array(unread, dtype=mx.int32))
        else:
            again, unread = Penalties.of(penalized, VOCABULARY), []
        assert got.tolist() == np.array(again(logits)).tolist()
        if step == left:
            penalized, unread, logits = penalized[1:], unread[1:], logits[1:]
            penalties = penalties.select(range(1, len(penalized) + 1))


def test_placeholders_are_no_tokens_that_appeared() -> None:
    pad = 7
    with_media = row([1, pad, pad, pad, 2], [], spans=((1, 4),), repetition_penalty=2.0, repetition_context_size=3)
    got = np.array(Penalties.of([with_media], VOCABULARY)(mx.ones((1, VOCABULARY))))[0]
    assert got[pad] == 1.0 and got[1] == got[2] == 0.5


def test_nothing_asked_changes_nothing() -> None:
    logits = mx.random.normal((1, VOCABULARY))
    assert Penalties.of([row([1], [2])], VOCABULARY)(logits) is logits


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"])
def test_greedy_with_mediafeel_it(name: str, load_family: Any) -> None:
    """Through `generate`: a penalty or bias changes a greedy answer, and every row of a batch has its settings."""
    from mlx_vlgen import batch_generate, generate

    family = load_family("qwen3_vl")
    ask = family.asks["text"]
    plain = generate(family.model, family.processor, ask.text, max_tokens=8).tokens
    strong = {"logit_bias": {plain[0]: -100.0}}.get(name, 50.0)
    changed = generate(family.model, family.processor, ask.text, max_tokens=8, **{name: strong}).tokens
    assert changed != plain
    both = batch_generate(
        family.model,
        family.processor,
        prompts=[ask.text] * 2,
        max_tokens=8,
        **{name: [type(strong)(), strong]}
        if name == "logit_bias"
        else {name: [1.0 if name == "repetition_penalty" else 0.0, strong]},
    )
    assert [result.tokens for result in both.results] == [plain, changed]
