"""`mlx-vlgen models`, `pull` and `rm`: which models lie in the Hugging Face cache, and whether they run here."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import LoadError, VlgenError, one_line
from .flags import Parser
from .inputs.kinds import KINDS
from .loading.hub import DEMO, locate
from .notices import format_size, notice, print_stderr

TALK = 8192
"""Tokens of a talk that every model should have room for."""

MANY = 262_144
"""Tokens: the longest talk that is told of a model that names no limit."""


@dataclass(frozen=True)
class Entry:
    """One model: what `mlx-vlgen models --json` prints, a line each.

    disk: bytes. bits: of its quantized layers, most common first; empty for a float one. takes: kinds of media.
    needed: bytes in memory with a talk of `TALK` tokens. available: bytes of memory that are free for models, or None.
    tokens: how long a talk may become here, in tokens; None where it does not fit, or that is not known.
    error: why it cannot be loaded, or None; then the fields before it say nothing.
    """

    model: str
    disk: int
    family: str | None = None
    bits: tuple[int, ...] = ()
    takes: tuple[str, ...] = ()
    needed: int = 0
    available: int | None = None
    tokens: int | None = None
    error: str | None = None

    @property
    def fits(self) -> str:
        if self.error is not None:
            return "cannot be loaded"
        if self.available is None:
            return "not known"
        if self.tokens is None:
            return f"no: {format_size(self.needed)} needed, {format_size(self.available)} free"
        return f"yes: {self.tokens:,} tokens"

    def row(self) -> tuple[str, ...]:
        bits = " + ".join(map(str, self.bits)) or ("" if self.error else "float")
        return (self.model, self.family or "", format_size(self.disk), bits, ", ".join(self.takes), self.fits)


def run_models(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    entries = []
    for entry in _entries(args.model):
        entries.append(entry)
        if args.json:
            print(json.dumps(asdict(entry)), flush=True)
    if args.json:
        return 0
    rows = [("MODEL", "FAMILY", "DISK", "BITS", "TAKES", "FITS HERE"), *(entry.row() for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for entry in entries:
        if entry.error is not None:
            print_stderr(f"{entry.model}: {entry.error}")
    if not args.model:
        print_stderr(f"\nThose of {_cache_folder()}, and the built-in ones. `mlx-vlgen pull MODEL` adds one.")
    return 0


def run_pull(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    folder = locate(args.model, args.revision)
    notice(f"{args.model} is there: {_describe(args.model, folder).fits}")
    print(folder)
    return 0


def run_rm(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    cached = {repo.repo_id: repo for repo in _scan().repos if repo.repo_type == "model"}
    if unknown := [name for name in args.model if name not in cached]:
        raise LoadError(f"{', '.join(unknown)} is not in the cache ({_cache_folder()}); `mlx-vlgen models` lists it.")
    repos = [cached[name] for name in dict.fromkeys(args.model)]
    size = sum(repo.size_on_disk for repo in repos)
    names = ", ".join(repo.repo_id for repo in repos)
    if not args.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            parser.error(f"deleting {names} ({format_size(size)}) is asked about on a terminal; --yes answers it")
        print_stderr(f"Delete {names} ({format_size(size)}) from {_cache_folder()}? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise VlgenError("nothing was deleted")
    for repo in repos:  # not by the hashes of its commits, which a copy of a repository has, too
        shutil.rmtree(repo.repo_path)
    print(f"{names}: {format_size(size)} deleted")
    return 0


def _entries(names: Sequence[str]) -> Iterator[Entry]:
    """Of these models; by default of the built-in one and all in the cache."""
    if names:
        for name in names:
            yield _describe(name, locate(name, local_files_only=True))
        return
    yield _describe("demo", DEMO)
    for repo in sorted(_scan().repos, key=lambda repo: repo.repo_id.lower()):
        if repo.repo_type == "model" and _is_checkpoint(repo):
            try:
                yield _describe(repo.repo_id, locate(repo.repo_id, local_files_only=True), repo.size_on_disk)
            except LoadError as error:
                yield Entry(repo.repo_id, repo.size_on_disk, error=one_line(error))


def _describe(name: str, folder: Path, disk: int | None = None) -> Entry:
    """What is known of the checkpoint in `folder` without reading its weights."""
    from ._runtime import memory_available
    from .loading.footprint import Footprint, without_weights
    from .loading.loader import only_reads
    from .loading.quantization import recipe_of
    from .models import find

    if disk is None:
        disk = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        model = without_weights(folder)
    except LoadError as error:
        return Entry(name, disk, error=one_line(error))
    recipe, footprint, available = recipe_of(model), Footprint.of(model), memory_available()
    settings = [recipe, *(value for value in recipe.values() if isinstance(value, dict))]
    tokens = None if available is None else footprint.positions(available, model.max_positions or MANY)
    kinds = () if only_reads(model) else find(model.config).processor_class().placeholders
    return Entry(
        name,
        disk,
        model.config["model_type"],
        tuple(dict.fromkeys(layer["bits"] for layer in settings if "bits" in layer)),
        tuple(f"{KINDS[kind].noun}s" for kind in kinds),
        footprint.needed(TALK),
        available,
        tokens,
    )


def _is_checkpoint(repo: Any) -> bool:
    """Whether a repository in the cache is a model's weights for transformers or MLX, or was to become one."""
    names = {file.file_name for revision in repo.revisions for file in revision.files}
    return "config.json" in names and any(name.endswith(".safetensors") for name in names)


def _cache_folder() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _scan() -> Any:
    """huggingface_hub's account of the cache."""
    from huggingface_hub import scan_cache_dir

    Path(_cache_folder()).mkdir(parents=True, exist_ok=True)
    return scan_cache_dir(_cache_folder())
