"""Qwen3.5: what a silent configuration means, what is refused, and what the Hub's weights become."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invariants.family import Family
from parity.layouts import write_checkpoint

import mlx_vlgen
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError
from mlx_vlgen.models.base import Full, Recurrent
from mlx_vlgen.models.decoders import text_arguments as known_arguments
from mlx_vlgen.models.grids import Grids
from mlx_vlgen.models.qwen3_5 import stack_experts, text_arguments
from mlx_vlgen.models.qwen3_vl import Qwen3VLVisionConfig, VisionTower

TYPES = ("qwen3_5", "qwen3_5_moe")


def arguments(model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    return known_arguments(text_arguments({"model_type": model_type, "text_config": text}))


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}, "irregular"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, "no linear_attention layer"),
        ({"num_hidden_layers": 3, "layer_types": ["linear_attention"] * 3}, "no full_attention layer"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e7}}, "'yarn'"),
    ],
)
def test_what_the_decoder_would_leave_out_is_refused(model_type: str, change: dict[str, Any], message: str) -> None:
    arguments(model_type, {})
    with pytest.raises(LoadError, match=message):
        arguments(model_type, change)


def test_a_silent_configuration_means_what_transformers_assumes() -> None:
    dense, experts = (arguments(model_type, {}) for model_type in TYPES)
    assert (dense["partial_rotary_factor"], dense["rope_theta"]) == (0.25, 10_000.0)
    assert (dense["num_experts"], experts["num_experts"]) == (0, 256)
    assert arguments("qwen3_5_moe", {"norm_topk_prob": False})["norm_topk_prob"]  # its router does not ask


def test_the_configuration_stays_as_it_was(load_family: Callable[[str], Family]) -> None:
    """mlx-lm's arguments rename their input in its place."""
    rotary = load_family("qwen3_5").model.config["text_config"]["rope_parameters"]
    assert rotary["rope_type"] == "default" and "type" not in rotary


def test_only_every_fourth_layer_has_keys(load_family: Callable[[str], Family]) -> None:
    assert load_family("qwen3_5_moe").model.cache_layout() == [Recurrent(2), Recurrent(2), Recurrent(2), Full()]


def test_the_hubs_half_precision_norms_are_added_to_in_float32(tmp_path: Path) -> None:
    """As transformers adds; in bfloat16 1 + weight has seven bits."""
    folder = write_checkpoint("qwen3_5", "hub", tmp_path)
    halves: dict[str, mx.array] = {}
    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.astype(mx.bfloat16) for name, tensor in mx.load(str(file)).items()}
        mx.eval(tensors)
        mx.save_safetensors(str(file), tensors, {"format": "pt"})
        halves |= tensors
    text = mlx_vlgen.load(folder, dtype="float32")[0].language_model.model
    for name, norm in [("norm", text.norm), ("layers.1.self_attn.k_norm", text.layers[1].self_attn.k_norm)]:
        stored = halves[f"model.language_model.{name}.weight"].astype(mx.float32)
        assert mx.array_equal(norm.weight, stored + 1)
        assert not mx.array_equal(norm.weight, (stored + 1).astype(mx.bfloat16))


def test_single_experts_are_stacked_by_their_numbers() -> None:
    stem = "model.layers.0.mlp"
    single = {f"{stem}.experts.{i}.up_proj.weight": mx.full((2, 3), i) for i in (10, 2, 1)}
    stacked = stack_experts(single | {f"{stem}.gate.weight": mx.zeros((3, 3))})
    assert stacked.keys() == {f"{stem}.gate.weight", f"{stem}.switch_mlp.up_proj.weight"}
    assert stacked[f"{stem}.switch_mlp.up_proj.weight"][:, 0, 0].tolist() == [1, 2, 10]


def test_the_towers_rotary_base_is_the_configurations() -> None:
    sizes = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 8}
    silent = VisionTower(Qwen3VLVisionConfig.from_dict(sizes))
    pixels, grid = mx.random.normal((1, 16, 3 * 2 * 16 * 16), key=mx.random.key(0)), Grids(((1, 4, 4),))

    def encode(theta: float) -> mx.array:
        tower = VisionTower(Qwen3VLVisionConfig.from_dict(sizes | {"rope_parameters": {"rope_theta": theta}}))
        tower.update(silent.parameters())
        return tower(pixels, grid)[0]

    assert mx.array_equal(encode(10_000.0), silent(pixels, grid)[0])
    assert not mx.allclose(encode(100.0), silent(pixels, grid)[0])
