"""Headers of safetensors files, read and checked before anything is built or mapped.

The format: https://huggingface.co/docs/safetensors, 8 bytes of length, a JSON object, the tensors' bytes.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LoadError
from ..inputs.files import reading

Shapes = Mapping[str, tuple[int, ...]]
"""Each tensor's shape by its name in the files."""

MAX_HEADER_BYTES = 100_000_000
"""The format's limit."""

_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies. offset: of its first byte in the file; dtype: as the format calls it."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in `files`. LoadError for a file with a damaged or false header."""
    return {name: place.shape for name, place in read_places(files).items()}


def read_places(files: Sequence[Path]) -> dict[str, Place]:
    """All tensors in `files`, by name. LoadError for a file with a damaged or false header."""
    places: dict[str, Place] = {}
    for path in files:
        with reading(path, "is damaged or cut short; download it again"):
            places |= _places(path)
    return places


def _places(path: Path) -> dict[str, Place]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = json.loads(file.read(length))
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError(f"{name} has shape {shape!r:.80} and lies at {begin!r:.20} to {end!r:.20}")
        if not begin <= end <= size - 8 - length:
            raise ValueError(f"{name} lies at {begin:,} to {end:,} of {size - 8 - length:,} bytes")
        if (itemsize := _BYTES.get(entry["dtype"])) and math.prod(shape) * itemsize != end - begin:
            raise ValueError(f"{name} of shape {shape!r:.80} and type {entry['dtype']} has {end - begin:,} bytes")
        places[name] = Place(path, 8 + length + begin, entry["dtype"], tuple(shape))
    return places


# Keys of a config.json whose value is a number of layers, and keys whose value becomes a side of an array.
_LAYERS = re.compile(r"(^|_)(layers?|depth|blocks)$")
_SIDES = re.compile(
    r"(size|dims?|heads?|experts|channels|rank|width|kernel|groups|section|embeds?|embd|d_model|d_inner|d_ff|n_inner"
    r"|per_tok|(?<!max)_position_embeddings)$"
)
_LAYERS_ALLOWED, _SIDE_ALLOWED = 256, 1 << 19
"""Networks up to this size are quick to build; the names and shapes of their tensors then show what does not fit."""


def check_sizes(config: Mapping[str, Any], shapes: Shapes) -> None:
    """LoadError for a config.json that describes a network far larger than its tensors: more layers than there are
    tensors, or a side longer than any tensor's."""
    layers = max(_LAYERS_ALLOWED, len(shapes))
    side = max(_SIDE_ALLOWED, max((number for shape in shapes.values() for number in shape), default=0))
    for name, number in _numbers(config):
        key = name.rpartition(".")[2]
        limit = layers if _LAYERS.search(key) else side if _SIDES.search(key) else None
        if limit is not None and number > limit:
            raise LoadError(
                f"it says {name} = {number!r:.40}, which does not fit the weights: they are {len(shapes)} "
                f"tensors, of which none would allow more than {limit}. Download the checkpoint again."
            )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in a JSON value, by their dotted names; those of a list have the list's."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float):
        yield name, value
