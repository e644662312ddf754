"""Caches that do not grow with a row: states of recurrent layers, which every step rewrites, and what cross-attention
layers attend to."""

import copy
from collections.abc import Sequence
from typing import Any, Self

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

    def extend(self, other: Self, most: int | None = None) -> None:
        super().extend(other)

    def restore(self, states: Sequence[mx.array]) -> None:
        """Begin all rows with the same states, each (1, …)."""
        rows = self.batch_size
        self.cache = [mx.repeat(state, rows, axis=0) for state in states]

    @property
    def row_bytes(self) -> int:
        """Of what the largest row holds."""
        return sum(array.nbytes // len(array) for array in self.cache if array is not None)

    def snapshot(self) -> list[mx.array]:
        """The states of all rows, which no later step writes."""
        return list(self.cache)

    def stored(self, row: int, earlier: Sequence[mx.array] | None = None) -> list[mx.array]:
        """Copies of a row's states, each (1, …). earlier: take these for those of all rows."""
        return [array[mx.array([row])] for array in (self.cache if earlier is None else earlier)]

    def extract(self, row: int) -> Self:
        """One row alone, in another cache; this one stays as it is."""
        return self.take([row])


class CrossCache(StateCache):
    """Of a layer that attends to its rows' pictures: written with the first positions of a prompt, and never again.

    rows: of each row its keys and values (1, H, K, D), and which of them its next tokens attend to (1, K); None without
    pictures.
    """

    def __init__(self, rows: int = 1):
        super().__init__(0)
        self.rows: list[list[mx.array] | None] = [None] * rows
        self._joined: list[mx.array] | None = None

    @property
    def state(self) -> list[mx.array]:
        return [array for row in self.rows for array in row or ()]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in [*self.state, *(self._joined or ())])

    @property
    def row_bytes(self) -> int:
        return max(sum(array.nbytes for array in row or ()) for row in self.rows)

    def write(self, parts: Sequence[mx.array], counts: Sequence[int]) -> None:
        """Begin all rows. parts: as `joined` gives them; counts: how many keys are each row's."""
        rows: list[list[mx.array] | None] = []
        for place, count in enumerate(counts):
            keys, values, seen = (part[mx.array([place])] for part in parts)  # which copies: no row keeps the others
            rows.append([keys[:, :, :count], values[:, :, :count], seen[:, :count]] if count else None)
        self._set(rows)

    def joined(self) -> list[mx.array] | None:
        """Keys and values (B, H, K, D) of all rows, and which of them these attend to (B, K); None where no row has
        any. Made when rows have changed."""
        known = [row for row in self.rows if row is not None]
        if not known:
            return None
        if len(self.rows) == 1:
            return known[0]
        if self._joined is None:
            longest = max(row[0].shape[2] for row in known)
            empty = [known[0][0][:, :, :0], known[0][1][:, :, :0], known[0][2][:, :0]]

            def padded(part: mx.array, axis: int) -> mx.array:
                return mx.pad(part, [(0, longest - size if i == axis else 0) for i, size in enumerate(part.shape)])

            rows = [[padded(part, min(2, part.ndim - 1)) for part in row or empty] for row in self.rows]
            self._joined = [mx.concatenate(list(parts)) for parts in zip(*rows, strict=True)]
            mx.eval(self._joined)
        return self._joined

    def _set(self, rows: list[list[mx.array] | None]) -> None:
        self.rows, self._joined = rows, None

    def extend(self, other: Self, most: int | None = None) -> None:
        self._set(self.rows + other.rows)

    def select(self, rows: Sequence[int]) -> None:
        self._set([self.rows[row] for row in rows])

    def restore(self, states: Sequence[mx.array]) -> None:
        self._set([list(states) or None] * len(self.rows))

    def stored(self, row: int, earlier: Any = None) -> list[mx.array]:
        """The row's arrays, which nobody writes; none without pictures."""
        return list(self.rows[row] or ())

    def finalize(self) -> None:
        pass

    def reserve(self, count: int) -> None:
        pass

    def rollback(self, drop: Sequence[int]) -> None:
        pass


class FollowedCache(StateCache):
    """Of no layer, but after those of all: what is done to them is done to it too, for other ranks to repeat."""

    def store(
        self, row: int, span: tuple[int, int], known: Any, layers: Sequence[int], ends: Sequence[int], earlier: bool
    ) -> Any:
        """What stands for the ranks' parts of a block of a row's positions. known: what stood for it before. layers:
        those whose keys and values are added; ends: those whose states are. earlier: as in the last `snapshot`."""
        raise NotImplementedError

    def begin(self, blocks: Sequence[Any], length: int) -> None:
        """Begin all rows with the first `length` positions of blocks, each given as `store` did."""
        raise NotImplementedError
