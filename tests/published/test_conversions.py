"""Quantized conversions of published checkpoints: tensors by their shapes, one recipe or a mix of several, with towers
quantized or not, and formats that only their authors' programs read."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.errors import LoadError
from mlx_vlgen.loading.checkpoint import check_config
from mlx_vlgen.loading.quantization import dequantize_tables, quantize_as_stored
from mlx_vlgen.models.base import Model

from .folding import first_layers, unfold
from .test_published import CONFIGS, INDEXES, TENSORS, build, parameters

Recipe = Mapping[str, int]
EIGHT = {"bits": 8, "group_size": 64}
FOUR = {"bits": 4, "group_size": 64}


def packed(shape: tuple[int, ...], bits: int, group_size: int) -> dict[str, mx.array]:
    """What a quantized weight is stored as."""
    *rows, width = shape
    scales = mx.zeros((*rows, width // group_size), mx.bfloat16)
    return {"weight": mx.zeros((*rows, width * bits // 32), mx.uint32), "scales": scales, "biases": scales}


def conversion(model: Model, recipe: Callable[[str], Recipe | None]) -> dict[str, mx.array]:
    """The tensors of a conversion for MLX under its names. recipe: of a layer's path, how it is quantized."""
    layers = {path: recipe(path) for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    tensors = {}
    for name, tensor in tree_flatten(model.parameters()):
        path, _, part = name.rpartition(".")
        settings = layers.get(path) if part == "weight" else None
        fits = settings and tensor.shape[-1] % settings["group_size"] == 0
        parts = packed(tensor.shape, **settings) if settings and fits else {part: tensor}
        for key, value in parts.items():
            names = model.published(f"{path}.{key}" if path else key)
            tensors |= zip(names, mx.split(value, len(names)) if len(names) > 1 else [value], strict=True)
    return tensors


def load(model: Model, tensors: Mapping[str, mx.array]) -> dict[str, Recipe]:
    """Give `model` these tensors, as `loader.fill` does, and return how each of its layers is quantized."""
    weights = dequantize_tables(model, model.sanitize(tensors))
    quantize_as_stored(model, weights)
    assert {name: tensor.shape for name, tensor in weights.items()} == parameters(model)
    return {
        path: {"bits": module.bits, "group_size": module.group_size}
        for path, module in model.named_modules()
        if "scales" in module
    }


def test_a_published_mix_of_four_and_eight_bits_with_a_float_tower() -> None:
    """Qwen3.8-27B-MTPLX: entries by path in config.json, none for the tower; what is stored decides."""
    eight = re.compile(r"lm_head|embed_tokens|linear_attn\.out_proj|layers\.(?:[0-3]|6[0-3])\.mlp\.")
    model = build("Qwen3.5-27B")
    names = unfold(INDEXES["Qwen3.5-27B, mixed 4 and 8 bits"])
    layers = {name.removesuffix(".scales") for name in names if name.endswith(".scales")}
    expected = {path: EIGHT if eight.search(path) else {"bits": 4, "group_size": 32} for path in layers}
    tensors = conversion(model, expected.get)
    assert tensors.keys() == names.keys()
    assert load(model, tensors) == expected
    assert not any(path.startswith("vision_tower") for path in layers)


TEXT_ONLY = ("Qwen3.5-9B", "Qwen3-VL-30B-A3B-Instruct", "gemma-4-26B-A4B", "Llama-3.2-11B-Vision-Instruct")
WITH_TOWERS = ("Qwen3-VL-2B-Instruct", "Qwen2.5-VL-3B-Instruct", "llava-1.5-7b-hf", "SmolVLM-256M-Instruct")


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_a_quantized_text_decoder_beside_a_float_tower(name: str) -> None:
    model = build(name)
    found = load(model, conversion(model, lambda path: EIGHT if path.startswith(model.text_prefix) else None))
    assert found and all(settings == EIGHT and path.startswith(model.text_prefix) for path, settings in found.items())


@pytest.mark.parametrize("name", WITH_TOWERS)
def test_a_quantized_tower(name: str) -> None:
    """In older conversions: whatever divides into groups, tables of positions too."""
    model = build(name)
    found = load(model, conversion(model, lambda path: FOUR))
    assert all(settings == FOUR for settings in found.values())
    assert any(not path.startswith(model.text_prefix) for path in found)


def test_the_integers_that_kimi_k2_5_is_published_in() -> None:
    """Its experts are packed by compressed-tensors, four bits in groups of 32, and all else is bfloat16; of two layers,
    which are all alike but for the first."""
    model = build("Kimi-K2.5", layers=2)
    tensors: dict[str, mx.array] = {}
    for name, shape in unfold(first_layers(TENSORS["Kimi-K2.5: saved"], 2)).items():
        if ".experts." not in name:
            tensors[name] = mx.zeros(shape, mx.bfloat16)
            continue
        path = name.removesuffix("weight")
        tensors[f"{path}weight_packed"] = mx.zeros((shape[0], shape[1] // 8), mx.int32)
        tensors[f"{path}weight_scale"] = mx.zeros((shape[0], shape[1] // 32), mx.bfloat16)
        tensors[f"{path}weight_shape"] = mx.zeros((2,), mx.int32)
    found = load(model, tensors)
    assert len(found) == 3 and all(settings == {"bits": 4, "group_size": 32} for settings in found.values())


# What each says of its weights, and what the refusal names.
FORMATS: list[tuple[str, dict[str, Any], str]] = [
    ("Qwen3.5-122B-A10B", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "'modelopt' (NVFP4)"),
    ("Qwen3.5-35B-A3B", {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "'modelopt' (MIXED_PRECISION)"),
    ("gemma-4-31B-it", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "'modelopt' (NVFP4)"),
    ("Kimi-K2.5", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "'modelopt' (NVFP4)"),
    (
        "Llama-4-Scout-17B-16E-Instruct",
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        "'compressed-tensors' (float-quantized)",
    ),
    ("Qwen2.5-VL-3B-Instruct", {"quant_method": "auto-round", "bits": 4}, "'auto-round'"),
    ("Qwen2.5-VL-3B-Instruct", {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
]


@pytest.mark.parametrize(("name", "quantization", "named"), FORMATS)
def test_other_formats_are_refused_by_name_before_anything_is_read(
    name: str, quantization: dict[str, Any], named: str
) -> None:
    with pytest.raises(LoadError, match=r"quantization=") as refused:
        check_config(CONFIGS[name] | {"quantization_config": quantization})
    assert named in str(refused.value)


def test_formats_that_are_read() -> None:
    check_config(CONFIGS["Kimi-K2.5"] | {"quantization_config": {"quant_method": "compressed-tensors"}})
    check_config(CONFIGS["Devstral-Small-2-24B-Instruct-2512"] | {"quantization_config": {"quant_method": "fp8"}})
    check_config(CONFIGS["Qwen3.5-9B"] | dict.fromkeys(("quantization", "quantization_config"), EIGHT))
