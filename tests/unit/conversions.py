"""What the tests of converting share: two originals, and what lies in a folder that was written."""

import json

import pytest
from tiny_checkpoints import LLAMA, QWEN3_VL, draw, write

from mlx_vlgen._runtime import mx
from mlx_vlgen.convert import convert
from mlx_vlgen.errors import UnsupportedError

CONFIGS = {"llama": LLAMA, "qwen3_vl": QWEN3_VL}


def write_originals(folder):
    return {name: write(folder / name, config, draw(config)) for name, config in CONFIGS.items()}


def stored(folder):
    """The tensors as they lie in the files that the index names; no file holds another."""
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file.name: mx.load(str(file)) for file in folder.glob("*.safetensors")}
    assert where == {name: file for file, tensors in files.items() for name in tensors}
    return {name: tensor for tensors in files.values() for name, tensor in tensors.items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and mx.array_equal(ours[name], value), name


def message(*arguments, error=UnsupportedError, **keywords):
    """What `convert` says when it refuses."""
    with pytest.raises(error) as caught:
        convert(*arguments, **keywords)
    return str(caught.value)
