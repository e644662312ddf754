"""The models that are served: loaded when they are first asked for, unloaded when memory is short and they are idle."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from .._runtime import memory_available
from ..errors import LoadError, one_line
from ..inputs.kinds import Kind
from ..notices import format_size
from .engine import Engine
from .errors import ApiError
from .log import log
from .settings import Settings

MEMORY_SHARE = 0.8
"""Of the free memory, what the weights of another model may take: caches need some."""


@dataclass(eq=False)
class Source:
    """Where a model comes from. load: gives model and processor; size: bytes of its files, looked up before."""

    load: Callable[[], tuple[Any, Any]]
    size: Callable[[], int] = lambda: 0


@dataclass(eq=False)
class _Served:
    source: Source
    engine: Engine | None = None
    kinds: tuple[Kind, ...] | None = None
    users: int = 0
    used: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))


class Models:
    """sources: by the names that clients use."""

    def __init__(self, sources: Mapping[str, Source], settings: Settings):
        self._served = {name: _Served(source) for name, source in sources.items()}
        self._settings = settings
        self._changing = asyncio.Lock()  # of what is loaded

    @property
    def names(self) -> list[str]:
        return list(self._served)

    def created(self, name: str) -> int:
        """When it was first named, in seconds since 1970."""
        return self._served[name].created

    def kinds(self, name: str) -> tuple[Kind, ...] | None:
        """Of media that it takes; None where it was not loaded yet."""
        return self._served[name].kinds

    @property
    def engines(self) -> list[Engine]:
        return [served.engine for served in self._served.values() if served.engine is not None]

    @property
    def ready(self) -> bool:
        """Whether a request would be taken: a thread that died takes none."""
        return all(engine.alive for engine in self.engines)

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Engine]:
        """The engine of a model, which is not unloaded meanwhile. ApiError for a name that is not served."""
        served = self._find(name)
        served.users += 1
        try:
            if served.engine is None:  # a client that goes away does not end the loading
                await asyncio.shield(asyncio.ensure_future(self._ensure(served)))
            assert served.engine is not None
            yield served.engine
        finally:
            served.users -= 1
            served.used = time.monotonic()

    def _find(self, name: str | None) -> _Served:
        if name is None and len(self._served) == 1:
            name = self.names[0]
        if name is None:
            raise ApiError(400, f"model: expected one of {', '.join(self.names)}", param="model")
        if name not in self._served:
            message = f"model: {name!r:.80} is not served here; expected one of {', '.join(self.names)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._served[name]

    async def load_first(self) -> None:
        async with self.lease(self.names[0]):
            pass

    async def _ensure(self, served: _Served) -> None:
        async with self._changing:
            served.engine = served.engine or await self._load(served)
            served.kinds = tuple(served.engine.processor.placeholders)

    async def _load(self, served: _Served) -> Engine:
        name = next(name for name, other in self._served.items() if other is served)
        try:
            await self._make_room(await asyncio.to_thread(served.source.size))
            begun = time.monotonic()
            engine = Engine(served.source.load, self._settings)
            await engine.loaded
        except LoadError as error:
            log("load failed", model=name, error=one_line(error))
            raise ApiError(503, f"model: {name} cannot be loaded; the server's log says why", param="model") from None
        log("loaded", model=name, seconds=round(time.monotonic() - begun, 2))
        return engine

    async def _make_room(self, size: int) -> None:
        """Unload idle models, those first that were not used for the longest time, while memory is short."""
        idle = [name for name, served in self._served.items() if served.engine is not None and not served.users]
        for name in sorted(idle, key=lambda name: self._served[name].used):
            available = memory_available()
            if available is None or size <= MEMORY_SHARE * available:
                return
            served = self._served[name]
            engine, served.engine = served.engine, None
            if served.users or engine is None:  # by now
                served.engine = engine
                continue
            await engine.close()
            log("unloaded", model=name, needed=format_size(size), free=format_size(available))

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self.engines))
