"""Ctrl-C, wherever it comes from the package's first line on: exit code 130 and no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .test_process import stopped

pytestmark = pytest.mark.usefixtures("heeds_interrupts")

GENERATE = ("-m", "mlx_vlgen.generate", "--model", "demo", "--prompt", "Hi")
WAIT = "import sys, time; print('here', flush=True); time.sleep(600)"


def start(
    environment: dict[str, str], folder: Path, module: str, text: str, *command: str
) -> "subprocess.Popen[bytes]":
    """A command, once it imports the module that stands in the place of the real one."""
    (folder / f"{module}.py").write_text(text)
    path = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"PYTHONPATH": path},
    )
    assert process.stdout and process.stdout.readline() == b"here\n"
    return process


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "mlx_vlgen"),
        GENERATE,
        ("-m", "mlx_vlgen.chat"),
        ("-m", "mlx_vlgen.convert", "demo"),
        ("-m", "mlx_vlgen.batch", ".", "-o", "out.csv"),
        ("-c", "from mlx_vlgen.entry import generate; generate()"),
    ],
    ids=["commands", "generate", "chat", "convert", "batch", "installed"],
)
def test_while_its_own_modules_are_imported(
    environment: dict[str, str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    assert stopped(start(environment, tmp_path, "argparse", WAIT, *command)) == (130, b"")


def test_in_the_packages_first_lines(environment: dict[str, str], tmp_path: Path) -> None:
    assert stopped(start(environment, tmp_path, "typing", WAIT, *GENERATE)) == (130, b"")


@pytest.mark.parametrize(
    "text",
    [
        f"exec({WAIT!r})",  # as dataclasses do; Python notes where that was interrupted, and ended by the signal
        f"class Held:\n    def __del__(self):\n        {WAIT}\nHeld()\nimport time; time.sleep(600)",
    ],
    ids=["in code made from text", "in a finalizer"],
)
def test_while_others_modules_are_imported(environment: dict[str, str], tmp_path: Path, text: str) -> None:
    assert stopped(start(environment, tmp_path, "transformers", text, *GENERATE)) == (130, b"\n")


def test_twice(environment: dict[str, str], tmp_path: Path) -> None:
    """Whoever does not want to wait until all is unwound need not."""
    text = f"try:\n    {WAIT}\nfinally:\n    {WAIT}"
    process = start(environment, tmp_path, "transformers", text, *GENERATE)
    process.send_signal(signal.SIGINT)
    assert process.stdout and process.stdout.readline() == b"here\n"
    assert stopped(process) == (130, b"")


def test_when_all_is_done(environment: dict[str, str], tmp_path: Path) -> None:
    """There is nothing to interrupt any more."""
    text = "import atexit, time; atexit.register(lambda: (print('here', flush=True), time.sleep(0.5)))"
    process = start(environment, tmp_path, "sitecustomize", text, "-m", "mlx_vlgen", "--unknown")
    assert stopped(process)[0] == 2
