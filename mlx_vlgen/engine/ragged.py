"""Keys and values of rows of unlike length in one layer: what the quantized and the bounded cache share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from .._runtime import mx

STEP = 256
"""Columns by which a buffer grows."""

Parts = list[mx.array]
"""Arrays (B, H, columns, ·) whose columns are the same positions."""


class RaggedCache(ABC):
    """Alone and batched in one class: with one row `offset` is an int, and rows of equal length need no mask array.

    The first `head` positions are stored apart, each at its column. The rest is padded on the left, so that one
    slice update stores the newest token of all rows: of T columns, column t of row b holds position
    lengths[b] - T + t, and is padding where that is below `head`. With head = 2, rows of 5 and 3 tokens:

        head   rest
        0 1    2 3 4
        0 1    - - 2

    Masks follow from these positions alone, and so depend on no chunk and on no neighbour. Lengths are known on the
    host: nothing here waits for the device. Rows that are prefilled together are padded on the right: from `prepare`
    to `finalize` all count as equally long.
    """

    def __init__(self, head: int, rows: int = 1):
        self.head = head
        self.lengths = [0] * rows  # positions that each row holds
        self._true_lengths: Sequence[int] | None = None  # without the padding on the right, until finalize

    # -- what a layer asks for

    @property
    def offset(self) -> int | mx.array:
        """The next token's position: an int, or (B,)."""
        return self.lengths[0] if len(self.lengths) == 1 else mx.array(self.lengths)

    @abstractmethod
    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Store keys and values (B, H, N, D) of N more tokens a row. Returns all that these may attend to, the head
        first; in a prefill those of the N tokens come last, in order."""

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str | None:
        """For what `update_and_fetch` is about to return for N tokens a row: None, "causal", or a bool array
        (B or 1, 1, N, keys). window_size: attend to so many last positions only."""
        if window_size is None and self._is_causal(N):
            if N == 1:
                return None
            if not return_array:
                return "causal"
        lengths = mx.array(self.lengths[:1] if self._equal else self.lengths)[:, None]  # (B or 1, 1)
        head = mx.arange(min(self.head, self._longest + N))
        rest = lengths + N - 1 - self._ages(N)
        head = mx.broadcast_to(head, (len(lengths), len(head)))
        keys = mx.concatenate([head, mx.where(rest < self.head, -1, rest)], axis=1)[:, None, None]
        queries = (lengths + mx.arange(N))[:, None, :, None]
        mask = (keys >= 0) & (keys <= queries) & self._in_reach(queries, keys)
        return mask if window_size is None else mask & (keys > queries - window_size)

    @abstractmethod
    def _is_causal(self, N: int) -> bool:
        """Whether each of N new tokens a row attends to every key up to its position, which come in order; for N = 1:
        whether it attends to all keys."""

    @abstractmethod
    def _ages(self, N: int) -> mx.array:
        """(T,): how many positions before the newest token each column is of the rest that will be returned."""

    def _in_reach(self, queries: mx.array, keys: mx.array) -> mx.array | bool:
        """Whether tokens at positions `queries` may attend to those earlier ones."""
        return True

    # -- what the engine asks for

    @property
    @abstractmethod
    def state(self) -> Parts:
        """All arrays, to be evaluated."""

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.state)

    @abstractmethod
    def _parts(self) -> tuple[Parts, Parts]:
        """The head (some columns, from position 0 on) and the rest (in order, up to the newest token)."""

    @abstractmethod
    def _store(self, head: Parts, rest: Parts) -> None:
        """Take these in the place of all arrays, for rows of `lengths`."""

    def prepare(self, *, lengths: Sequence[int], right_padding: Sequence[int]) -> None:
        """The rows about to be prefilled have these lengths, and are padded to the longest."""
        self._true_lengths = list(lengths)

    def finalize(self) -> None:
        """Move the padding from the right to the left."""
        if self._true_lengths is None:
            return
        head, rest = self._parts()
        shift = mx.array([padded - true for padded, true in zip(self.lengths, self._true_lengths, strict=True)])
        self.lengths, self._true_lengths = list(self._true_lengths), None
        columns = rest[0].shape[2]
        if columns:
            source = ((mx.arange(columns) - shift[:, None]) % columns)[:, None, :, None]
            rest = [mx.take_along_axis(part, source, axis=2) for part in rest]
        self._store(head, rest)

    def rollback(self, drop: Sequence[int]) -> None:
        """Forget the last drop[b] positions of each row."""
        head, rest = self._parts()
        shared, columns = min(drop), rest[0].shape[2]
        remaining = max(0, columns - shared)  # of the rest; below `head` there are no columns to drop
        self.lengths = [length - shared for length in self.lengths]
        self._store(head, [part[:, :, :remaining] for part in rest])
        if max(drop) > shared:
            lengths = [length + shared - count for length, count in zip(self.lengths, drop, strict=True)]
            self.prepare(lengths=lengths, right_padding=())
            self.finalize()
            head, rest = self._parts()
            self._store(head, self._shortened(rest))

    def extend(self, other: Self) -> None:
        """Add the rows of `other` after these."""
        (head, rest), (other_head, other_rest) = self._parts(), other._parts()
        self.lengths = self.lengths + other.lengths
        self._store(_stack(head, other_head, left=False), _stack(rest, other_rest, left=True))

    def filter(self, index: mx.array) -> None:
        """Keep only these rows, in this order."""
        head, rest = self._parts()
        self.lengths = [self.lengths[row] for row in np.array(index)]
        self._store([part[index] for part in head], self._shortened([part[index] for part in rest]))

    def _shortened(self, rest: Parts) -> Parts:
        """Without the columns that only longer rows had."""
        extra = rest[0].shape[2] - max(0, self._longest - self.head)
        return [part[:, :, max(0, extra) :] for part in rest]

    def extract(self, row: int) -> Self:
        """One row alone."""
        alone = copy.copy(self)
        alone.filter(mx.array([row]))
        return alone

    # -- storing

    @property
    def _longest(self) -> int:
        return max(self.lengths)

    @property
    def _equal(self) -> bool:
        return len(set(self.lengths)) == 1

    def _beyond_head(self, N: int) -> int:
        """From which of N new columns on they belong to the rest."""
        return min(N, max(0, self.head - self._longest))

    def _write_head(self, buffers: Parts, new: Parts) -> None:
        """Those of the new tokens whose positions are below `head`. Padding on the right comes in with them; the
        row's tokens overwrite it before it is visible."""
        if self._equal:
            rows = [(slice(None), self.lengths[0])]
        else:  # a slice update each: a scatter would copy the buffer
            rows = [(slice(row, row + 1), length) for row, length in enumerate(self.lengths)]
        for row, start in rows:
            end = min(start + new[0].shape[2], self.head)
            if start < end:
                for buffer, part in zip(buffers, new, strict=True):
                    buffer[row, :, start:end] = part[row, :, : end - start]


def grow(buffers: Parts, used: int, columns: int, max_columns: int | None = None) -> Parts:
    """Buffers with room for so many columns, of which the first `used` stay. max_columns: they never need more."""
    if columns <= buffers[0].shape[2]:
        return buffers
    room = -(-columns // STEP) * STEP
    after = (room if max_columns is None else min(room, max_columns)) - used
    return [mx.pad(part[..., :used, :], [(0, 0), (0, 0), (0, after), (0, 0)]) for part in buffers]


def _stack(first: Parts, second: Parts, left: bool) -> Parts:
    """The rows of both, with padding on the left or the right of the shorter."""
    columns = max(first[0].shape[2], second[0].shape[2])

    def pad(part: mx.array) -> mx.array:
        missing = columns - part.shape[2]
        return mx.pad(part, [(0, 0), (0, 0), (missing, 0) if left else (0, missing), (0, 0)])

    return [mx.concatenate([pad(a), pad(b)]) for a, b in zip(first, second, strict=True)]
