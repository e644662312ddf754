"""OpenAI's responses: an answer as its JSON, whole and streamed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from .call import Answer, Delta, FinishReason, ToolPiece, Usage
from .errors import ApiError, dump
from .responses import Said, answered

Keep = Callable[[str, Sequence[Any], dict[str, Any]], None]
"""Takes a response that is over: its id, all messages of its talk, and itself."""


@dataclass
class ResponsesFormat:
    """model: its name. said: what a response repeats. keep: takes the response, where it is to be kept."""

    model: str
    said: Said
    keep: Keep
    id: str = field(default_factory=lambda: f"resp_{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    keepalive: bytes = b": keep-alive\n\n"
    _answer: Answer = field(default_factory=Answer)
    _items: list[dict[str, Any]] = field(default_factory=list)  # of the output, the last of which may be open
    _open: bool = False
    _number: int = -1  # of the last event

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """What a stream of one piece would come to."""
        [answer] = answers
        tools = [ToolPiece(i, tool.name, tool.arguments) for i, tool in enumerate(answer.tools)]
        self.delta(0, Delta(answer.thinking, answer.text, tools, finish=answer.finish, usage=answer.usage))
        return self._over()

    def begin(self, usages: Sequence[Usage]) -> bytes:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def delta(self, index: int, delta: Delta) -> bytes:
        self._answer.add(delta)
        events = []
        tools = list(delta.tools)
        if tools and tools[0].name is None:  # of the item that is open
            events.append(self._arguments(tools.pop(0).arguments))
        if delta.thinking:
            events.append(self._begin_item("reasoning", {"summary": [], "content": []}))
            events.append(self._text("response.reasoning_text.delta", delta.thinking))
        if delta.text:
            events.append(self._begin_item("message", {"role": "assistant", "content": []}))
            events.append(self._text("response.output_text.delta", delta.text))
        for piece in tools:
            call = {"call_id": f"call_{uuid4().hex[:24]}", "name": piece.name, "arguments": ""}
            events.append(self._begin_item("function_call", call, again=True))
            if piece.arguments:
                events.append(self._arguments(piece.arguments))
        if delta.finish:
            events.append(self._end_item())
        return b"".join(events)

    def end(self, usages: Sequence[Usage]) -> bytes:
        response = self._over()
        name = "completed" if response["status"] == "completed" else "incomplete"
        return self._event(f"response.{name}", response=response)

    def error(self, error: ApiError) -> bytes:
        failed = self._response("failed") | {"error": {"code": "server_error", "message": error.message}}
        return self._event("response.failed", response=failed)

    def cancelled(self) -> dict[str, Any]:
        """The response as it is, to whoever ends it."""
        return self._response("cancelled")

    def _over(self) -> dict[str, Any]:
        """The response at its end, which is kept."""
        ends: dict[FinishReason, str] = {"length": "incomplete", "cancelled": "cancelled"}
        response = self._response(ends.get(self._answer.finish, "completed"))
        if self.said.store:
            calls = [item["call_id"] for item in self._items if item["type"] == "function_call"]
            self.keep(self.id, answered(self.said.messages, self._answer, calls), response)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        usage = self._answer.usage
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        counts = {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        }
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "background": False,
            "error": None, "incomplete_details": reason, "model": self.model, "output": [dict(i) for i in self._items],
            "truncation": "disabled", **self.said.echo, "usage": None if status == "in_progress" else counts,
        }  # fmt: skip

    # -- items of the output, of which one is open at a time

    def _begin_item(self, kind: str, fields: dict[str, Any], again: bool = False) -> bytes:
        """An item of this kind, unless one is open. again: also then."""
        if self._open and self._items[-1]["type"] == kind and not again:
            return b""
        closed = self._end_item()
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item = {"id": f"{prefix}_{uuid4().hex}", "type": kind, "status": "in_progress", **fields}
        self._items.append(item)
        self._open = True
        added = self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)
        if kind == "function_call":
            return closed + added
        part = self._part("")
        item["content"] = [part]
        return closed + added + self._event("response.content_part.added", **self._at, content_index=0, part=part)

    def _end_item(self) -> bytes:
        if not self._open:
            return b""
        self._open, item = False, self._items[-1]
        item["status"] = "completed"
        if item["type"] == "function_call":
            done = self._event("response.function_call_arguments.done", **self._at, arguments=item["arguments"])
        else:
            [part] = item["content"]
            kind = "output_text" if item["type"] == "message" else "reasoning_text"
            extra: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            done = self._event(f"response.{kind}.done", **self._at, content_index=0, text=part["text"], **extra)
            done += self._event("response.content_part.done", **self._at, content_index=0, part=part)
        return done + self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _part(self, text: str) -> dict[str, Any]:
        if self._items[-1]["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _text(self, kind: str, delta: str) -> bytes:
        self._items[-1]["content"][0]["text"] += delta
        extra: dict[str, Any] = {"logprobs": []} if kind == "response.output_text.delta" else {}
        return self._event(kind, **self._at, content_index=0, delta=delta, **extra)

    def _arguments(self, delta: str) -> bytes:
        self._items[-1]["arguments"] += delta
        return self._event("response.function_call_arguments.delta", **self._at, delta=delta)

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        data = {"type": kind, "sequence_number": self._number, **fields}
        return f"event: {kind}\ndata: ".encode() + dump(data) + b"\n\n"
