"""Checkpoints that mlx-vlm 0.7.10 and this package write of the same original are the same, and each loads the other's.

MLX_VLGEN_PEER_PYTHON is the Python of an environment with mlx-vlm; run with -m peer.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.layouts import write_checkpoint

from mlx_vlgen import load
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.convert import convert

PEER = os.environ.get("MLX_VLGEN_PEER_PYTHON", "")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PEER, reason="MLX_VLGEN_PEER_PYTHON names no Python with mlx-vlm"),
]

FAMILIES = ("qwen3_vl", "llava")
ALIKE = ("llava_siglip", "llava_next", "llava_onevision", "lfm2_vl", "paligemma2", "qwen2_vl", "qwen2_5_vl", "glm4v")
# Where it quantizes other layers than this package does (a connector, a router), or leaves them whole.
OTHERWISE = ("idefics3", "mistral3", "qwen3_vl_moe")
# The others of this package's families it does not load as transformers 4 saved them.
WAYS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "as it is": ([], {}),
    "4 bits": (["-q", "--q-group-size", "32"], {"quantize": True, "q_group_size": 32}),
    "mxfp8": (["-q", "--q-mode", "mxfp8"], {"quantize": True, "q_mode": "mxfp8"}),
    "bfloat16": (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
}

LOADED_BY_PEER = """
import sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.utils import load_model
mx.save_safetensors(sys.argv[2], dict(tree_flatten(load_model(Path(sys.argv[1])).parameters())))
"""


def peer(*words: str | Path) -> None:
    ran = subprocess.run([PEER, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def stored(folder: Path) -> dict[str, mx.array]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    return {name: value for file in files for name, value in mx.load(str(folder / file)).items()}


def assert_same(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert mx.array_equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("originals")
    return lambda family: write_checkpoint(family, "hub", folder / family)


@pytest.mark.parametrize(
    ("family", "way"),
    [
        *((family, way) for family in FAMILIES for way in WAYS),
        *((family, "4 bits") for family in ALIKE),
        *((family, way) for family in OTHERWISE for way in ("as it is", "4 bits")),
    ],
)
def test_both_write_the_same_and_load_each_others(
    family: str, way: str, original: Callable[[str], Path], tmp_path: Path
) -> None:
    flags, keywords = WAYS[way]
    source, ours, theirs = original(family), tmp_path / "ours", tmp_path / "theirs"
    convert(source, ours, **keywords)
    peer("-m", "mlx_vlm", "convert", "--hf-path", source, "--mlx-path", theirs, *flags)
    if alike := family not in OTHERWISE or "quantize" not in keywords:
        assert_same(stored(ours), stored(theirs))
        configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, theirs)]
        assert configs[0].get("quantization") == configs[1].get("quantization")

    peer("-c", LOADED_BY_PEER, ours, tmp_path / "loaded.safetensors")
    assert_same(stored(ours), mx.load(str(tmp_path / "loaded.safetensors")))  # type: ignore[arg-type]
    own, other = (dict(tree_flatten(load(folder)[0].parameters())) for folder in (ours, theirs))
    assert not alike or own.keys() == other.keys()
    assert not alike or all(np.array_equal(np.array(own[name]), np.array(other[name])) for name in own)
