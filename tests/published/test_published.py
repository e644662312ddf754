"""Published checkpoints, built from what their config.json says, without weights: MLX makes no array before it is used,
so that the largest take no memory. Every tensor's name finds its parameter and its shape; layers, windows, rotary
frequencies and vocabularies are those that transformers builds.

configs.json has configurations as published, trimmed to what a network is made of, and those that sizes.py writes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.inputs.anyres import AnyRes
from mlx_vlgen.inputs.images import CLIP_MEAN, CLIP_STD
from mlx_vlgen.models import find
from mlx_vlgen.models.base import CrossAttention, Full, Model, Recurrent, Sliding

from . import sizes
from .folding import Shape, read_sections, unfold

FOLDER = Path(__file__).parent
CONFIGS: dict[str, dict[str, Any]] = json.loads((FOLDER / "configs.json").read_text())
FACTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "facts.json").read_text())
TENSORS = read_sections(FOLDER / "tensors.txt")


def build(name: str) -> Model:
    return find(CONFIGS[name]).model_class()(CONFIGS[name])


def place(model: Model, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """The shapes of what `model` makes of tensors of these names and shapes."""
    weights = model.sanitize({name: mx.zeros(shape, mx.bfloat16) for name, shape in shapes.items()})
    return {name: tensor.shape for name, tensor in weights.items()}


def parameters(model: Model) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tree_flatten(model.parameters())}


@pytest.mark.parametrize("section", TENSORS)
def test_every_tensor_finds_its_parameter(section: str) -> None:
    model, shapes = build(section.rpartition(":")[0]), unfold(TENSORS[section])
    assert place(model, shapes) == parameters(model)


def kinds(model: Model) -> tuple[str, set[tuple[str, int]]]:
    """A letter for each layer's kind, as in facts.json, and the windows there are."""
    letters, windows = "", set()
    for layer in model.cache_layout():
        match layer:
            case Full():
                letters += "F"
            case Sliding(window, chunked):
                letters += "C" if chunked else "S"
                windows.add((letters[-1], window))
            case CrossAttention():
                letters += "X"
            case Recurrent(size):
                letters += "V" if size == 1 else "L"
    return letters, windows


def frequencies(rope: Any, count: int, width: int) -> tuple[np.ndarray, float]:
    """By how much a rotary module turns its `count` pairs of values (of `width`) from one position to the next, and
    what it multiplies them by."""
    first = np.eye(1, width, dtype=np.float32)
    step = int(np.argmax(np.abs(turn(rope, first)[1:]))) + 1  # from a pair's first value to its second
    ones = np.arange(count) * (2 if step == 1 else 1)
    first[0, ones] = 1
    turned = turn(rope, first)
    cos, sin = turned[ones], turned[ones + step]
    return np.arctan2(sin, cos), float(np.hypot(sin, cos)[-1])


def turn(rope: Any, values: np.ndarray) -> np.ndarray:
    return np.array(rope(mx.array(values)[None, None], offset=1)).reshape(-1)


@pytest.mark.parametrize("name", FACTS)
def test_layers_and_rotary_positions_are_those_of_transformers(name: str) -> None:
    model, facts = build(name), FACTS[name]
    letters, windows = kinds(model)
    assert letters == facts["layers"]
    assert windows == {(kind, facts["window"][kind]) for kind in set(letters) & {"S", "C"}}
    assert model.vocab_size == facts["vocabulary"]
    for kind, (count, values, scaling) in facts["rope"].items():
        letter = {"full_attention": "F", "sliding_attention": "S"}.get(kind)
        layers = [
            layer.self_attn
            for layer, of in zip(model.text_decoder().layers, letters, strict=False)
            if letter in (None, of) and getattr(getattr(layer, "self_attn", None), "rope", None) is not None
        ]
        rope = layers[0].rope
        found, scale = frequencies(getattr(rope, "rope", rope), count, 2 * count)  # Llama 4's normalises, too
        chosen = [0, count // 4, count // 2, 3 * count // 4, count - 1]
        np.testing.assert_allclose(found[chosen], values, rtol=2e-5, atol=1e-9)
        assert scale == pytest.approx(scaling, rel=1e-5)
