"""Anthropic's messages: an answer as its JSON, whole and streamed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from .call import Answer, Delta, FinishReason, Usage
from .errors import ApiError, dump

REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "cancelled": "end_turn",
}


def event(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: ".encode() + dump(data) + b"\n\n"


def usage_json(usage: Usage) -> dict[str, Any]:
    """What came from a cache is no part of the input here."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }


@dataclass
class MessagesFormat:
    """model: its name."""

    model: str
    id: str = field(default_factory=lambda: f"msg_{uuid4().hex}")
    keepalive: bytes = event({"type": "ping"})
    _block: int = -1  # the one that is open, or was last
    _kind: str | None = None  # of the open one
    _last: Delta = Delta()

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        [answer] = answers
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", "thinking": answer.thinking, "signature": ""})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        for tool in answer.tools:
            content.append({**_tool(tool.name), "input": _input(tool.arguments)})
        return self._message(content, answer.usage) | _stop(answer.finish, answer.stop)

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": None, "stop_sequence": None, "usage": usage_json(usage),
        }  # fmt: skip

    def begin(self, usages: Sequence[Usage]) -> bytes:
        return event({"type": "message_start", "message": self._message([], usages[0])}) + self.keepalive

    def delta(self, index: int, delta: Delta) -> bytes:
        events = []
        tools = list(delta.tools)
        if tools and tools[0].name is None:  # of the block that is open
            events.append(self._piece({"type": "input_json_delta", "partial_json": tools.pop(0).arguments}))
        if delta.thinking:
            events += self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events.append(self._piece({"type": "thinking_delta", "thinking": delta.thinking}))
        if delta.text:
            events += self._open("text", {"type": "text", "text": ""})
            events.append(self._piece({"type": "text_delta", "text": delta.text}))
        for piece in tools:
            assert piece.name is not None
            events += self._open(f"tool {piece.index}", {**_tool(piece.name), "input": {}})
            if piece.arguments:
                events.append(self._piece({"type": "input_json_delta", "partial_json": piece.arguments}))
        if delta.finish:
            events += self._close()
            self._last = delta
        return b"".join(events)

    def end(self, usages: Sequence[Usage]) -> bytes:
        assert self._last.finish is not None
        stop = _stop(self._last.finish, self._last.stop)
        last = event({"type": "message_delta", "delta": stop, "usage": usage_json(usages[0])})
        return last + event({"type": "message_stop"})

    def error(self, error: ApiError) -> bytes:
        return event(error.anthropic())

    def _open(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        """A block of this kind, unless one is open."""
        if kind == self._kind:
            return []
        closed = self._close()
        self._kind, self._block = kind, self._block + 1
        return [*closed, event({"type": "content_block_start", "index": self._block, "content_block": block})]

    def _close(self) -> list[bytes]:
        if self._kind is None:
            return []
        self._kind = None
        return [event({"type": "content_block_stop", "index": self._block})]

    def _piece(self, delta: dict[str, Any]) -> bytes:
        return event({"type": "content_block_delta", "index": self._block, "delta": delta})


def _tool(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{uuid4().hex[:24]}", "name": name}


def _input(arguments: str) -> dict[str, Any]:
    """Nothing for a call that the answer's end cut: a part of its arguments could be taken for the whole."""
    try:
        value: dict[str, Any] = json.loads(arguments)
    except ValueError:
        return {}
    return value


def _stop(finish: FinishReason, stop: str | None) -> dict[str, Any]:
    return {"stop_reason": "stop_sequence" if stop else REASONS[finish], "stop_sequence": stop}
