"""Pictures and videos of any size in one sequence: what towers share that read many of unlike sizes at once."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from .._runtime import mx
from .attention import Frames


@dataclass(frozen=True)
class Grids:
    """Frames of patches, one after another; a picture is one frame.

    runs: (frames, rows, columns), the last two in patches: frames of one size that follow each other.
    """

    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, grids: Iterable[tuple[int, ...]]) -> "Grids":
        """grids: (frames, rows, columns) of each picture or video."""
        equal = groupby(grids, key=lambda grid: grid[1:])
        return cls(tuple((sum(grid[0] for grid in same), *size) for size, same in equal))

    @cached_property
    def frames(self) -> Frames:
        """Patches attend to all of their frame."""
        return [(count, ((1, rows * columns),)) for count, rows, columns in self.runs]

    def places(self, order: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """Row and column of each patch (2, N). order: a frame's rows and columns -> the same of its patches, as they
        lie."""
        return np.concatenate([np.tile(order(*size), (1, count)) for count, *size in self.runs], axis=1)

    def map(self, x: mx.array, change: Callable[[mx.array, int, int], mx.array]) -> mx.array:
        """x (1, N, d) of the patches, or of as many of each as become one token, changed a run at a time. change: of
        frames of one size (frames, n, d), its rows and columns -> (frames, n, e)."""
        joined = sum(map(math.prod, self.runs)) // x.shape[1]
        start, parts = 0, []
        for count, rows, columns in self.runs:
            each = rows * columns // joined
            part = change(x[:, start : start + count * each].reshape(count, each, -1), rows, columns)
            start += count * each
            parts.append(part.reshape(1, count * each, -1))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
