"""The one loop: requests in, tokens out, for one request and for many.

while rows or queue:
    plan        who is admitted, read, encoded, prefilled and ended (`scheduler.make_plan`)
    decode      one step of all rows that decode; their tokens are handed out
    encode      media of admitted rows: all groups of equal shape, or one while rows decode
    prefill     a chunk of a long prompt, or several short ones: a small one, behind the next step, while rows decode.
                Rows that are through have their first token, which is handed out before anything else is launched
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any

from .._runtime import mx
from ..models.base import Model
from ..notices import notice
from ..results import FinishReason, GenerationResult
from . import cache as kv
from . import wired
from .budget import Budget
from .emit import end_row, record_token
from .executor import Executor
from .intake import Intake
from .request import Request, Row, fresh_seed
from .row_result import RowResult
from .sampling import Scores
from .scheduler import Chunk, Limits, Plan, make_plan
from .scheduling import Slots, is_out_of_memory
from .store import PrefixCache, prefixes
from .text import TextStream
from .waiting import Waiting

# Each thread that iterates has a stream; MLX evaluates an array on the stream it was made on.
_stream = mx.new_thread_local_stream(mx.default_device())


class TokenIterator:
    """Continuous batching: rows join and leave while others decode. Iterating yields (id, GenerationResult), one
    for each token of each row, in the order in which they come; it stops when there is nothing left to do, and may
    be iterated again after more was added.

    max_batch_size: rows that run together. kv_token_budget: cache positions that the rows inside may come to need
    together (prompt and max_tokens); None is what fits into free memory, judged by the first rows. A row that needs
    more runs alone. prefill_step_size: prompt tokens a step; decode_prefill_size: at most, while rows decode, which
    wait for it. vision_batch_pixels: pixel values (3 a pixel and frame) that go through the vision tower at once; None
    is those of 4096 x 1024 pixels, on a CPU 768 x 512. While rows decode a step takes one picture of 1024 x 1024 or
    several smaller ones. group_by_shape: whether pictures that can be encoded together are, in another order.
    max_queue: requests that wait, at most; None: any number. progress: called with (id, prompt tokens computed, prompt
    tokens in all) after each step of a prefill. reuse: whether what rows begin alike with is computed once; or a
    `PrefixCache`, from which beginnings are taken and where all that is computed goes.

    Every row gets one last result, with a finish_reason. What a row's parts raise (its prompt, media, processors,
    sampler, criteria, form, drafter, tokens' text, or `progress`) ends that row with "error", and what
    a forward raises the rows in it; the others go on. `close` and Ctrl-C end all rows with "cancelled", an error of
    the iterator itself with "error"; both exceptions come out of the iteration, and after them the last results can
    be iterated, as after `close`.

    One thread iterates; `prepare`, `add`, `cancel`, `wait` and `close` may be called from any. Requests that wait are
    read ahead by two threads: one that takes long to read is overtaken by those behind it.
    """

    def __init__(
        self,
        model: Model,
        processor: Any,
        *,
        max_batch_size: int = 32,
        kv_token_budget: int | None = None,
        prefill_step_size: int = 2048,
        decode_prefill_size: int = 512,
        vision_batch_pixels: int | None = None,
        group_by_shape: bool = True,
        max_queue: int | None = None,
        progress: Callable[[int, int, int], None] | None = None,
        reuse: bool | PrefixCache = True,
    ):
        for name, value in (
            ("max_batch_size", max_batch_size),
            ("prefill_step_size", prefill_step_size),
            ("decode_prefill_size", decode_prefill_size),
            ("max_queue", max_queue),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        layout = model.cache_layout()
        self._intake = Intake(model, processor)
        self._limits = Limits.of(model, prefill_step_size, decode_prefill_size, vision_batch_pixels, group_by_shape)
        self._slots = Slots(max_batch_size if kv.can_batch(layout) else 1)
        self._budget = Budget(layout, kv_token_budget)
        self._progress = progress
        self._prefixes = prefixes(reuse, model)
        self._executor = Executor(model, self._slots.max_rows, self._prefixes)
        self._changed = threading.Condition()  # locked for what several threads write
        self._queue = Waiting(self._changed, self._intake.read, max_queue)
        self._coming: list[Row] = []  # admitted, and their prompt is not through
        self._outgrown: list[Row] = []  # they begin again
        self._plan: Plan | None = None  # of the step that is half done
        self._rows: dict[int, Row] = {}  # every row whose last result was not handed out
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

    def prepare(self, request: Request) -> Row:
        """Read a request in this thread; `add` takes it, once. Raises what is wrong with it. Its time runs from now."""
        row = self._new_row(request)
        self._intake.read(row)
        row.ready = True
        return row

    def add(self, request: Request | Row) -> int:
        """Queue a request, or a prepared one; its id. Faults of a request come out of the iteration, as a result with
        finish_reason "error". QueueFullError where too many wait, RuntimeError once the iterator is closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError("add: this TokenIterator is closed, by close() or by Ctrl-C; make another one")
            row = request if isinstance(request, Row) else self._new_row(request)
            if row.id in self._rows or row.over:
                raise RuntimeError("add: this prepared request was added before; prepare it again")
            self._queue.add(row)
            self._rows[row.id] = row
            self._changed.notify_all()
        return row.id

    def _new_row(self, request: Request) -> Row:
        mx.eval(request.prompt, request.media.sources)  # MLX's arrays: another thread may read them
        prefixes = self._prefixes if request.reuse else None
        with self._changed:
            self._next_id += 1
            return Row(self._next_id - 1, request, TextStream(), fresh_seed(request.sampling), prefixes=prefixes)

    def cancel(self, id: int) -> None:
        """End a row at the next step, with finish_reason "cancelled". A row that has ended is left alone."""
        with self._changed:
            self._cancelled.add(id)
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until there is something to iterate, for at most so many seconds. Whether there is: not, once the
        iterator is closed and all was handed out."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._rows or self._out, timeout)
            return bool(self._rows or self._out)

    def __enter__(self) -> "TokenIterator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all rows with "cancelled" and free the caches, once the step is over that another thread may be in. What
        was not handed out yet can still be iterated; `add` raises from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._stepping:
            self._end_all("cancelled")

    def _end_all(self, reason: FinishReason, error: Exception | None = None) -> None:
        with self._changed:
            self._closed = True
            rows = list(self._rows.values())
        ended = {id for id, result in self._out if result.finish_reason is not None}
        for row in rows:
            if row.id not in ended:
                self._hand_out(row, end_row(row, reason, error))
        self._rows.clear()
        self._queue.clear()
        self._coming.clear()
        self._latest.clear()
        self._plan = None
        self._executor.clear()
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
                    self._advance()
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

    def _advance(self) -> None:
        """Half a step: what the rows that decode say is handed out before others are prefilled."""
        if self._closed:
            self._end_all("cancelled")
            return
        self._coming, self._outgrown = self._intake.begin_again(self._outgrown) + self._coming, []
        if self._plan is None:
            if self._coming or self._queue or self._cancelled:
                self._plan = self._next_plan()
                self._admit(self._plan)
            begun = time.perf_counter()
            self._decode()
            self.generation_time += time.perf_counter() - begun
        else:
            plan, self._plan = self._plan, None
            self._encode(plan)
            begun = time.perf_counter()
            self._prefill(plan.prefilled)
            self.prompt_time += time.perf_counter() - begun

    def _next_plan(self) -> Plan:
        """What the next step does. While nothing is inside, it waits for the rows that are being read."""
        while not self._closed:
            self._sweep()
            decoding = self._executor.decoding
            state = self._queue, self._coming, decoding, self._executor.features
            with self._changed:
                self._executor.search((*self._coming, *islice(self._queue, self._slots.now)))
                plan = make_plan(*state, self._slots.now, self._budget, self._limits, time.perf_counter())
            inside = len(decoding) + len(self._coming)
            idle = not (inside or plan.ended or (plan.admitted and not plan.lacks))
            if self._queue.read(plan.unread, plan.lacks and inside < self._slots.now, idle) or self._out:
                return plan
        return Plan()

    def _sweep(self) -> None:
        """Mark rows that are cancelled, and end those that wait. Others end with the plan or with their next token."""
        with self._changed:
            cancelled = [self._rows[id] for id in self._cancelled if id in self._rows]
            self._cancelled.clear()
            for row in cancelled:
                row.cancelled = True
            waiting = self._queue.remove(cancelled)
        for row in waiting:
            self._end(row, "cancelled")

    def _admit(self, plan: Plan) -> None:
        """End rows, and let others in."""
        for id, reason in plan.ended:
            self._end(self._rows[id], reason, self._rows[id].error)
        admitted = [self._rows[id] for id in plan.admitted]
        self._queue.remove([*(self._rows[id] for id, _ in plan.ended), *admitted])
        for row in admitted:
            try:
                self._intake.check(row)
            except Exception as error:  # a fault of one row's input ends that row only
                self._end(row, "error", error)
        self._coming += admitted
        self._leave()

    def _leave(self) -> None:
        """Forget what belongs to rows that are over, or decode."""
        self._coming = [row for row in self._coming if not (row.over or row.prefilled)]
        self._executor.forget(self._coming)

    def _encode(self, plan: Plan) -> None:
        """Media, and the embeddings of rows all of whose media are encoded."""
        self._executor.encode(plan.encoded, {row.id: row for row in self._coming})
        self._executor.embed(self._coming, plan.waiting)
        if failed := [row for row in self._coming if row.error]:
            starved = self._end_failed(failed, len(self._coming) + self._live - len(failed))
            self._coming = [row for row in self._coming if row not in starved]
            self._queue.give_back(starved)
            self._leave()

    def _prefill(self, packs: Sequence[Sequence[Chunk]]) -> None:
        """One step: a chunk of a long prompt, or whole short ones; their first tokens in the order of their arrival."""
        before, order = len(self._out), {row.id: place for place, row in enumerate(self._coming)}
        if all(self._compute(chunks) for chunks in packs):  # else the others are planned again
            first = sorted(islice(self._out, before, None), key=lambda pair: order[pair[0]])
            self._out = deque([*islice(self._out, before), *first])

    def _compute(self, chunks: Sequence[Chunk]) -> bool:
        """One forward; whether it did not fail."""
        chunks = [chunk for chunk in chunks if chunk.id in self._executor.prefill.prompts]
        rows = [row for row in self._coming if any(chunk.id == row.id for chunk in chunks)]
        if not rows:
            return True
        try:
            batch = self._executor.compute(chunks)
        except Exception as error:
            for row in rows:
                row.error = error
                self._executor.prefill.restart(row)
            self._end_failed(rows, self._live)
            self._leave()
            return False
        if batch is None:
            [chunk] = chunks
            if not chunk.negative:
                self._report_progress(rows[0], chunk.end)
            return True
        self._budget.learn(batch.cache)
        for row in rows:
            self._report_progress(row, row.length)
        if batch := batch.read(self._emit):
            self._executor.arrived.append(batch)
        self._leave()
        return True

    def _report_progress(self, row: Row, done: int) -> None:
        """What `progress` raises ends the row."""
        if self._progress is not None:
            try:
                self._progress(row.id, done, row.length)
            except Exception as error:
                row.error = error

    @property
    def _live(self) -> int:
        """How many rows decode."""
        return len(self._executor.decoding)

    def _decode(self) -> None:
        """One step of every batch. After a lack of memory so many rows never run together again."""
        before = len(self._out)
        for rows, error in self._executor.join(self._emit):
            for row in rows:
                row.error = error
            self._end_failed(rows, self._live - len(rows))
        if len(self._out) > before:
            return  # a row may be cancelled after each of its tokens
        live = self._live
        for rows, error in self._executor.decode(self._emit):
            if is_out_of_memory(error):
                self._slots = Slots(max(1, live - 1))
                self._warn()
            for row in rows:
                self._end(row, "error", error)

    def _end_failed(self, rows: Sequence[Row], others: int) -> list[Row]:
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

    def _emit(self, row: Row, token: int, scores: Scores | None) -> None:
        """Record a row's token and hand out its result."""
        if row.positive:
            row.record(token)
        elif row.cancelled or row.error:
            self._end(row, "error" if row.error else "cancelled", row.error)
        elif not row.over:
            self._hand_out(row, record_token(row, token, scores))
            self._outgrown += [row] * (row.outgrown and not row.over)

    def _end(self, row: Row, reason: FinishReason, error: Exception | None = None) -> None:
        """End a row, once. A negative prompt ends with its row."""
        if row.positive is None and not row.over:
            self._hand_out(row, end_row(row, reason, error))

    def _hand_out(self, row: Row, result: RowResult) -> None:
        self._out.append((row.id, result))
        if result.finish_reason is not None and result.error is None:
            self._slots.row_ended()
