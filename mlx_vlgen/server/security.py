"""Who may ask: the Host header, the page that asks, the key. And connections that never say what they want."""

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import h11
from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError
from .settings import Settings
from .static import FILES

App = Callable[[Any, Any, Any], Awaitable[None]]

OPEN_PATHS = frozenset(["/health", *FILES])
"""What is answered without a key."""


@dataclass(frozen=True)
class Guard:
    """Middleware. app: what is behind it. refuse: makes the response to a request that goes no further."""

    app: App
    settings: Settings
    refuse: Callable[[str, ApiError], App]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                check_access(self.settings, scope["path"], Headers(scope=scope))
            except ApiError as error:
                await self.refuse(scope["path"], error)(scope, receive, send)
                return
        elif scope["type"] != "lifespan":
            return
        await self.app(scope, receive, send)


def check_access(settings: Settings, path: str, headers: Mapping[str, str]) -> None:
    """ApiError for a request that may not go further.

    A page of another site reaches a server on this machine under another name (DNS rebinding), so names that are
    not ours are refused; addresses cannot be rebound.
    """
    host = headers.get("host", "")
    if not is_allowed_host(_host_name(host), settings):
        raise ApiError(
            403, f"Host: {host!r:.80} is no name of this server; --allow-host gives it one", code="host_not_allowed"
        )
    origin = headers.get("origin")
    if origin is not None and origin not in settings.allow_origins and origin.partition("://")[2] != host:
        raise ApiError(
            403, f"Origin: pages of {origin!r:.80} may not ask; --allow-origin lets them", code="origin_not_allowed"
        )
    if path not in OPEN_PATHS and settings.api_key:
        _check_key(settings.api_key, headers)


def is_allowed_host(name: str, settings: Settings) -> bool:
    try:
        ip_address(name)
        return True
    except ValueError:
        machine = socket.gethostname().lower()
        ours = {"localhost", settings.host.lower(), machine, f"{machine.partition('.')[0]}.local"}
        return name in ours | {host.lower() for host in settings.allow_hosts}


def _host_name(host: str) -> str:
    """Without its port."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _check_key(api_key: str, headers: Mapping[str, str]) -> None:
    """OpenAI's header or Anthropic's."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = headers.get("x-api-key", "")
    if not given:
        raise ApiError(401, "no key: send Authorization: Bearer KEY, or x-api-key: KEY", code="missing_api_key")
    if not hmac.compare_digest(given.strip().encode("utf-8", "replace"), api_key.encode()):
        raise ApiError(401, "the key is wrong", code="invalid_api_key")


class Connection(H11Protocol):
    """uvicorn's, which ends where a request's head does not come in time: it would wait for ever. Requests find in
    their state how to `abort` it: closing waits for a client that does not read."""

    header_seconds = Settings.header_seconds
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._late is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._late = self.loop.call_later(self.header_seconds, self._close_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
