"""Published checkpoints, built from what their config.json says, without weights: MLX makes no array before it is used,
so that the largest take no memory. Every tensor's name finds its parameter and its shape; layers, windows, rotary
frequencies and vocabularies are those that transformers builds.

configs.json has configurations as published, trimmed to what a network is made of, and those that sizes.py writes.
"""

import functools
import json
import re
from collections.abc import Iterable
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
from .folding import Shape, first_layers, read_sections, unfold

FOLDER = Path(__file__).parent
CONFIGS: dict[str, dict[str, Any]] = json.loads((FOLDER / "configs.json").read_text())
FACTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "facts.json").read_text())
TENSORS = read_sections(FOLDER / "tensors.txt")
INDEXES = read_sections(FOLDER / "indexes.txt")
SIGLIP_HEAD = 15_238_352
"""Parameters of SigLIP so400m's pooling head, which some checkpoints hold and no text decoder takes."""

# (parameters that its files hold, positions). Where a page or an index of weights says how many there are, they are
# these; of Qwen 3.5, Gemma 4, LFM2.5, JoyCaption, DeepSeek-OCR-2 and Unlimited-OCR, as first counted here.
PUBLISHED = {
    "SmolVLM-256M-Instruct": (256_484_928, 8192),
    "InternVL2-4B": (4_146_855_936, 131072),
    "InternVL3-1B": (938_193_024, 32768),
    "Qwen2-VL-7B-Instruct": (8_291_375_616, 32768),
    "Qwen2.5-VL-7B-Instruct": (8_292_166_656, 128000),
    "olmOCR-2-7B-1025": (8_292_166_656, 128000),
    "Qwen3-VL-2B-Instruct": (2_127_532_032, 262144),
    "Qwen3-VL-4B-Instruct": (4_437_815_808, 262144),
    "Qwen3-VL-8B-Instruct": (8_767_123_696, 262144),
    "Qwen3-VL-32B-Instruct": (33_357_390_064, 262144),
    "Qwen3-VL-30B-A3B-Instruct": (31_070_754_032, 262144),
    "Qwen3-VL-235B-A22B-Instruct": (235_670_022_896, 262144),
    "Qwen3.5-9B": (9_409_813_744, 262144),
    "Qwen3.5-27B": (27_356_728_560, 262144),
    "Qwen3.5-35B-A3B": (35_107_181_936, 262144),
    "Qwen3.5-122B-A10B": (122_562_817_776, 262144),
    "Qwen3.5-397B-A17B": (396_802_360_816, 262144),
    "gemma-4-26B-A4B": (25_805_936_206, 262144),
    "llava-v1.6-mistral-7b-hf": (7_566_747_648, 32768),
    "Mistral-Small-3.2-24B-Instruct-2506": (24_011_361_280, 131072),
    "Devstral-Small-2-24B-Instruct-2512": (24_011_361_280, 393216),
    "GLM-4.5V": (107_710_933_120, 65536),
    "LFM2.5-VL-1.6B": (1_596_625_904, 128000),
    "granite-vision-3.2-2b": (2_975_396_928 - SIGLIP_HEAD, 131072),
    "DeepSeek-OCR": (3_336_106_240 - 1024 * 3 * 14 * 14, 8192),  # without CLIP's patches, which SAM's stand for
    "DeepSeek-OCR-2": (3_389_119_360, 8192),
    "Unlimited-OCR": (3_335_504_128, 32768),
    "llama-joycaption-beta-one-hf-llava": (8_479_990_848 - SIGLIP_HEAD, 131072),
}


def build(name: str, layers: int | None = None) -> Model:
    """layers: how many of the text decoder's; None for all."""
    config = CONFIGS[name]
    if layers is not None:
        config = with_layers(config, layers)
    return find(config).model_class()(config)


@functools.cache
def network(name: str) -> Model:
    """The whole, for tests that do not change it."""
    return build(name)


def with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    if "thinker_config" in config:
        return config | {"thinker_config": with_layers(config["thinker_config"], layers)}
    if "text_config" not in config:
        return config | {"num_hidden_layers": layers}
    text = config["text_config"] | {"num_hidden_layers": layers}
    cut = {key: text[key][:layers] for key in ("layer_types", "mlp_layer_types") if key in text}
    return config | {"text_config": text | cut}


def place(model: Model, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """The shapes of what `model` makes of tensors of these names and shapes."""
    weights = model.sanitize({name: mx.zeros(shape, mx.bfloat16) for name, shape in shapes.items()})
    return {name: tensor.shape for name, tensor in weights.items()}


def parameters(model: Model) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tree_flatten(model.parameters())}


def experts(lines: list[str]) -> bool:
    """Whether experts are apart, of which the largest models have 90,000 tensors."""
    return any(".experts.{" in line for line in lines)


def check_names(model: Model, lines: Iterable[str]) -> None:
    placed = place(model, unfold(lines))
    assert placed == parameters(model)  # without an output layer where there is none


@pytest.mark.parametrize("name", FACTS)
def test_a_checkpoint_is_what_transformers_builds(name: str) -> None:
    """Layers, rotary positions and tensors; of models with experts, the tensors of the first layers, which are of all
    kinds."""
    untied = "gemma3" not in CONFIGS[name]["model_type"]  # else placing changes it
    model = network(name) if untied else build(name)
    check_layers(model, FACTS[name])
    sections = [lines for section, lines in TENSORS.items() if section.rpartition(":")[0] == name]
    few = any(map(experts, sections))
    for number, lines in enumerate(sections):  # what has no output layer takes it away from the network
        placed = build(name, 4 if few else None) if few or number else model
        check_names(placed, first_layers(lines, 4) if few else lines)


@pytest.mark.slow
@pytest.mark.parametrize("section", [section for section, lines in TENSORS.items() if experts(lines)])
def test_every_expert_of_every_layer_finds_its_parameter(section: str) -> None:
    check_names(build(section.rpartition(":")[0]), TENSORS[section])


@pytest.mark.parametrize("name", [name for name in INDEXES if "," not in name])
def test_every_name_of_a_published_index_finds_its_parameter(name: str) -> None:
    model = build(name)
    known = {model.rename(key): shape for key, shape in unfold(TENSORS.get(f"{name}: saved", [])).items()}
    expected = parameters(model)

    def shape(key: str) -> Shape:
        new = model.rename(key)
        if new is None:
            return ()
        stacked = re.sub(r"\.experts\.\d+\.", ".switch_mlp.", new)
        return known.get(new) or expected.get(new) or expected[stacked][1:]

    placed = place(model, {key: shape(key) for key in unfold(INDEXES[name])})
    assert placed == parameters(model)  # without an output layer where the index has none


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


def check_layers(model: Model, facts: dict[str, Any]) -> None:
    """Kinds, windows, vocabulary and rotary frequencies."""
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
        np.testing.assert_allclose(np.sort(found)[::-1][chosen], values, rtol=2e-5, atol=1e-9)
        assert scale == pytest.approx(scaling, rel=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_makes_a_network_of_its_size(name: str) -> None:
    model = network(name)
    count = sum(value.size for _, value in tree_flatten(model.parameters()))
    assert (count, model.max_positions) == PUBLISHED[name]
    assert len(model.cache_layout()) == model.driver.arguments["num_hidden_layers"]


def test_granite_visions_pictures_are_cut_as_its_configuration_says() -> None:
    config = CONFIGS["granite-vision-3.2-2b"]
    assert build("granite-vision-3.2-2b").multi_modal_projector.linear_1.weight.shape == (2048, 4 * 1152)
    settings = {"size": {"height": 384, "width": 384}, "crop_size": {"height": 384, "width": 384}}
    pictures = AnyRes.read(settings, config, [], CLIP_MEAN, CLIP_STD)
    assert (len(pictures.canvases), pictures.patches) == (26, 27)
    assert pictures.layout((384, 3840))[:2] == (1, 10)
    assert pictures.layout((1100, 1100)) == (3, 3, 81, 81)


def test_the_rows_of_documented_sizes_are_those_of_sizes_py() -> None:
    assert {name: CONFIGS[name] for name in sizes.CONFIGS} == json.loads(json.dumps(sizes.CONFIGS))
