"""mlx-vlm 0.7.10, run in another environment, and the weights that it and this package write."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_vlgen._runtime import mx

PEER = os.environ.get("MLX_VLGEN_PEER_PYTHON", "")
NOT_THERE = {
    "qwen2_5_omni": "mlx-vlm has no such model",
    "qwen3_omni_moe": "mlx-vlm reads no thinker without what speaks",
    "ovis2": "mlx-vlm has no such model",
    "molmo2_o": "mlx-vlm has no such decoder",
    "lighton_ocr": "mlx-vlm has no such model",
    "deepseek_ocr": "mlx-vlm fixes the tower's sizes",
    "deepseek_ocr2": "mlx-vlm fixes the tower's sizes",
    "unlimited_ocr": "mlx-vlm fixes the tower's sizes",
    "paddleocr_vl": "mlx-vlm fixes the text's width",
    "glm46v": "mlx-vlm has no such model",
    "glm46v_moe": "mlx-vlm has no such model",
    "ernie4_5_vl_moe": "mlx-vlm knows its first release only",
    "gemma4_audio": "mlx-vlm fixes the bands of the spectrum",
    "gemma3n": "mlx-vlm wants keys of layers that share others', which these checkpoints leave out",
    "cohere2_vision": "its processor wants torchvision there",
    "granite4_vision": "mlx-vlm knows other names",
    "internvl_internlm2": "mlx-vlm has no such rotary embedding",
    "internvl_phi3": "mlx-vlm has no such text decoder",
    "muse_glimmer": "mlx-vlm fails to write its configuration",
    "qwen3_5_text": "mlx-vlm has its layers in another order",
    **dict.fromkeys(("fast_vlm", "lfm3_vl", "qwen2_audio", "voxtral"), "mlx-vlm has no such model"),
}
"""Families that cannot be exchanged, and why."""
needs_peer = pytest.mark.skipif(not PEER, reason="MLX_VLGEN_PEER_PYTHON names no Python with mlx-vlm")
Weights = dict[str, mx.array]

# One process does a family's jobs: importing takes longer than all of them. Its answer: what each job raised, or "".
_JOBS = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.convert import convert
from mlx_vlm.utils import load_model

mx.set_default_device(mx.cpu)
errors = []
for verb, source, target, settings in json.loads(sys.argv[1]):
    try:
        if verb == "convert":
            convert(source, target, **settings)
        else:
            mx.save_safetensors(target, dict(tree_flatten(load_model(Path(source)).parameters())))
        errors.append("")
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
Path(sys.argv[2]).write_text(json.dumps(errors))
"""
Job = tuple[str, Path, Path, dict[str, Any]]
"""("convert", original, new folder, keywords of its `convert`), or ("load", folder, file for the parameters, {})."""


def run_jobs(jobs: Sequence[Job], folder: Path) -> list[str]:
    """Let mlx-vlm do `jobs`; the error of each, or "". folder: empty, for the answer."""
    answer = folder / "answer.json"
    arguments = json.dumps([[verb, str(source), str(target), settings] for verb, source, target, settings in jobs])
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([PEER, "-c", _JOBS, arguments, answer], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    errors: list[str] = json.loads(answer.read_text(encoding="utf-8"))
    return errors


def stored(folder: Path) -> Weights:
    """The weights in a checkpoint's files."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(set(index["weight_map"].values()))
    return {name: value for file in files for name, value in mx.load(str(folder / file)).items()}


def as_ours(weights: Weights, text_only: bool) -> Weights:
    """mlx-vlm's names as this package's: it writes text decoders as parts of vision-language models."""
    return {name.removeprefix("language_model."): value for name, value in weights.items()} if text_only else weights


def unlike(ours: Weights, theirs: Weights) -> set[str]:
    """Names that only one has, or whose types, shapes or values differ."""

    def same(name: str) -> bool:
        one, other = ours[name], theirs[name]
        return (one.dtype, one.shape) == (other.dtype, other.shape) and mx.array_equal(one, other).item()

    return (ours.keys() ^ theirs.keys()) | {name for name in ours.keys() & theirs.keys() if not same(name)}
