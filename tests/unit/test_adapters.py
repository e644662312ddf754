"""Adapters in mlx-lm's and PEFT's layouts: the same logits as with the change merged into the weights."""

import json

import numpy as np
import pytest
from tiny_checkpoints import LLAMA, QWEN3_MOE, QWEN3_VL, draw, logits, write

from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.processor import TextProcessor
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor
from mlx_vlgen.loading import load

RANK = 4
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head")


def pair(tensors, layer, seed=0, rank=RANK):
    """A random a (in, r) and b (r, out) for a layer."""
    out, width = tensors[f"{layer}.weight"].shape[-2:]
    random = np.random.default_rng([seed, out, width])
    return mx.array(random.normal(size=(width, rank)).astype(np.float32) / 8), mx.array(
        random.normal(size=(rank, out)).astype(np.float32) / 8
    )


def merged(tensors, changes, scale):
    """Weights with scale * (a b)^T added."""
    tensors = dict(tensors)
    for layer, (a, b) in changes.items():
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] + scale * (a @ b).T
    return tensors


def mlx_adapter(folder, changes, scale=2.0, config=None, extra=None):
    folder.mkdir()
    tensors = {}
    for layer, (a, b) in changes.items():
        tensors |= {f"{layer}.lora_a": a, f"{layer}.lora_b": b}
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors | (extra or {}))
    parameters = {"rank": RANK, "scale": scale, "dropout": 0.1}
    defaults = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(defaults | (config or {})))
    return folder


def peft_adapter(folder, changes, config=None, extra=None, prefix="base_model.model."):
    folder.mkdir()
    tensors = {}
    for layer, (a, b) in changes.items():
        tensors |= {
            f"{prefix}{layer}.lora_A.weight": mx.contiguous(a.T),
            f"{prefix}{layer}.lora_B.weight": mx.contiguous(b.T),
        }
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors | (extra or {}))
    # As peft 0.21.2 writes it.
    defaults = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "someone/llama",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "kasa_config": None,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "down_proj", "lm_head"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(defaults | (config or {})))
    return folder


@pytest.fixture
def tensors():
    return draw(LLAMA)


@pytest.fixture
def changes(tensors):
    return {layer: pair(tensors, layer, index) for index, layer in enumerate(LAYERS)}


@pytest.fixture
def llama(tmp_path, tensors):
    return write(tmp_path / "llama", LLAMA, tensors)


def same(tmp_path, checkpoint, adapter, config, expected, **options):
    """The adapted model's logits are those of a checkpoint with `expected` weights, and not the bare one's."""
    adapted = logits(load(checkpoint, adapter_path=adapter, **options)[0])
    np.testing.assert_allclose(adapted, logits(load(write(tmp_path / "merged", config, expected))[0]), atol=2e-5)
    assert np.abs(adapted - logits(load(checkpoint, **options)[0])).max() > 1e-2


def refused(checkpoint, adapter):
    with pytest.raises(LoadError) as caught:
        load(checkpoint, adapter_path=adapter)
    return str(caught.value)


def test_mlx_lora(tmp_path, llama, tensors, changes):
    same(tmp_path, llama, mlx_adapter(tmp_path / "a", changes), LLAMA, merged(tensors, changes, 2.0))


def test_peft_lora(tmp_path, llama, tensors, changes):
    same(tmp_path, llama, peft_adapter(tmp_path / "a", changes), LLAMA, merged(tensors, changes, 8 / RANK))


def test_peft_lora_scaled_by_the_root_of_the_rank(tmp_path, llama, tensors, changes):
    adapter = peft_adapter(tmp_path / "a", changes, {"use_rslora": True})
    same(tmp_path, llama, adapter, LLAMA, merged(tensors, changes, 8 / RANK**0.5))


def test_peft_patterns(tmp_path, llama, tensors, changes):
    wide = {LAYERS[0]: pair(tensors, LAYERS[0], 7, rank=8)}
    config = {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {r"layers\.\d+\.mlp\.down_proj": 20}}
    adapter = peft_adapter(tmp_path / "a", changes | wide, config)
    expected = merged(tensors, wide, 8 / 8)
    expected = merged(expected, {LAYERS[1]: changes[LAYERS[1]]}, 20 / RANK)
    expected = merged(expected, {LAYERS[2]: changes[LAYERS[2]]}, 8 / RANK)
    same(tmp_path, llama, adapter, LLAMA, expected)


def test_bfloat16_adapters(tmp_path, llama, tensors, changes):
    rounded = {layer: tuple(part.astype(mx.bfloat16) for part in parts) for layer, parts in changes.items()}
    exact = {layer: tuple(part.astype(mx.float32) for part in parts) for layer, parts in rounded.items()}
    same(tmp_path, llama, peft_adapter(tmp_path / "a", rounded), LLAMA, merged(tensors, exact, 8 / RANK))


@pytest.mark.parametrize("layout", [mlx_adapter, peft_adapter])
def test_on_quantized_layers(tmp_path, llama, tensors, changes, layout):
    settings = {"group_size": 64, "bits": 4}
    plain = {
        name: mx.dequantize(*mx.quantize(value, **settings), **settings) if value.ndim == 2 else value
        for name, value in tensors.items()
    }
    same(tmp_path, llama, layout(tmp_path / "a", changes), LLAMA, merged(plain, changes, 2.0), quantization=4)


def dora_merged(tensors, changes, magnitudes, scale):
    out = merged(tensors, changes, scale)
    for layer in changes:
        weight = out[f"{layer}.weight"]
        out[f"{layer}.weight"] = magnitudes[layer][:, None] * weight / mx.linalg.norm(weight, axis=1, keepdims=True)
    return out


def test_dora(tmp_path, llama, tensors, changes):
    random = np.random.default_rng(3)
    sizes = {
        layer: mx.array(random.uniform(0.5, 2, b.shape[1]).astype(np.float32)) for layer, (_, b) in changes.items()
    }
    expected = dora_merged(tensors, changes, sizes, 2.0)
    magnitudes = {f"{layer}.m": size for layer, size in sizes.items()}
    same(
        tmp_path,
        llama,
        mlx_adapter(tmp_path / "m", changes, 2.0, {"fine_tune_type": "dora"}, magnitudes),
        LLAMA,
        expected,
    )
    peft = {f"base_model.model.{layer}.lora_magnitude_vector": size for layer, size in sizes.items()}
    same(tmp_path, llama, peft_adapter(tmp_path / "p", changes, {"use_dora": True}, peft), LLAMA, expected)


def test_mlx_embedding_and_experts(tmp_path):
    tensors = draw(QWEN3_MOE)
    stack = "model.layers.0.mlp.switch_mlp.up_proj"
    experts, out, width = tensors[f"{stack}.weight"].shape
    random = np.random.default_rng(5)
    a = mx.array(random.normal(size=(experts, RANK, width)).astype(np.float32) / 4)
    b = mx.array(random.normal(size=(experts, out, RANK)).astype(np.float32) / 4)
    rows, columns = (mx.array(random.normal(size=shape).astype(np.float32)) for shape in ((64, RANK), (RANK, 128)))
    expected = dict(tensors)
    expected[f"{stack}.weight"] = expected[f"{stack}.weight"] + 2.0 * (b @ a)
    expected["model.embed_tokens.weight"] = expected["model.embed_tokens.weight"] + 2.0 * (rows @ columns)
    adapter = mlx_adapter(tmp_path / "a", {stack: (a, b), "model.embed_tokens": (rows, columns)})
    same(tmp_path, write(tmp_path / "moe", QWEN3_MOE, tensors), adapter, QWEN3_MOE, expected)


@pytest.mark.parametrize(
    "hub", ["model.language_model.layers.0.mlp.up_proj", "model.visual.blocks.0.attn.qkv", "lm_head"]
)
def test_peft_names_of_the_hub_find_a_vision_language_model(tmp_path, monkeypatch, hub):
    monkeypatch.setattr(Qwen3VLProcessor, "from_folder", TextProcessor.from_folder)
    ours = {
        "model.language_model.layers.0.mlp.up_proj": "language_model.model.layers.0.mlp.up_proj",
        "model.visual.blocks.0.attn.qkv": "vision_tower.blocks.0.attn.qkv",
        "lm_head": "language_model.lm_head",
    }[hub]
    tensors = draw(QWEN3_VL)
    checkpoint = write(tmp_path / "vl", QWEN3_VL, tensors)
    a, b = pair(tensors, ours)
    model, _ = load(checkpoint, adapter_path=peft_adapter(tmp_path / "a", {hub: (a, b)}))
    layer = dict(model.named_modules())[ours]
    x = mx.array(np.random.default_rng(1).normal(size=(2, a.shape[0])).astype(np.float32))
    expected = x @ merged(tensors, {ours: (a, b)}, 2.0)[f"{ours}.weight"].T + tensors.get(f"{ours}.bias", 0)
    np.testing.assert_allclose(np.array(layer(x)), np.array(expected), atol=1e-5)


def test_a_full_fine_tune(tmp_path, llama, tensors):
    adapter = tmp_path / "full"
    adapter.mkdir()
    new = {"model.layers.1.mlp.up_proj.weight": -tensors["model.layers.1.mlp.up_proj.weight"]}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), new)
    (adapter / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full", "num_layers": 2}))
    same(tmp_path, llama, adapter, LLAMA, tensors | new)
    mx.save_safetensors(str(adapter / "adapters.safetensors"), {"model.layers.7.mlp.up_proj.weight": mx.zeros((1, 1))})
    assert "model.layers.7" in refused(llama, adapter)


def test_every_tensor_must_find_its_layer(tmp_path, llama, tensors, changes):
    lost = {"model.layers.9.self_attn.q_proj": changes[LAYERS[0]]}
    for name, layout in (("m", mlx_adapter), ("p", peft_adapter)):
        assert "1 of the 4 layers" in refused(llama, layout(tmp_path / name, changes | lost))
    norm = {"model.norm": (mx.zeros((1, RANK)), mx.zeros((RANK, 1)))}
    assert "model.norm, a RMSNorm" in refused(llama, peft_adapter(tmp_path / "n", norm))


def test_shapes_must_fit(tmp_path, llama, changes):
    wrong = {LAYERS[0]: (mx.zeros((64, RANK)), mx.zeros((RANK, 128)))}
    assert "(64, 4)" in refused(llama, peft_adapter(tmp_path / "a", wrong))


def test_half_a_pair(tmp_path, llama, changes):
    extra = {"model.layers.0.self_attn.v_proj.lora_a": mx.zeros((128, RANK))}
    assert "expected both" in refused(llama, mlx_adapter(tmp_path / "a", changes, extra=extra))


@pytest.mark.parametrize(
    ("config", "option"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"something_of_next_year": 3}, "something_of_next_year"),
        ({"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_peft_options_that_are_not_understood(tmp_path, llama, changes, config, option):
    assert option in refused(llama, peft_adapter(tmp_path / "a", changes, config))


def test_peft_tensors_that_are_not_understood(tmp_path, llama, changes):
    for name in (
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.modules_to_save.weight",
    ):
        folder = tmp_path / name.rsplit(".", 1)[0]
        assert name in refused(llama, peft_adapter(folder, changes, extra={name: mx.zeros((1, 1))}))


def test_other_folders(tmp_path, llama, changes):
    assert "no adapter_config.json" in refused(llama, llama)
    adapter = mlx_adapter(tmp_path / "a", changes, config={"lora_parameters": {"rank": 4, "alpha": 2}})
    assert "lora_parameters.scale" in refused(llama, adapter)
    (adapter / "adapter_config.json").write_text('{"rank": 8, "alpha": 16}')
    assert "neither" in refused(llama, adapter)
    peft = peft_adapter(tmp_path / "p", changes)
    (peft / "adapter_model.safetensors").rename(peft / "adapter_model.bin")
    assert "Pickled" in refused(llama, peft)
