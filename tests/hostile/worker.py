"""`python -m hostile.worker ATTACK FOLDER`: takes seeds on stdin, a line each, and answers each with two lines of JSON:
the input's name before the attempt, and its outcome after it."""

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

from .trial import Try, verdict

ADDRESS_SPACE = 3_000_000_000
"""Bytes that a worker may map beyond what it has mapped when it is ready."""


def main() -> None:
    attack = importlib.import_module(f".{sys.argv[1]}", __package__).Attack(Path(sys.argv[2]))
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
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, error = _status("VmRSS"), None
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            trial.run()
        except BaseException as raised:
            error = raised
    outcome = verdict(error, trial.arguments)
    if error is not None and outcome not in ("passed", "refused"):
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcome += f" [{Path(last.filename).name}:{last.lineno}]"
    peak = _status("VmHWM") - before
    if trial.peak is not None and peak > trial.peak:
        return f"took {peak / 1e6:.0f} MB of {trial.peak / 1e6:.0f} ({outcome})"
    return outcome


def _status(name: str) -> int:
    """Bytes, of this process."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
