"""OpenAI's batch format: a line in as the fields of our rows, and a row as a line out."""

from collections.abc import Mapping
from typing import Any

from ..errors import PromptError, UnsupportedError

URL = "/v1/chat/completions"

_NO_EFFECT = frozenset(["model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"])
"""Keys of a body that change no answer here. A job has one model."""

_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "stream": (False,), "stream_options": (), "logprobs": (False,), "top_logprobs": (0,), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "parallel_tool_calls": (True, False), "audio": (),
    "modalities": (["text"],),
}  # fmt: skip
"""Keys that may only say what happens anyway, each with such values; null is one of all."""


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    return "body" in fields


def read_line(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our row: custom_id, messages and keywords. PromptError or UnsupportedError for what is none."""
    if unknown := sorted(fields.keys() - {"custom_id", "method", "url", "body"}):
        raise PromptError(f"{unknown[0]!r} is not of a batch line: expected custom_id, method, url and body")
    if fields.get("method", "POST") != "POST" or fields.get("url", URL) != URL:
        raise UnsupportedError(f"{fields.get('method')} {fields.get('url')}: only POST {URL} is answered here")
    body = fields["body"]
    if not isinstance(body, Mapping):
        raise PromptError(f"body: expected an object, this is {type(body).__name__}")
    if body.get("messages") is None:
        raise PromptError("body: it has no messages")
    row: dict[str, Any] = {"custom_id": fields.get("custom_id")}
    for key, value in body.items():
        if key in _NO_EFFECT or value is None:
            continue
        if key in _DEFAULTS:
            if value not in _DEFAULTS[key]:
                raise UnsupportedError(f"{key}={value!r:.80}: a job does not have it; leave it out")
        elif key == "max_completion_tokens":
            row["max_tokens"] = value
        elif key == "response_format":
            row |= _form(value)
        elif key == "logit_bias":
            row["logit_bias"] = _token_biases(value)
        elif key == "chat_template_kwargs":
            row |= _template_keywords(value)
        elif key == "messages":
            row["messages"] = [_message(message) for message in value] if isinstance(value, list) else value
        else:
            row[key] = value
    return row


def _message(message: Any) -> Any:
    """OpenAI's newer name of the role system is developer."""
    if isinstance(message, dict) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message


def _form(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    schema = value.get("json_schema") if kind == "json_schema" else None
    if not isinstance(schema, Mapping) or not isinstance(schema.get("schema"), Mapping):
        raise PromptError('response_format: expected {"type": "json_schema", "json_schema": {"schema": …}}')
    return {"json_schema": schema["schema"]}


def _token_biases(value: Any) -> Any:
    """JSON has strings as keys; ids are numbers."""
    if isinstance(value, Mapping) and all(isinstance(key, str) and key.isdecimal() for key in value):
        return {int(key): bias for key, bias in value.items()}
    return value


def _template_keywords(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or value.keys() - {"enable_thinking"}:
        raise UnsupportedError(f"chat_template_kwargs={value!r:.80}: only enable_thinking is read")
    return dict(value)


def write_line(record: Mapping[str, Any], key: str, model: str, created: int) -> dict[str, Any]:
    """A finished row as a line of OpenAI's output. created: when the job began, in seconds since 1970."""
    line: dict[str, Any] = {"id": f"batch_req_{key}", "custom_id": record["custom_id"]}
    if record["error"] is not None:
        error = {"code": "invalid_request", "message": record["error"]}
        body: dict[str, Any] = {"error": {**error, "type": "invalid_request_error", "param": None}}
        return line | {"response": {"status_code": 400, "request_id": key, "body": body}, "error": error}
    message = {"role": "assistant", "content": record["text"], "refusal": None}
    if record.get("thinking") is not None:
        message["reasoning_content"] = record["thinking"]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": record["finish_reason"]}
    body = {"id": f"chatcmpl-{key}", "object": "chat.completion", "created": created, "model": model,
            "choices": [choice], "usage": record["usage"]}  # fmt: skip
    return line | {"response": {"status_code": 200, "request_id": key, "body": body}, "error": None}
