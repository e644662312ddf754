"""A request's body: read within bounds, and parsed within bounds."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from .errors import ApiError, overloaded
from .settings import MAX_COMMAS, MAX_DEPTH, Settings

LINGER_SECONDS = 1.0


class BodyReader:
    """Reads bodies. At most so many bytes are in memory, of one and of all together."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self.held = 0  # bytes of all that are being read

    async def read(self, headers: Mapping[str, str], receive: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """The JSON object of a body. ApiError for what is none, is too large or comes too slowly."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Content-Type: expected application/json")
        limit = self._settings.max_body_bytes
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self.held += len(chunk)
                    chunks.append(chunk)
                    if size > limit:
                        raise _too_large(limit)
                    if self.held > self._settings.held_bytes:
                        raise overloaded("too many large requests come at once: try again in a moment")
                    if not message.get("more_body"):
                        break
            body = b"".join(chunks)
            chunks.clear()
            return await asyncio.to_thread(parse, body) if len(body) > 1 << 16 else parse(body)
        except TimeoutError:
            seconds = self._settings.body_seconds
            raise ApiError(408, f"the body took longer than {seconds:g} seconds") from None
        finally:
            self.held -= size

    async def discard(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """The rest of a body, for a moment: a client that still sends it would not read its answer."""
        left = 4 * self._settings.max_body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        return


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit:,} bytes", code="too_large")


def parse(body: bytes) -> dict[str, Any]:
    """The object in a body. ApiError for other JSON, keys written twice, and more values or nesting than is allowed."""
    if body.count(b",") > MAX_COMMAS:
        raise ApiError(413, f"the body has more than {MAX_COMMAS:,} values", code="too_large")
    try:
        value = json.loads(body, object_pairs_hook=_object, parse_constant=_refuse_constant)
        deep = _is_deep(value)
    except RecursionError:
        deep = True
    except (ValueError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if deep:
        raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep", code="invalid_json")
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is a JSON {type(value).__name__}: expected an object", code="invalid_json")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.80} is written twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
