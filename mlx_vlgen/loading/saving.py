"""Writing a checkpoint: whole or not at all, with the weights of one shard in memory at a time."""

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


def check_target(target: Path) -> None:
    """VlgenError unless `target` is free: missing, or an empty folder."""
    if target.is_dir() and any(target.iterdir()):
        raise VlgenError(f"{target} is there already and is not empty. Remove it, or choose another folder.")
    if target.exists() and not target.is_dir():
        raise VlgenError(f"{target} is a file. Choose another name for the folder.")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`. It is renamed to `target` after the block, and removed where the block raises.

    It lies in a folder of a random name, which only this user may enter and which this process keeps locked. So the
    folders of killed processes can be told from those that are being written: the former are removed here.
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    outer, lock = _make_locked_folder(target)
    try:
        part = outer / "checkpoint"  # with the permissions that folders get here
        part.mkdir()
        yield part
        try:
            part.rename(target)  # onto nothing or an empty folder only
        except OSError:
            check_target(target)
            raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        os.close(lock)


_ENDING = ".converting"


def _make_locked_folder(target: Path) -> tuple[Path, int]:
    """A new folder for `target`, and the open file that locks it."""
    while True:
        outer = Path(tempfile.mkdtemp(_ENDING, f".{target.name}.", target.parent))
        lock = os.open(outer, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:
            return outer, lock  # a file system without locks, where nobody removes leftovers either
        else:
            if outer.exists():
                return outer, lock
        os.close(lock)  # another process removed the folder as a leftover before it was locked


def _remove_leftovers(target: Path) -> None:
    """Remove the folders that killed processes left for this target. VlgenError where a process still writes one.

    Only folders of this user are removed; links are not followed, as `shutil.rmtree` follows none.
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


def shards(tensors: Mapping[str, mx.array], max_bytes: int) -> list[list[str]]:
    """The tensors' names in order, in groups of at most `max_bytes`. A larger tensor is a group by itself."""
    groups: list[list[str]] = []
    size = 0
    for name, tensor in tensors.items():
        if not groups or size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups


def write_weights(folder: Path, tensors: dict[str, mx.array], metadata: Mapping[str, Any]) -> None:
    """Compute `tensors` and write them as safetensors files with an index.

    tensors: by name; the dictionary is emptied, to free each shard.
    metadata: of the index, beside the total size.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > (free := shutil.disk_usage(folder).free):
        raise VlgenError(f"The checkpoint takes {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {folder}.")
    plan = shards(tensors, SHARD_BYTES)
    weight_map: dict[str, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=None) as bar:
        for number, names in enumerate(plan, 1):
            file = f"model-{number:05}-of-{len(plan):05}.safetensors" if len(plan) > 1 else "model.safetensors"
            shard = {name: tensors.pop(name) for name in names}
            for tensor in shard.values():
                mx.eval(tensor)  # one at a time: the sources of all together would be in memory at once
                bar.update(tensor.nbytes)
            mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
            mx.clear_cache()
            weight_map |= dict.fromkeys(names, file)
            if bar.disable:
                notice(f"{file} ({len(names)} tensors, {(folder / file).stat().st_size / 1e6:.1f} MB)")
    index = {"metadata": {"total_size": total, **metadata}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
