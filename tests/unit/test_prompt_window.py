"""Layers that see the whole prompt and of the answer only its end."""

import numpy as np
import pytest

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.models.base import PromptWindow

WINDOW = 3
KIND = PromptWindow(WINDOW)


def step(cache: kv.Cache, count: int, rows: int = 1) -> np.ndarray:
    """What `count` more tokens a row may attend to: bool (rows, count, keys)."""
    mask = cache[0].make_mask(count)
    keys, _ = cache[0].update_and_fetch(*[mx.zeros((rows, 1, count, 4))] * 2)
    total = keys.shape[2]
    if mask is None or isinstance(mask, str):
        mask = mx.arange(total) <= mx.arange(total - count, total)[:, None]
    return np.array(mx.broadcast_to(mask, (rows, 1, count, total))[:, 0])


def seen(position: int, prompt: int) -> list[int]:
    return [key for key in range(position + 1) if key < prompt or key > position - WINDOW]


def alone(prompt: int, chunk: int) -> kv.Cache:
    """A row whose prompt is through."""
    cache = kv.make_cache([KIND], prompts=[prompt])
    for start in range(0, prompt, chunk):
        mask = step(cache, min(chunk, prompt - start))
        for query, row in enumerate(mask[0], start):
            assert np.flatnonzero(row).tolist() == list(range(query + 1))
    return cache


@pytest.mark.parametrize("chunk", [1, 2, 9])
@pytest.mark.parametrize("count", [1, 2])
def test_a_row(chunk: int, count: int) -> None:
    """Any chunk of the prompt sees all of it before; then each token, or some together, as the window says."""
    cache = alone(5, chunk)
    for start in range(5, 15, count):
        for query, row in enumerate(step(cache, count)[0], start):
            assert np.flatnonzero(row).tolist() == seen(query, 5)


def test_rows_with_prompts_of_unlike_length() -> None:
    """Packed, joined late, and left behind: each by its prompt."""
    cache = kv.make_cache([KIND], padded=[4, 2], prompts=[4, 2])
    step(cache, 4, rows=2)
    kv.finalize(cache)
    for _ in range(4):
        step(cache, 1, rows=2)
    kv.join(cache, alone(7, 3), 2)
    prompts, lengths = [4, 2, 7], [8, 6, 7]
    for _ in range(5):
        for row, mask in enumerate(step(cache, 1, rows=3)[:, 0]):
            assert np.flatnonzero(mask).tolist() == seen(lengths[row], prompts[row])
            lengths[row] += 1
    kv.select(cache, [0, 2])
    for place, row in enumerate((0, 2)):
        assert np.flatnonzero(step(kv.take(cache, [place]), 1)[0, 0]).tolist() == seen(lengths[row], prompts[row])


def test_only_the_prompt_is_of_use_to_others() -> None:
    cache = alone(5, 5)
    step(cache, 4)
    assert sum(run.size for run in cache[0].stored(0, 0, 9)) == 5
    assert cache[0].stored(0, 6, 9) == []


def test_settings() -> None:
    """All of it is stored whole; positions can be taken back."""
    assert kv.can_roll_back([KIND], KVSettings())
    assert kv.unquantized([KIND], KVSettings(bits=8)) == [KIND]
