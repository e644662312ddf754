"""One request to a model, from its body to the last byte of its answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from starlette.datastructures import Headers

from .body import BodyReader
from .call import Answer, Call, Delta, Usage
from .engine import Stream
from .errors import ApiError, as_api_error, dump, overloaded
from .log import log, log_error
from .media import MediaRules
from .metrics import Clock, Metrics
from .models import Models
from .parameters import Log
from .settings import Settings

LOGGED_TEXT = 10_000
"""Characters of a text that the log shows whole."""


class Format(Protocol):
    """An interface's JSON for the answers to one call; `begin` to `error` are bytes of an event stream."""

    keepalive: bytes

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]: ...
    def begin(self, usages: Sequence[Usage]) -> bytes: ...
    def delta(self, index: int, delta: Delta) -> bytes: ...
    def end(self, usages: Sequence[Usage]) -> bytes: ...
    def error(self, error: ApiError) -> bytes: ...


@runtime_checkable
class Cancellable(Protocol):
    """A format whose answers another request may end, by their id."""

    id: str

    def cancelled(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Interface:
    """One endpoint that asks a model.

    path: its URL's.
    read: a body as a call, with what makes its format once the model's name is known.
    error: an error's JSON.
    query: parameters of the URL that are taken.
    counts: whether it only counts the prompt's tokens.
    """

    path: str
    read: Callable[[Mapping[str, Any], MediaRules, Log | None], tuple[Call, Callable[[str], Format]]]
    error: Callable[[ApiError], dict[str, Any]] = ApiError.openai
    query: frozenset[str] = frozenset()
    counts: bool = False


class Server:
    """What all requests share."""

    def __init__(self, settings: Settings, models: Models):
        self.settings, self.models = settings, models
        self.bodies = BodyReader(settings)
        self.rules = MediaRules(settings.media_path)
        self.metrics = Metrics(self.rows, lambda: self.bodies.held)
        self._inside = 0
        self._cancellable: dict[str, tuple[Cancellable, Sequence[Stream]]] = {}

    def rows(self) -> tuple[int, int]:
        """Rows that decode, and rows that wait, of all models."""
        counts = [engine.rows for engine in self.models.engines]
        return sum(running for running, _ in counts), sum(waiting for _, waiting in counts)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places for requests, bodies that are being read included. ApiError where there is none left."""
        if self._inside >= self.settings.max_queue + self.settings.max_batch_size:
            raise overloaded(f"{self._inside} requests are being answered or wait: try again in a moment")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @contextmanager
    def recorded(self, path: str) -> Iterator[None]:
        """A request that asks no model for an answer, in the metrics and in the log."""
        began, status = time.perf_counter(), 500
        try:
            yield
            status = 200
        except ApiError as error:
            status = error.status
            raise
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            log("request", path=path, status=status, seconds=round(time.perf_counter() - began, 4))

    @contextmanager
    def cancellable(self, out: Format, streams: Sequence[Stream]) -> Iterator[None]:
        """While inside, `cancel` finds these answers."""
        if not isinstance(out, Cancellable):
            yield
            return
        self._cancellable[out.id] = out, streams
        try:
            yield
        finally:
            del self._cancellable[out.id]

    def cancel(self, id: str) -> dict[str, Any]:
        """End a running response, which its client then gets as it is. ApiError where none of this id runs."""
        if id not in self._cancellable:
            raise ApiError(404, f"response_id: {id!r:.80} does not run", param="response_id", code="response_not_found")
        out, streams = self._cancellable[id]
        for stream in streams:
            stream.end()
        return out.cancelled()

    def lenient(self, id: str) -> Log | None:
        return (lambda text: log("lenient", id=id, field=text)) if self.settings.lenient else None


class Reply:
    """An ASGI response: the answer to one request, which ends where the client goes away."""

    def __init__(self, server: Server, interface: Interface):
        self._server, self._interface = server, interface
        self.id = f"req_{uuid4().hex[:24]}"
        self._began = time.perf_counter()
        self._status = 0
        self._started = False  # whether the head is sent
        self._body_read = False
        self._usages: list[Usage] = []
        self._clocks: list[Clock] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._send, self._abort = send, scope.get("state", {}).get("abort")
        outcome = "answered"
        try:
            async with self._server.place():
                check_query(scope, self._interface.query, self._server.lenient(self.id))
                body = await self._server.bodies.read(Headers(scope=scope), receive)
                self._body_read = True
                if not await unless_gone(self._answer(body), receive):
                    outcome = "gone"
        except ConnectionError:
            outcome = "gone"
        except BaseException as error:
            await self._fail(error, receive)
            if not isinstance(error, Exception):
                raise
        finally:
            self._record(outcome)

    async def _answer(self, body: dict[str, Any]) -> None:
        server = self._server
        call, format_of = self._interface.read(body, server.rules, server.lenient(self.id))
        if server.settings.log_prompts:
            log("prompt", id=self.id, body=shortened(body))
        body.clear()
        streamed, out = call.stream, format_of(call.model or server.models.names[0])
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(server.settings.timeout):
                    engine = await stack.enter_async_context(server.models.lease(call.model))
                    if self._interface.counts:
                        await self._send_json(200, {"input_tokens": await engine.count_tokens(call)})
                        return
                    streams = await engine.start(call)
            except TimeoutError:
                raise ApiError(504, "the time of this request was over before it began", code="timeout") from None
            for stream in streams:
                stack.callback(stream.cancel)
            del call  # its pictures may be large
            self._clocks = [Clock(server.metrics, self._began) for _ in streams]
            self._usages = [Usage(stream.row.length) for stream in streams]
            stack.enter_context(server.cancellable(out, streams))
            await (self._stream if streamed else self._whole)(streams, out)

    async def _whole(self, streams: Sequence[Stream], out: Format) -> None:
        answers = [Answer() for _ in streams]
        async for index, delta in self._merge(streams):
            if delta is None:
                continue
            if delta.error:
                raise delta.error
            answers[index].add(delta)
        await self._send_json(200, out.whole(answers))

    async def _stream(self, streams: Sequence[Stream], out: Format) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await self._head(200, {**headers, "x-accel-buffering": "no"})
        await self._write(out.begin(self._usages))
        async for index, delta in self._merge(streams):
            if delta is None:
                await self._write(out.keepalive)
            elif delta.error:
                self._status = delta.error.status
                await self._write(out.error(delta.error), last=True)
                return
            elif data := out.delta(index, delta):
                await self._write(data)
        await self._write(out.end(self._usages), last=True)

    async def _merge(self, streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Delta | None]]:
        """The deltas of all answers as they come; None where none came for a while."""
        nexts = {asyncio.ensure_future(stream.next()): index for index, stream in enumerate(streams)}
        try:
            while nexts:
                seconds = self._server.settings.keepalive_seconds
                done, _ = await asyncio.wait(nexts, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    yield 0, None
                for task in done:
                    index, delta = nexts.pop(task), task.result()
                    self._clocks[index].tick(delta)
                    self._usages[index] = delta.usage
                    if not (delta.finish or delta.error):
                        nexts[asyncio.ensure_future(streams[index].next())] = index
                    yield index, delta
        finally:
            for task in nexts:
                task.cancel()

    async def _fail(self, error: BaseException, receive: Any) -> None:
        told = as_api_error(error)
        if isinstance(error, asyncio.CancelledError):
            told = ApiError(503, "the server stops: try again", code="stopping")
        elif told is None:
            log_error(error)
            told = ApiError(500, f"the server failed at this request; its log says more ({self.id})", code="internal")
        if self._started:
            return
        data = dump(self._interface.error(told))
        await self._head(told.status, {"content-type": "application/json", **told.headers, **self._closing})
        await self._write(data)
        if not self._body_read:
            await self._server.bodies.discard(receive)
        await self._write(b"", last=True)

    @property
    def _closing(self) -> dict[str, str]:
        """What says that the connection ends, whose body was not read."""
        return {} if self._body_read else {"connection": "close"}

    async def _send_json(self, status: int, value: Any) -> None:
        await self._head(status, {"content-type": "application/json"})
        await self._write(dump(value), last=True)

    async def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self._status, self._started = status, True
        pairs = {**headers, "x-request-id": self.id, "request-id": self.id}
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _write(self, data: bytes, last: bool = False) -> None:
        """ConnectionError for a client that does not read."""
        try:
            async with asyncio.timeout(self._server.settings.send_seconds):
                await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            if self._abort is not None:
                self._abort()
            raise ConnectionAbortedError from None

    def _record(self, outcome: str) -> None:
        metrics = self._server.metrics
        metrics.requests.labels(self._interface.path, str(self._status)).inc()
        metrics.count(self._usages)
        if outcome == "gone":
            metrics.disconnects.inc()
        first = max((clock.first for clock in self._clocks), default=0.0)
        log(
            "request", id=self.id, path=self._interface.path, status=self._status, outcome=outcome,
            seconds=round(time.perf_counter() - self._began, 4), first_token=round(first, 4),
            prompt_tokens=sum(usage.prompt for usage in self._usages[:1]),
            cached_tokens=sum(usage.cached for usage in self._usages[:1]),
            completion_tokens=sum(usage.completion for usage in self._usages),
        )  # fmt: skip


async def unless_gone(work: Any, receive: Any) -> bool:
    """Do the work, or leave it where the client goes away. Whether it was done. Raises what the work raises."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        return False
    finally:
        for future in (task, watch):
            future.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def shortened(value: Any) -> Any:
    """JSON with its long texts cut: pictures would fill the log."""
    if isinstance(value, str) and len(value) > LOGGED_TEXT:
        return f"{value[:100]}… ({len(value):,} characters)"
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return {key: shortened(item) for key, item in value.items()} if isinstance(value, dict) else value


def check_query(scope: Any, known: frozenset[str], lenient: Log | None) -> None:
    """ApiError for parameters of the URL that nobody reads."""
    for pair in scope["query_string"].decode("latin-1").split("&"):
        name = pair.partition("=")[0]
        if name and name not in known:
            if lenient is None:
                raise ApiError(400, f"?{name}: this server does not know it: leave it out", param=name)
            lenient(f"?{name}: not known, left out")
