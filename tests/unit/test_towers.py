"""What published checkpoints hold of vision towers beyond what runs: quantized tables of positions, SigLIP's head."""

from pathlib import Path

import numpy as np
import pytest
from parity.layouts import REFERENCE, read_json, write_json

from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.errors import LoadError
from mlx_vlgen.loading.loader import fill
from mlx_vlgen.models import find
from mlx_vlgen.models.layers import PositionTable

TOWERS = ("llava", "llava_siglip", "gemma3", "paligemma", "idefics3", "qwen3_vl", "qwen3_5", "glm4v", "lfm2_vl")


@pytest.mark.parametrize("family", TOWERS)
def test_a_quantized_table_of_positions_is_made_of_floats(tmp_path: Path, family: str) -> None:
    config = read_json(REFERENCE / family / "config.json")
    config["vision_config"]["hidden_size"] = 64  # rows divide into groups
    write_json(tmp_path / "config.json", config)
    model = find(config).model_class()(config)
    (table,) = (f"{path}.weight" for path, module in model.named_modules() if isinstance(module, PositionTable))
    tensors = {name: mx.zeros(value.shape) for name, value in tree_flatten(model.parameters())}
    random = np.random.default_rng(0).normal(size=tensors[table].shape)
    parts = mx.quantize(mx.array(random, mx.float32), group_size=32, bits=8)
    names = (table, table.replace(".weight", ".scales"), table.replace(".weight", ".biases"))
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), tensors | dict(zip(names, parts, strict=True)), {"format": "mlx"}
    )
    fill(model, tmp_path, mx.float32)
    loaded = dict(tree_flatten(model.parameters()))[table]
    assert mx.array_equal(loaded, mx.dequantize(*parts, group_size=32, bits=8))


@pytest.mark.parametrize("prefix", ["vision_tower.vision_model.", "model.vision_tower."])
def test_siglips_pooling_head_is_of_no_use(tmp_path: Path, prefix: str) -> None:
    """JoyCaption and others have it: transformers builds it, and LLaVA never asks it."""
    config = read_json(REFERENCE / "llava_siglip" / "config.json")
    model = find(config).model_class()(config)
    tensors = {name: mx.zeros(value.shape) for name, value in tree_flatten(model.parameters())}
    head = {f"{prefix}head.{name}": mx.zeros(4) for name in ("probe", "attention.in_proj_weight", "mlp.fc1.bias")}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors | head, {"format": "pt"})
    fill(model, tmp_path, mx.float32)
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), tensors | {f"{prefix}heads": mx.zeros(4)}, {"format": "pt"}
    )
    with pytest.raises(LoadError, match="1 not known"):
        fill(find(config).model_class()(config), tmp_path, mx.float32)
