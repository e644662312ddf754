"""The ranks of `--ranks N` are watched: none is left, and the first that died is named."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_vlgen.distributed.launch import launch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ranks", "code", "said"),
    [
        ("end,end", 0, ""),
        ("fail,wait", 3, ""),
        ("wait,fail", 1, "rank 1 ended with exit code 3: a reason; the other ranks were ended"),
        ("wait,die", 1, "rank 1 was killed by SIGKILL; the other ranks were ended"),
        ("die,wait", 1, "rank 0 was killed by SIGKILL; the other ranks were ended"),
        ("wait,stop", 1, "rank 1 was silent for 5 seconds; all ranks were ended"),
    ],
)
def test_ranks_end_together(
    ranks: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlx_vlgen.distributed.launch.PATIENCE", 30.0)  # the machine may be busy
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    assert launch("stub_rank", [ranks], ranks.count(",") + 1, silence=5 if "stop" in ranks else 30) == code
    out, err = capfd.readouterr()
    assert out == "through\n" * 2 * (code == 0)
    assert [line for line in err.splitlines() if line != "a reason"] == ([f"mlx_vlgen: error: {said}"] if said else [])
    assert not children()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says which processes are children")
def test_ranks_end_with_the_one_that_watches() -> None:
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    program = "from mlx_vlgen.distributed.launch import launch; launch('stub_rank', ['wait,wait'], 2)"
    watcher = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths})
    deadline = time.monotonic() + 20
    while len(ranks := children(watcher.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    watcher.kill()
    watcher.wait()
    while any(is_running(rank) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(ranks) == 2 and not any(is_running(rank) for rank in ranks)


def children(process: int | None = None) -> list[int]:
    """Of this process, or another one; Linux says so, and elsewhere there seem to be none."""
    process = os.getpid() if process is None else process
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [int(child) for child in listed if is_running(int(child))]


def is_running(process: int) -> bool:
    """Whether it is neither gone nor dead and waiting to be asked for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
