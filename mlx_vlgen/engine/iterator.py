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
from itertools import takewhile
from types import TracebackType
from typing import Any

from .._runtime import mx
from ..errors import emptied
from ..models.base import Embedded, Model
from ..notices import notice
from ..results import FinishReason, GenerationResult
from . import cache as kv
from . import prefill, wired
from .batch import Batch
from .beam import Search
from .intake import Intake
from .report import RowResult, report
from .request import Request, Row, fresh_seed
from .sampling import Scores
from .speculative import Speculative
from .text import TextStream

# Every thread that iterates has a stream of its own; MLX evaluates an array on the stream it was made on.
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

    One thread iterates; `add` and `cancel` may be called from any.
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
        self._slots = prefill.Slots(max_batch_size if kv.can_batch(self._layout) else 1)
        self._budget, self._step_size, self._progress = kv_token_budget, prefill_step_size, progress
        self._lock = threading.Lock()
        self._queue: deque[Row] = deque()
        self._rows: dict[int, Row] = {}  # every row that has not ended
        self._ready: deque[Row] = deque()  # encoded, waiting for prefill
        self._partial: tuple[Row, kv.Cache, int] | None = None  # a long prompt under way, and how far it is
        self._batches: dict[Any, Batch] = {}  # rows decode with those whose caches and way of stepping are like theirs
        self._out: deque[tuple[int, RowResult]] = deque()
        self._latest: dict[int, RowResult] = {}  # what was handed out last for each row
        self._next_id = 0
        self.prompt_time = self.generation_time = 0.0  # seconds, over all rows
        mx.reset_peak_memory()
        wired.acquire()
        self._unwire = weakref.finalize(self, wired.release)

    # -- from any thread

    def add(self, request: Request) -> int:
        """Queue a request; its id. Its faults come out of the iteration, as a result with finish_reason "error"."""
        text = TextStream(
            self._processor.tokenizer, request.sampling.stop, skip_special_tokens=request.sampling.skip_special_tokens
        )
        with self._lock:
            row = Row(self._next_id, request, text, fresh_seed(request.sampling))
            self._next_id += 1
            self._rows[row.id] = row
            self._queue.append(row)
        return row.id

    def cancel(self, id: int) -> None:
        """End a row at the next step, with finish_reason "cancelled". A row that has ended is left alone."""
        with self._lock:
            if row := self._rows.get(id):
                row.cancelled = True

    # -- from the iterating thread

    def __enter__(self) -> "TokenIterator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget all rows and free their caches."""
        with self._lock:
            self._rows.clear()
            self._queue.clear()
        self._ready.clear()
        self._out.clear()
        self._latest.clear()
        self._partial = None
        self._batches.clear()
        if self._unwire.alive:
            with mx.stream(_stream):
                mx.synchronize()  # the limit must not change under a step that still runs
            self._unwire()

    def __iter__(self) -> Iterator[tuple[int, GenerationResult]]:
        return self

    def __next__(self) -> tuple[int, GenerationResult]:
        with mx.stream(_stream):
            while not self._out:
                if not self._rows:
                    raise StopIteration
                try:
                    self._step()
                except BaseException:  # Ctrl-C too: nothing may go on with the caches of half a step
                    self.close()
                    raise
        id, result = self._out.popleft()
        if (before := self._latest.pop(id, None)) is not None:  # only the newest holds the vocabulary
            before.let_go()
        if result.finish_reason is None:
            self._latest[id] = result
        return id, result

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        begun = time.perf_counter()
        self._prefill()
        between = time.perf_counter()
        self._decode()
        self.prompt_time += between - begun
        self.generation_time += time.perf_counter() - between

    # -- admit

    @property
    def _live(self) -> int:
        """How many rows decode."""
        return sum(len(batch.rows) for batch in self._batches.values())

    def _inside(self) -> list[Row]:
        live = [row for batch in self._batches.values() for row in batch.rows]
        return [*self._ready, *live, *([self._partial[0]] if self._partial else [])]

    def _admit(self) -> None:
        """Bring in as many rows as there is room for, but no more at once than one prefill step takes."""
        came: list[Row] = []
        waiting = sum(row.length for row in self._ready)
        while waiting < self._step_size:
            inside = [*self._inside(), *came]
            with self._lock:
                row = self._queue.popleft() if self._queue else None
            if row is None:
                break
            if not row.prompt and not self._read(row):
                continue
            taken = sum(other.reserve for other in inside)
            if not prefill.admissible([row.reserve], taken, self._slots.now - len(inside), self._budget):
                with self._lock:
                    self._queue.appendleft(row)
                break
            waiting += row.length
            row.started = time.perf_counter()
            came.append(row)
        if came:
            self._intake.encode(came)
        starved = [row for row in came if row.error and prefill.is_out_of_memory(row.error)]
        for row in came:
            if row.error is None:
                self._ready.append(row)
            elif row not in starved:
                self._end(row, "error", row.error)
        if starved:
            self._go_back(starved, len(self._inside()), self._queue)

    def _read(self, row: Row) -> bool:
        """The row's prompt and media; False when the row has ended already."""
        try:
            self._intake.read(row)
        except Exception as error:  # whatever is wrong with one row's input is that row's own
            self._end(row, "error", error)
            return False
        if row.sampling.max_tokens == 0:
            self._end(row, "length")
            return False
        return True

    # -- prefill

    def _prefill(self) -> None:
        """One step: a chunk of a long prompt, or several whole short ones. Rows for which memory does not suffice go
        back, and fewer rows run together for a time."""
        rows = [self._partial[0]] if self._partial else self._next_pack()
        if not rows:
            return
        try:
            if len(rows) > 1:
                self._prefill_pack(rows)
            else:
                self._prefill_chunk(rows[0])
        except (MemoryError, RuntimeError) as error:
            if not prefill.is_out_of_memory(error):
                raise
            self._partial = None
            for row in rows:
                row.error = error
            self._go_back(rows, self._live, self._ready)

    def _next_pack(self) -> list[Row]:
        free = self._slots.now - self._live
        if not self._ready or free < 1:
            return []
        way = self._ready[0].way
        # What begins with a past is prefilled alone.
        alike = takewhile(lambda row: row.way == way and not row.request.past, self._ready)
        count = max(1, min(prefill.pack_size([row.length for row in alike], self._step_size), free))
        rows = [self._ready.popleft() for _ in range(count)]
        for row in rows:
            row.prefill_started = time.perf_counter()
        return rows

    def _prefill_chunk(self, row: Row) -> None:
        _, cache, start = self._partial or (row, self._empty(row), row.computed)
        end, logits = self._forward(row, cache, start)
        if end < row.length:
            kv.evaluate(cache)
            mx.clear_cache()
            self._partial = row, cache, end
            self._tell(row, end)
        else:
            self._arrive([row], cache, logits)
            self._partial = None

    def _empty(self, row: Row) -> kv.Cache:
        """The cache that its prefill begins with."""
        past = row.request.past
        return kv.alone(past.cache, 0) if past else kv.make_cache(self._layout, row.request.kv)

    def _forward(self, row: Row, cache: kv.Cache, start: int) -> tuple[int, mx.array]:
        """The next chunk of its prompt: where it ends, and the logits (1, V) there."""
        assert row.prompt and row.inputs
        size = row.length if row.runs_alone else self._step_size
        end = prefill.chunk_end(start, row.length, size, row.prompt.two_way)
        inputs = row.inputs[start - row.computed : end - row.computed]
        inputs.watch = row.watch()
        return end, self._model(inputs, cache, at=mx.array([end - start - 1]))

    def _prefill_pack(self, rows: list[Row]) -> None:
        lengths = [row.length for row in rows]
        cache = kv.make_pack(self._layout, lengths, rows[0].request.kv)
        inputs = Embedded.stack([row.inputs for row in rows if row.inputs])
        logits = self._model(inputs, cache, at=mx.array(lengths) - 1)
        kv.finalize(cache, lengths)
        self._arrive(rows, cache, logits)

    def _arrive(self, rows: list[Row], cache: kv.Cache, logits: mx.array) -> None:
        """Rows whose prompt is through: draw their first token and let them decode with the others."""
        way, kind = rows[0].way, _kind(rows[0])
        if self._budget is None:
            self._budget = kv.affordable(cache, len(rows) * max(row.length for row in rows))
        for guide in [row.guide for row in rows if row.guide]:
            rows, cache, logits = self._beside(rows, cache, logits, guide)
        new = kind.begin(rows, cache, logits)
        kv.evaluate(new.cache, new.tokens)
        if live := self._batches.get(way):
            new = live.join(new)
            kv.evaluate(new.cache)
        self._batches[way] = new
        now = time.perf_counter()
        for row in rows:
            row.inputs, row.prefilled = None, now
            if row.leader is None:
                self._tell(row, row.length)

    def _beside(
        self, rows: list[Row], cache: kv.Cache, logits: mx.array, guide: Row
    ) -> tuple[list[Row], kv.Cache, mx.array]:
        """The rows with a negative prompt, which is computed now, as one more."""
        own, end = self._empty(guide), 0
        while end < guide.length:
            end, last = self._forward(guide, own, end)
            kv.evaluate(own)
        together = [*rows, guide]
        joined = kv.join(cache, own, [row.length for row in together])
        return together, joined, mx.concatenate([logits, last])

    def _tell(self, row: Row, done: int) -> None:
        if self._progress is not None:
            self._progress(row.id, done, row.length)

    def _go_back(self, rows: list[Row], others: int, to: deque[Row]) -> None:
        """Rows that did not fit in memory, whose error says so, go to the front of `to` and wait until some of the
        `others` are through; one that is alone cannot."""
        if not others and len(rows) == 1:
            self._end(rows[0], "error", rows[0].error)
            return
        self._slots.shrink(others or len(rows) // 2)
        self._warn()
        for row in rows:
            row.error = None
        with self._lock:
            to.extendleft(reversed(rows))

    def _warn(self) -> None:
        notice(f"memory does not suffice for more than {self._slots.now} rows at once: the others wait")

    def _drop_cancelled(self) -> None:
        """Rows that wait for something. Those that decode end when their next token comes."""
        with self._lock:
            gone = [row for row in self._queue if row.cancelled]
            for row in gone:
                self._queue.remove(row)
        for row in [row for row in self._ready if row.cancelled]:
            self._ready.remove(row)
            gone.append(row)
        for row in gone:
            self._end(row, "cancelled")
        if self._partial and self._partial[0].cancelled:
            self._end(self._partial[0], "cancelled")
            self._partial = None

    # -- decode

    def _decode(self) -> None:
        """One step of every batch. Where memory does not suffice for it, its rows end, for their caches are half
        written, and so many never run together again."""
        for way, batch in list(self._batches.items()):
            try:
                following = batch.step(self._model, self._emit)
            except (MemoryError, RuntimeError) as error:
                if not prefill.is_out_of_memory(error):
                    raise
                following = None
                self._slots = prefill.Slots(max(1, self._live - 1))
                self._warn()
                for row in batch.rows:
                    if not row.over and row.leader is None:
                        self._end(row, "error", error)
            if following is None:
                del self._batches[way]
            else:
                self._batches[way] = following

    # -- emit

    def _emit(self, row: Row, token: int, scores: Scores | None) -> None:
        """Record a row's token and hand out its result."""
        if row.leader:
            row.record(token)
            return
        if row.cancelled or row.error:
            self._end(row, "error" if row.error else "cancelled", row.error)
            return
        row.record(token)
        sampling = row.sampling
        reason: FinishReason | None = None
        is_end = token in row.end_tokens
        text = "" if is_end and not sampling.include_eos else row.text.add(token)
        if is_end or row.text.stopped or (row.constraint and row.constraint.over):
            reason = "stop"
        elif len(row.tokens) >= sampling.max_tokens or (
            sampling.max_time is not None and time.perf_counter() - row.started >= sampling.max_time
        ):
            reason = "length"
        elif row.found:
            reason = "stop" if len(row.tokens) == len(row.found[0].tokens) else None
        elif sampling.stopping_criteria and scores:
            try:
                reason = "stop" if self._criteria_met(row, scores.own[None]) else None
            except Exception as error:
                self._end(row, "error", error, text)
                return
        if reason is not None:
            self._end(row, reason, None, text, scores)
        else:
            self._out.append((row.id, report(row, text, scores)))

    def _criteria_met(self, row: Row, scores: mx.array) -> bool:
        assert row.prompt
        so_far = mx.array([*row.prompt.tokens.tolist(), *row.tokens])
        return any(bool(criterion(so_far, scores)) for criterion in row.sampling.stopping_criteria)

    def _end(
        self,
        row: Row,
        reason: FinishReason,
        error: Exception | None = None,
        text: str = "",
        scores: Scores | None = None,
    ) -> None:
        """Retire a row, with all the text it still holds back."""
        text += row.text.finish()
        row.finish_reason = "stop" if reason == "length" and row.text.stopped else reason
        if row.finish_reason == "stop" and row.constraint and not row.constraint.met(row.text):
            row.finish_reason = "length"  # cut, by a stop string or the user's code: "stop" promises a whole answer
        row.error = error and emptied(error)
        if error is None:
            self._slots.row_ended()
        with self._lock:
            self._rows.pop(row.id, None)
        self._out.append((row.id, report(row, text, scores)))


def _kind(row: Row) -> type[Batch]:
    """How a row steps."""
    return Search if row.request.beams else Speculative if row.drafter else Batch
