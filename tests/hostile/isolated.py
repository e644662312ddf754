"""What reading a picture takes: each in a process of its own that may not have more than a few gigabytes."""

import contextlib
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ADDRESS_SPACE = 4 << 30
_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass
class Outcome:
    """error: the class of what was raised, "" for a picture; grown: bytes of memory at the peak beyond those before."""

    name: str
    error: str
    message: str
    size: list[int]
    seconds: float
    grown: int


def read_all(cases: list[tuple[str, bytes]], video: bool = False) -> list[Outcome]:
    """What `load_image` (or `load_video`) makes of each (name, bytes)."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *(["video"] if video else [])],
        input=pickle.dumps(cases), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, check=True,
    )  # fmt: skip
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    assert [outcome.name for outcome in outcomes] == [name for name, _ in cases], "a process died"
    return outcomes


def _read(name: str, data: bytes, video: bool) -> Outcome:
    from mlx_vlgen.inputs.media import load_image
    from mlx_vlgen.inputs.video import load_video

    with contextlib.suppress(ValueError):  # not every system can bound it
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    error = message = ""
    size: list[int] = []
    try:
        size = list(load_video(data).frames.shape) if video else list(load_image(data).size)
    except BaseException as raised:
        error, message = type(raised).__name__, str(raised)
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _UNIT
    return Outcome(name, error, message, size, seconds, grown)


def main() -> None:
    import mlx_vlgen.inputs.video  # noqa: F401  once, for all processes

    video = sys.argv[1:] == ["video"]
    for name, data in pickle.loads(sys.stdin.buffer.read()):
        child = os.fork()
        if not child:
            print(json.dumps(vars(_read(name, data, video))), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
