"""Random numbers of single tokens are those that MLX draws for all of them, and the best token is MLX's."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import logits as transforms
from mlx_vlgen.engine.noise import noise_of


@example(seed=0, rows=1, vocabulary=1, count=1)
@example(seed=1, rows=2, vocabulary=2, count=2)
@example(seed=2, rows=32, vocabulary=151_937, count=64)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    vocabulary=st.integers(1, 5000),
    count=st.integers(1, 128),
)
def test_bit_by_bit(seed: int, rows: int, vocabulary: int, count: int) -> None:
    random = np.random.default_rng(seed)
    keys = random.integers(0, 2**32, (rows, 2), dtype=np.uint32)
    places = random.integers(0, vocabulary, (rows, count), dtype=np.uint32)
    every = [mx.random.uniform(shape=(vocabulary,), key=mx.array(key)) for key in keys]
    expected = np.stack([np.array(row)[of_row] for row, of_row in zip(every, places, strict=True)])
    assert np.array_equal(np.array(noise_of(keys, mx.array(places), vocabulary)), expected)
    assert np.array_equal(np.array(noise_of(keys, None, vocabulary)), np.stack([np.array(row) for row in every]))


def test_never_one() -> None:
    """These bits would be rounded to 1, whose noise is infinite: MLX takes the number below."""
    key, place, every = np.array([[5, 5]], dtype=np.uint32), mx.array([[499_911]]), 1 << 22
    known = mx.random.uniform(shape=(every,), key=mx.array(key[0]))[place]
    assert noise_of(key, place, every).item() == known.item() == np.float32(1) - np.float32(2**-24)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 0.5, 50.0])
def test_the_first_of_the_best(dtype: mx.Dtype, spread: float) -> None:
    scores = np.round(np.random.default_rng(0).normal(size=(7, 3001)).astype(np.float32) * spread)
    scores[3, :] = -np.inf
    logits = mx.array(scores).astype(dtype)
    best = transforms.most_likely(logits)
    assert best.dtype == mx.int32
    assert (
        best.tolist() == mx.argmax(logits, axis=-1).tolist() == np.array(logits.astype(mx.float32)).argmax(1).tolist()
    )
