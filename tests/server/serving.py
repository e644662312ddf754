"""A server in this process, on a free port, over the built-in model."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from mlx_vlgen.server.app import make_app
from mlx_vlgen.server.models import Source
from mlx_vlgen.server.reply import Server
from mlx_vlgen.server.security import Connection
from mlx_vlgen.server.settings import Settings

Loaded = tuple[Any, Any]


@dataclass
class Running:
    port: int
    app: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def server(self) -> Server:
        return self.app.state.server

    def wait_until_idle(self, seconds: float = 10.0) -> None:
        """Until no row is left, in the server and in its iterator."""
        end = time.monotonic() + seconds
        while self.server._inside or any(self.server.rows()) or self._inner_rows():
            assert time.monotonic() < end, (self.server._inside, self.server.rows(), self._inner_rows())
            time.sleep(0.01)

    def _inner_rows(self) -> int:
        return sum(len(engine._iterator._rows) for engine in self.server.models.engines if engine._iterator)


@contextlib.contextmanager
def running(sources: dict[str, Source], **settings: Any) -> Iterator[Running]:
    connection = type("Connection", (Connection,), {"header_seconds": settings.pop("connection_seconds", 10)})
    app = make_app(sources, Settings(**settings))
    config = uvicorn.Config(app, http=connection, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(listener.getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join()
