"""Parts of a checkpoint's tensors, read from the files without the rest: MLX's lazy arrays are read whole."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .._runtime import mx
from .headers import Place, read_places

PIECE = 4096
"""Bytes that lie together in a file, below which their neighbours are read too: a disk gives no less."""

_TYPES: dict[str, tuple[str, mx.Dtype]] = {
    "BF16": ("<u2", mx.bfloat16),
    "F16": ("<f2", mx.float16),
    "F32": ("<f4", mx.float32),
    "U32": ("<u4", mx.uint32),
    "U8": ("<u1", mx.uint8),
}


class Parts:
    """stored: the tensors of `files` by their names there, not evaluated yet, perhaps with another type. A part of one
    of these very arrays is read; of any other, which was made of them, it is a slice."""

    def __init__(self, files: Sequence[Path], stored: Mapping[str, mx.array]):
        places = read_places(files)
        self._places = {id(tensor): places[name] for name, tensor in stored.items() if name in places}
        self._stored = stored  # which keeps these ids theirs

    def take(self, tensor: mx.array, axis: int, start: int, stop: int) -> mx.array:
        """tensor[start:stop] along an axis, in new memory."""
        axis %= tensor.ndim
        place = self._places.get(id(tensor))
        if place is None or place.dtype not in _TYPES or place.shape != tuple(tensor.shape):
            return mx.contiguous(tensor[(slice(None),) * axis + (slice(start, stop),)])
        numpy_type, dtype = _TYPES[place.dtype]
        part = mx.array(_read(place, np.dtype(numpy_type), axis, start, stop))
        part = (part.view(dtype) if part.dtype != dtype else part).astype(tensor.dtype)
        mx.eval(part)
        return part


def _read(place: Place, dtype: np.dtype, axis: int, start: int, stop: int) -> np.ndarray:
    """What `take` gives, as numpy's."""
    before, length, after = place.shape[:axis], place.shape[axis], math.prod(place.shape[axis + 1 :])
    if after * (stop - start) * dtype.itemsize < PIECE and before:
        whole = _read(place, dtype, 0, 0, place.shape[0])
        return np.ascontiguousarray(whole[(slice(None),) * axis + (slice(start, stop),)])
    rows = np.empty((math.prod(before), (stop - start) * after), dtype)
    with place.path.open("rb", buffering=0) as file:
        for number, row in enumerate(rows):
            file.seek(place.offset + (number * length + start) * after * dtype.itemsize)
            left = memoryview(row).cast("B")
            while left:
                if not (count := file.readinto(left)):
                    raise ValueError(f"{place.path} ends before its tensors do")
                left = left[count:]
    return rows.reshape(*before, stop - start, *place.shape[axis + 1 :])
