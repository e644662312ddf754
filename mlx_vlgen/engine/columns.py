"""Buffers in which every position of every row has its column."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from .._runtime import mx

STEP = 256
"""Columns by which a buffer grows at least where nobody knows how many follow; more than four times as many grow by a
quarter, for growing copies."""

UNIT = 16
"""Columns come in multiples of it where it is known how many follow: few sizes, so that MLX can use what one row left
for the next. In multiples of `STEP` eight short rows took 33 MB where they needed 4. On CUDA long rows have multiples
of `STEP`, of whose parts alone cuDNN takes one token's attention (`use_cudnn_for_decoding` in MLX 0.32): on an H100 a
step of 36 layers took 5 ms longer at 16k positions than at 200 without, and the attention of cuDNN alone 0.4."""

Parts = list[mx.array]
"""Arrays (B, H, columns, ·) whose columns are the same positions."""


class Run(NamedTuple):
    """Keys and values of so many neighbouring positions of one row. buffer: the place of their `Columns` among a
    cache's. parts: arrays (1, H, size, ·); none where another rank has them."""

    first: int
    size: int
    buffer: int
    parts: Parts


@lru_cache(maxsize=8)
def _indices(places: tuple[tuple[int, int], ...], heads: int) -> tuple[mx.array, mx.array, mx.array]:
    """Where one token of each (row, column) is written, as arrays that broadcast: of one dtype, which MLX need not
    convert, and the same for all layers of a step, each of which would make them anew."""
    rows, columns = mx.array(places, mx.uint32).T[:, :, None]
    indices = rows, mx.arange(heads, dtype=mx.uint32)[None], columns
    mx.eval(indices)
    return indices


forget_indices = _indices.cache_clear
"""Free them, when no row decodes any more."""


class Columns:
    """Arrays (S, H, C, ·) of S slots, one for a row and some to spare; made and grown as they are needed.

    first, last: the positions that are stored here, from `first` on and below `last`.
    head, ring: positions below `head` have their columns in order; with `ring` the others share so many columns after
    these, each new one in the place of the oldest; without it all are in order.

    MLX writes into an array in place while nothing else refers to it: nobody keeps a part of `arrays`.
    """

    def __init__(self, first: int = 0, last: int | None = None, head: int = 0, ring: int | None = None):
        self.first, self.last, self.head, self.ring = first, last, head, ring
        self.arrays: Parts = []

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and columns."""
        return (self.arrays[0].shape[0], self.arrays[0].shape[2]) if self.arrays else (0, 0)

    def count(self, length: int) -> int:
        """Columns that a row of so many positions takes."""
        if self.ring is not None:
            return min(length, self.head + self.ring)
        return max(0, (length if self.last is None else min(length, self.last)) - self.first)

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The positions from `start` to `stop` that are stored together, as runs of neighbouring columns: the first
        position, its column, and how many there are."""
        start = max(start, self.first)
        stop = stop if self.last is None else min(stop, self.last)
        while start < stop:
            if self.ring is None:
                column, end = start - self.first, stop
            elif start < self.head:
                column, end = start, min(stop, self.head)
            else:
                start = max(start, stop - self.ring)
                column = self.head + (start - self.head) % self.ring
                end = min(stop, start + self.head + self.ring - column)
            yield start, column, end - start
            start = end

    def write(self, starts: Sequence[int], counts: Sequence[int], new: Parts) -> None:
        """Store the first counts[b] of the tokens `new` (B, H, N, ·), from position starts[b] on."""
        if len(set(starts)) == len(set(counts)) == 1:
            self._write_rows(slice(0, len(starts)), starts[0], counts[0], new)
        elif new[0].shape[2] == 1:
            self._write_one(starts, new)
        else:
            for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
                self._write_rows(slice(row, row + 1), start, count, [part[row : row + 1] for part in new])

    def _write_rows(self, rows: slice, start: int, count: int, new: Parts) -> None:
        """The same positions of neighbouring rows."""
        for position, column, size in self.runs(start, start + count):
            token = position - start
            for array, part in zip(self.arrays, new, strict=True):
                whole = size == part.shape[2]
                array[rows, :, column : column + size] = part if whole else part[:, :, token : token + size]

    def _write_one(self, starts: Sequence[int], new: Parts) -> None:
        """One token a row, each in its column. A scatter writes in place."""
        places = [(row, column) for row, start in enumerate(starts) for _, column, _ in self.runs(start, start + 1)]
        if places:
            for array, part in zip(self.arrays, new, strict=True):
                rows, heads, columns = _indices(tuple(places), part.shape[1])
                tokens = part.squeeze(2)
                array[rows, heads, columns] = tokens if len(places) == len(starts) else tokens[rows.squeeze(1)]

    def write_row(self, slot: int, source: "Columns", row: int, length: int) -> None:
        """Store a row of so many positions, one of `source`, which has other arrays."""
        for first, column, size in source.runs(0, length):
            for position, target, count in self.runs(first, first + size):
                origin = column + position - first
                for array, old in zip(self.arrays, source.arrays, strict=True):
                    array[slot, :, target : target + count] = old[row, :, origin : origin + count]
        self.clear(slot, self.count(length))

    def copied(self, row: int, column: int, count: int) -> Parts:
        """Neighbouring columns of a row, as arrays that refer to no buffer: a slice would."""
        parts = [array[row : row + 1, :, column : column + count] for array in self.arrays]
        return [mx.concatenate([part, part[:, :, :0]], axis=2) for part in parts]  # which copies

    def restore(self, rows: int, runs: Iterable[Run], length: int, expected: int) -> None:
        """Begin so many equal rows with what `runs` hold, in order, of their first `length` positions."""
        joined: list[tuple[int, list[Parts]]] = []
        end = -1
        for run in runs:
            if run.first >= length:
                continue
            parts = [part[:, :, : length - run.first] for part in run.parts]
            if run.first != end:
                joined.append((run.first, []))
            joined[-1][1].append(parts)
            end = run.first + run.size
        for first, pieces in joined:
            whole = [mx.concatenate(list(parts), axis=2) for parts in zip(*pieces, strict=True)]
            if not whole:  # another rank has them
                continue
            self.make_room(rows, length, whole, expected)
            self.write([first] * rows, [whole[0].shape[2]] * rows, whole)

    def clear(self, slot: int, start: int) -> None:
        """Forget what an earlier row left in the columns from `start` on. Masks hide it, but a value that is not a
        number would come through: its weight of 0 times NaN is NaN."""
        if start < self.shape[1]:
            for values in self.arrays[len(self.arrays) // 2 :]:
                values[slot, :, start:] = 0

    def make_room(self, slots: int, length: int, like: Parts, expected: int = 0, most: int | None = None) -> None:
        """At least so many slots, with columns for so many positions. More slots come with some to spare, so that the
        next row that joins copies no other; but no more than `most`, of which all may be in use together. like: arrays
        (·, H, ·, ·) of the same widths and dtypes. expected: positions that rows will probably come to, where that is
        known."""
        columns, before = self.count(max(length, expected)), self.shape
        if columns > before[1]:
            long = columns >= STEP and mx.cuda.is_available()
            unit = UNIT if length <= expected and not long else STEP
            columns = self.rounded(max(columns, before[1] + before[1] // 4), unit)
        if before[0] and slots > before[0]:
            spare = slots + max(1, slots // 4)
            slots = spare if most is None else max(slots, min(spare, most))
        slots, columns = max(slots, before[0]), max(columns, before[1])
        if not self.arrays:
            self.arrays = [mx.zeros((slots, x.shape[1], columns, x.shape[3]), x.dtype) for x in like]
        elif (slots, columns) != before:
            self.resize(slots, columns)

    def rounded(self, columns: int, unit: int = STEP) -> int:
        """So many columns as they are allocated, in multiples of `unit`."""
        return self.count(self.first + -(-columns // unit) * unit)

    def resize(self, slots: int, columns: int) -> None:
        """The first so many slots and columns."""
        for place, array in enumerate(self.arrays):
            old = array[:slots, :, :columns]
            new = mx.zeros((slots, array.shape[1], columns, array.shape[3]), array.dtype)
            new[: old.shape[0], :, : old.shape[2]] = old
            mx.eval(new)  # where memory does not suffice, the old one stays
            self.arrays[place] = new

    def taken(self, rows: Sequence[int]) -> "Columns":
        """These rows, some perhaps more than once, as others with copied arrays."""
        taken = Columns(self.first, self.last, self.head, self.ring)
        index = mx.array(list(rows))
        taken.arrays = [array[index] for array in self.arrays]
        return taken
