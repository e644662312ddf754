"""Twenty thousand draws of each setting against exact probabilities, a hundred thousand with `-m slow`: chi-square,
p > 0.001.

Rows draw through one vmapped call at any batch size; test_engine_sampling.py holds that one row draws what it draws in
a batch, and test_one_answer.py that it does in every mix.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from chi_square import limit, statistic

from mlx_vlgen import Request, SamplingParams
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.penalties import Penalties
from mlx_vlgen.engine.request import Row
from mlx_vlgen.engine.sampling import BatchSampler
from mlx_vlgen.engine.text import TextStream
from mlx_vlgen.inputs.prompt import Prompt

VOCABULARY, STEPS = 24, 100
LOGITS = np.random.default_rng(7).normal(size=VOCABULARY) * 2
ASKED, SAID = [1, 8], [3, 3, 8, 15, 3]


def softmax(scores: np.ndarray) -> np.ndarray:
    likely = np.exp(scores - scores[np.isfinite(scores)].max())
    return likely / likely.sum()


def only(scores: np.ndarray, remaining: np.ndarray) -> np.ndarray:
    return np.where(remaining, scores, -np.inf)


def nucleus(scores: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """The first tokens in `order` whose probability reaches `share`."""
    likely = softmax(scores)[order]
    remaining = np.zeros(len(scores), dtype=bool)
    remaining[order[: int(np.searchsorted(np.cumsum(likely), share)) + 1]] = True
    return only(scores, remaining)


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    return only(scores, scores >= np.sort(scores)[-k])


def top_p(scores: np.ndarray, p: float) -> np.ndarray:
    return nucleus(scores, np.argsort(-scores), p)


def min_p(scores: np.ndarray, p: float) -> np.ndarray:
    return only(scores, softmax(scores) >= p * softmax(scores).max())


def typical_p(scores: np.ndarray, p: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(softmax(scores))
        entropy = np.nansum(softmax(scores) * surprise)
    return nucleus(scores, np.argsort(np.abs(surprise - entropy)), p)


def top_n_sigma(scores: np.ndarray, n: float) -> np.ndarray:
    return only(scores, scores >= scores.max() - n * scores.std())


def penalized(scores: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    out = scores.copy()
    factor = settings.get("repetition_penalty", 1.0)
    for token in {*ASKED, *SAID}:
        out[token] = out[token] * factor if out[token] < 0 else out[token] / factor
    for token in set(SAID):
        count = SAID.count(token)
        out[token] -= settings.get("presence_penalty", 0) + count * settings.get("frequency_penalty", 0)
    return out


TRUNCATIONS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "top_n_sigma": top_n_sigma,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
}


def probabilities(settings: Mapping[str, Any]) -> np.ndarray:
    scores = penalized(LOGITS, settings) / settings["temperature"]
    for name, truncate in TRUNCATIONS.items():
        if name in settings:
            scores = truncate(scores, settings[name])
    return softmax(scores)


def row(seed: int, settings: dict[str, Any]) -> Row:
    made = Row(0, Request("", sampling=SamplingParams(**settings)), TextStream(None), seed=seed)
    made.prompt = Prompt(np.array(ASKED, dtype=np.int32))
    for token in SAID:
        made.record(token)
    return made


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "typical_p": 0.7},
        {"temperature": 1.0, "top_n_sigma": 1.0},
        {"temperature": 1.2, "top_k": 15, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
        {"temperature": 1.0, "repetition_penalty": 1.5},
        {"temperature": 0.8, "presence_penalty": 1.5},
        {"temperature": 0.8, "frequency_penalty": 0.6, "presence_penalty": -0.3, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_frequencies(settings: dict[str, Any], count: int) -> None:
    rows = [row(seed, settings) for seed in range(count)]
    scores = Penalties.of(rows, VOCABULARY)(mx.array(np.tile(LOGITS, (count, 1)).astype(np.float32)))
    draw = BatchSampler(rows)
    drawn = np.array(mx.concatenate([draw(scores, ahead) for ahead in range(STEPS)]))
    counts, chances = np.bincount(drawn, minlength=VOCABULARY), probabilities(settings)
    assert counts[chances == 0].sum() == 0
    # Tokens too rare for the statistic count as one.
    often = chances * count * STEPS >= 10
    mean = np.append(chances[often], chances[~often].sum()) * count * STEPS
    observed = np.append(counts[often], counts[~often].sum())
    mean, observed = mean[mean > 0], observed[mean > 0]
    assert statistic(observed, mean) < limit(len(mean) - 1)
