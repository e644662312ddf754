"""Anthropic's messages: a body as a `Call`. Source: https://platform.claude.com/docs/en/api/messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .call import Call
from .errors import ApiError
from .media import MediaRules
from .messages import Bounds
from .openai import check_choice, read_function
from .parameters import (
    OURS,
    SAMPLING,
    Log,
    Parameter,
    Reader,
    anything,
    flag,
    items,
    mapping,
    only,
    read_fields,
    text,
    texts,
    whole,
)

EFFORTS: Mapping[str, int | None] = {"low": 1024, "medium": 4096, "high": None, "xhigh": None, "max": None}
"""Tokens that a model may think at each effort, where it thinks adaptively; None: as many as it wants."""

COUNTED = (
    Parameter("model", text),
    Parameter("messages", items),
    Parameter("system", anything),
    Parameter("tools", items),
    Parameter("tool_choice", mapping),
    Parameter("thinking", mapping),
    Parameter("output_config", mapping),
    Parameter("max_pixels", whole(1, 1 << 40), "media"),
)
"""What `count_tokens` takes."""

MESSAGES = (
    *COUNTED,
    Parameter("max_tokens", whole(1), "sampling"),
    Parameter("stop_sequences", texts(16), "sampling", "stop"),
    Parameter("stream", flag),
    *SAMPLING,
    *OURS,
)


def _nothing_cleared(value: Any) -> Any:
    """`context_management` as Claude Code sends it: what stands in the messages stays there."""
    edits = value.get("edits") if isinstance(value, dict) and value.keys() == {"edits"} else None
    keep_all = {"type": "clear_thinking_20251015", "keep": "all"}
    if not edits or not isinstance(edits, list) or any(edit != keep_all for edit in edits):
        raise ValueError(f'{{"edits": [{json.dumps(keep_all)}]}}: this server clears nothing')
    return value


TOLERATED: Mapping[str, Reader] = {
    "metadata": anything, "service_tier": anything, "cache_control": anything, "user_profile_id": anything,
    "context_management": _nothing_cleared,
}  # fmt: skip
"""What changes no answer; the readers refuse values that would."""


def read_messages(body: Mapping[str, Any], rules: MediaRules, lenient: Log | None, counted: bool = False) -> Call:
    """counted: a body whose tokens are to be counted only. ApiError names what is wrong."""
    groups = read_fields(COUNTED if counted else MESSAGES, TOLERATED, body, lenient)
    sampling, call = groups["sampling"], groups["call"]
    for name in ("messages",) if counted else ("messages", "max_tokens"):
        if name not in call and name not in sampling:
            raise ApiError(400, f"{name}: the body has none", param=name)
    bounds, messages = Bounds(), []
    if (system := call.pop("system", None)) is not None:
        parts = _blocks(system, "system", rules, bounds, lenient)
        if any(part["type"] != "text" for part in parts):
            raise ApiError(400, "system: expected text", param="system")
        messages.append({"role": "system", "content": parts})
    for i, message in enumerate(bounds.messages(call.pop("messages"))):
        messages += _message(message, f"messages.{i}", rules, bounds, lenient)
    messages = _combined(messages)
    adaptive = (call.get("thinking") or {}).get("type") == "adaptive"
    thinking = _thinking(call, sampling, lenient)
    tools = _tools(call, lenient)
    last = messages[-1]
    continues = last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last
    return Call(
        prompts=[messages], sampling=sampling, media=groups["media"], enable_thinking=thinking, adaptive=adaptive,
        continues=continues, **tools, **{"model": None, **call},
    )  # fmt: skip


def _thinking(call: dict[str, Any], sampling: dict[str, Any], lenient: Log | None) -> bool:
    """Whether the model thinks first; takes output_config out of the call, too."""
    thinking, output = call.pop("thinking", None), call.pop("output_config", {})
    only(output, ["effort", "format"], "output_config", lenient)
    if (form := output.get("format")) is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
            expected = '{"type": "json_schema", "schema": {…}}'
            raise ApiError(400, f"output_config.format: expected {expected}", param="output_config.format")
        only(form, ["type", "schema"], "output_config.format", lenient)
        sampling["json_schema"] = form["schema"]
    effort = output.get("effort")
    if effort is not None and effort not in list(EFFORTS):
        expected = ", ".join(EFFORTS)
        raise ApiError(400, f"output_config.effort={effort!r:.80}: expected one of {expected}", "output_config.effort")
    if thinking is None:
        return False
    kind = thinking.get("type")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise ApiError(400, f"thinking.type={kind!r:.80}: expected enabled, adaptive or disabled", "thinking.type")
    only(thinking, ["type", "budget_tokens"] if kind == "enabled" else ["type"], "thinking", lenient)
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise ApiError(400, "thinking.budget_tokens: expected a whole number", param="thinking.budget_tokens")
        sampling["thinking_budget"] = budget
    elif kind == "adaptive" and effort and (bound := EFFORTS[effort]) is not None:
        sampling["thinking_budget"] = bound
    return kind != "disabled"


def _tools(call: dict[str, Any], lenient: Log | None) -> dict[str, Any]:
    """The keywords of `Call` about tools, taken out of the call."""
    tools = []
    for i, tool in enumerate(call.pop("tools", [])):
        place = f"tools.{i}"
        if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
            kind = tool.get("type") if isinstance(tool, dict) else tool
            raise ApiError(400, f"{place}: {kind!r:.80}: expected a tool of type custom, which the client runs", place)
        passed = {name: value for name, value in tool.items() if name != "eager_input_streaming"}
        tools.append(read_function(passed, place, "input_schema", lenient))
    choice = call.pop("tool_choice", {"type": "auto"})
    only(choice, ["type", "name", "disable_parallel_tool_use"], "tool_choice", lenient)
    kinds = {"auto": "auto", "none": "none", "any": "required", "tool": choice.get("name")}
    name = kinds.get(choice["type"]) if isinstance(choice.get("type"), str) else None
    parallel = choice.get("disable_parallel_tool_use") is not True
    checked = check_choice(name, choice.get("type") == "tool", tools)
    return {"tools": tools, "tool_choice": checked, "parallel_tool_calls": parallel}


def _message(message: Any, place: str, rules: MediaRules, bounds: Bounds, lenient: Log | None) -> list[dict[str, Any]]:
    """A message as ours: what tools returned are separate messages, before the others."""
    roles = ("user", "assistant", "system")
    if not isinstance(message, dict) or message.get("role") not in roles:
        raise ApiError(400, f"{place}: expected an object with a role, one of {', '.join(roles)}", param=place)
    only(message, ["role", "content", "cache_control"], place, lenient)
    parts = _blocks(message.get("content"), f"{place}.content", rules, bounds, lenient)
    results = [part for part in parts if part["type"] == "tool_result"]
    calls = [part["call"] for part in parts if part["type"] == "tool_use"]
    thoughts = [part["thinking"] for part in parts if part["type"] == "thinking"]
    rest = [part for part in parts if part["type"] in ("text", "image")]
    if (calls or thoughts) != [] and message["role"] != "assistant":
        raise ApiError(400, f"{place}.content: only the assistant thinks and uses tools", param=f"{place}.content")
    read: dict[str, Any] = {"role": message["role"], "content": rest}
    if calls:
        read["tool_calls"] = calls
    if thoughts:
        read["reasoning_content"] = "".join(thoughts)
    messages: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": result["id"], "content": result["content"]} for result in results
    ]
    return [*messages, read] if rest or calls or not results else messages


def _combined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of the user that follow each other are one, as Anthropic has it. What the system says later than at the
    start is text of the user's turn: few chat templates take it there."""
    found: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if message["role"] == "system" and i:
            message = {**message, "role": "user"}
        last = found[-1] if found else None
        if last and last["role"] == message["role"] == "user":
            found[-1] = {**last, "content": [*last["content"], {"type": "text", "text": "\n\n"}, *message["content"]]}
        else:
            found.append(message)
    return found


def _blocks(value: Any, place: str, rules: MediaRules, bounds: Bounds, lenient: Log | None) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"type": "text", "text": bounds.text(value, place)}]
    blocks = bounds.items(value, place)
    return [_block(block, f"{place}.{i}", rules, bounds, lenient) for i, block in enumerate(blocks)]


def _block(block: Any, place: str, rules: MediaRules, bounds: Bounds, lenient: Log | None) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None

    def check(*names: str) -> None:
        only(block, ["type", "cache_control", *names], place, lenient)

    match kind:
        case "text":
            check("text")
            return {"type": "text", "text": bounds.text(block.get("text"), f"{place}.text")}
        case "image":
            check("source")
            return {"type": "image", "image": bounds.media(_source(block.get("source"), f"{place}.source", rules))}
        case "thinking":
            check("thinking", "signature")
            return {"type": "thinking", "thinking": bounds.text(block.get("thinking"), f"{place}.thinking")}
        case "tool_use":
            check("id", "name", "input")
            name, call_id = bounds.text(block.get("name"), f"{place}.name"), bounds.text(block.get("id"), f"{place}.id")
            arguments = bounds.text(json.dumps(block.get("input") or {}), f"{place}.input")
            call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            return {"type": "tool_use", "call": call}
        case "tool_result":
            check("tool_use_id", "content", "is_error")
            content = _blocks(block.get("content") or "", f"{place}.content", rules, bounds, lenient)
            if any(part["type"] not in ("text", "image") for part in content):
                raise ApiError(400, f"{place}.content: expected text and images", param=f"{place}.content")
            if block.get("is_error"):
                content = [{"type": "text", "text": "Error: "}, *content]
            return {"type": "tool_result", "id": bounds.text(block.get("tool_use_id"), place), "content": content}
    expected = "text, image, thinking, tool_use or tool_result"
    raise ApiError(400, f"{place}: a block of type {kind!r:.80}: expected {expected}", param=place)


def _source(source: Any, place: str, rules: MediaRules) -> Any:
    match source:
        case {"type": "base64", "data": str(data), "media_type": str(kind)}:
            return f"data:{kind};base64,{data}"
        case {"type": "url", "url": url}:
            return rules.source(url, place)
    raise ApiError(
        400, f'{place}: expected {{"type": "base64", "media_type", "data"}} or {{"type": "url", "url"}}', place
    )
