"""Drawing: exact probabilities, keys, frequencies."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen import Request, SamplingParams
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.draw_keys import BLOCK, draw_key
from mlx_vlgen.engine.logits import log_softmax
from mlx_vlgen.engine.request import Row
from mlx_vlgen.engine.sampling import BatchSampler, top
from mlx_vlgen.engine.text import TextStream

TIES = np.array([2.0, 1.0, 1.0, 1.0, 0.0, 0.0, -1.0, -3.0], np.float32)


def sampler(*settings: dict[str, Any]) -> BatchSampler:
    """Of one row per settings; a row's seed is its place."""
    params = [SamplingParams(**keywords) for keywords in settings]
    return BatchSampler([Row(i, Request("", sampling=p), TextStream(None), seed=i) for i, p in enumerate(params)])


def probabilities(logits: np.ndarray, *settings: dict[str, Any]) -> np.ndarray:
    """(B, V): what the sampler would draw from."""
    return chances(sampler(*({"temperature": 1.0} | keywords for keywords in settings)), logits)


def chances(draw: BatchSampler, logits: np.ndarray) -> np.ndarray:
    """(B, V), from the scores of those tokens that are looked at."""
    out = np.zeros(logits.shape)
    for rows, group in draw.groups:
        ids, scores = group.truncate(mx.array(logits[rows]))
        ids = mx.broadcast_to(mx.arange(logits.shape[-1]), scores.shape) if ids is None else ids
        out[np.array(rows)[:, None], np.array(ids)] = np.array(mx.softmax(scores, axis=-1))
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    scaled = np.exp(logits.astype(np.float64) - logits.max())
    return scaled / scaled.sum()


def expected(
    logits: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """(V,) of one row without ties, in float64: temperature, then top_k, top_p and min_p, each on what is left."""
    chances = softmax(logits / temperature)
    order = np.argsort(-chances)
    if top_k > 0:
        chances[order[top_k:]] = 0
        chances /= chances.sum()
    if top_p < 1:
        before = np.cumsum(chances[order]) - chances[order]
        before[0] = -1  # the most likely one always stays
        chances[order[before >= top_p]] = 0
        chances /= chances.sum()
    chances[chances < min_p * chances.max()] = 0
    return chances / chances.sum()


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": -1},
    {"top_k": 64},
    {"top_k": 1000},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 3, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.9, "min_p": 0.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities(settings: dict[str, Any]) -> None:
    logits = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32) * 2
    for row in logits:
        assert probabilities(row[None], settings)[0] == pytest.approx(expected(row, **settings), abs=1e-6)


def test_probabilities_of_rows_together() -> None:
    """Every row has its settings, whatever the others have."""
    logits = np.random.default_rng(2).normal(size=(len(SETTINGS), 64)).astype(np.float32) * 2
    together = probabilities(logits, *SETTINGS)
    for row, got, settings in zip(logits, together, SETTINGS, strict=True):
        assert got == pytest.approx(expected(row, **settings), abs=1e-6)


@given(
    st.lists(st.integers(-6, 6), min_size=1, max_size=30),
    st.floats(0.1, 3),
    st.integers(-1, 40),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_truncation(scores: list[int], temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """With many ties: the most likely token always stays, nothing likelier than a kept token goes, and what stays
    keeps its proportions."""
    logits = np.array([scores], np.float32)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    [chances] = probabilities(logits, settings)
    remaining = chances > 0
    assert remaining[logits[0] == logits[0].max()].any()
    whole = softmax(logits[0] / temperature)
    assert remaining.all() or whole[remaining].min() > whole[~remaining].max() - 1e-6
    assert chances == pytest.approx(np.where(remaining, whole, 0) / whole[remaining].sum(), abs=1e-5)


def test_ties() -> None:
    """top_k and min_p keep or drop equals together; top_p keeps as few as reach it."""
    assert (probabilities(TIES[None], {"top_k": 2})[0] > 0).tolist() == [True] * 4 + [False] * 4
    assert (probabilities(TIES[None], {"min_p": float(np.exp(-1.001))})[0] > 0).tolist() == [True] * 4 + [False] * 4
    whole = softmax(TIES)
    remaining = probabilities(TIES[None], {"top_p": float(whole[:2].sum()) + 1e-3})[0] > 0
    assert remaining[0] and remaining[1:4].sum() == 2 and not remaining[4:].any()


def test_greedy() -> None:
    """Temperature 0 takes the first of the best, alone and beside rows that draw; other settings change nothing."""
    logits = mx.array(np.stack([-TIES, TIES, np.roll(TIES, 3)]))
    greedy: dict[str, Any] = {"temperature": 0.0, "top_k": 2, "top_p": 0.0, "min_p": 1.0}
    assert sampler(greedy, greedy, greedy)(logits, 0).tolist() == [7, 0, 3]
    assert np.array(sampler({"temperature": 1.0}, greedy, greedy)(logits, 0))[1:].tolist() == [0, 3]


def test_draw_keys_differ() -> None:
    """No two (seed, step) share a key, and a key depends on nothing else."""
    pairs = [(seed, step) for seed in (*range(60), -1, 2**63, 2**64 - 2) for step in range(60)]
    keys = {tuple(draw_key(*pair).tolist()) for pair in pairs}
    assert len(keys) == len(pairs)
    assert draw_key(3, 4).tolist() == draw_key(3, 4).tolist()
    assert draw_key(0, 0).dtype == np.uint32


@given(st.integers(-1, 2**64), st.integers(0, 3 * BLOCK) | st.integers(0, 2**32 - 1), st.integers(0, 1))
def test_draw_keys_are_numpys(seed: int, step: int, use: int) -> None:
    """Those that every answer so far was drawn with."""
    sequence = np.random.SeedSequence((seed % 2**64, step, use))
    assert draw_key(seed, step, use).tolist() == sequence.generate_state(2).tolist()


def test_draws_do_not_depend_on_neighbours() -> None:
    """A row's token for its seed and step, at any batch size, in any place."""
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 50}
    logits = mx.array(np.random.default_rng(3).normal(size=(9, 200)).astype(np.float32))
    together = np.array(sampler(*[settings] * 9)(logits, 7))
    for place in range(9):
        row = Row(0, Request("", sampling=SamplingParams(**settings)), TextStream(None), seed=place)
        assert BatchSampler([row])(logits[place : place + 1], 7).tolist() == [together[place]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1.5),
        ("seed", "x"),
        ("top_k", 1.5),
        ("max_tokens", 2.5),
        ("top_logprobs", 2.5),
        ("repetition_context_size", 2.5),
        ("presence_penalty", "x"),
        ("frequency_penalty", float("nan")),
    ],
)
def test_settings_that_are_no_numbers(name: str, value: Any) -> None:
    """Refused where they are given: in a step they would end every row that draws with theirs."""
    with pytest.raises(ValueError, match=f"{name}="):
        SamplingParams(**{name: value})
    assert SamplingParams(seed=np.int64(3), top_k=np.int32(2)).top_k == 2


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"temperature": 1.2, "top_k": 7, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize(("rows", "steps"), [(1, 2_000), (100, 200)])
def test_frequencies(settings: dict[str, Any], rows: int, steps: int) -> None:
    """Draws of one row, and 20,000 of a hundred, against the probabilities: chi-square at one in ten thousand."""
    logits = np.random.default_rng(4).normal(size=12).astype(np.float32)
    draw = sampler(*[settings] * rows)
    batch = mx.array(np.tile(logits, (rows, 1)))
    drawn = np.array(mx.concatenate([draw(batch, step) for step in range(steps)]))
    counts = np.bincount(drawn, minlength=12)
    chances = expected(logits, **settings)
    assert counts[chances == 0].sum() == 0
    possible = chances > 0
    mean = rows * steps * chances[possible]
    statistic = ((counts[possible] - mean) ** 2 / mean).sum()
    freedom = possible.sum() - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3  # Wilson and Hilferty
    assert statistic < limit


@pytest.mark.parametrize("count", [1, 5, 64, 100])
def test_top(count: int) -> None:
    """The best ids with their log-probabilities, best first; equals by id; no more than there are."""
    logits = np.random.default_rng(5).integers(-9, 9, 64).astype(np.float32)
    log_probabilities = np.log(softmax(logits))
    pairs = top(mx.array(logits), count)()
    assert len(pairs) == min(count, 64)
    assert [value for _, value in pairs] == pytest.approx(np.sort(log_probabilities)[::-1][:count], abs=1e-5)
    assert pairs == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    assert all(value == pytest.approx(log_probabilities[i], abs=1e-5) for i, value in pairs)


def test_log_softmax_is_float32() -> None:
    logits = mx.array(TIES).astype(mx.bfloat16)
    assert log_softmax(logits).dtype == mx.float32
    assert np.array(log_softmax(logits)) == pytest.approx(np.log(softmax(TIES)), abs=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 1.1}, {"top_p": -0.1}, {"min_p": 2}, {"top_k": -2}, {"max_tokens": -1}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        SamplingParams(**wrong)
