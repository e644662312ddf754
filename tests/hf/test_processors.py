"""Logits processors and warpers against transformers' (`make_processors.py`), and what only ours have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen import Request, SamplingParams
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.params import LogitsProcessor
from mlx_vlgen.engine.penalties import Penalties
from mlx_vlgen.engine.request import Row
from mlx_vlgen.engine.sampling import BatchSampler
from mlx_vlgen.engine.text import TextStream
from mlx_vlgen.hf.config import GenerationSettings
from mlx_vlgen.hf.processors import processors, sampling_keywords, warpers
from mlx_vlgen.hf.resolve import resolve
from mlx_vlgen.hf.watermark import permuted
from mlx_vlgen.inputs.prompt import Prompt

from . import processor_cases as cases

REFERENCE = np.load(Path(__file__).parent / "reference" / "processors.npz")
LOWEST = float(np.finfo(np.float32).min)


def settings_of(keywords: Mapping[str, Any]) -> GenerationSettings:
    settings = {"max_new_tokens": cases.NEW_TOKENS, "eos_token_id": cases.ENDS} | dict(keywords)
    settings.pop("prefix_allowed_tokens_fn", None)
    return resolve({}, None, settings)[0]


def applied(chain: list[LogitsProcessor], tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(V,)."""
    logits = mx.array(scores)[None]
    for processor in chain:
        logits = processor(mx.array(tokens.astype(np.int32)), logits)
        assert logits.shape == (1, len(scores)) and logits.dtype == mx.float32
    return np.array(logits[0])


def ours(keywords: Mapping[str, Any], row: int, new: int, scores: np.ndarray, prompt: int = cases.PROMPT) -> np.ndarray:
    """(V,): of one row after so many new tokens, with its tokens."""
    padding = cases.PADDING[row] if prompt == cases.PROMPT else 0
    start, settings = cases.PROMPT - prompt + padding, settings_of(keywords)
    allowed = keywords.get("prefix_allowed_tokens_fn")
    chain = processors(
        settings, prompt_length=prompt - padding, row=row, padding=padding, prefix_allowed_tokens_fn=allowed
    )
    chain += warpers(settings, prompt_length=prompt - padding)
    return applied(chain, cases.ROWS[row, start : cases.PROMPT + new], scores[new, row])


def softmax(scores: np.ndarray) -> np.ndarray:
    whole = np.exp(scores.astype(np.float64) - scores.max())
    return whole / whole.sum()


def check(got: np.ndarray, expected: np.ndarray) -> None:
    """Forbidden tokens are the same, and scores and probabilities those of transformers."""
    assert not np.isnan(got).any()
    assert (got == -np.inf).tolist() == (expected == -np.inf).tolist()
    open_ = expected > -np.inf
    assert got[open_] == pytest.approx(expected[open_], rel=1e-5, abs=1e-5)
    assert softmax(got) == pytest.approx(softmax(expected), abs=1e-5)


@pytest.mark.parametrize("name", cases.SINGLE)
def test_scores_are_those_of_transformers(name: str) -> None:
    expected = REFERENCE["single"][list(cases.SINGLE).index(name)]
    for place, new in enumerate(cases.SHOWN):
        for row in range(1 if name in cases.PADDING_COUNTS else 2):
            check(ours(cases.SINGLE[name], row, new, cases.scores_of(name)), expected[place, row])


@pytest.mark.parametrize("first", cases.ALL)
def test_pairs_are_applied_in_the_order_of_transformers(first: str) -> None:
    for pair, expected in zip(cases.PAIRS, REFERENCE["pairs"], strict=True):
        if pair[0] == first:
            for new, scores in zip((0, cases.LAST), expected, strict=True):
                check(ours(cases.PAIRS[pair], 0, new, cases.scores()), scores)


@pytest.mark.parametrize("name", cases.ONE_TOKEN)
def test_a_prompt_of_one_token_is_a_beginning(name: str) -> None:
    expected = REFERENCE["one"][list(cases.ONE_TOKEN).index(name)]
    for new in (0, 1):
        for row in range(2):
            check(ours(cases.ONE_TOKEN[name], row, new, cases.scores(), prompt=1), expected[new, row])


def test_every_case_changes_something() -> None:
    """Else the reference would prove nothing, but for the cases whose point it is."""
    quiet = {
        "remove_invalid_values",
        "defaults of drawing",
        "longer than the text",
        "warpers that do nothing",
        "warpers unused",
    }
    for name, expected in zip(cases.SINGLE, REFERENCE["single"], strict=True):
        changed = (expected != cases.scores_of(name)[cases.SHOWN]).any()
        assert changed != (name in quiet), name


def test_permutation_is_that_of_pytorch() -> None:
    assert permuted(3, 10, 10) == permuted(3 + 2**32, 10, 10) == [6, 0, 3, 7, 8, 5, 1, 9, 2, 4]
    assert permuted(15485863 * 777, 151_936, 3) == [28794, 95559, 46304]


def test_presence_penalty_is_of_generated_tokens() -> None:
    tokens, scores = np.array([3, 4, 5, 4, 6, 6]), np.linspace(-1, 1, 10).astype(np.float32)
    settings = settings_of({"presence_penalty": 1.5})
    expected = scores - 1.5 * np.isin(np.arange(10), [4, 6])
    assert applied(processors(settings, prompt_length=3, row=0), tokens, scores) == pytest.approx(expected)


def test_users_come_last_and_see_a_batch_of_one() -> None:
    calls = []

    def user(tokens: mx.array, scores: mx.array) -> mx.array:
        calls.append((tokens.tolist(), scores.shape, float(scores[0, 2])))
        return scores + 1

    chain = processors(settings_of({"suppress_tokens": [2]}), prompt_length=2, row=0, user_processors=[user])
    got = applied(chain, np.array([4, 5, 6]), np.zeros(8, np.float32))
    assert calls == [([[4, 5, 6]], (1, 8), -np.inf)] and got[1] == 1


def test_half_precision_is_left_before_anything_is_computed() -> None:
    settings = settings_of({"do_sample": True, "top_k": 3, "temperature": 0.7})
    [first, *_] = warpers(settings, prompt_length=1)
    assert first(mx.array([1]), mx.zeros((1, 4), dtype=mx.bfloat16)).dtype == mx.float32


def test_tokens_past_the_vocabulary_change_nothing() -> None:
    """Placeholders of some families have no logit."""
    penalties = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 2.0}
    scores = np.linspace(-1, 1, 10).astype(np.float32)
    chain = processors(settings_of(penalties), prompt_length=3, row=0)
    with_them = applied(chain, np.array([4, 10, 900, 4]), scores)
    assert with_them == pytest.approx(applied(chain, np.array([4, 4, 4, 4]), scores))
    suppressed = processors(settings_of({"suppress_tokens": [-1, 99]}), prompt_length=1, row=0)
    assert applied(suppressed, np.array([1]), scores).tolist() == scores.tolist()


@pytest.mark.parametrize(
    "keywords",
    [{"sequence_bias": {(10,): 1.0}}, {"bad_words_ids": [[3, 10]]}, {"forced_eos_token_id": 10, "max_new_tokens": 1}],
    ids=lambda keywords: next(iter(keywords)),
)
def test_ids_past_the_vocabulary_are_named(keywords: dict[str, Any]) -> None:
    chain = processors(settings_of(keywords), prompt_length=1, row=0)
    with pytest.raises(ValueError, match=next(iter(keywords))):
        applied(chain, np.array([1]), np.zeros(10, np.float32))


@pytest.mark.parametrize("returned", [[], [10], [-1], "text"], ids=str)
def test_what_the_users_function_allows_must_be_tokens(returned: Any) -> None:
    chain = processors(
        GenerationSettings(max_new_tokens=1), prompt_length=1, row=0, prefix_allowed_tokens_fn=lambda i, t: returned
    )
    with pytest.raises(ValueError, match="prefix_allowed_tokens_fn"):
        applied(chain, np.array([1]), np.zeros(10, np.float32))


def test_beams_may_end_where_nothing_is_allowed() -> None:
    settings = settings_of({"bad_words_ids": [[5]], "num_beams": 2})
    chain = processors(settings, prompt_length=1, row=0, prefix_allowed_tokens_fn=lambda row, tokens: [5])
    assert (applied(chain, np.array([1]), np.zeros(10, np.float32)) == -np.inf).all()


def test_end_tokens_grow_without_overflow() -> None:
    settings = settings_of({"exponential_decay_length_penalty": (0, 2.0)})
    got = applied(
        processors(settings, prompt_length=1, row=0), np.zeros(2000), np.linspace(1, 2, 10).astype(np.float32)
    )
    assert np.isfinite(got).all() and got.argmax() == 2


def engine_probabilities(
    params: Mapping[str, Any], prompt: list[int], new: list[int], scores: np.ndarray
) -> np.ndarray:
    """(V,): what the engine draws from, or would, were it not greedy."""
    row = Row(0, Request("", sampling=SamplingParams(**params)), TextStream(None), seed=0)
    row.prompt = Prompt(tokens=np.array(prompt, np.int32), media=())
    for token in new:
        row.record(token)
    logits = Penalties.of([row], len(scores))(mx.array(scores)[None])
    if row.sampling.temperature:
        [(_, group)] = BatchSampler([row]).groups
        _, logits = group.truncate(logits)  # of a small vocabulary: all are looked at
    return softmax(np.array(logits)[0])


@given(
    st.lists(st.integers(0, 29), min_size=1, max_size=12),
    st.integers(0, 6),
    st.integers(0, 2**32 - 1),
    st.fixed_dictionaries(
        {"do_sample": st.booleans()},
        optional={
            "temperature": st.floats(0.1, 2),
            "top_k": st.integers(-1, 40),
            "top_p": st.floats(0.05, 1),
            "min_p": st.floats(0, 0.9),
            "typical_p": st.floats(0.05, 1),
            "repetition_penalty": st.floats(0.5, 2),
            "presence_penalty": st.floats(-2, 2),
        },
    ),
)
def test_the_engine_does_by_itself_what_the_processors_do(
    tokens: list[int], new: int, seed: int, keywords: dict[str, Any]
) -> None:
    cut = max(1, len(tokens) - new)
    scores = (np.random.default_rng(seed).normal(size=30) * 3).astype(np.float32)
    settings = settings_of(keywords | {"eos_token_id": None})
    params = sampling_keywords(settings)
    assert params is not None
    chain = processors(settings, prompt_length=cut, row=0) + warpers(settings, prompt_length=cut)
    expected = softmax(applied(chain, np.array(tokens), scores))
    assert engine_probabilities(params, tokens[:cut], tokens[cut:], scores) == pytest.approx(expected, abs=1e-6)


ENGINE_PARAMETERS = {"repetition_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p"}


@pytest.mark.parametrize("name", sorted(set(cases.ALL) - {"prefix_allowed_tokens_fn"}))
def test_the_engine_is_left_to_itself_only_where_it_does_all(name: str) -> None:
    settings = settings_of(cases.SINGLE[name])
    assert (sampling_keywords(settings) is not None) == (name in ENGINE_PARAMETERS)


def test_placeholders_are_tokens_for_transformers_only() -> None:
    assert sampling_keywords(settings_of({"repetition_penalty": 1.1}), media=True) is None
    assert sampling_keywords(settings_of({"repetition_penalty": 1.0}), media=True) is not None
    assert sampling_keywords(settings_of({"num_beams": 2})) is None
