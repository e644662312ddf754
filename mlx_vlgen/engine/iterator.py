"""The one loop: requests in, tokens out, for one request and for many.

while rows or queue:
    admit       take queued requests while there is room; read their media; encode equal shapes together
    prefill     at most one chunk's worth of tokens; rows that are through join the batch
    decode      start the next step of all rows, then read and hand out the tokens of this one
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from .._runtime import mx
from ..models.base import Model
from ..notices import notice
from ..results import FinishReason, GenerationResult
from . import cache as kv
from . import wired
from .batch import Batch, SampledBatch
from .beam import Search
from .budget import Budget
from .emit import end_row, record_token
from .intake import Intake
from .prefill import Prefill
from .request import Encoded, Request, Row, fresh_seed
from .row_result import RowResult
from .sampling import Scores
from .scheduling import Slots, admissible, is_out_of_memory
from .speculative import Speculative
from .text import TextStream

# Each thread that iterates has a stream; MLX evaluates an array on the stream it was made on.
_stream = mx.new_thread_local_stream(mx.default_device())


class TokenIterator:
    """Continuous batching: rows join and leave while others decode. Iterating yields (id, GenerationResult), one
    for each token of each row, in the order in which they come; it stops when there is nothing left to do, and may
    be iterated again after more was added.

    max_batch_size: rows that run together. kv_token_budget: cache positions that the rows inside may come to need
    together (prompt and max_tokens); None is what fits into free memory, judged by the first rows. A row that needs
    more runs alone. prefill_step_size: prompt tokens a step. vision_batch_pixels: pixel values (3 a pixel and frame)
    that go through the vision tower at once. group_by_shape: whether pictures of equal processed shape are encoded
    together. progress: called with (id, prompt tokens computed, prompt tokens in all) after each step of a prefill.

    Every row gets one last result, with a finish_reason. What a row's parts raise (its prompt, media, processors,
    sampler, criteria, form, drafter, tokens' text, or `progress`) ends that row with "error", and what
    a forward raises the rows in it; the others go on. `close` and Ctrl-C end all rows with "cancelled", an error of
    the iterator itself with "error"; both exceptions come out of the iteration, and after them the last results can
    be iterated, as after `close`.

    One thread iterates; `add`, `cancel` and `close` may be called from any.
    """

    def __init__(
        self,
        model: Model,
        processor: Any,
        *,
        max_batch_size: int = 32,
        kv_token_budget: int | None = None,
        prefill_step_size: int = 2048,
        vision_batch_pixels: int = 3 * 4096 * 1024,
        group_by_shape: bool = True,
        progress: Callable[[int, int, int], None] | None = None,
    ):
        for name, value in (("max_batch_size", max_batch_size), ("prefill_step_size", prefill_step_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self._model, self._processor = model, processor
        self._layout = model.cache_layout()
        self._intake = Intake(model, processor, vision_batch_pixels, group_by_shape)
        self._slots = Slots(max_batch_size if kv.can_batch(self._layout) else 1)
        self._budget = Budget(self._layout, kv_token_budget)
        self._prompts = Prefill(model, self._layout, prefill_step_size)
        self._progress = progress
        self._lock = threading.Lock()
        self._queue: deque[Row] = deque()
        self._rows: dict[int, Row] = {}  # every row whose last result was not handed out
        self._batches: dict[Any, Batch] = {}  # by batch_key
        self._out: deque[tuple[int, RowResult]] = deque()
        self._latest: dict[int, RowResult] = {}  # what was handed out last for each row
        self._cancelled: set[int] = set()  # ids, until the next step
        self._closed = False
        self._stepping = threading.RLock()  # locked by the thread that steps or closes
        self._next_id = 0
        self.prompt_time = self.generation_time = 0.0  # seconds, over all rows
        mx.reset_peak_memory()
        wired.acquire()
        self._unwire = weakref.finalize(self, wired.release)

    # -- from any thread

    def add(self, request: Request) -> int:
        """Queue a request; its id. Its faults come out of the iteration, as a result with finish_reason "error".
        RuntimeError once the iterator is closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("add: this TokenIterator is closed, by close() or by Ctrl-C; make another one")
            row = Row(self._next_id, request, TextStream(), fresh_seed(request.sampling))
            self._next_id += 1
            self._queue.append(row)
            self._rows[row.id] = row
        return row.id

    def cancel(self, id: int) -> None:
        """End a row at the next step, with finish_reason "cancelled". A row that has ended is left alone."""
        with self._lock:
            self._cancelled.add(id)

    def __enter__(self) -> "TokenIterator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all rows with "cancelled" and free the caches, once the step is over that another thread may be in. What
        was not handed out yet can still be iterated; `add` raises from now on."""
        self._closed = True
        with self._stepping:
            self._end_all("cancelled")

    def _end_all(self, reason: FinishReason, error: Exception | None = None) -> None:
        with self._lock:
            self._closed = True
            rows = list(self._rows.values())
        ended = {id for id, result in self._out if result.finish_reason is not None}
        for row in rows:
            if row.id not in ended:
                self._hand_out(row, end_row(row, reason, error))
        self._rows.clear()
        self._queue.clear()
        self._prompts.waiting.clear()
        self._latest.clear()
        self._prompts.partial = None
        self._batches.clear()
        if self._unwire.alive:
            with mx.stream(_stream):
                mx.synchronize()  # the limit must not change under a step that still runs
            self._unwire()

    # -- from the iterating thread

    def __iter__(self) -> Iterator[tuple[int, GenerationResult]]:
        return self

    def __next__(self) -> tuple[int, GenerationResult]:
        with self._stepping, mx.stream(_stream):
            while not self._out:
                if not self._rows:
                    raise StopIteration
                try:
                    self._step()
                except Exception as error:  # a fault of the loop itself: it ends every row
                    self._end_all("error", error)
                    raise
                except BaseException:  # Ctrl-C: nothing may go on with the caches of half a step
                    self._end_all("cancelled")
                    raise
            id, result = self._out[0]  # which stays there, should Ctrl-C come now
            if (before := self._latest.pop(id, None)) is not None and before is not result:
                before.logprobs = None  # which only the newest result of a row holds
            if result.finish_reason is None:
                self._latest[id] = result
            else:
                self._rows.pop(id, None)
            return self._out.popleft()

    def _step(self) -> None:
        if self._closed:
            self._end_all("cancelled")
            return
        self._sweep()
        self._admit()
        begun = time.perf_counter()
        self._prefill()
        between = time.perf_counter()
        self._decode()
        self.prompt_time += between - begun
        self.generation_time += time.perf_counter() - between

    def _sweep(self) -> None:
        """End rows that are cancelled before they decode, and a long prompt whose time is up. Rows that decode end when
        their next token comes."""
        with self._lock:
            cancelled = [self._rows[id] for id in self._cancelled if id in self._rows]
            self._cancelled.clear()
            for row in cancelled:
                row.cancelled = True
            if cancelled:
                self._queue = deque(row for row in self._queue if not row.cancelled)
        if cancelled:
            decoding = {row.id for batch in self._batches.values() for row in batch.rows}
            waiting = [prompt for prompt in self._prompts.waiting if not prompt.row.cancelled]
            self._prompts.waiting = deque(waiting)
            for row in cancelled:
                if row.id not in decoding:
                    self._end(row, "cancelled")
        if self._prompts.partial:
            row = self._prompts.partial.prompt.row
            if row.error:
                self._end(row, "error", row.error)
            elif row.timed_out:
                self._end(row, "length")
            if row.over:
                self._prompts.partial = None

    # -- admit

    @property
    def _live(self) -> int:
        """How many rows decode."""
        return sum(len(batch.rows) for batch in self._batches.values())

    def _inside(self) -> list[Row]:
        return [*self._prompts.rows, *(row for batch in self._batches.values() for row in batch.rows)]

    def _admit(self) -> None:
        """Bring in as many rows as there is room for, but no more at once than one prefill step takes."""
        admitted: list[Row] = []
        waiting = sum(prompt.row.length for prompt in self._prompts.waiting)
        while waiting < self._prompts.step_size:
            inside = [*self._inside(), *admitted]
            with self._lock:
                row = self._queue.popleft() if self._queue else None
            if row is None:
                break
            if row.length == 0 and not self._read(row):
                continue
            need = self._budget.needed(row)
            taken = sum(self._budget.needed(other) for other in inside if other.positive is None)
            if not admissible([need], taken, self._slots.now - len(inside), self._budget.limit):
                with self._lock:
                    self._queue.appendleft(row)
                break
            waiting += row.length
            admitted.append(row)
        if admitted:
            self._prompts.waiting.extend(self._intake.encode(admitted))
            starved = self._end_failed([row for row in admitted if row.error], len(self._inside()))
            with self._lock:
                self._queue.extendleft(reversed(starved))

    def _read(self, row: Row) -> bool:
        """The row's prompt and media; False when the row has ended already."""
        try:
            self._intake.read(row)
        except Exception as error:  # a fault of one row's input ends that row only
            self._end(row, "error", error)
            return False
        if row.sampling.max_tokens == 0:
            self._end(row, "length")
            return False
        return True

    # -- prefill

    def _prefill(self) -> None:
        """One step: a chunk of a long prompt, or several whole short ones."""
        prompts = self._prompts.next(self._slots.now - self._live)
        if not prompts:
            return
        try:
            if computed := self._prompts.step(prompts):
                self._arrive(prompts, *computed)
            elif self._prompts.partial:
                self._report_progress(self._prompts.partial.prompt.row, self._prompts.partial.end)
        except Exception as error:
            self._prompts.partial = None
            rows = [prompt.row for prompt in prompts]
            for row in rows:
                row.error = error
            if self._end_failed(rows, self._live):
                self._prompts.waiting.extendleft(reversed(prompts))

    def _arrive(self, prompts: list[Encoded], cache: kv.Cache, logits: mx.array) -> None:
        """Rows whose prompt is through: draw their first token and let them decode with the others."""
        self._budget.learn(cache)
        rows, logits = self._prompts.with_negatives(prompts, cache, logits)
        key = rows[0].batch_key
        new = _batch_class(rows[0]).begin(rows, cache, logits)
        kv.evaluate(new.cache, new.tokens)
        if live := self._batches.get(key):
            new = live.join(new)
        self._batches[key] = new
        now = time.perf_counter()
        for row in rows:
            row.prefilled = now
            if row.positive is None:
                self._report_progress(row, row.length)

    def _report_progress(self, row: Row, done: int) -> None:
        """What `progress` raises ends the row."""
        if self._progress is not None:
            try:
                self._progress(row.id, done, row.length)
            except Exception as error:
                row.error = error

    def _end_failed(self, rows: list[Row], others: int) -> list[Row]:
        """End rows that have an error. Rows that lacked memory do not end: they are returned, wait at the front until
        some of the `others` are through, and fewer run together. One row alone has nothing to wait for, and ends."""
        starved = [row for row in rows if row.error and is_out_of_memory(row.error)]
        if len(starved) == 1 and not others:
            starved = []
        for row in rows:
            if row not in starved:
                self._end(row, "error", row.error)
        if starved:
            self._slots.shrink(others or len(starved) // 2)
            self._warn()
        for row in starved:
            row.error = None
        return starved

    def _warn(self) -> None:
        notice(f"memory does not suffice for more than {self._slots.now} rows at once: the others wait")

    # -- decode

    def _decode(self) -> None:
        """One step of every batch. An error ends the rows of the batch, for their caches are half written. After a lack
        of memory so many rows never run together again."""
        for key, batch in list(self._batches.items()):
            try:
                following = batch.step(self._model, self._emit)
            except Exception as error:
                following = None
                if is_out_of_memory(error):
                    self._slots = Slots(max(1, self._live - 1))
                    self._warn()
                for row in batch.rows:
                    self._end(row, "error", error)
            if following is None:
                self._batches.pop(key, None)
            else:
                self._batches[key] = following

    # -- emit

    def _emit(self, row: Row, token: int, scores: Scores | None) -> None:
        """Record a row's token and hand out its result."""
        if row.positive:
            row.record(token)
        elif row.cancelled or row.error:
            self._end(row, "error" if row.error else "cancelled", row.error)
        elif not row.over:
            self._hand_out(row, record_token(row, token, scores))

    def _end(self, row: Row, reason: FinishReason, error: Exception | None = None) -> None:
        """End a row, once. A negative prompt ends with its row."""
        if row.positive is None and not row.over:
            self._hand_out(row, end_row(row, reason, error))

    def _hand_out(self, row: Row, result: RowResult) -> None:
        self._out.append((row.id, result))
        if result.finish_reason is not None and result.error is None:
            self._slots.row_ended()


def _batch_class(row: Row) -> type[Batch]:
    """How a row steps."""
    return Search if row.request.beams else Speculative if row.drafter else SampledBatch
