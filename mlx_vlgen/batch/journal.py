"""The journal of a job: finished rows as lines of JSON, appended and synced, so that a job goes on after any end."""

import fcntl
import glob
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import VlgenError

SYNC_SECONDS = 0.5


class Journal:
    """An append-only file of JSON objects, one a line, of which one process may have it open.

    Each line is with the system when `append` returns, and on the disk at most a second later. A last line that is torn
    is cut off when the file is opened. VlgenError where another process has it, or where a line before the last ones is
    damaged.

    shared: read a journal that another process shares (`share`).
    """

    def __init__(self, path: Path, shared: bool = False):
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise VlgenError(f"{path}: another process runs this job; wait for it, or take another OUT") from None
        self._size = os.fstat(self._file).st_size
        self._unsynced = threading.Event()
        self._sync_error: OSError | None = None
        self._closed = threading.Event()
        self._syncer = threading.Thread(target=self._sync_often, name="journal", daemon=True)
        self._syncer.start()

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each whole line with its offset, which `at` takes; then cuts off what is torn at the end."""
        offset, torn = 0, None
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                value = _parse(line)
                if value is None:
                    torn = torn or (offset, number)
                elif torn:
                    raise VlgenError(
                        f"{self.path}, line {torn[1]} is damaged, and whole lines follow it: delete that line, or "
                        "begin anew with --restart"
                    )
                else:
                    yield offset, value
                offset += len(line)
        if torn:
            self._truncate(torn[0])

    def at(self, offset: int) -> dict[str, Any]:
        """The line at an offset."""
        line = bytearray()
        while not line.endswith(b"\n"):
            block = os.pread(self._file, 1 << 12, offset + len(line))
            if not block:
                raise VlgenError(f"{self.path} has become shorter while it was read: leave it alone while a job runs")
            end = block.find(b"\n")
            line += block if end < 0 else block[: end + 1]
        value: dict[str, Any] = json.loads(line)
        return value

    def append(self, value: dict[str, Any]) -> int:
        """Write a line; its offset. OSError where it, or the last ones, cannot be written."""
        if self._sync_error:
            raise self._sync_error
        offset, line = self._size, memoryview(json.dumps(value).encode() + b"\n")
        while line:
            written = os.write(self._file, line)
            self._size += written
            line = line[written:]
        self._unsynced.set()
        return offset

    def share(self) -> None:
        """Let others read it, until `claim`; nobody writes meanwhile."""
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def claim(self) -> None:
        """Wait until no other process has it."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def part(self, number: int) -> Path:
        """Where a rank writes its lines while this is shared."""
        return self.path.with_name(f"{self.path.name}.part{number}")

    def take_parts(self) -> None:
        """Append the lines of all parts, and delete these. A kill in between makes a line twice, of which the last
        counts. VlgenError where a process still writes one."""
        for path in sorted(self.path.parent.glob(glob.escape(self.path.name) + ".part[0-9]*")):
            with Journal(path) as part:
                for _, line in part.read():
                    self.append(line)
            self.sync()
            path.unlink()

    def clear(self) -> None:
        self._truncate(0)

    def sync(self) -> None:
        if self._unsynced.is_set():
            self._unsynced.clear()
            os.fsync(self._file)

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._syncer.join()
            self.sync()
            os.close(self._file)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)
        self._size = size
        self._unsynced.set()

    def _sync_often(self) -> None:
        while not self._closed.wait(SYNC_SECONDS):
            try:
                self.sync()
            except OSError as error:
                self._sync_error = error


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
