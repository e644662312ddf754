"""Peak memory against what it is made of: `benchmarks/memory.py` states the formulas."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CLOSE = 1.5
"""A bound that is further from the peak would say nothing."""


@pytest.fixture(scope="module")
def memory() -> Iterator[Any]:
    """The benchmark, with a shape that MLX's BLAS can compute."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        module = importlib.import_module("memory")
        shape = importlib.import_module("shapes").shape(128, 256, 2, 1, 1, 64, 1, 8192)
        shape["vision_config"]["deepstack_visual_indexes"] = [0]
        patch.setitem(module.SIZES, "test", shape)
        yield module


def check_prefill(memory: Any, length: int, chunk: int) -> None:
    model, processor = memory.build("test", None)
    length, peak = memory.prefill_peak(model, processor, length, chunk)
    terms = memory.prefill_terms(model.config["text_config"], length, chunk, 4)
    bound = memory.weight_bytes(model) + sum(terms.values())
    assert peak <= bound < CLOSE * peak, (peak, bound, terms)


def check_pictures(
    memory: Any, count: int, max_pixels: int, step: int, source: tuple[int, int]
) -> tuple[float | None, float]:
    """How much the process grew, and its bound."""
    model, processor = memory.build("test", None)
    length, peak, grown = memory.image_peak(model, processor, count, 4, max_pixels, step, source)
    terms = memory.image_terms(model.config, length, 4, max_pixels, step, 4)
    bound = memory.weight_bytes(model) + sum(terms.values())
    assert peak <= bound < CLOSE * peak, (peak, bound, terms)
    host = memory.host_terms(length, source, max_pixels, step)
    return grown, peak + sum(host.values())


@pytest.mark.parametrize("chunk", [64, 512])
def test_a_prompt_takes_the_memory_of_its_formula(memory: Any, chunk: int) -> None:
    check_prefill(memory, 2048, chunk)


def test_pictures_take_the_memory_of_their_formula(memory: Any) -> None:
    """Whatever their number: 4 and 12 of them have one bound, close to both peaks."""
    for count in (4, 12):
        check_pictures(memory, count, max_pixels=65536, step=128, source=(450, 600))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [256, 2048])
def test_a_16k_prompt_takes_the_memory_of_its_formula(memory: Any, chunk: int) -> None:
    check_prefill(memory, 16384, chunk)


@pytest.mark.slow
def test_fifty_12_megapixel_pictures_take_the_memory_of_their_formula(memory: Any) -> None:
    grown, bound = check_pictures(memory, 50, max_pixels=1048576, step=2048, source=(3000, 4000))
    assert grown is None or grown <= bound, (grown, bound)
