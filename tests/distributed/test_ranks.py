"""One model over several local processes answers as one: alone, in batches, late, cancelled, with pictures."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from parity import expected, media
from parity.layouts import write_checkpoint
from parity.sharding import CUT, DIVIDED, FIRST, OTHERS

import mlx_vlgen
from mlx_vlgen._runtime import mx
from mlx_vlgen.distributed import pipeline
from mlx_vlgen.distributed.launch import free_addresses
from mlx_vlgen.distributed.shard import check
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.models.text import TextModel

WORKER = Path(__file__).with_name("worker.py")


def run_ranks(count: int, arguments: list[str], folder: Path, program: Path = WORKER, seconds: float = 300) -> str:
    """What rank 0 prints; fails where a rank does."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps(free_addresses(count)), encoding="utf-8")
    paths = os.pathsep.join([str(WORKER.parents[1]), str(WORKER.parents[2])])
    environment = os.environ | {"MLX_HOSTFILE": str(hosts), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths,
                                "MLX_VLGEN_BLAS": "off"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env=environment | {"MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(map("".join, printed))
    return printed[0][0]


@pytest.mark.parametrize(
    ("sharding", "count", "names"),
    [
        ("tensor,pipeline", 2, ("qwen3_vl",)),
        pytest.param("tensor", 2, FIRST, marks=pytest.mark.slow, id="2"),
        *(
            pytest.param("tensor", 2, OTHERS[start::3], marks=pytest.mark.slow, id=f"others{start}")
            for start in range(3)
        ),
        pytest.param("tensor", 3, (*FIRST, "gemma3", "qwen3_5_moe"), marks=pytest.mark.slow, id="3"),
        pytest.param("tensor", 4, (*FIRST, "gemma3", "qwen3_moe"), marks=pytest.mark.slow, id="4"),
        *(
            pytest.param("pipeline", 2, DIVIDED[start::3], marks=pytest.mark.slow, id=f"divided{start}")
            for start in range(3)
        ),
        pytest.param("pipeline", 3, (*FIRST, "gemma3", "granite4_vision"), marks=pytest.mark.slow, id="divided-3"),
        pytest.param(
            "pipeline", 4, ("qwen3_vl", "gemma3", "lfm2_vl", "granite4_vision"), marks=pytest.mark.slow, id="divided-4"
        ),
    ],
)
def test_ranks_answer_as_one(sharding: str, count: int, names: Sequence[str], tmp_path: Path) -> None:
    """Three ranks divide no heads of the tiny models, and the vocabulary of none is divided by any number."""
    folders = {name: write_checkpoint(name, "v5", tmp_path / name) for name in names}
    arguments = [
        sharding,
        "few" if len(names) == 1 or count == 4 else "all",
        *(str(part) for pair in folders.items() for part in pair),
    ]
    answered = [f"{name} {kind}" for name in names for kind in sharding.split(",")]
    assert run_ranks(count, arguments, tmp_path).splitlines() == answered


@pytest.mark.slow
def test_whole_layers_have_their_adapters(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", "v5", tmp_path / "llama")
    (adapter := folder / "adapter").mkdir()
    generator, tensors = np.random.default_rng(0), {}
    for name, layer in mlx_vlgen.load(folder, lazy=True)[0].named_modules():
        if name.endswith((".q_proj", ".down_proj", "embed_tokens")):
            rows, columns = layer.weight.shape
            inputs, outputs = (rows, columns) if name.endswith("embed_tokens") else (columns, rows)
            tensors[f"{name}.lora_a"] = mx.array(generator.normal(size=(inputs, 4)).astype(np.float32) / 8)
            tensors[f"{name}.lora_b"] = mx.array(generator.normal(size=(4, outputs)).astype(np.float32) / 8)
    mx.save_safetensors(str(adapter / "adapters.safetensors"), tensors)
    settings = {"fine_tune_type": "lora", "num_layers": 3, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert run_ranks(2, ["pipeline", "all", "llama", str(folder)], tmp_path) == "llama pipeline\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sharding", ["tensor", "pipeline"])
def test_mixes(sharding: str, tmp_path: Path) -> None:
    """200 random ones: no row is unlike, and no rank waits for another that is through."""
    folders = {name: write_checkpoint(name, "v5", tmp_path / name) for name in ("qwen3_vl", "qwen3")}
    arguments = [sharding, "qwen3_vl", str(folders["qwen3_vl"]), "200", str(folders["qwen3"])]
    assert run_ranks(2, arguments, tmp_path, WORKER.with_name("mixes.py"), seconds=1700) == "200\n"


@pytest.mark.slow
def test_generate_answers_as_one() -> None:
    """The command, with the built-in model, whose heads neither two nor four ranks divide."""
    picture = media.DEMO / "pictures" / "shapes.png"
    command = [sys.executable, "-m", "mlx_vlgen.generate", "--model", "demo", "--image", str(picture)]
    environment = os.environ | {"PYTHONPATH": str(WORKER.parents[2])}
    quantized = ["--kv-bits", "8"]
    divided = ["--shard", "pipeline", "--ranks"]
    runs = [
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=120, check=True)
        for more in (
            [],
            ["--ranks", "2"],
            ["--ranks", "4"],
            quantized,
            [*quantized, "--ranks", "2"],
            [*divided, "4"],
            [*quantized, *divided, "2"],
        )
    ]
    assert runs[3].stdout == runs[4].stdout == runs[6].stdout
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout == runs[5].stdout
    assert "attention of 3 heads" in runs[1].stderr and "MLP" not in runs[1].stderr + runs[2].stderr


def test_what_is_not_cut_is_refused() -> None:
    other: Any = SimpleNamespace(config={"model_type": "olmo"}, forward=TextModel.forward)
    with pytest.raises(UnsupportedError, match=r"olmo .* runs on one rank only"):
        check(other)


def test_what_is_not_divided_is_refused(tmp_path: Path) -> None:
    model, _ = mlx_vlgen.load(write_checkpoint("llama", "v5", tmp_path / "llama"), lazy=True)
    with pytest.raises(UnsupportedError, match=r"llama has 3 text layers for 4 ranks; expected 3 ranks at most"):
        pipeline.check(model, 4)
    model, _ = mlx_vlgen.load(write_checkpoint("mllama", "v5", tmp_path / "mllama"), lazy=True)
    with pytest.raises(UnsupportedError, match=r"mllama is not divided by layers"):
        pipeline.check(model, 2)
    other: Any = SimpleNamespace(config={"model_type": "olmo"}, driver=None)
    with pytest.raises(UnsupportedError, match=r"olmo is not divided by layers"):
        pipeline.check(other, 2)


@pytest.mark.parametrize(
    ("sizes", "beside", "counts"),
    [
        ([1] * 8, 0, [2, 2, 2, 2]),
        ([1] * 6, 0, [2, 1, 2, 1]),
        ([1] * 50, 50, [1, 16, 17, 16]),
        ([1, 9, 9, 9, 9, 9, 9, 9], 0, [3, 2, 2, 1]),
        ([1, 1, 1, 100], 1000, [1, 1, 1, 1]),
    ],
)
def test_layers_are_divided_by_bytes(sizes: list[int], beside: int, counts: list[int]) -> None:
    assert pipeline.divided(sizes, beside, 4) == counts


@pytest.mark.slow
def test_all_that_is_not_refused_is_compared(tmp_path: Path) -> None:
    cut, divided = set[str](), set[str]()
    for name in set(expected.families()) - {"demo"}:
        model, _ = mlx_vlgen.load(write_checkpoint(name, "v5", tmp_path / name), lazy=True)
        with suppress(UnsupportedError):
            check(model)
            cut.add(name)
        with suppress(UnsupportedError):
            pipeline.check(model, 2)
            divided.add(name)
    assert (cut, divided) == ({*CUT}, {*DIVIDED})
