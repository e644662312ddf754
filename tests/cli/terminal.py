"""A terminal on which a command runs: a pseudo terminal, whose screen pyte keeps and whose keys a test presses."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pyte = pytest.importorskip("pyte", reason="pyte, which keeps the screen, is not installed (extra `test`)")

ENTER, CTRL_C, CTRL_D, ALT_ENTER, TAB, CTRL_U = "\r", "\3", "\4", "\033\r", "\t", "\25"


class Terminal:
    """`show` is what a person would see; all that was ever on the screen is in `lines`."""

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path, columns: int = 80):
        master, slave = pty.openpty()
        self._screen = pyte.HistoryScreen(columns, 50, history=10_000, ratio=0.01)
        self._screen.write_process_input = lambda text: os.write(master, text.encode())  # replies to queries
        self._stream = pyte.ByteStream(self._screen)
        self._master, self.written = master, b""
        self.resize(columns)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "xterm-256color", **environment},
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def resize(self, columns: int) -> None:
        self._screen.resize(50, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def paste(self, text: str) -> None:
        """As a terminal does with what was dropped on it."""
        self.press(f"\033[200~{text}\033[201~")

    @property
    def lines(self) -> list[str]:
        before = ["".join(row[x].data for x in range(len(row))) for row in self._screen.history.top]
        return [line.rstrip() for line in [*before, *self._screen.display]]

    @property
    def show(self) -> str:
        return "\n".join(self.lines).rstrip()

    def wait(self, until: Callable[[str], bool] | str, seconds: float = 30) -> str:
        """What is on the screen once it ends with a text, or is as a function says."""
        reached = until if callable(until) else lambda show: show.endswith(until)
        end = time.monotonic() + seconds
        while not reached(self.show):
            left = end - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"the screen never became {until!r}:\n{self.show}")
        return self.show

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the process has ended
            return False
        self.written += data
        self._stream.feed(data)
        return bool(data)

    def shows(self, text: str) -> bool:
        return compact(text) in compact(self.show)

    def ask(self, line: str, answer: str) -> None:
        """Type a line, and wait for its answer and the next prompt."""
        self.press(line)
        before = len(self.wait(lambda show: compact(show).endswith(compact(line)[-10:])))
        self.press(ENTER)
        self.wait(lambda show: show.endswith("\n>") and compact(answer) in compact(show[before:]))

    def end(self, seconds: float = 20) -> int:
        """The exit code, once it has ended."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.wait(timeout=0.1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._master)


def compact(text: str) -> str:
    """Without white space: where lines break depends on the width."""
    return "".join(text.split())
