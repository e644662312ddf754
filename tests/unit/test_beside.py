"""Pictures encoded beside each other on a CPU."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants.family import Family
from invariants.play import Wrapped

from mlx_vlgen import _runtime
from mlx_vlgen._runtime import blas_threads, mx
from mlx_vlgen.engine import beside
from mlx_vlgen.inputs.prompt import Media, MediaInputs


@given(st.lists(st.integers(1, 4 * beside.LEAST), min_size=1, max_size=9), st.integers(1, 5))
def test_each_core_takes_about_as_much(sizes: list[int], count: int) -> None:
    parts = beside.split(sizes, count)
    assert sorted(place for part in parts for place in part) == list(range(len(sizes))) and 1 <= len(parts) <= count
    assert all(part and part == sorted(part) for part in parts)
    loads = [sum(sizes[place] for place in part) for part in parts]
    assert max(loads) <= min(loads) + max(sizes)
    assert len(parts) == 1 or sum(sizes) >= len(parts) * beside.LEAST


@pytest.fixture
def media(load_family: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch) -> list[Media]:
    """Five pictures, as two cores take them."""
    monkeypatch.setattr(beside, "LEAST", 1)
    monkeypatch.setattr(beside, "_cores", lambda: 2)
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 255, (40 + 20 * i, 60, 3), np.uint8) for i in range(5)]
    processor = load_family("qwen3_vl").processor
    return list(processor.prepare(processor.placeholders["image"] * 5, MediaInputs(images=pictures)).media)


def test_features_are_those_of_one_core(load_family: Callable[[str], Family], media: list[Media]) -> None:
    family, threads = load_family("qwen3_vl"), []

    def encode(some: Sequence[Media]) -> Any:
        threads.append((threading.get_ident(), len(some)))
        return family.model.encode(some)

    encoded = beside.encode(Wrapped(family.model, encode=encode), media)
    assert len({thread for thread, _ in threads}) == 2 and sum(count for _, count in threads) == 5
    for medium, ours in zip(media, encoded, strict=True):
        [alone] = family.model.encode([medium])
        assert mx.abs(ours.embeds - alone.embeds).max().item() < 2e-5


@pytest.mark.parametrize("fails", [0, 1])
def test_a_part_that_fails_is_raised_when_the_other_is_over(
    load_family: Callable[[str], Family], media: list[Media], fails: int
) -> None:
    over, here = [], threading.get_ident()

    def encode(some: Sequence[Media]) -> Any:
        if (threading.get_ident() == here) == (fails == 0):
            raise ValueError("a tower's fault")
        encoded = load_family("qwen3_vl").model.encode(some)
        over.append(len(some))
        return encoded

    with pytest.raises(ValueError, match="a tower's fault"):
        beside.encode(Wrapped(load_family("qwen3_vl").model, encode=encode), media)
    assert len(over) == 1


def test_threads_of_a_blas_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two limit them, and the first to come is the first to go."""
    counts = [8]
    monkeypatch.setattr(_runtime, "_thread_functions", lambda: (lambda: counts[-1], counts.append))
    first, second = blas_threads(2), blas_threads(4)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert counts == [8, 2, 2, 4, 8]


@pytest.mark.skipif(sys.platform != "linux", reason="MLX's wheels for other systems have a fast BLAS")
def test_the_blas_that_was_loaded_is_told() -> None:
    code = (
        "from mlx_vlgen._runtime import _thread_functions, blas, blas_threads\n"
        "get, set_to = _thread_functions(); set_to(2)\n"
        "with blas_threads(1): print(get())\n"
        "print(get() if blas() else 2)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MLX_VLGEN_BLAS"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.split() == ["1", "2"]
