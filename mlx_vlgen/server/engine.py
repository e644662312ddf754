"""One model behind one token iterator, in a thread. What it says goes to the event loop."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .._runtime import return_memory
from ..engine.draw_keys import seed_of_draw
from ..engine.intake import end_tokens
from ..engine.iterator import TokenIterator
from ..engine.params import sampling_params
from ..engine.request import Request, Row
from ..engine.store import cache_on_disk
from ..generate import make_drafter
from ..inputs.chat_template import knows_thinking
from ..inputs.fetch import Limits
from ..inputs.prompt import MediaInputs, Prompt
from ..results import GenerationResult
from .call import Call, Delta, Usage
from .deltas import DeltaMaker
from .errors import ApiError, overloaded
from .log import log_error
from .media import fetch_remote
from .settings import Settings
from .tool_use import CallReader, tool_use
from .tools import tool_format

WORKERS = 4
"""Threads that read prompts and pictures."""

GATHER_SECONDS = 0.05
"""For which the first row after a pause waits, at most."""

PIXEL_BYTES = 1 << 30
"""Of pictures that are read and wait for their first token, above which no other request is read."""

POLL_SECONDS = 1.0

PAUSE_SECONDS = 5.0
"""Without a request, after which memory that is free is given back."""


@dataclass(eq=False)
class Stream:
    """One row's deltas as they come, of which the last has a `finish` or an `error`."""

    engine: "Engine"
    row: Row
    queue: "asyncio.Queue[Delta]"
    maker: DeltaMaker
    pixel_bytes: int = 0
    begun: bool = False
    over: bool = False
    usage: Usage = Usage()

    async def next(self) -> Delta:
        delta = await self.queue.get()
        self.engine.release(self)
        self.over, self.usage = bool(delta.finish or delta.error), delta.usage
        return delta

    def end(self) -> None:
        """Free the row; its answer ends as it is."""
        self.engine.cancel(self)
        self.queue.put_nowait(Delta(finish="cancelled", usage=self.usage))

    def cancel(self) -> None:
        """Free the row. Nothing happens to one that has ended."""
        self.engine.release(self)
        if not self.over:
            self.over = True
            self.engine.cancel(self)


class Engine:
    """load: gives model and processor, in the engine's thread. Its methods belong to the event loop's thread."""

    def __init__(self, load: Callable[[], tuple[Any, Any]], settings: Settings):
        self._load, self._settings = load, settings
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[None] = self._loop.create_future()
        self._streams: dict[int, Stream] = {}  # of rows whose last delta did not come; by their ids
        self._iterator: TokenIterator | None = None
        self._closing = False
        self._workers = ThreadPoolExecutor(WORKERS, "mlx_vlgen prepare")
        self._reading = 0  # calls; read by the engine's thread
        self._pixel_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._thread = threading.Thread(target=self._run, name="mlx_vlgen engine", daemon=True)
        self._thread.start()

    # -- in the event loop

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that have had their first token, and rows that wait for it."""
        begun = sum(stream.begun for stream in self._streams.values())
        return begun, len(self._streams) - begun

    async def start(self, call: Call) -> list[Stream]:
        """Read the call's prompts and queue its rows, `count` a prompt. Raises what is wrong with it."""
        streams: list[Stream] = []
        self._reading += 1
        try:
            iterator = await self._current()
            for prompt in call.prompts:
                await self._room.wait()
                rows = await self._in_worker(partial(self._prepare, iterator, call, prompt))
                streams += [self._stream(call, row) for row in rows]
            if self._iterator is not iterator:
                raise overloaded("the engine began anew after a fault: try again")
            for stream in streams:
                self._streams[stream.row.id] = stream
                iterator.add(stream.row)
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        finally:
            self._reading -= 1
        return streams

    async def count_tokens(self, call: Call) -> int:
        """Tokens of the call's prompt."""
        iterator = await self._current()
        request = await self._in_worker(partial(self._request, call, call.prompts[0]))
        return (await self._in_worker(partial(iterator.prepare, request))).length

    async def _current(self) -> TokenIterator:
        """The iterator, of which there is none for a moment after a fault."""
        while self._iterator is None and self.alive and not self._closing:
            await asyncio.sleep(0.01)
        if self._iterator is None or self._closing:
            raise overloaded("this model is not ready: try again in a moment")
        return self._iterator

    async def _in_worker(self, work: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._workers, work)

    def _stream(self, call: Call, row: Row) -> Stream:
        sampling = row.sampling
        form = tool_format(self.processor.chat_template) if call.tools and call.tool_choice != "none" else None
        calls = CallReader(form.parser(call.tools), call.parallel_tool_calls) if form else None
        maker = DeltaMaker(self.processor.tokenizer, sampling.stop, self._end_tokens, call.logprobs, call.raw, calls)
        stream = Stream(self, row, asyncio.Queue(), maker, sum(medium.pixels.nbytes for medium in row.media))
        self._count_pixels(stream.pixel_bytes)
        return stream

    def release(self, stream: Stream) -> None:
        """Its pictures are encoded, or will never be."""
        self._count_pixels(-stream.pixel_bytes)
        stream.pixel_bytes = 0

    def _count_pixels(self, count: int) -> None:
        self._pixel_bytes += count
        (self._room.set if self._pixel_bytes < PIXEL_BYTES else self._room.clear)()

    def cancel(self, stream: Stream) -> None:
        if self._streams.get(stream.row.id) is stream:
            del self._streams[stream.row.id]
            if self._iterator is not None:
                self._iterator.cancel(stream.row.id)

    async def close(self) -> None:
        """End what runs, and let the model go."""
        self._closing = True
        if self._iterator is not None:
            await asyncio.to_thread(self._iterator.close)
        await asyncio.to_thread(self._thread.join)
        self._workers.shutdown(wait=False, cancel_futures=True)

    # -- in workers

    def _prepare(self, iterator: TokenIterator, call: Call, prompt: Any) -> list[Row]:
        """Rows that are read, one for each answer to a prompt."""
        request = self._request(call, prompt)
        first = iterator.prepare(request)
        room = (self.model.max_positions or (1 << 15)) - first.length
        if room < 1:
            raise ApiError(400, f"the prompt has {first.length} tokens and fills the context", code="context_full")
        limits = (request.sampling.max_tokens, self._settings.max_tokens, room)
        sampling = replace(request.sampling, max_tokens=min(limit for limit in limits if limit is not None))
        rows, request = [first], replace(request, prompt=first.prompt, media=None, sampling=sampling)
        for draw in range(1, call.count):
            seed = None if sampling.seed is None else seed_of_draw(sampling.seed, draw)
            rows.append(iterator.prepare(replace(request, sampling=replace(sampling, seed=seed))))
        for row in rows:  # what is read already is let go: pictures, which a row would hold to its end
            row.request = replace(
                row.request, prompt="", media=None, sampling=replace(sampling, seed=row.sampling.seed)
            )
        return rows

    def _request(self, call: Call, prompt: Any) -> Request:
        seconds = self._settings.timeout
        keywords = {"sampling": "model", "max_tokens": 1 << 30, "max_time": seconds, **call.sampling}
        keywords |= {"logprobs": call.logprobs is not None, "top_logprobs": call.logprobs or 0}
        thinks = call.enable_thinking
        if call.adaptive and not knows_thinking(self.processor.chat_template):
            thinks = False
            keywords.pop("thinking_budget", None)
        variables: Mapping[str, Any] = {}
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            use = tool_use(call, fetch_remote(prompt, Limits()), self.processor, self._settings.lenient)
            prompt, variables = use.messages, use.variables
            if call.continues:
                variables = {**variables, "continue_final_message": True, "add_generation_prompt": False}
            if use.grammar is not None:
                keywords["grammar"] = use.grammar
        elif isinstance(prompt, list):
            prompt = Prompt(np.asarray(prompt, dtype=np.int32))
        return Request(
            prompt,
            MediaInputs(**call.media),
            sampling_params(keywords, self.model.generation_config),
            enable_thinking=thinks,
            template_kwargs=variables,
            drafter=make_drafter(self.processor, prompt_lookup=call.prompt_lookup),
            reuse=call.reuse,
        )

    # -- in the engine's thread

    def _run(self) -> None:
        try:
            self.model, self.processor = self._load()
            self._end_tokens = end_tokens(self.model, self.processor)
        except BaseException as error:
            self._tell(self._fail_to_load, error)
            return
        try:
            self._serve()
        finally:
            self._iterator = None
            self._tell(self._end_all)
            del self.model, self.processor
            return_memory()

    def _serve(self) -> None:
        cache = cache_on_disk(self._settings.reuse_folder) if self._settings.reuse else None
        while not self._closing:
            iterator = TokenIterator(
                self.model,
                self.processor,
                max_batch_size=self._settings.max_batch_size,
                max_queue=self._settings.max_queue + self._settings.max_batch_size,  # which wait for a moment, too
                reuse=cache or False,
            )
            self._iterator = iterator
            self._tell(self._set_loaded)
            with iterator:
                try:
                    idle = 0.0
                    while not self._closing:
                        if iterator.wait(POLL_SECONDS):
                            idle = 0.0
                            self._gather()
                            self._hand_out(iterator)
                        elif (idle := idle + POLL_SECONDS) == PAUSE_SECONDS:
                            return_memory()
                except Exception as error:  # of the iterator itself, which has ended all rows with it
                    self._iterator = None
                    log_error(error)
            self._hand_out(iterator)

    def _gather(self) -> None:
        """After a pause: wait a moment for calls that are being read: rows that begin together decode together."""
        until = time.monotonic() + GATHER_SECONDS
        while self._reading and time.monotonic() < until:
            time.sleep(GATHER_SECONDS / 20)

    def _hand_out(self, iterator: TokenIterator) -> None:
        for id, result in iterator:
            stream = self._streams.get(id)
            if stream is not None:
                self._tell(self._deliver, stream, self._delta(stream, result))

    def _delta(self, stream: Stream, result: GenerationResult) -> Delta:
        if result.error is not None:
            log_error(result.error)
        try:
            return stream.maker.make(result)
        except Exception as error:  # of this row's text only
            log_error(error)
            return Delta(error=ApiError(500, "the server failed at this request; its log says more", code="internal"))

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def _deliver(self, stream: Stream, delta: Delta) -> None:
        if stream.over or delta.empty:
            return
        stream.begun = True
        if (delta.finish or delta.error) and self._streams.get(stream.row.id) is stream:
            del self._streams[stream.row.id]
        if delta.finish == "tool_calls" and self._iterator is not None:
            self._iterator.cancel(stream.row.id)  # which goes on where only one call is wanted
        stream.queue.put_nowait(delta)

    def _end_all(self) -> None:
        for stream in list(self._streams.values()):
            self._deliver(stream, Delta(error=overloaded("the engine has stopped: try again in a moment")))

    def _set_loaded(self) -> None:
        if not self.loaded.done():
            self.loaded.set_result(None)

    def _fail_to_load(self, error: BaseException) -> None:
        self.loaded.set_exception(error)
