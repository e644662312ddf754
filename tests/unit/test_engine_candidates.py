"""Draws from the best tokens only: the very tokens that are drawn from all of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_vlgen import Request, SamplingParams
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import logits as transforms
from mlx_vlgen.engine.draw_keys import draw_key
from mlx_vlgen.engine.request import Row
from mlx_vlgen.engine.sampling import BatchSampler
from mlx_vlgen.engine.text import TextStream


def row(seed: int, settings: dict[str, Any]) -> Row:
    return Row(0, Request("", sampling=SamplingParams(**settings)), TextStream(None), seed=seed)


def drawn_from_all(logits: mx.array, seed: int, step: int, s: SamplingParams) -> int:
    """One row's token from logits (V,), with every transform on the whole vocabulary, and MLX's draw."""
    if s.greedy:
        return int(mx.argmax(logits).item())
    scores = logits[None].astype(mx.float32) / mx.array([[s.temperature]])
    scores = transforms.top_n_sigma(scores, mx.array([[s.top_n_sigma]]))
    scores = transforms.top_k(scores, mx.array([[min(s.top_k, 9999)]]), max(s.top_k, 1))
    scores = transforms.top_p(scores, mx.array([[s.top_p]]))
    scores = transforms.min_p(scores, mx.array([[s.min_p]]))
    scores = transforms.typical_p(scores, mx.array([[s.typical_p]]))
    coin = mx.random.uniform(key=mx.array(draw_key(seed, step, 1)))
    chosen = (coin < s.xtc_probability).reshape(1, 1)
    scores = transforms.exclude_top_choices(scores, mx.array([[s.xtc_threshold]]), chosen)
    return int(mx.random.categorical(scores[0], key=mx.array(draw_key(seed, step))).item())


settings = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.5])},
    optional={
        "top_n_sigma": st.sampled_from([0.5, 2.0]),
        "top_k": st.sampled_from([-1, 1, 2, 20, 50, 150, 1000, 10**12]),
        "top_p": st.sampled_from([0.0, 0.3, 0.8, 0.95]),
        "min_p": st.sampled_from([0.01, 0.2]),
        "typical_p": st.sampled_from([0.3, 0.9]),
        "xtc_probability": st.sampled_from([0.5, 1.0]),
        "xtc_threshold": st.sampled_from([0.02, 0.1]),
    },
)


@given(
    vocabulary=st.sampled_from([65, 257, 1000, 4099]),
    rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), settings), min_size=1, max_size=5),
    step=st.integers(0, 9999),
    spread=st.sampled_from([0.5, 3.0]),
    forbidden=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_the_token_that_is_drawn_from_all(
    vocabulary: int, rows: list[tuple[int, dict[str, Any]]], step: int, spread: float, forbidden: float
) -> None:
    """For every setting and seed, alone and beside others, also where a form leaves a few tokens only."""
    random = np.random.default_rng(step)
    scores = random.normal(size=(len(rows), vocabulary)).astype(np.float32) * spread
    scores[:, 1:][random.random((len(rows), vocabulary - 1)) < forbidden] = -np.inf
    logits, made = mx.array(scores), [row(*one) for one in rows]
    together = BatchSampler(made)(logits, step).tolist()
    alone = [BatchSampler([one])(logits[i : i + 1], step).item() for i, one in enumerate(made)]
    expected = [drawn_from_all(logits[i], one.seed, step, one.sampling) for i, one in enumerate(made)]
    assert together == alone == expected


@pytest.mark.parametrize(("vocabulary", "count", "top_k"), [(997, 150, 1), (997, 150, 64), (151_936, 3, 20)])
def test_many_seeds(vocabulary: int, count: int, top_k: int) -> None:
    """At the settings of Qwen's Instruct models and the size of their vocabulary."""
    settings = {"temperature": 0.7, "top_p": 0.8, "top_k": top_k}
    logits = mx.array(np.random.default_rng(top_k).normal(size=(count, vocabulary)).astype(np.float32) * 2)
    rows = [row(seed, settings) for seed in range(count)]
    draw = BatchSampler(rows)
    for step in range(3):
        expected = [drawn_from_all(logits[i], one.seed, step, one.sampling) for i, one in enumerate(rows)]
        assert draw(logits, step).tolist() == expected


@given(
    vocabulary=st.integers(1, 700),
    share=st.floats(0.01, 1),
    levels=st.sampled_from([3, 1000]),
    seed=st.integers(0, 99),
    forbidden=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_best(vocabulary: int, share: float, levels: int, seed: int, forbidden: float) -> None:
    """Distinct ids of the vocabulary, ascending, and none better is left out."""
    random, count = np.random.default_rng(seed), max(1, int(share * vocabulary))
    scores = random.integers(0, levels, (3, vocabulary)).astype(np.float32)
    scores[random.random(scores.shape) < forbidden] = -np.inf
    ids = np.array(transforms.best(mx.array(scores), count))
    for found, of_row in zip(ids, scores, strict=True):
        assert (np.diff(found.astype(np.int64)) > 0).all() and found[-1] < vocabulary
        assert np.sort(of_row[found]).tolist() == np.sort(of_row)[vocabulary - count :].tolist()


def test_ties_with_the_last_stay() -> None:
    """As many as the candidates hold."""
    scores = np.zeros((1, 500), np.float32)
    scores[0, 100:120] = 1.0
    [(_, group)] = BatchSampler([row(0, {"temperature": 1.0, "top_k": 5})]).groups
    ids, remaining = group.truncate(mx.array(scores))
    assert np.array(ids)[0, np.isfinite(np.array(remaining)[0])].tolist() == list(range(100, 120))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 200)),
    nucleus=st.integers(1, 40),
    shares=st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.999, 1.0]), min_size=3, max_size=3),
    levels=st.sampled_from([2, 7, 10**6]),
    min_keep=st.integers(1, 6),
    seed=st.integers(0, 99),
    forbidden=st.sampled_from([0.0, 0.9]),
)
@example(shape=(1, 200), nucleus=20, shares=[0.2], levels=2, min_keep=1, seed=8, forbidden=0.0)  # ends among equals
def test_a_nucleus_is_that_of_the_whole_order(
    shape: tuple[int, int],
    nucleus: int,
    shares: list[float],
    levels: int,
    min_keep: int,
    seed: int,
    forbidden: float,
) -> None:
    """The very tokens, of equal ones too, wherever it ends and whatever rows stand beside it."""
    random = np.random.default_rng(seed)
    scores = (random.integers(0, levels, shape) * (8 / levels)).astype(np.float32)
    scores[:, 1:][random.random((shape[0], shape[1] - 1)) < forbidden] = -np.inf
    for transform in (transforms.top_p, transforms.typical_p):
        found = []
        for size in (nucleus, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(transforms, "NUCLEUS", size)
                share = mx.array(shares[: shape[0]])[:, None]
                found.append(np.array(transform(mx.array(scores), share, min_keep)))
        assert np.array_equal(*found)


def test_a_narrow_nucleus_sorts_no_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, sort = list[int](), mx.argsort

    def counting(array: mx.array, axis: int) -> mx.array:
        sizes.append(array.shape[-1])
        return sort(array, axis=axis)

    monkeypatch.setattr(transforms, "NUCLEUS", 64)
    monkeypatch.setattr(mx, "argsort", counting)
    scores = mx.array(np.random.default_rng(8).permutation(3000).astype(np.float32))[None]
    for settings in ({"top_p": 0.9}, {"typical_p": 0.9}, {"top_p": 0.99, "min_p": 0.01}):
        BatchSampler([row(0, {"temperature": 1.0, **settings})])(scores, 0)
    assert sizes == [64] * 3
