"""A checkpoint on its way to disk: whole or not at all, and one shard's weights in memory at a time."""

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from .._runtime import mx
from ..errors import VlgenError
from ..notices import notice
from .checkpoint import INDEX

SHARD_BYTES = 5_000_000_000


def check_free(target: Path) -> None:
    """VlgenError for a name under which there is something already."""
    if target.is_dir() and any(target.iterdir()):
        raise VlgenError(f"{target} is there already and is not empty. Remove it, or choose another folder.")
    if target.exists() and not target.is_dir():
        raise VlgenError(f"{target} is a file. Choose another name for the folder.")


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that gets its name when the block ends well, and is removed when it does not.

    It lies in a folder of a random name that only this user may enter, and that is locked for as long as its run lives:
    what a killed run left is removed here, and what another one writes is not touched.
    """
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(target)
    outer, lock = _locked(target)
    try:
        part = outer / "checkpoint"  # with the permissions that folders get here
        part.mkdir()
        yield part
        try:
            part.rename(target)  # onto nothing or an empty folder only
        except OSError:
            check_free(target)
            raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        os.close(lock)


_ENDING = ".converting"


def _locked(target: Path) -> tuple[Path, int]:
    """A new folder for `target`, and the open file that locks it."""
    while True:
        outer = Path(tempfile.mkdtemp(_ENDING, f".{target.name}.", target.parent))
        lock = os.open(outer, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:
            return outer, lock  # a file system that knows no locks: nobody removes what is left there, either
        else:
            if outer.exists():
                return outer, lock
        os.close(lock)  # another run took it for one that was left, before it was locked


def _remove_left(target: Path) -> None:
    """Remove what killed runs with this target left. VlgenError where a run still writes it.

    Only folders of this user's are removed, never what a link leads to; `shutil.rmtree` follows none either.
    """
    for outer in target.parent.glob(f".{glob.escape(target.name)}.*{_ENDING}"):
        try:
            lock = os.open(outer, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # a link, a file, another user's, or gone meanwhile
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(outer, ignore_errors=True)
        except BlockingIOError:
            raise VlgenError(
                f"{target} is being written by another process. Wait for it, or choose another folder."
            ) from None
        except OSError:
            continue
        finally:
            os.close(lock)


def shards(tensors: Mapping[str, mx.array], most: int) -> list[list[str]]:
    """The tensors' names in groups of at most `most` bytes, in their order; a larger tensor is alone in its own."""
    groups: list[list[str]] = []
    size = 0
    for name, tensor in tensors.items():
        if not groups or size + tensor.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups


def write_weights(folder: Path, tensors: dict[str, mx.array], metadata: Mapping[str, Any]) -> None:
    """Compute and write `tensors`, which are taken out of the dictionary, as safetensors files with an index.

    metadata: what the index tells beside the total size.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > (free := shutil.disk_usage(folder).free):
        raise VlgenError(f"The checkpoint takes {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {folder}.")
    plan = shards(tensors, SHARD_BYTES)
    where: dict[str, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=None) as bar:
        for number, names in enumerate(plan, 1):
            file = f"model-{number:05}-of-{len(plan):05}.safetensors" if len(plan) > 1 else "model.safetensors"
            shard = {name: tensors.pop(name) for name in names}
            for tensor in shard.values():
                mx.eval(tensor)  # one at a time: together, all that they are made of would be in memory
                bar.update(tensor.nbytes)
            mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
            mx.clear_cache()
            where |= dict.fromkeys(names, file)
            if bar.disable:
                notice(f"{file} ({len(names)} tensors, {(folder / file).stat().st_size / 1e6:.1f} MB)")
    index = {"metadata": {"total_size": total, **metadata}, "weight_map": dict(sorted(where.items()))}
    write_json(folder / INDEX, index)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
