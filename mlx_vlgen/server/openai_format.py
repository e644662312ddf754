"""OpenAI's chat completions: answers as its JSON, whole and streamed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from .call import Answer, Delta, TokenLogprob, ToolPiece, Usage
from .errors import ApiError, dump

DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    return b"data: " + dump(data) + b"\n\n"


def usage_json(usages: Sequence[Usage], prompts: int = 1) -> dict[str, Any]:
    """Of all answers to a request, so many prompts; the answers to one follow each other."""
    per_prompt = max(1, len(usages) // prompts)
    prompt = sum(usage.prompt for usage in usages[::per_prompt])
    completion = sum(usage.completion for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached for usage in usages[::per_prompt])},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning for usage in usages)},
    }


@dataclass
class ChatFormat:
    """model: its name. include_usage: whether a stream ends with the usage. logprobs: whether they were asked for."""

    model: str
    include_usage: bool = False
    logprobs: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    keepalive: bytes = b": keep-alive\n\n"
    _tool_ids: dict[tuple[int, int], str] = field(default_factory=dict)

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = usage_json([answer.usage for answer in answers])
        return self._object("chat.completion", choices) | {"usage": usage}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thinking:
            message["reasoning_content"] = answer.thinking
        if answer.tools:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {"id": self._tool_id(index, i), "type": "function",
                 "function": {"name": tool.name, "arguments": tool.arguments}}
                for i, tool in enumerate(answer.tools)
            ]  # fmt: skip
        logprobs = logprobs_json(answer.logprobs) if self.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish}

    def begin(self, usages: Sequence[Usage]) -> bytes:
        return b"".join(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(usages)))

    def delta(self, index: int, delta: Delta) -> bytes:
        events = []
        if delta.thinking:
            events.append(self._chunk(index, {"reasoning_content": delta.thinking}))
        if delta.text or delta.logprobs:
            logprobs = logprobs_json(delta.logprobs) if self.logprobs else None
            events.append(self._chunk(index, {"content": delta.text}, logprobs))
        events += [self._chunk(index, {"tool_calls": [self._tool_piece(index, piece)]}) for piece in delta.tools]
        if delta.finish:
            events.append(self._chunk(index, {}, finish=delta.finish))
        return b"".join(events)

    def end(self, usages: Sequence[Usage]) -> bytes:
        if not self.include_usage:
            return DONE
        return event(self._object("chat.completion.chunk", []) | {"usage": usage_json(usages)}) + DONE

    def error(self, error: ApiError) -> bytes:
        return event(error.openai())

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.include_usage else {}
        return event(self._object("chat.completion.chunk", [choice]) | usage)

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _tool_piece(self, index: int, piece: ToolPiece) -> dict[str, Any]:
        if piece.name is None:
            return {"index": piece.index, "function": {"arguments": piece.arguments}}
        function = {"name": piece.name, "arguments": piece.arguments}
        call_id = self._tool_id(index, piece.index)
        return {"index": piece.index, "id": call_id, "type": "function", "function": function}

    def _tool_id(self, index: int, tool: int) -> str:
        return self._tool_ids.setdefault((index, tool), f"call_{uuid4().hex[:24]}")


def logprobs_json(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw),
         "top_logprobs": [{"token": text, "logprob": logprob, "bytes": list(raw)} for text, raw, logprob in token.top]}
        for token in tokens
    ]  # fmt: skip
    return {"content": content, "refusal": None}
