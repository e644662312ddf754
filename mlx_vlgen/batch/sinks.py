"""What a job writes: JSONL, CSV, Parquet or sidecars, from finished rows in the order of the input."""

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import VlgenError
from .journal import Journal
from .openai import write_line
from .rows import Row, fill_template
from .sources import parquet_package

Entry = Mapping[str, Any]
"""A line of the journal: key, row (as it is written), and what the next run must know (see `job.py`)."""

COLUMNS = ("custom_id", "image", "prompt", "text", "finish_reason", "error")
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")

CAPTION_FIELDS = frozenset(["name", "folder", "text"])
"""What templates of sidecars may name."""

MODES = ("skip", "overwrite", "append", "prepend")
"""What is done with a sidecar that is there already."""


@contextmanager
def whole_or_not(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is whole, in the place of one that was there."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


# Files


def write_jsonl(path: Path, entries: Iterable[Entry], model: str, created: int) -> None:
    """One object a row; for a line of OpenAI's format one of its."""
    with whole_or_not(path) as file:
        for entry in entries:
            row = entry["row"]
            line = write_line(row, entry["key"], model, created) if entry.get("openai") else row
            file.write(_json_bytes(line) + b"\n")


def _json_bytes(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half characters, as names of files may have
        return json.dumps(value).encode()


def write_csv(path: Path, entries: Iterable[Entry]) -> None:
    with whole_or_not(path) as file:
        lines = csv.writer(_TextWriter(file))
        lines.writerow([*COLUMNS, *USAGE])
        for entry in entries:
            lines.writerow(_flat(entry["row"]).values())


class _TextWriter:
    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode())


def write_parquet(path: Path, entries: Iterable[Entry]) -> None:
    empty = as_table([])
    with whole_or_not(path) as file, parquet_package().parquet.ParquetWriter(file, empty.schema) as writer:
        rows = (entry["row"] for entry in entries)
        while chunk := list(itertools.islice(rows, 1024)):
            writer.write_table(as_table(chunk))


def as_table(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Finished rows as a pyarrow Table."""
    arrow = parquet_package()
    columns = [(name, arrow.string()) for name in COLUMNS] + [(name, arrow.int64()) for name in USAGE]
    return arrow.Table.from_pylist(list(map(_flat, rows)), arrow.schema(columns))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a table has it: text in Unicode, and usage as three columns."""
    values = {name: _text(row[name]) for name in COLUMNS}
    return values | {name: row["usage"].get(name) for name in USAGE}


def _text(value: Any) -> str | None:
    return None if value is None else str(value).encode(errors="backslashreplace").decode()


# Sidecars


@dataclass(frozen=True)
class Sidecars:
    """Text files named like the pictures, in a folder. mode: one of MODES. template: of a row's text, with {name},
    {folder} and {text}; prefix: one before it, likewise."""

    folder: Path
    mode: str = "skip"
    template: str = "{text}"
    prefix: str = ""
    _owners: dict[str, str] = field(default_factory=dict)

    def path(self, stem: str) -> Path:
        return self.folder / f"{stem}.txt"

    def caption(self, row: Mapping[str, Any], stem: str) -> str:
        path = self.path(stem)
        fields = {"name": path.stem, "folder": path.resolve().parent.name, "text": row["text"]}
        return fill_template(self.prefix, fields) + fill_template(self.template, fields)

    def wants(self, row: Row) -> bool:
        """Whether a row need be answered; claims its file for it. VlgenError where another row has it, or it has no
        name."""
        if row.stem is None:
            raise VlgenError("no file name to name a sidecar by: give a custom_id, or write to OUT.jsonl")
        name = _digest(row.stem.casefold().encode(errors="surrogateescape"))
        owner = _digest(row.name.encode(errors="surrogateescape"))
        if self._owners.setdefault(name, owner) != owner:
            raise VlgenError(f"{self.path(row.stem)} is written for another picture of that name: rename one of them")
        return self.mode != "skip" or not self.path(row.stem).exists()

    def write(self, entries: Iterable[Entry], journal: Journal) -> None:
        """Write each, the answers to several prompts as lines of one.

        Where text is added to what is there, the journal first says which and what will come of it: whenever this is
        killed, nothing is added twice.
        """
        added = _Additions(journal) if self.mode in ("append", "prepend") else None
        answered = (entry for entry in entries if entry["row"]["error"] is None and entry["stem"] is not None)
        for stem, group in itertools.groupby(answered, key=lambda entry: entry["stem"]):
            text = "\n".join(self.caption(entry["row"], stem) for entry in group)
            path = self.path(stem)
            old = path.read_bytes() if path.is_file() else None
            if self.mode == "skip" and old is not None:
                continue
            new = _join(old, text, self.mode)
            if added and not added.begin(stem, text, old, new):
                continue
            if new != old:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_or_not(path) as file:
                    file.write(new)


def _join(old: bytes | None, text: str, mode: str) -> bytes:
    new = text.encode(errors="backslashreplace") + b"\n"
    if old is None or mode in ("skip", "overwrite"):
        return new
    return _ended(old) + new if mode == "append" else new + old


def _ended(text: bytes) -> bytes:
    return text if not text or text.endswith(b"\n") else text + b"\n"


class _Additions:
    """What a job has added to sidecars, of which only the last may be undone yet."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._done: set[str] = set()
        self._last: tuple[str, str] | None = None
        for _, line in journal.read():
            if "added" in line:
                self._last = line["added"], line["sidecar"]
                self._done.add(line["added"])

    def begin(self, stem: str, text: str, old: bytes | None, new: bytes) -> bool:
        """Whether the text is still to be added; then the journal says so first."""
        key = _digest(json.dumps([stem, text]).encode())
        if key in self._done and (self._last is None or self._last[0] != key or self._last[1] == _digest(old or b"")):
            return False
        self._journal.append({"added": key, "sidecar": _digest(new)})
        self._journal.sync()
        return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


FILES: Mapping[str, Callable[..., None]] = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}
"""By the suffix of OUT. A name without one is a folder of sidecars."""


def check_out(out: Path) -> None:
    """VlgenError for a name of no known format, and for a format whose package is missing."""
    suffix = out.suffix.lower()
    if out.is_dir() or (not suffix and not out.exists()):
        return
    if suffix not in FILES:
        raise VlgenError(f"{out}: expected a file in {', '.join(FILES)}, or a folder for sidecars")
    if suffix == ".parquet":
        parquet_package()
