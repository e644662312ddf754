"""`batch --data-parallel` under `mlx.launch`: ranks that answer parts of a job, whole, killed and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUICK = ("--max-tokens", "4", "--max-pixels", "2100", "--max-batch-size", "4")
JOB = (sys.executable, "-m", "mlx_vlgen.batch", "photos", "--model", "demo", *QUICK)
LAUNCH = (str(Path(sys.executable).with_name("mlx.launch")), "-n", "2")


def start(folder: Path, *command: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def run(folder: Path, *command: str) -> str:
    return start(folder, *command).communicate(timeout=300)[1]


def parts(folder: Path, out: str) -> list[int]:
    """Whole lines in each part of a job."""
    return [path.read_bytes().count(b"\n") for path in sorted(folder.glob(f"{out}.journal.jsonl.part*"))]


def rank_one(process: "subprocess.Popen[str]") -> int:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children = [int(pid) for pid, parent in map(str.split, listing.splitlines()) if int(parent) == process.pid]
    return max(children)


def test_ranks_answer_a_job_and_any_may_die(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(150):
        Image.new("RGB", (64, 64), (number, 90, 255 - number)).save(tmp_path / "photos" / f"{number:03}.png")
    run(tmp_path, *JOB, "-o", "local.jsonl")
    local = (tmp_path / "local.jsonl").read_bytes()
    said = run(tmp_path, *LAUNCH, *JOB, "-o", "whole.jsonl", "--data-parallel")
    assert (tmp_path / "whole.jsonl").read_bytes() == local, said

    process = start(tmp_path, *LAUNCH, *JOB, "-o", "killed.jsonl", "--data-parallel")
    while len(lines := parts(tmp_path, "killed.jsonl")) < 2 or min(lines) < 15:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(rank_one(process), signal.SIGKILL)
    process.communicate(timeout=60)
    assert sum(parts(tmp_path, "killed.jsonl")) < 150
    commands = [[*JOB, "-o", "killed.jsonl"], [*LAUNCH, *JOB, "-o", "killed.jsonl", "--data-parallel"]]
    random.Random(1).shuffle(commands)
    for command in commands:
        said = run(tmp_path, *command)
        assert (tmp_path / "killed.jsonl").read_bytes() == local, said
    journal = (tmp_path / "killed.jsonl.journal.jsonl").read_text().splitlines()
    assert len(journal) == len({json.loads(line)["key"] for line in journal}) == 150
    assert parts(tmp_path, "killed.jsonl") == []
