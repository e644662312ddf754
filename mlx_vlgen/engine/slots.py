"""The cache of a layer with attention: keys and values of the rows that run together."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from .._runtime import mx
from .columns import STEP, Columns, Parts, Run


@dataclass(frozen=True)
class Reach:
    """Which earlier positions a token attends to: the last `window`, itself included, and those below `head`; with
    window None, all. chunked: instead of the last ones those in its chunk of `window` positions, which are counted from
    0; without a head. after_prompt: of the positions after its row's prompt only the last so many, itself included."""

    head: int = 0
    window: int | None = None
    chunked: bool = False
    after_prompt: int | None = None

    def count(self, length: int) -> int:
        """How many the last of so many tokens attends to."""
        if self.window is None:
            return length
        return (length - 1) % self.window + 1 if self.chunked else min(length, self.head + self.window)

    def first(self, position: Any) -> Any:
        """The first position, at or beyond `head`, that a token at `position`, an int or an array of them, attends to;
        below 0 for 0. Only with a window."""
        return position - position % self.window if self.chunked else position - self.window + 1


class AttentionCache:
    """Rows of any length in slots, each position at its column (`Columns`): alone and batched in one class.

    Nothing moves when rows join, leave or forget their last tokens; lengths are known on the host. What a slot holds
    beyond its row's length, padding on the right among it, is hidden by the mask, and the next tokens overwrite it.
    Masks follow from positions alone, and so depend on no chunk and on no neighbour. With one row, or rows of equal
    length, `offset` is an int and a decoding step needs no mask array.

    lengths: the positions that each row holds. prompts: the length of each row's prompt, which `Reach.after_prompt`
    wants to know; by default all is prompt. padded: rows that are about to be prefilled together, padded on the
    right, have these lengths; from then to `finalize` all count as equally long. expected: positions that rows will
    probably come to, for which there is room from the first on. oldest: of the keys that the last forward of rows of
    equal length got, the place of the first in order; those before it come after the others.
    """

    def __init__(
        self,
        reach: Reach = Reach(),
        padded: Sequence[int] | None = None,
        expected: int = 0,
        prompts: Sequence[int] | None = None,
    ):
        self.reach = reach
        self.lengths = [0] * (1 if padded is None else len(padded))
        self.prompts = [sys.maxsize] * len(self.lengths) if prompts is None else list(prompts)
        self._padded, self._expected = padded, expected
        self.oldest = 0
        self.columns = self._make_columns()

    def _make_columns(self) -> list[Columns]:
        return [Columns(head=self.reach.head, ring=self.reach.window)]

    # -- what a layer asks for

    @property
    def offset(self) -> int | mx.array:
        """The next token's position: an int, or (B,)."""
        return self.lengths[0] if self._equal else mx.array(self.lengths)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Store keys and values (B, H, N, D) of N more tokens a row. Returns all that these may attend to, in the order
        of `make_mask`; in a prefill those of the N tokens come last."""
        [columns], rows, N = self.columns, len(self.lengths), keys.shape[2]
        columns.make_room(rows, self._longest + N, [keys, values], self._expected)
        if not self._fits(N):
            return self._chunk([keys, values])
        columns.write(self.lengths, [N] * rows, [keys, values])
        self.lengths = [length + N for length in self.lengths]
        used = columns.count(self._longest)
        self.oldest = self._longest % used if self.reach.head == 0 else 0
        return columns.arrays[0][:rows, :, :used], columns.arrays[1][:rows, :, :used]

    def advance(self, N: int) -> None:
        """N more tokens a row, whose keys and values another rank stores, as all of this layer's: here are no
        arrays, and all else is as there."""
        self.lengths = [length + N for length in self.lengths]

    def _chunk(self, new: Parts) -> tuple[mx.array, mx.array]:
        """Of more tokens than fit: the first attend to keys whose places the last ones take."""
        [columns], rows, earlier = self.columns, len(self.lengths), self._earlier()
        fetched = [
            mx.concatenate([*(array[:rows, :, start:end] for start, end in earlier), part], axis=2)
            for array, part in zip(columns.arrays, new, strict=True)
        ]
        before, self.lengths = self.lengths, [length + new[0].shape[2] for length in self.lengths]
        ends = self._padded or self.lengths  # padding must not push out what the row attends to next
        columns.write(before, [end - start for start, end in zip(before, ends, strict=True)], new)
        self.oldest = 0
        return fetched[0], fetched[1]

    def _fits(self, N: int) -> bool:
        """Whether N more tokens a row can be stored before they attend: none takes the place of what another needs."""
        window, ring = self.reach.window, self.columns[0].ring
        return window is None or ring is None or self._longest + N <= self.reach.head + ring or window + N - 1 <= ring

    def _earlier(self) -> list[tuple[int, int]]:
        """The columns that a chunk which does not fit attends to, in order where rows are equally long."""
        [columns], head = self.columns, self.reach.head
        if not self._equal:
            return [(0, columns.count(self._longest))]
        length = self.lengths[0]
        sinks, others = columns.runs(0, min(head, length)), columns.runs(max(head, self.reach.first(length)), length)
        return [(column, column + size) for _, column, size in (*sinks, *others)]

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str | None:
        """For what `update_and_fetch` is about to return for N tokens a row: None, "causal", or a bool array
        (B or 1, 1, N, keys). window_size: attend to so many last positions only."""
        head, window = self.reach.head, self.reach.window
        if window_size is not None and head == 0 and window is not None and window <= window_size:
            window_size = None
        if window_size is None and self._attends_to_all(N):
            if N == 1:
                return None
            if not return_array:
                return "causal"
        lengths = mx.array(self.lengths[:1] if self._equal else self.lengths)[:, None]  # (B or 1, 1)
        if self._fits(N):
            keys = self._positions(lengths + N, mx.arange(self._columns_of(self._longest + N)))
        else:
            earlier = [mx.arange(start, end) for start, end in self._earlier()]
            keys = lengths + mx.arange(N)
            if earlier:
                keys = mx.concatenate([self._positions(lengths, mx.concatenate(earlier)), keys], axis=1)
        keys = keys[:, None, None]
        queries = (lengths + mx.arange(N))[:, None, :, None]
        mask = (keys >= 0) & (keys <= queries)
        if window is not None:
            mask = mask & ((keys < head) | (keys >= self.reach.first(queries)))
        if self._forgets(N) and self.reach.after_prompt is not None:
            prompts = mx.array(self.prompts)[:, None, None, None]
            mask = mask & ((keys < prompts) | (keys > queries - self.reach.after_prompt))
        return mask if window_size is None else mask & (keys > queries - window_size)

    def _attends_to_all(self, N: int) -> bool:
        """Whether each of N new tokens a row attends to every key up to its position, which come in order; for N = 1:
        whether it attends to all keys."""
        if self._forgets(N):
            return False
        if N > 1:
            return self._equal and self.reach.count(self._longest + N) == self._longest + N
        used = self._columns_of(self._longest + 1)
        return all(self.reach.count(length + 1) == used for length in set(self.lengths))

    def _forgets(self, N: int) -> bool:
        """Whether one of N new tokens a row is too far behind its prompt to attend to all of what follows that."""
        beyond = (length + N - prompt for length, prompt in zip(self.lengths, self.prompts, strict=True))
        return self.reach.after_prompt is not None and max(beyond) > self.reach.after_prompt

    def _columns_of(self, length: int) -> int:
        return sum(columns.count(length) for columns in self.columns)

    def _positions(self, lengths: mx.array, columns: mx.array) -> mx.array:
        """(B or 1, T): what these columns (T,) hold of rows of so many positions (B or 1, 1), below 0 for nothing."""
        ring, head = self.columns[0].ring, self.reach.head
        if ring is None:
            return columns[None]  # what is beyond a row is beyond its queries too
        latest = lengths - 1 - (lengths - 1 - columns) % ring
        position = mx.where(columns < head, columns, mx.where(latest < head, -1, latest))
        return mx.where(position < lengths, position, -1)

    # -- what the engine asks for

    @property
    def state(self) -> Parts:
        """All arrays, to be evaluated."""
        return [array for columns in self.columns for array in columns.arrays]

    @property
    def nbytes(self) -> int:
        """Of all that is allocated, in use or not."""
        return sum(array.nbytes for array in self.state)

    def finalize(self) -> None:
        """After the forward on padded rows."""
        self.lengths, self._padded = list(self._padded or self.lengths), None

    def extend(self, other: Self, most: int | None = None) -> None:
        """Add the rows of `other`, whose arrays stay as they are: only they are written, where slots are free. most:
        rows that may come to be here together, if that is known."""
        count, longest = len(self.lengths), max(self._longest, other._longest)
        self._expected = max(self._expected, other._expected)
        for columns, source in zip(self.columns, other.columns, strict=True):
            columns.make_room(count + len(other.lengths), longest, source.arrays, self._expected, most)
            for row, length in enumerate(other.lengths):
                columns.write_row(count + row, source, row, length)
        self.lengths, self.prompts = self.lengths + other.lengths, self.prompts + other.prompts

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows: row rows[slot] in each slot, where each is in its slot already or comes from beyond them."""
        lengths = [self.lengths[row] for row in rows]
        for columns in self.columns:
            self._select(columns, rows, lengths)
        self.lengths, self.prompts, self._expected = lengths, [self.prompts[row] for row in rows], 0

    def _select(self, columns: Columns, rows: Sequence[int], lengths: Sequence[int]) -> None:
        for slot, row in enumerate(rows):
            if row != slot:
                moved = columns.taken([row])
                mx.eval(moved.arrays)  # nothing may refer to what is written
                columns.write_row(slot, moved, 0, lengths[slot])
        (slots, allocated), longest = columns.shape, max(lengths)
        needed = allocated
        if columns.ring is None:
            needed = min(allocated, columns.rounded(columns.count(longest + max(STEP, longest // 4))))
        if len(rows) == 1 < slots or 4 * len(rows) * needed < slots * allocated:
            columns.resize(len(rows), needed)

    def take(self, rows: Sequence[int]) -> Self:
        """These rows, in this order, some perhaps more than once, in another cache; this one stays as it is."""
        taken = copy.copy(self)
        taken.lengths, taken.prompts = [self.lengths[row] for row in rows], [self.prompts[row] for row in rows]
        taken.columns = [columns.taken(rows) for columns in self.columns]
        return taken

    def extract(self, row: int) -> Self:
        """One row alone, in another cache; this one stays as it is."""
        alone = self.take([row])
        alone.select([0])
        mx.eval(alone.state)
        return alone

    def stored(self, row: int, start: int, stop: int) -> list[Run]:
        """Copies of what a row holds of the positions from `start` to `stop` and later tokens may attend to. What
        came after a prompt and did not see all before it is of no use in the prompt of another row."""
        head, window = self.reach.head, self.reach.window
        if self.reach.after_prompt is not None:
            stop = max(start, min(stop, self.prompts[row]))
        spans = [(start, stop)]
        if window is not None:
            spans = [(start, min(stop, head)), (max(start, head, self.lengths[row] - window), stop)]
        return [
            Run(first, count, buffer, columns.copied(row, column, count))
            for buffer, columns in enumerate(self.columns)
            for span in spans
            for first, column, count in columns.runs(*span)
        ]

    def restore(self, runs: Sequence[Run], length: int) -> None:
        """Begin all rows, which are empty, with the same `length` positions, in order in `runs`."""
        rows = len(self.lengths)
        for buffer, columns in enumerate(self.columns):
            columns.restore(rows, (run for run in runs if run.buffer == buffer), length, self._expected)
        self.lengths = [length] * rows

    def needed(self, length: int) -> list[tuple[int, int]]:
        """The positions, as spans, that the token after so many attends to."""
        head, window = self.reach.head, self.reach.window
        if window is None:
            return [(0, length)]
        return [(0, min(head, length)), (max(min(head, length), self.reach.first(length)), length)]

    def rollback(self, drop: Sequence[int]) -> None:
        """Forget the last drop[b] positions of each row, of at most so many as `reserve` was called for."""
        self.lengths = [length - count for length, count in zip(self.lengths, drop, strict=True)]

    def reserve(self, count: int) -> None:
        """Of the next forward's tokens, which are at most 1 + count, any but the first may be taken back."""
        columns = self.columns[0]
        if columns.ring is None or self.reach.window is None or columns.ring >= self.reach.window + count:
            return
        wider = Columns(head=columns.head, ring=self.reach.window + -(-count // 16) * 16)
        if columns.arrays:
            wider.make_room(len(self.lengths), self._longest, columns.arrays)
            for row, length in enumerate(self.lengths):
                wider.write_row(row, columns, row, length)
        self.columns = [wider]

    @property
    def _longest(self) -> int:
        return max(self.lengths)

    @property
    def _equal(self) -> bool:
        return len(set(self.lengths)) == 1
