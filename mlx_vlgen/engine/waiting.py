"""Requests that wait for their turn, and the threads that read them ahead of it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from ..errors import QueueFullError
from .request import Row
from .scheduler import READ_AHEAD, SLOW

READERS = 2
"""Threads that read. They live while there is something to read, and neither Ctrl-C nor Python's end waits for them."""

AT_ONCE = 0.01
"""Seconds that a step waits for the first row to be read, once a row: a text is, and comes in with this step."""

PIXEL_BYTES = 256 << 20
"""Bytes of pixels that are read and wait for the vision tower, above which no other row is read ahead."""


class Waiting:
    """Rows in order of arrival, until they are admitted. changed: what is written by several threads is, under its
    lock. read: reads a row, or raises what is wrong with it. max_size: rows that may wait; None: any number."""

    def __init__(self, changed: threading.Condition, read: Callable[[Row], None], max_size: int | None):
        self._changed, self._read_row, self._max_size = changed, read, max_size
        self._rows: dict[int, Row] = {}  # by id
        self._unread: deque[Row] = deque()  # what the readers take next
        self._num_readers = 0
        self._waited_for: Row | None = None
        self._interrupt: BaseException | None = None  # of a reader

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        if self._max_size is not None and len(self._rows) >= self._max_size:
            raise QueueFullError(
                f"add: {len(self._rows)} requests wait already and max_queue is {self._max_size}: "
                "add it again once some of them have their first token, or allow more"
            )
        self._rows[row.id] = row

    def remove(self, rows: Iterable[Row]) -> list[Row]:
        """Those of `rows` that wait, which do not any longer."""
        with self._changed:
            return [row for row in rows if self._rows.pop(row.id, None)]

    def give_back(self, rows: Sequence[Row]) -> None:
        """Rows that were admitted too early: they wait at the front."""
        with self._changed:
            self._rows = {row.id: row for row in rows} | self._rows

    def clear(self) -> None:
        with self._changed:
            self._rows.clear()
            self._unread.clear()

    def read(self, ids: Sequence[int], lacks: bool, idle: bool) -> bool:
        """Have these rows read, and say whether the step can go on. It has to be planned again after a moment's wait
        for the first of them, where that could come in (`lacks`), and while there is nothing to do but to wait
        (`idle`). In this thread are read a row that is alone then, and one with nothing to read but numbers."""
        with self._changed:
            if self._interrupt:
                error, self._interrupt = self._interrupt, None
                raise error
            unread = [row for id in ids if (row := self._rows.get(id))]
            if not unread or self._num_bytes > PIXEL_BYTES:
                return True
            self._unread = deque(row for row in unread if not row.reading_since)
            first = unread[0]
            alone = idle and (len(unread) == 1 or len(unread) - len(self._unread) >= READERS)
            if first.reading_since or not (alone or first.is_plain):
                self._start_readers()
                if idle:
                    self._changed.wait(SLOW / 10)
                elif lacks and self._waited_for is not first:
                    self._waited_for = first
                    self._changed.wait_for(lambda: first.ready, AT_ONCE)
                else:
                    return True
                return False
            self._unread.remove(first)
            first.reading_since = time.perf_counter()
        self._read(first)
        return False

    def _start_readers(self) -> None:
        while self._num_readers < min(READERS, len(self._unread)):
            self._num_readers += 1
            threading.Thread(target=self._read_ahead, name="mlx_vlgen reader", daemon=True).start()

    def _read_ahead(self) -> None:
        while True:
            with self._changed:
                if not self._unread or self._num_bytes > PIXEL_BYTES:
                    self._num_readers -= 1
                    return
                row = self._unread.popleft()
                row.reading_since = time.perf_counter()
            try:
                self._read(row)
            except BaseException as error:  # Ctrl-C, raised by the user's code: it comes out where rows are iterated
                with self._changed:
                    self._interrupt = error
                    self._changed.notify_all()

    def _read(self, row: Row) -> None:
        try:
            self._read_row(row)
        except Exception as error:  # a fault of one row's input, which ends that row only
            row.error = error
        with self._changed:
            row.ready = True
            self._changed.notify_all()

    @property
    def _num_bytes(self) -> int:
        """Of the pixels that are read, near the front."""
        ready = (row for row in islice(self, 4 * READ_AHEAD) if row.ready)
        return sum(medium.pixels.nbytes for row in ready for medium in row.media)
