"""`python -m mlx_vlgen.verify` beside transformers: what is right passes, and one changed weight is told.

Needs torch beside mlx in one environment: MLX_VLGEN_ORACLE_PYTHON, a Python that could run parity/make_reference.py,
which finds this one's packages after its packages; run with -m peer.
"""

import os
import site
import subprocess
from pathlib import Path

import pytest
from parity.layouts import write_checkpoint

ORACLE = os.environ.get("MLX_VLGEN_ORACLE_PYTHON", "")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not ORACLE, reason="MLX_VLGEN_ORACLE_PYTHON names no Python with transformers and torch"),
]
ROOT = Path(__file__).parents[2]

# torchvision's compiled operators may be for another torch: see parity/make_reference.py.
RUN = """
import importlib, sys
import torch
try:
    importlib.import_module("torchvision")
except RuntimeError:
    operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from mlx_vlgen import cli, verify
load = verify.load
def changed(*arguments, **keywords):
    model, processor = load(*arguments, **keywords)
    layer = model.text_decoder().model.layers[1].mlp.down_proj
    layer.weight[3, 5] += float(sys.argv[2])
    return model, processor
verify.load = changed
sys.exit(cli.main_verify([sys.argv[1]]))
"""


def verify(folder: Path, change: float) -> tuple[int, str]:
    paths = [str(ROOT), str(ROOT / "tests"), *site.getsitepackages()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [ORACLE, "-c", RUN, str(folder), str(change)], capture_output=True, text=True, env=environment
    )
    assert done.returncode in (0, 1) and "as they should be" in done.stdout, done.stdout + done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next", "smolvlm", "qwen2", "qwen2_audio", "qwen2_5_omni"])
def test_a_right_checkpoint_passes_and_one_changed_weight_is_told(family: str, tmp_path: Path) -> None:
    folder = write_checkpoint(family, "v5", tmp_path / family)
    code, report = verify(folder, 0.0)
    assert code == 0, report
    code, report = verify(folder, 0.5)
    assert code == 1 and "other logits" in report
    assert "differs" not in report.partition("beside itself")[2]
