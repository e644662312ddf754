"""The cache of a recurrent layer: states that every step rewrites, of the rows that run together."""

import copy
from collections.abc import Sequence
from typing import Self

from .._mlx_lm import ArraysCache
from .._runtime import mx


class StateCache(ArraysCache):
    """size arrays (B, …), of which no position can be taken back. padded: see `AttentionCache`.

    `extend` and `finalize` are mlx-lm's: joining copies both, which is what every step does.
    """

    def __init__(self, size: int, padded: Sequence[int] | None = None):
        super().__init__(size)
        if padded is not None:
            self.prepare(lengths=padded)

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order."""
        self.filter(mx.array(list(rows)))

    def take(self, rows: Sequence[int]) -> Self:
        """These rows, in this order, some perhaps more than once, in another cache; this one stays as it is."""
        taken = copy.copy(self)
        taken.select(rows)
        return taken

    def restore(self, states: Sequence[mx.array]) -> None:
        """Begin all rows with the same states, each (1, …)."""
        rows = self.batch_size
        self.cache = [mx.repeat(state, rows, axis=0) for state in states]

    def extract(self, row: int) -> Self:
        """One row alone, in a cache of its own; this one stays as it is."""
        return self.take([row])
