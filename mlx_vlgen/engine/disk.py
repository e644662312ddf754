"""What a `PrefixCache` leaves on disk: a file a block, written whole or not at all, and checked when it is read."""

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .._runtime import mx, tree_flatten
from ..models.base import Model
from .blocks import Block
from .columns import Run
from .prefix import BLOCK, Units, agreement, block_keys
from .scheduling import is_out_of_memory

GIB = 1 << 30
LARGEST, SHARE, LEAST_FREE = 30 * GIB, 0.25, 10 * GIB
"""The files take at most so many bytes, and of the free space this part; none is written while less than the last is
free."""

ABANDONED = 3600
"""Seconds after which an unfinished file belongs to no process any more."""

_FORMAT = f"mlx_vlgen {__version__}"
_HEADER_BYTES = 4 << 20
_PIECE = 1 << 24
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{64}\.safetensors")


def default_folder() -> Path:
    """Where the chat's are, below the folder that the system has for such files."""
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "mlx-vlgen" / "prefixes"


def identity(model: Model) -> bytes:
    """The same for models that compute the same, adapters included: of this version, config.json, and every parameter's
    name, shape, dtype and checksum, for which all weights are read once."""
    digest = hashlib.sha256(f"{_FORMAT} {json.dumps(dict(model.config), sort_keys=True, default=repr)}".encode())
    for name, parameter in sorted(tree_flatten(model.parameters())):
        digest.update(f"{name} {parameter.shape} {parameter.dtype} {_checksum(parameter)}".encode())
    return digest.digest()


def _checksum(array: mx.array) -> list[Any]:
    """Sums of its bits, each times an odd number of its place: no single change leaves them as they are."""
    flat = array.reshape(-1).view({1: mx.uint8, 2: mx.uint16}.get(array.itemsize, mx.uint32))
    sums: list[mx.array] = []
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(mx.uint32)
        sums.append((piece * (mx.arange(piece.size, dtype=mx.uint32) * 0x9E3779B2 + 1)).sum())
        mx.eval(sums[-1])  # a piece at a time is in memory
    return [total.item() for total in sums]


class Disk:
    """A folder of blocks, which its owner alone can read. max_bytes: of all files; None is the rule above. Two threads
    use it: one reads, one writes."""

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int | None = None):
        self.folder, self._max_bytes = Path(folder).expanduser(), max_bytes
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_mode & 0o077:
            self.folder.chmod(0o700)
        self._lock = threading.Lock()
        self._index: dict[str, dict[bytes, Units | None]] = {}  # by the beginning of the parent's key, once read
        for used, _, path in self.files():
            if _NAME.fullmatch(path.name):
                self._index.setdefault(path.name[:16], {})[bytes.fromhex(path.stem[17:])] = None
            elif time.time() - used / 1e9 > ABANDONED:
                path.unlink(missing_ok=True)

    def files(self) -> list[tuple[int, int, Path]]:
        """(time of the last use in ns, bytes, path) of each, the one used least recently first."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process deletes too
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        return sorted(found)

    def clear(self) -> None:
        """Delete all files."""
        with self._lock:
            self._index.clear()
        for path in self.folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)

    def _path(self, parent: bytes, key: bytes) -> Path:
        return self.folder / f"{parent.hex()[:16]}-{key.hex()}.safetensors"

    # -- reading

    def following(self, parent: bytes, known: Container[bytes], units: Units) -> Iterator[Block]:
        """The blocks after `parent` that begin like `units`, but for those that are known; their arrays are not read
        yet. A file that is not what it should be is deleted."""
        with self._lock:
            index = list(self._index.get(parent.hex()[:16], {}).items())
        for key, had in index:
            if key in known or (had is not None and not agreement(had, units)):
                continue
            try:
                block = _read(self._path(parent, key), parent, key)
            except Exception:  # whatever is wrong with it, or another process deleted it
                self._forget(parent, key)
                continue
            self._know(block)
            if agreement(block.units, units):
                yield block

    def load(self, blocks: Sequence[Block]) -> bool:
        """Read the arrays of blocks that were found, and say whether they could be."""
        try:
            mx.eval([block.arrays for block in blocks])
        except Exception as error:
            if not is_out_of_memory(error):  # the files are good, and are there another time
                for block in blocks:
                    self._forget(block.parent, block.key)
            return False
        self._touch(blocks)
        return True

    def _know(self, block: Block) -> None:
        with self._lock:
            self._index.setdefault(block.parent.hex()[:16], {})[block.key] = block.units

    def _forget(self, parent: bytes, key: bytes) -> None:
        self._path(parent, key).unlink(missing_ok=True)
        with self._lock:
            self._index.get(parent.hex()[:16], {}).pop(key, None)

    def _touch(self, blocks: Sequence[Block]) -> None:
        """They were used; those before others last, so that these are never deleted before them."""
        for block in reversed(blocks):
            try:
                os.utime(self._path(block.parent, block.key))
            except FileNotFoundError:
                continue

    # -- writing

    def write(self, blocks: Sequence[Block], changed: Container[bytes]) -> None:
        """Write those of a chain that are not there or changed, and delete what was used least recently where there is
        no room. What cannot be written is computed again another time."""
        self._touch(blocks)
        try:
            free, files = shutil.disk_usage(self.folder).free, self.files()
        except OSError:  # somebody deleted the folder
            return
        used = sum(size for _, size, _ in files)
        limit = min(LARGEST, int(SHARE * (free + used))) if self._max_bytes is None else self._max_bytes
        for block in blocks:
            path = self._path(block.parent, block.key)
            if block.key not in changed and path.exists():
                continue
            while files and used + block.nbytes > limit:
                _, size, oldest = files.pop(0)
                oldest.unlink(missing_ok=True)
                used -= size
            if free < LEAST_FREE or used + block.nbytes > limit:
                return
            try:
                size = self._write(block, path)
            except (OSError, RuntimeError):  # no space, most likely
                return
            used, free = used + size, free - size
        self._touch(blocks)

    def _write(self, block: Block, path: Path) -> int:
        descriptor, name = tempfile.mkstemp(suffix=".safetensors", prefix=".", dir=self.folder)  # 0600
        try:
            mx.save_safetensors(name, *_packed(block))
            os.fsync(descriptor)  # or a machine that loses power has a file of the right size with nothing in it
            size = Path(name).stat().st_size
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self._know(block)
        return size


def _packed(block: Block) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Arrays by name, and what else a file says."""
    runs = [[(run.first, run.buffer, len(run.parts)) for run in layer] for layer in block.runs]
    states = [(index, len(arrays)) for index, arrays in block.states.items()]
    facts = {"format": _FORMAT, "parent": block.parent.hex(), "layers": json.dumps([runs, states])}
    return {"units": mx.array(block.units)} | {str(place): array for place, array in enumerate(block.arrays)}, facts


def _read(path: Path, parent: bytes, key: bytes) -> Block:
    """A block after `parent`. Raises whatever is wrong with its file."""
    _check_size(path)
    loaded: Any = mx.load(str(path), return_metadata=True)
    arrays, metadata = loaded
    units = np.array(arrays["units"])
    if (metadata["format"], metadata["parent"]) != (_FORMAT, parent.hex()) or not _fits(units, parent, key):
        raise ValueError(f"{path}: not what its name says")
    runs, states = json.loads(metadata["layers"])
    place = itertools.count()

    def take(count: int) -> list[mx.array]:
        return [arrays[str(next(place))] for _ in range(count)]

    def run(first: int, buffer: int, count: int) -> Run:
        parts = take(count)
        return Run(first, int(parts[0].shape[2]), buffer, parts)

    layers = [[run(*what) for what in layer] for layer in runs]
    return Block(key, parent, units, layers, {index: take(count) for index, count in states})


def _fits(units: Units, parent: bytes, key: bytes) -> bool:
    shaped = units.dtype == np.uint64 and units.ndim == 2 and 0 < len(units) <= BLOCK
    return shaped and block_keys(parent, units) == [key]


def _check_size(path: Path) -> None:
    """ValueError for a file that is not as long as its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER_BYTES:
            raise ValueError(f"{path}: a header of {length} bytes")
        header = json.loads(file.read(length))
        size = os.fstat(file.fileno()).st_size
    end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    if size != 8 + length + end:
        raise ValueError(f"{path}: {size} bytes, expected {8 + length + end}")
