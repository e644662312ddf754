"""Hostile inputs tried in another process, which is replaced when it dies or does not answer."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
STARTING_S = 120.0
FREEING = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
"""glibc gives large blocks back when they are freed, so that one input's memory is not the next one's."""


@dataclass(frozen=True)
class Outcome:
    """The result of a seed. result: "passed", "refused", or what went wrong."""

    seed: int
    name: str
    result: str
    seconds: float

    @property
    def bad(self) -> bool:
        return self.result not in ("passed", "refused")


class Worker:
    """One process that tries the inputs of an attack."""

    def __init__(self, attack: str, folder: Path):
        path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **FREEING}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hostile.worker", attack, tempfile.mkdtemp(dir=folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        if self._answer(STARTING_S) != "ready":
            raise RuntimeError(f"the worker of {attack} did not start: {self._last_errors()}")

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _listen(self) -> None:
        """Keep its stderr from filling up."""
        assert self._process.stderr
        for line in self._process.stderr:
            self._errors = [*self._errors[-20:], line]

    def _answer(self, limit_s: float) -> str | None:
        """Its next line; "" when it has died, None when there is none in time."""
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            return None
        return str(json.loads(line)) if line else ""

    def attempt(self, seed: int, limit_s: float) -> Outcome:
        """Whatever happens to the process, the outcome says so."""
        assert self._process.stdin
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            print(seed, file=self._process.stdin, flush=True)
        name = self._answer(limit_s)
        result = self._answer(limit_s) if name else name
        if result is None:
            result = f"hangs: no answer within {limit_s:g} s"
        elif not result:
            code = self._process.wait()
            result = f"died of {signal.Signals(-code).name if code < 0 else code}: {self._last_errors()}"
        return Outcome(seed, name or "while drawing it", result, time.monotonic() - start)

    def _last_errors(self) -> str:
        return "".join(self._errors)[-1500:]

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def outcomes(attack: str, seeds: Iterable[int], folder: Path, limit_s: float) -> list[Outcome]:
    """What came of each seed of an attack."""
    worker = Worker(attack, folder)
    results = []
    try:
        for seed in seeds:
            results.append(worker.attempt(seed, limit_s))
            if results[-1].result.startswith(("hangs", "died")):
                worker.stop()
                worker = Worker(attack, folder)
    finally:
        worker.stop()
    return results
