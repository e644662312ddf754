"""`python -m hostile.worker ATTACK FOLDER`: takes seeds on stdin, a line each, and answers each with two lines of JSON:
the input's name before it is tried, and what came of it."""

import contextlib
import importlib
import io
import json
import os
import re
import resource
import sys
import traceback
from pathlib import Path

from .trial import SPARE, Try, verdict

ADDRESS_SPACE = 3_000_000_000
"""Bytes that a worker may map beyond what it has mapped when it is ready."""


LINUX = sys.platform == "linux"


def main() -> None:
    attack = importlib.import_module(f".{sys.argv[1]}", __package__).Attack(Path(sys.argv[2]))
    if LINUX:
        limit = _status("VmSize") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    replies = os.fdopen(os.dup(1), "w")  # what the package prints must not come between
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        trial = attack.draw(int(line))
        print(json.dumps(trial.name), file=replies, flush=True)
        print(json.dumps(_outcome(trial)), file=replies, flush=True)


def _outcome(trial: Try) -> str:
    if LINUX:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, error = _status("VmRSS"), None
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            trial.run()
        except BaseException as raised:
            error = raised
    result = verdict(error, trial.arguments)
    if error is not None and result not in ("passed", "refused"):
        last = traceback.extract_tb(error.__traceback__)[-1]
        result += f" [{Path(last.filename).name}:{last.lineno}]"
    if trial.peak is not None:
        peak, allowed = _status("VmHWM") - before, min(trial.peak, SPARE) if result == "refused" else trial.peak
        if peak > allowed:
            return f"took {peak / 1e6:.0f} MB of {allowed / 1e6:.0f} ({result})"
    return result


def _status(name: str) -> int:
    """Bytes, of this process; 0 where the system does not tell, so that memory is not checked there."""
    if not LINUX:
        return 0
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
