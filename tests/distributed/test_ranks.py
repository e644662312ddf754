"""One model over several local processes answers as one: alone, in batches, late, cancelled, with pictures."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from parity.layouts import write_checkpoint

WORKER = Path(__file__).with_name("worker.py")
FAMILIES = ("llama", "qwen2", "qwen3_vl", "qwen3")


def free_addresses(count: int) -> list[list[str]]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [[f"127.0.0.1:{one.getsockname()[1]}"] for one in bound]


def run_ranks(count: int, arguments: list[str], folder: Path) -> str:
    """What rank 0 prints; fails where a rank does."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps(free_addresses(count)), encoding="utf-8")
    paths = os.pathsep.join([str(WORKER.parents[1]), str(WORKER.parents[2])])
    environment = os.environ | {"MLX_HOSTFILE": str(hosts), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths,
                                "MLX_VLGEN_BLAS": "off"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            env=environment | {"MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(map("".join, printed))
    return printed[0][0]


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 4))])
def test_ranks_answer_as_one(count: int, tmp_path: Path) -> None:
    folders = {name: write_checkpoint(name, "v5", tmp_path / name) for name in FAMILIES}
    arguments = [str(part) for pair in folders.items() for part in pair]
    assert run_ranks(count, arguments, tmp_path).split() == [*FAMILIES]
