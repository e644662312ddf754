"""How much the messages of one request may hold."""

from pathlib import Path
from typing import Any

from .errors import ApiError
from .settings import MAX_MEDIA, MAX_MESSAGES, MAX_TEXT


class Bounds:
    """Counts what a request's messages hold. ApiError for too much of it, and for what is of another type."""

    def __init__(self) -> None:
        self._characters = self._media = 0

    def messages(self, value: Any, place: str = "messages") -> list[Any]:
        messages = self.items(value, place)
        if not messages or len(messages) > MAX_MESSAGES:
            raise ApiError(400, f"{place}: {len(messages)} given; expected 1 to {MAX_MESSAGES}", param=place)
        return messages

    def items(self, value: Any, place: str) -> list[Any]:
        if not isinstance(value, list):
            raise ApiError(400, f"{place}: expected a list", param=place)
        return value

    def text(self, value: Any, place: str) -> str:
        if not isinstance(value, str):
            raise ApiError(400, f"{place}: expected text", param=place)
        self._characters += len(value)
        if self._characters > MAX_TEXT:
            raise ApiError(413, f"{place}: all text together has more than {MAX_TEXT:,} characters", place, "too_large")
        return value

    def media(self, source: str | Path) -> str | Path:
        self._media += 1
        if self._media > MAX_MEDIA:
            raise ApiError(413, f"messages: more than {MAX_MEDIA} pictures, videos and sounds", "messages", "too_large")
        return source
