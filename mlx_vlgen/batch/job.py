"""A job: which rows are left, the journal they go to, and what is written of it at the end."""

import hashlib
import json
import secrets
import stat
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ..errors import VlgenError, one_line, printable
from ..results import GenerationResult
from .journal import Journal
from .progress import Progress
from .rows import Asked, Row, rows_of
from .sinks import whole_or_not
from .sources import Item

WAITING = 4
"""Rows that are read ahead of those that run."""

NONE = -1  # in `Job.order`: no line of the journal


@dataclass(frozen=True)
class Retry:
    """Which finished rows are asked again."""

    failed: bool = False
    changed: bool = False


# The job's file


def open_settings(out: Path, settings: Mapping[str, Any], journal: Journal, restart: bool) -> dict[str, Any]:
    """What OUT.job.json says, which is written where it is not there yet: settings, seed and created (seconds).

    VlgenError where it says other settings, or where OUT is there and no job's.
    """
    path = beside(out, ".job.json")
    settings = json.loads(json.dumps(settings))
    if restart:
        journal.clear()
    elif journal.path.stat().st_size and path.exists():  # else nothing is answered that could be lost
        try:
            job = json.loads(path.read_bytes())
            _check_settings(path, job["settings"], settings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, VlgenError):
                raise
            raise VlgenError(f"{path} is damaged: begin anew with --restart, or take another OUT") from None
        return dict(job)
    elif (out.is_file() and not path.exists()) or journal.path.stat().st_size:
        there = out if out.is_file() else journal.path
        raise VlgenError(f"{there} is there, and {path} is not: take another OUT, or replace it with --restart")
    job = {"settings": settings, "seed": secrets.randbits(62), "created": int(time.time())}
    save_settings(out, job)
    return job


def is_settings(out: Path, job: Mapping[str, Any]) -> bool:
    """Whether this is what OUT.job.json says of the job's seed and begin: whether it is the same file."""
    try:
        there = json.loads(beside(out, ".job.json").read_bytes())
        return all(there[name] == job[name] for name in ("seed", "created"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_settings(out: Path, job: Mapping[str, Any]) -> None:
    with whole_or_not(beside(out, ".job.json")) as file:
        file.write(json.dumps(job, indent=2).encode() + b"\n")


def beside(out: Path, ending: str) -> Path:
    """A file of the job: OUT's name with another ending."""
    out = out.resolve()
    return out.with_name(out.name + ending)


def _check_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            old, new = (_show(values.get(name)) for values in (before, now))
            raise VlgenError(
                f"this job began with {_flag(name)} {old}, and now it is {new} ({path}): give what it began with, take "
                "another OUT, or answer all rows again with --restart"
            )


def _flag(name: str) -> str:
    return "INPUT" if name == "input" else "--" + name.replace("_", "-")


def _show(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


# The rows


class Engine(Protocol):
    """What a job asks. `add` takes a row and its keywords, and returns an id or raises what is wrong with them;
    iterating yields results, the last of each row with its finish_reason."""

    def add(self, row: Row, keywords: dict[str, Any]) -> int: ...

    def __iter__(self) -> Iterator[tuple[int, GenerationResult]]: ...

    def close(self) -> None: ...


@dataclass
class Running:
    """A row that is asked. place: its index in the order of the input. facts: of its request and files, before they
    were read. tokens: of its answer so far."""

    row: Row
    key: str
    place: int
    facts: dict[str, Any]
    tokens: int = 0


class Job:
    """Asks the engine each row that the journal does not have.

    open_engine: called when the first row needs it. keywords: of the job. seed: of rows without one. capacity: rows
    that run together. wants: whether a row need be answered; VlgenError for one that cannot be written.
    part: where finished rows are written, in the place of the journal. mine: whether a row of this key is asked here.

    order: for each row of the input the offset of its line in the journal.
    """

    def __init__(
        self,
        journal: Journal,
        open_engine: Callable[[], Engine],
        *,
        keywords: Mapping[str, Any] = {},
        seed: int = 0,
        capacity: int = 32,
        wants: Callable[[Row], bool] = lambda row: True,
        retry: Retry = Retry(),
        progress: Progress | None = None,
        part: Journal | None = None,
        mine: Callable[[str], bool] = lambda key: True,
    ):
        self._journal, self._open_engine, self._keywords, self._seed = journal, open_engine, keywords, seed
        self._capacity, self._wants, self._retry = capacity, wants, retry
        self._part, self._mine = part or journal, mine
        self.progress = progress or Progress(None)
        self._engine: Engine | None = None
        self._running: dict[int, Running] = {}
        self._counts: dict[bytes, int] = {}  # of the rows so far, by identity
        self.order = array("q")
        self.skipped = self.failed = self.changed = 0
        self.first_failed: str | None = None
        self.first_changed: str | None = None
        self._done = {bytes.fromhex(line["key"]): offset for offset, line in journal.read() if "key" in line}

    def run(self, items: Iterable[Item], asked: Asked) -> None:
        try:
            for item in items:
                rows = 0
                for row in rows_of(item, asked):
                    rows += 1
                    self._take(row)
                    self.progress.show()
                self.progress.read(rows)
            while self._running:
                self._step()
        finally:
            if self._engine is not None:
                self._engine.close()
            self.progress.close()
            self._part.sync()

    def entries(self) -> Iterator[dict[str, Any]]:
        """The finished rows in the order of the input."""
        return (self._journal.at(offset) for offset in self.order if offset != NONE)

    def _take(self, row: Row) -> None:
        """Ask a row, unless it is finished."""
        key, twice = self._key(row)
        if row.error is None and twice and row.custom_id is not None:
            row = replace(row, error=f"{row.where}: custom_id {row.custom_id!r:.80} is an earlier row's")
        wanted = True
        if row.error is None:
            try:
                wanted = self._wants(row)
            except VlgenError as error:
                row = replace(row, error=str(error))
        offset = self._done.pop(bytes.fromhex(key), None)
        running = Running(row, key, len(self.order), {})
        self.order.append(NONE if offset is None else offset)
        if not self._mine(key):
            return
        if offset is not None and not self._ask_again(row, offset):
            self.progress.before += 1
        elif not wanted:
            self.skipped += 1
            self.progress.before += 1
        else:
            running.facts = facts(row)
            self._start(running)

    def _key(self, row: Row) -> tuple[str, int]:
        """The row's key, and how many rows of its identity came before it."""
        base = _hash(row.identity)
        number = self._counts.get(base, 0)
        self._counts[base] = number + 1
        return _hash([*row.identity, number]).hex(), number

    def _ask_again(self, row: Row, offset: int) -> bool:
        line = self._journal.at(offset)
        if line["row"]["error"] is not None:
            if self._retry.failed:
                return True
            self._count_failure(row, line["row"]["error"])
        if line["asked"] != row.digest or (
            line["files"] != file_facts(row.files) and line["content"] != facts(row)["content"]
        ):
            if self._retry.changed:
                return True
            self.changed += 1
            self.first_changed = self.first_changed or printable(row.title)
        return False

    def _start(self, running: Running) -> None:
        row = running.row
        if row.error is not None:
            return self._fail(running, row.error)
        if self._engine is None:
            self._engine = self._open_engine()
            self.progress.start()
        while len(self._running) >= self._capacity + WAITING:
            self._step()
        keywords = {"seed": int(running.key[:15], 16) ^ self._seed, **self._keywords, **row.keywords}
        try:
            id = self._engine.add(row, keywords)
        except Exception as error:  # a fault of one row's request ends that row only
            self._fail(running, one_line(error))
        else:
            self._running[id] = running

    def _step(self) -> None:
        """The next result of any row."""
        assert self._engine is not None
        id, result = next(iter(self._engine))
        running = self._running[id]
        self.progress.tokens += result.generation_tokens - running.tokens
        running.tokens = result.generation_tokens
        self.progress.show()
        if result.finish_reason is None:
            return
        del self._running[id]
        if result.finish_reason == "cancelled":  # by Ctrl-C; nobody else cancels
            raise KeyboardInterrupt
        if result.error is not None:
            self._fail(running, one_line(result.error), result)
        else:
            self._write(running, None, result)
            self.progress.answered += 1

    def _fail(self, running: Running, error: str, result: GenerationResult | None = None) -> None:
        self._write(running, error, result)
        self.progress.failed += 1
        self._count_failure(running.row, error)

    def _count_failure(self, row: Row, error: str) -> None:
        self.failed += 1
        if self.first_failed is None:
            self.first_failed = printable(error if row.title in error else f"{row.title}: {error}")

    def _write(self, running: Running, error: str | None, result: GenerationResult | None) -> None:
        row = running.row
        line = {"key": running.key, "row": written(row, error, result), "stem": row.stem, **running.facts}
        if row.openai:
            line["openai"] = True
        self.order[running.place] = self._part.append(line)


def written(row: Row, error: str | None, result: GenerationResult | None) -> dict[str, Any]:
    """A finished row as outputs have it. result: None for one that was not asked."""
    result = result or GenerationResult(answer="")
    values = {
        "custom_id": row.custom_id,
        "image": row.name or None,
        "prompt": row.prompt,
        "text": result.answer,
        "finish_reason": "error" if error is not None else result.finish_reason,
        "error": error,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.generation_tokens,
            "total_tokens": result.total_tokens,
        },
    }
    return values if result.thinking is None else values | {"thinking": result.thinking}


def _hash(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).digest()


# What a row was when it was asked


def facts(row: Row) -> dict[str, Any]:
    """asked: a hash of the request. files: see `file_facts`. content: a hash of what they hold."""
    files = file_facts(row.files)
    return {"asked": row.digest, "files": files, "content": _content(row.files, json.dumps(files))}


def file_facts(paths: Sequence[str]) -> list[list[int] | None]:
    """Size and time of change of each file, which tell without reading that it has not changed."""
    found: list[list[int] | None] = []
    for path in paths:
        try:
            status = Path(path).stat()
            found.append([status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None)
        except (OSError, ValueError):
            found.append(None)
    return found


@lru_cache(maxsize=1)  # rows that ask several prompts about a picture follow each other
def _content(paths: tuple[str, ...], files: str) -> str | None:
    """A hash of what files hold; None where one cannot be read."""
    digest = hashlib.sha256()
    for path, known in zip(paths, json.loads(files), strict=True):
        if known is None:
            return None
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            return None
    return digest.hexdigest()[:32] if paths else None
