"""Speculative decoding: whatever is guessed, the answer is the one without guesses. `-m slow` guesses more often,
and for the built-in model and two more families too."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from chain_model import Chain, Letters
from chi_square import limit, statistic
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants.family import Family

from mlx_vlgen import GenerationResult, Request, SamplingParams, TokenIterator
from mlx_vlgen.engine.drafters import DraftModel, PromptLookup
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.inputs.prompt import Prompt

STEPS = 12
LoadFamily = Callable[[str], Family]


class Guesser:
    """Knows the answer, and spoils some of it: takes `lengths` in turn, and spoils the guesses at `wrong`."""

    def __init__(self, answer: Sequence[int], lengths: Sequence[int], wrong: Sequence[int]):
        self.answer, self.lengths, self.wrong, self.num_calls = answer, lengths, set(wrong), 0

    def read(self, prompt: Prompt) -> None:
        pass

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        length = min(self.lengths[self.num_calls % len(self.lengths)], max_tokens)
        self.num_calls += 1
        here = len(tokens)
        guesses = list(self.answer[here : here + length])
        return [token + (1 if here + i in self.wrong else 0) for i, token in enumerate(guesses)]

    def update(self, num_proposed: int, num_accepted: int) -> None:
        pass


def run(family: Any, requests: Sequence[Request]) -> list[GenerationResult]:
    """What each row's last result says; log-probabilities of its last token too."""
    ended: dict[int, GenerationResult] = {}
    with TokenIterator(family.model, family.processor) as iterator:
        ids = [iterator.add(request) for request in requests]
        for id, result in iterator:
            if result.finish_reason:
                ended[id] = result
    for result in ended.values():
        if result.error:
            raise result.error
    return [ended[id] for id in ids]


def requests_of(family: Family, kv: KVSettings, **sampling: Any) -> list[Request]:
    params = SamplingParams(max_tokens=STEPS, **sampling)
    names = [name for name in ("img1", "words5", "img2", "words16", "word", "turned5") if name in family.asks]
    asks = [family.asks[name] for name in names[:4]]
    return [Request(ask.text, ask.media, replace(params, seed=3 + i), kv) for i, ask in enumerate(asks)]


WHOLE = KVSettings()
CASES = [
    *((name, WHOLE) for name in ("qwen3_vl", "gemma3_text")),
    *(pytest.param(name, WHOLE, marks=pytest.mark.slow) for name in ("llama", "gemma3", "demo")),
    ("qwen3_vl", KVSettings(8, 32)),
    ("qwen3_vl", KVSettings(4, 32, start=5)),
    pytest.param("demo", KVSettings(4, 32, start=5), marks=pytest.mark.slow),
    ("gemma3_text", KVSettings(8, 32)),
]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.5}], ids=str)
@pytest.mark.parametrize(("name", "kv"), CASES, ids=str)
def test_right_and_wrong_guesses_leave_the_answer_as_it_is(
    name: str, kv: KVSettings, sampling: dict[str, Any], load_family: LoadFamily
) -> None:
    family = load_family(name)
    plain = requests_of(family, kv, **sampling)
    expected = run(family, plain)
    for rows in ([0], range(len(plain)), [2, 0]):
        guessed = []
        for row in rows:
            answer = list(expected[row].tokens)
            wrong = [[], [1, 4, 5], range(STEPS), [7]][row % 4]
            guesser = Guesser(answer, [[3], [2, 0, 5], [1, 4], [20]][row % 4], wrong)
            guessed.append(replace(plain[row], drafter=lambda guesser=guesser: guesser))
        for row, result in zip(rows, run(family, guessed), strict=True):
            assert list(result.tokens) == list(expected[row].tokens)
            assert result.finish_reason == expected[row].finish_reason
            # A quantized key may round the other way where float32 sums in another order.
            allowed = 0.05 if kv.bits else 1e-4
            assert np.abs(np.array(result.logprobs) - np.array(expected[row].logprobs)).max() < allowed
            assert result.accepted_tokens <= result.drafted_tokens
            if row % 4 == 0:
                assert result.accepted_tokens == result.drafted_tokens
                assert (result.drafted_tokens > 0) == (len(list(result.tokens)) > 1)


Patterns = list[tuple[list[int], list[int]]]
patterns = st.lists(
    st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.lists(st.integers(0, STEPS), max_size=5)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=5)
@given(patterns)
def test_any_guesses_in_any_mix(load_family: LoadFamily, patterns: Patterns) -> None:
    any_guesses(load_family, patterns)


def test_a_short_row_among_long_ones_guesses_now_and_then(load_family: LoadFamily) -> None:
    """Its sliding layers go from single tokens, which they keep in a ring, to several at once."""
    any_guesses(load_family, [([0], []), ([0], []), ([0, 1], [])])


@pytest.mark.slow
@settings(max_examples=15)
@given(patterns)
def test_many_guesses_in_many_mixes(load_family: LoadFamily, patterns: Patterns) -> None:
    any_guesses(load_family, patterns)


def any_guesses(load_family: LoadFamily, patterns: Patterns) -> None:
    family = load_family("gemma3_text")
    plain = requests_of(family, WHOLE)
    expected = run(family, plain)
    rows = [
        replace(request, drafter=lambda g=Guesser(list(result.tokens), lengths, wrong): g)
        for request, result, (lengths, wrong) in zip(plain, expected, patterns, strict=False)
    ]
    mixed = run(family, [*rows, plain[0]])  # with one that guesses nothing beside them
    assert [list(r.tokens) for r in mixed] == [list(r.tokens) for r in [*expected[: len(rows)], expected[0]]]


@pytest.mark.parametrize(("name", "kv"), [("lfm2", WHOLE), ("qwen3_5", WHOLE), ("llama", KVSettings(max_size=8))])
def test_what_cannot_forget_a_guess_is_refused(name: str, kv: KVSettings, load_family: LoadFamily) -> None:
    family = load_family(name)
    with pytest.raises(UnsupportedError, match="cannot forget a wrong guess"):
        run(family, [Request(family.asks["word"].text, kv=kv, drafter=PromptLookup)])


def test_a_draft_model_that_is_the_model_is_always_right(load_family: LoadFamily) -> None:
    family = load_family("demo")
    plain = [replace(request, sampling=SamplingParams(max_tokens=60)) for request in requests_of(family, WHOLE)]
    drafted = [replace(request, drafter=lambda: DraftModel(family.model, 4, reads_media=True)) for request in plain]
    for expected, result in zip(run(family, plain), run(family, drafted), strict=True):
        assert list(result.tokens) == list(expected.tokens)
        assert (result.drafted_tokens > 0) == (len(list(result.tokens)) > 1)
        assert result.accepted_tokens >= result.drafted_tokens - 3  # an end may come among the last guesses


@pytest.mark.parametrize(("name", "drafts"), [("llama", "qwen3"), ("qwen3", "lfm2"), ("qwen3", "gemma3_text")])
def test_another_model_may_guess_what_it_likes(name: str, drafts: str, load_family: LoadFamily) -> None:
    """Also one with recurrent or sliding layers: its guesses are never kept in its cache."""
    family, other = load_family(name), load_family(drafts)
    plain = requests_of(family, WHOLE, temperature=0.5)
    drafted = [replace(request, drafter=lambda: DraftModel(other.model, 3, "heuristic")) for request in plain]
    for expected, result in zip(run(family, plain), run(family, drafted), strict=True):
        assert list(result.tokens) == list(expected.tokens)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3_text"])
def test_rows_that_come_and_go_have_the_guesses_that_they_have_alone(name: str, load_family: LoadFamily) -> None:
    """So the draft model's cache is right: of rows that join late, of any length, beside some that end or are
    cancelled, with pictures, whose rotary positions lag, and layers with a window."""
    family = load_family(name)
    schedules = [(3, "constant", 0.0), (1, "heuristic", 0.0), (4, "heuristic", 0.0), (4, "constant", 0.1)]
    drafters = [partial(DraftModel, family.model, *schedule, name == "qwen3_vl") for schedule in schedules]
    rows = requests_of(family, WHOLE, temperature=0.3, logit_bias=dict.fromkeys(family.ends, -1e9))
    for i, (row, drafter) in enumerate(zip(rows, drafters, strict=True)):
        rows[i] = replace(row, drafter=drafter, sampling=replace(row.sampling, max_tokens=8 + 5 * i))
    expected = [run(family, [row])[0] for row in rows]
    assert any(0 < result.accepted_tokens < result.drafted_tokens for result in expected)
    waiting, ended = [0, 3, 1, 0, 2, 3], dict[int, tuple[int, GenerationResult]]()
    with TokenIterator(family.model, family.processor) as iterator:
        ids = {iterator.add(rows[0]): 0}
        for count, (id, result) in enumerate(iterator):
            if result.finish_reason:
                ended[id] = ids[id], result
            if count == 5:
                iterator.cancel(next(iter(ids)))
            if count % 3 == 0 and len(ids) < len(waiting):
                ids[iterator.add(rows[waiting[len(ids)]])] = waiting[len(ids)]
    for row, result in list(ended.values())[1:]:
        assert list(result.tokens) == list(expected[row].tokens)
        counts = result.drafted_tokens, result.accepted_tokens
        assert counts == (expected[row].drafted_tokens, expected[row].accepted_tokens)


def test_a_draft_below_the_confidence_is_not_made(load_family: LoadFamily) -> None:
    family = load_family("llama")
    plain = requests_of(family, WHOLE)[0]
    unsure = replace(plain, drafter=lambda: DraftModel(family.model, 3, confidence=1.0))
    assert run(family, [unsure])[0].drafted_tokens == 0


def test_guesses_save_forwards() -> None:
    chain = Chain(np.where(np.roll(np.eye(6), 1, axis=1) > 0, 10.0, 0.0))  # a, b, c, d, e, f, a, b, …
    family = _Bare(chain)
    prompt = Prompt(np.array([0, 1, 2, 3, 4, 5, 0], dtype=np.int32))
    request = Request(prompt, sampling=SamplingParams(max_tokens=40), end_tokens=frozenset())
    expected = run(family, [request])[0]
    plain, chain.forwards = chain.forwards, 0
    result = run(family, [replace(request, drafter=lambda: PromptLookup(7, 3))])[0]
    assert result.text == expected.text
    assert chain.forwards <= plain / 5
    assert result.accepted_tokens >= 0.8 * result.drafted_tokens


class _Bare:
    def __init__(self, model: Chain):
        self.model, self.processor = model, Letters(model._table.shape[0])


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_guessed_draws_have_the_models_distribution(count: int) -> None:
    """Chi-square of every transition of a chain of 6 tokens, guessed by text that was there before."""
    logits = np.random.default_rng(5).normal(size=(6, 6)) * 1.5
    family = _Bare(Chain(logits))
    sampling = SamplingParams(max_tokens=2000, temperature=1.0, logprobs=False)
    rows = [
        Request(
            Prompt(np.array([row % 6], dtype=np.int32)),
            sampling=replace(sampling, seed=row),
            end_tokens=frozenset(),
            drafter=lambda: PromptLookup(4, 2),
        )
        for row in range(count)
    ]
    results = run(family, rows)
    assert sum(result.accepted_tokens for result in results) > 400 * count
    pairs: Counter[tuple[int, int]] = Counter()
    for row, result in enumerate(results):
        text = [row % 6, *result.tokens]
        pairs.update(pairwise(text))
    assert sum(pairs.values()) == 2000 * count
    observed = np.array([[pairs[before, after] for after in range(6)] for before in range(6)])
    likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert statistic(observed, likely * observed.sum(axis=1, keepdims=True)) < limit(6 * 5)
