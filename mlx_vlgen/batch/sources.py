"""What a job reads: folders, lists, CSV, JSONL and Parquet, an item at a time and never as a list of all."""

import csv
import glob
import json
import os
import posixpath
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError, VlgenError, printable
from ..inputs.kinds import KINDS, kind_of_file
from ..inputs.media import is_local

PDF = ".pdf"


@dataclass(frozen=True)
class Item:
    """One entry of an input, as it stands there.

    fields: by name: image, images, video, audio, prompt, messages, custom_id, keywords, and columns for templates.
    where: what names it in messages: "rows.csv, line 3".
    base: the folder that its relative paths begin at, before the current one.
    stem: its path in the input without the suffix, which names its sidecar; None where it has none.
    table: whether it comes from a table, whose columns may be anyone's; of CSV the values are text.
    error: what keeps it from being read.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    base: str = ""
    stem: str | None = None
    table: bool = False
    error: str | None = None


def read(inputs: Sequence[str], image_column: str = "image") -> Iterator[Item]:
    """The items of each input in order. VlgenError for an input that is not there or of no known kind.

    image_column: the column of a table that holds the pictures.
    """
    for name in inputs:
        reader = _reader(name)
        yield from reader(name, image_column) if reader in (_read_csv, _read_parquet) else reader(name)


def check(inputs: Sequence[str]) -> None:
    """VlgenError for an input that is not there or of no known kind."""
    for name in inputs:
        _reader(name)


def has_columns(name: str) -> bool:
    """Whether the rows of an input have more than a file."""
    return _reader(name) in (_read_csv, _read_jsonl, _read_parquet)


def count(inputs: Sequence[str]) -> int | None:
    """About how many items there are, found without reading them; None where that cannot be known."""
    total = 0
    for name in inputs:
        reader = _reader(name)
        if name == "-":
            return None
        if reader in (_read_folder, _read_glob, _read_file):
            total += sum(1 for _ in reader(name))
        elif reader is _read_parquet:
            total += _parquet_file(name).metadata.num_rows
        else:
            with open(name, "rb") as file:
                total += sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return total


def _reader(name: str) -> Callable[..., Iterator[Item]]:
    """What reads an input."""
    if name == "-":
        return _read_list
    path, suffix = Path(name), Path(name.partition("#")[0] if PDF + "#" in name.lower() else name).suffix.lower()
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if path.is_dir() if exists else False:
        return _read_folder
    if not exists and glob.has_magic(name):
        return _read_glob
    if not exists and not (suffix == PDF and "#" in name):
        raise VlgenError(f"{name}: no such file or folder")
    if kind_of_file(name) or suffix == PDF:
        return _read_file
    readers = {".txt": _read_list, ".list": _read_list, ".csv": _read_csv, ".tsv": _read_csv,
               ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}  # fmt: skip
    if suffix not in readers:
        known = ", ".join(readers)
        raise VlgenError(f"{name}: expected a folder, a picture, a pattern like 'photos/*.jpg', or a file in {known}")
    return readers[suffix]


# Files


def _read_folder(folder: str, above: tuple[str, ...] = ()) -> Iterator[Item]:
    """The pictures and PDF files in a folder and those below it, in order of their names. above: the folders that it is
    in, to which a link may lead back."""
    above = (*above, folder)
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not entry.is_symlink() or not any(Path(entry.path).samefile(path) for path in above):
                        folders.append(entry.name)
                elif Path(entry.name).suffix.lower() in KINDS["image"].suffixes | {PDF}:
                    files.append(entry.name)
    except OSError as error:
        yield Item(where=printable(folder), error=f"cannot be read ({error.strerror})")
    for name in sorted(files):
        if not name.startswith("."):
            path = str(Path(folder, name))
            yield _file_item(path, os.path.relpath(path, above[0]))
    for name in sorted(folders):
        if not name.startswith("."):
            yield from _read_folder(str(Path(folder, name)), above)


def _read_glob(pattern: str) -> Iterator[Item]:
    magic = next(i for i, part in enumerate(Path(pattern).parts) if glob.has_magic(part))
    root = Path(*Path(pattern).parts[:magic])
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if (kind_of_file(path) or path.lower().endswith(PDF)) and not Path(path).is_dir():
            yield _file_item(path, os.path.relpath(path, root))


def _read_file(path: str) -> Iterator[Item]:
    yield _file_item(path, Path(path).name)


def _file_item(path: str, relative: str, where: str | None = None, base: str = "") -> Item:
    name = path.partition("#")[0] if PDF + "#" in path.lower() else path
    return Item({kind_of_file(name) or "image": path}, where or printable(path), base, stem_of(relative))


def stem_of(source: object) -> str | None:
    """What names the sidecar of a picture: its path without the suffix, relative, or its name only; None for none."""
    if not isinstance(source, str) or source[:5].lower() == "data:":
        return None
    if not is_local(source):
        source = posixpath.basename(source.partition("?")[0].partition("#")[0])
    if PDF + "#" in source.lower():
        source = source[: source.lower().rindex(PDF + "#") + len(PDF)]
    parts = Path(source).parts
    if not parts:
        return None
    inside = not Path(source).is_absolute() and ".." not in parts
    return str(Path(*parts if inside else parts[-1:]).with_suffix(""))


# Lists and tables


def _text_lines(name: str, newline: str | None = None) -> Iterator[str]:
    try:
        if name == "-":
            if sys.stdin is None:
                raise VlgenError("-: stdin is closed")
            yield from sys.stdin
        else:
            with open(name, encoding="utf-8-sig", newline=newline) as file:
                yield from file
    except UnicodeDecodeError:
        raise VlgenError(f"{name}: not text in UTF-8") from None


def _read_list(name: str) -> Iterator[Item]:
    """A path or URL a line."""
    for line in _text_lines(name):
        if path := line.rstrip("\r\n"):
            yield _file_item(path, path, base="" if name == "-" else str(Path(name).parent))


def _read_csv(name: str, image_column: str = "image") -> Iterator[Item]:
    csv.field_size_limit(1 << 30)
    lines = csv.reader(_text_lines(name, newline=""), dialect="excel-tab" if name.lower().endswith("tsv") else "excel")
    try:
        header = next(lines, [])
        columns = _check_columns(name, header, image_column)
        for values in lines:
            where = f"{printable(name)}, line {lines.line_num}"
            if not values:
                continue
            if len(values) != len(header):
                yield Item(where=where, error=f"{len(values)} fields where the header has {len(header)}")
                continue
            fields = {key: value for key, value in zip(columns, values, strict=True) if value != ""}
            yield _row_item(fields, where, name, table=True)
    except csv.Error as error:
        raise VlgenError(f"{name}, line {lines.line_num}: not CSV: {error}") from None


def _read_jsonl(name: str) -> Iterator[Item]:
    with open(name, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{printable(name)}, line {number}"
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Item(where=where, error=f"not JSON: {error}")
                continue
            if isinstance(fields, dict):
                yield _row_item(fields, where, name, table=False)
            else:
                yield Item(where=where, error=f"a JSON object is expected; this is {type(fields).__name__}")


def _read_parquet(name: str, image_column: str = "image") -> Iterator[Item]:
    file = _parquet_file(name)
    columns = _check_columns(name, file.schema_arrow.names, image_column)
    number = 0
    for batch in file.iter_batches(batch_size=64):
        for fields in batch.to_pylist():
            number += 1
            present = {key: value for key, value in zip(columns, fields.values(), strict=True) if value is not None}
            yield _row_item(present, f"{printable(name)}, row {number}", name, table=True)


def parquet_package() -> Any:
    """pyarrow, with `parquet`; UnsupportedError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UnsupportedError('Parquet files need an extra: pip install "mlx-vlgen[parquet]"') from None
    return pyarrow


def _parquet_file(name: str) -> Any:
    arrow = parquet_package()
    try:
        return arrow.parquet.ParquetFile(name)
    except (arrow.ArrowException, OSError) as error:
        raise VlgenError(f"{name}: not a Parquet file that can be read ({error})") from None


def _check_columns(name: str, columns: Sequence[str], image_column: str) -> list[str]:
    """What the columns are called here. VlgenError for a table of which nothing can be asked."""
    there = f"it has {', '.join(columns)}"
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise VlgenError(f"{name}: two columns are named {twice[0]!r}")
    if image_column != "image" and "image" in columns:
        raise VlgenError(f"{name} has a column 'image', and --image-column {image_column!r} names another: rename one")
    if image_column not in columns and image_column != "image":
        raise VlgenError(f"{name} has no column {image_column!r} (--image-column); {there}")
    if image_column not in columns and not {"images", "video", "audio", "prompt", "messages"} & set(columns):
        raise VlgenError(
            f"{name} has no column image, images, video, audio, prompt or messages; {there}. --image-column says which "
            "names the pictures"
        )
    return ["image" if column == image_column else column for column in columns]


def _row_item(fields: dict[str, Any], where: str, name: str, table: bool) -> Item:
    source = next((fields[kind] for kind in KINDS if fields.get(kind)), None)
    if isinstance(source, Mapping):
        source = source.get("path") or source.get("url")
    return Item(fields, where, str(Path(name).parent), stem_of(source), table)
