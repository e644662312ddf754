"""load(): types of numbers, quantized checkpoints, and quantization while loading."""

import numpy as np
import pytest
from tiny_checkpoints import (
    LLAMA,
    QWEN3_MOE,
    QWEN3_VL,
    draw,
    forbid_network,
    load_error,
    logits,
    parameters,
    write,
)

from mlx_vlgen._runtime import mx, nn
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.inputs.processor import TextProcessor
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor
from mlx_vlgen.loading import load
from mlx_vlgen.loading.quantization import MODES, Quantization, quantize_layers


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    forbid_network(monkeypatch)


@pytest.fixture
def llama(tmp_path):
    return write(tmp_path / "llama", LLAMA, draw(LLAMA))


@pytest.fixture
def no_pictures(monkeypatch):
    """The vision-language checkpoints here have no picture settings."""
    monkeypatch.setattr(Qwen3VLProcessor, "from_folder", TextProcessor.from_folder)


# Numbers


@pytest.mark.parametrize("stored", [mx.bfloat16, mx.float16])
def test_on_the_cpu_everything_is_float32(tmp_path, stored):
    folder = write(tmp_path / "c", LLAMA, {name: value.astype(stored) for name, value in draw(LLAMA).items()})
    assert {value.dtype for value in parameters(load(folder)[0]).values()} == {mx.float32}
    assert {value.dtype for value in parameters(load(folder, dtype="auto")[0]).values()} == {mx.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", mx.bfloat16, "float32"])
def test_a_named_dtype(llama, dtype):
    expected_dtype = getattr(mx, dtype) if isinstance(dtype, str) else dtype
    assert {value.dtype for value in parameters(load(llama, dtype=dtype)[0]).values()} == {expected_dtype}


@pytest.mark.parametrize("dtype", ["float8", "int8", mx.int32, 16])
def test_an_unknown_dtype(llama, dtype):
    assert "float32, bfloat16, float16" in load_error(llama, UnsupportedError, dtype=dtype)


RECIPES = [(mode, bits, size) for mode, (all_bits, sizes) in MODES.items() for bits in all_bits for size in sizes]


def quantized(tensors, settings, dtype=mx.float32):
    """The tensors of a quantized checkpoint, and what they stand for as floats. settings(name) -> dict or None."""
    packed, plain = {}, {}
    for name, value in tensors.items():
        chosen = settings(name)
        if chosen is None or value.ndim < 2:
            packed[name] = plain[name] = value
            continue
        path = name.removesuffix(".weight")
        parts = mx.quantize(value.astype(dtype), **chosen)
        keys = ("weight", "scales", "biases")[: len(parts)]
        packed |= {f"{path}.{key}": part for key, part in zip(keys, parts, strict=True)}
        exact = [part.astype(mx.float32) if part.dtype == dtype else part for part in parts]
        plain[name] = mx.dequantize(*exact, **chosen).astype(mx.float32)
    return packed, plain


@pytest.mark.parametrize(("mode", "bits", "group_size"), RECIPES)
def test_quantized_checkpoints_equal_what_they_stand_for(tmp_path, mode, bits, group_size):
    settings = {"group_size": group_size, "bits": bits, "mode": mode}
    packed, plain = quantized(draw(LLAMA), lambda name: settings)
    config = LLAMA | {"quantization": settings, "quantization_config": settings}
    model, _ = load(write(tmp_path / "q", config, packed))
    assert isinstance(model.lm_head, nn.QuantizedLinear)
    assert (model.lm_head.bits, model.lm_head.group_size, model.lm_head.mode) == (bits, group_size, mode)
    assert isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)


def test_a_mixed_recipe(tmp_path):
    def settings(name):
        if "embed_tokens" in name or "layers.0" in name:
            return None
        if "down_proj" in name:
            return {"group_size": 32, "bits": 6}
        if "v_proj" in name:
            return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        return {"group_size": 64, "bits": 3}

    packed, plain = quantized(draw(LLAMA), settings)
    entry = {"group_size": 64, "bits": 3, "model.embed_tokens": False}
    config = LLAMA | {"quantization": entry, "quantization_config": entry}
    model, _ = load(write(tmp_path / "q", config, packed))
    assert isinstance(model.model.layers[0].mlp.down_proj, nn.Linear)
    assert model.model.layers[1].mlp.down_proj.bits == 6
    assert model.model.layers[1].self_attn.v_proj.mode == "mxfp4"
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)


def test_bfloat16_scales_become_float32_on_the_cpu(tmp_path):
    settings = {"group_size": 64, "bits": 4}
    packed, plain = quantized(draw(LLAMA), lambda name: settings, mx.bfloat16)
    model, _ = load(write(tmp_path / "q", LLAMA | {"quantization": settings}, packed))
    assert {value.dtype for value in parameters(model).values()} == {mx.float32, mx.uint32}
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)


def test_experts_quantized(tmp_path):
    settings = {"group_size": 32, "bits": 8}
    skipped = ("mlp.gate.weight", "embed_tokens.weight")
    packed, plain = quantized(draw(QWEN3_MOE), lambda name: None if name.endswith(skipped) else settings)
    model, _ = load(write(tmp_path / "q", QWEN3_MOE | {"quantization": settings}, packed))
    assert model.model.layers[0].mlp.switch_mlp.up_proj.bits == 8
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", QWEN3_MOE, plain))[0]), atol=1e-4)


def test_awq(tmp_path):
    """AutoAWQ: (in, out / 8) integers of 8 four-bit numbers in the order 0 2 4 6 1 3 5 7, zero points alike."""
    random, order, plain, packed = np.random.default_rng(1), [0, 2, 4, 6, 1, 3, 5, 7], draw(LLAMA), {}

    def pack(numbers):  # (rows, columns) of 0..15 -> (rows, columns / 8)
        groups = numbers.reshape(*numbers.shape[:-1], -1, 8)[..., order].astype(np.uint32)
        return mx.array((groups << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32))

    for name in list(plain):
        if "_proj" not in name:
            packed[name] = plain[name]
            continue
        out, width = plain[name].shape
        numbers = random.integers(0, 16, (width, out))
        zeros = random.integers(6, 10, (width // 64, out))
        scales = random.uniform(0.01, 0.03, (width // 64, out)).astype(np.float32)
        path = name.removesuffix("weight")
        packed |= {path + "qweight": pack(numbers), path + "qzeros": pack(zeros), path + "scales": mx.array(scales)}
        plain[name] = mx.array(((numbers - zeros.repeat(64, 0)) * scales.repeat(64, 0)).T)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    model, _ = load(write(tmp_path / "q", LLAMA | {"quantization_config": settings}, packed))
    np.testing.assert_allclose(logits(model), logits(load(write(tmp_path / "f", LLAMA, plain))[0]), atol=1e-4)

    settings["version"] = "gemv"
    assert "gemv" in load_error(write(tmp_path / "v", LLAMA | {"quantization_config": settings}, packed))
    packed["model.layers.0.mlp.up_proj.g_idx"] = mx.zeros(128, mx.int32)
    gptq = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}}
    assert "GPTQ" in load_error(write(tmp_path / "g", gptq, packed))


# Quantization while loading


@pytest.mark.parametrize("quantization", [4, {"bits": 8, "group_size": 32}, {"mode": "mxfp4"}, {"mode": "nvfp4"}])
def test_quantize_while_loading(llama, quantization):
    model, _ = load(llama, quantization=quantization)
    settings = {"bits": quantization} if isinstance(quantization, int) else dict(quantization)
    plain, _ = load(llama)
    nn.quantize(plain, **({"group_size": None, "bits": None} | settings))
    for name, value in parameters(plain).items():
        np.testing.assert_array_equal(np.array(parameters(model)[name]), np.array(value))
    np.testing.assert_allclose(logits(model), logits(plain), atol=1e-6)


@pytest.mark.parametrize("config", [LLAMA, QWEN3_MOE, QWEN3_VL], ids=lambda config: config["model_type"])
def test_what_was_quantized_loads_again(tmp_path, no_pictures, config):
    model, _ = load(write(tmp_path / "float", config, draw(config)), dtype="float16")
    recipe = quantize_layers(model, Quantization.parse({"bits": 4, "group_size": 32}))
    again, _ = load(write(tmp_path / "packed", config | {"quantization": recipe}, parameters(model)), dtype="float16")
    assert parameters(again).keys() == parameters(model).keys()
    np.testing.assert_array_equal(logits(again), logits(model))


def test_a_vision_tower_is_left_whole(tmp_path, no_pictures):
    folder = write(tmp_path / "vl", QWEN3_VL, draw(QWEN3_VL))
    model, _ = load(folder, quantization={"bits": 4, "group_size": 32})
    quantized_layers = [
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
    ]
    assert quantized_layers
    assert all(path.startswith("language_model.") for path in quantized_layers)
    assert "language_model.model.embed_tokens" in quantized_layers


def test_experts_router_keeps_its_own_recipe(tmp_path):
    folder = write(tmp_path / "moe", QWEN3_MOE, draw(QWEN3_MOE))
    model, _ = load(folder, quantization=4)
    assert model.model.layers[0].mlp.gate.bits == 8
    assert model.model.layers[0].mlp.switch_mlp.up_proj.bits == 4
    recipe = quantize_layers(load(folder)[0], Quantization.parse(4))
    assert recipe["model.layers.0.mlp.gate"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert {key: recipe[key] for key in ("group_size", "bits", "mode")} == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
    }


def test_layers_that_do_not_divide_stay_whole(tmp_path, capsys):
    config = LLAMA | {"hidden_size": 96, "head_dim": 32}
    folder = write(tmp_path / "c", config, draw(config))
    model, _ = load(folder, quantization={"bits": 4, "group_size": 64})
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)  # rows of 96
    assert isinstance(model.model.layers[0].mlp.down_proj, nn.QuantizedLinear)  # rows of 256
    assert capsys.readouterr().err == ""
    config |= {"intermediate_size": 96, "head_dim": 24}
    load(write(tmp_path / "d", config, draw(config)), quantization={"bits": 4, "group_size": 64})
    assert "no layer was quantized" in capsys.readouterr().err


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path):
    settings = {"group_size": 64, "bits": 4}
    packed, _ = quantized(draw(LLAMA), lambda name: settings)
    folder = write(tmp_path / "q", LLAMA | {"quantization": settings}, packed)
    assert "quantized already" in load_error(folder, UnsupportedError, quantization=4)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (7, "2, 3, 4, 5, 6, 8"),
        ({"bits": 4, "group_size": 16}, "32, 64, 128"),
        ({"mode": "int4"}, "affine, mxfp4, mxfp8, nvfp4"),
        ({"mode": "mxfp4", "bits": 8}, "mxfp4 has 4"),
        ({"bits": 4, "groupsize": 64}, "groupsize"),
        ("4bit", "number of bits"),
        (True, "number of bits"),
    ],
)
def test_unknown_recipes(llama, quantization, expected):
    assert expected in load_error(llama, UnsupportedError, quantization=quantization)
