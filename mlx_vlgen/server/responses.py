"""OpenAI's responses: a body as a `Call`, and the talks that `previous_response_id` goes on with.
Source: https://platform.openai.com/docs/api-reference/responses."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .call import Answer, Call
from .errors import ApiError
from .media import MediaRules
from .messages import Bounds
from .openai import EFFORTS, TOLERATED, check_choice, read_form, read_function, read_sound
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
    one_of,
    only,
    read_fields,
    text,
    texts,
    whole,
)

RESPONSES = (
    Parameter("model", text),
    Parameter("input", anything),
    Parameter("instructions", text),
    Parameter("previous_response_id", text),
    Parameter("stream", flag),
    Parameter("store", flag),
    Parameter("max_output_tokens", whole(1), "sampling", "max_tokens"),
    Parameter("stop", texts(16), "sampling"),
    Parameter("text", mapping),
    Parameter("tools", items),
    Parameter("tool_choice", anything),
    Parameter("parallel_tool_calls", flag),
    Parameter("reasoning", mapping),
    Parameter("thinking_budget", whole(0), "sampling"),
    Parameter("max_pixels", whole(1, 1 << 40), "media"),
    *SAMPLING,
    *OURS,
)

_TOLERATED: Mapping[str, Reader] = {
    **{name: reader for name, reader in TOLERATED.items() if name not in ("store", "modalities")},
    "truncation": one_of("disabled"),
    "background": one_of(False),
    "include": one_of([], ["reasoning.encrypted_content"]),
}
"""What changes no answer; the readers refuse values that would."""

_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Said:
    """What a response repeats of its request. messages: all up to its answer, but the instructions; store: whether they
    are kept."""

    echo: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]]
    store: bool


@dataclass
class Talks:
    """The messages of past responses, the newest within a bound. max_bytes: of their JSON, about."""

    max_bytes: int = 256 << 20
    _talks: "OrderedDict[str, tuple[int, Sequence[Mapping[str, Any]], dict[str, Any]]]" = field(
        default_factory=OrderedDict
    )
    _bytes: int = 0

    def add(self, id: str, messages: Sequence[Mapping[str, Any]], response: dict[str, Any]) -> None:
        size = len(json.dumps([messages, response], default=str))
        self._talks[id] = size, messages, response
        self._bytes += size
        while self._bytes > self.max_bytes:
            self.remove(next(iter(self._talks)))

    def messages(self, id: str) -> Sequence[Mapping[str, Any]]:
        return self._get(id, "previous_response_id")[1]

    def response(self, id: str) -> dict[str, Any]:
        return self._get(id, "response_id")[2]

    def remove(self, id: str) -> None:
        self._bytes -= self._get(id, "response_id")[0]
        del self._talks[id]

    def _get(self, id: str, param: str) -> tuple[int, Sequence[Mapping[str, Any]], dict[str, Any]]:
        if id not in self._talks:
            message = f"{param}: {id!r:.80} is not kept here (any more): send the whole talk as input"
            raise ApiError(404, message, param=param, code="response_not_found")
        return self._talks[id]


def read_response(body: Mapping[str, Any], rules: MediaRules, lenient: Log | None, talks: Talks) -> tuple[Call, Said]:
    """ApiError names what is wrong."""
    groups = read_fields(RESPONSES, _TOLERATED, body, lenient)
    sampling, call = groups["sampling"], groups["call"]
    if "input" not in call:
        raise ApiError(400, "input: the body has none", param="input")
    previous, instructions = call.pop("previous_response_id", None), call.pop("instructions", None)
    messages: list[Any] = list(talks.messages(previous)) if previous else []
    messages += _input(call.pop("input"), rules, lenient)
    system = [{"role": "system", "content": instructions}] if instructions else []
    form = call.pop("text", {})
    only(form, ["format", "verbosity"], "text", lenient)
    if form.get("verbosity") not in (None, "medium"):
        raise ApiError(400, "text.verbosity: this server cannot set it: leave it out", param="text.verbosity")
    sampling |= _form(form.get("format"), lenient)
    reasoning = call.pop("reasoning", {})
    thinking = _thinking(reasoning, sampling, lenient)
    echo = {
        "instructions": instructions, "previous_response_id": previous, "text": {"format": {"type": "text"}, **form},
        "max_output_tokens": sampling.get("max_tokens"), "temperature": sampling.get("temperature"),
        "top_p": sampling.get("top_p"), "tools": call.get("tools", []), "tool_choice": call.get("tool_choice", "auto"),
        "parallel_tool_calls": call.get("parallel_tool_calls", True), "metadata": body.get("metadata") or {},
        "reasoning": {"effort": reasoning.get("effort"), "summary": None}, "user": body.get("user"),
        "store": call.pop("store", True),
    }  # fmt: skip
    tools = _tools(call, lenient)
    request = Call(
        prompts=[[*system, *messages]], sampling=sampling, media=groups["media"], enable_thinking=thinking, **tools,
        **{"model": None, **call},
    )  # fmt: skip
    return request, Said(echo, messages, bool(echo["store"]))


def answered(messages: Sequence[Mapping[str, Any]], answer: Answer, call_ids: Sequence[str]) -> list[Mapping[str, Any]]:
    """The messages with the answer to them."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if answer.tools:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": tool.name, "arguments": tool.arguments}}
            for id, tool in zip(call_ids, answer.tools, strict=True)
        ]
    return [*messages, message]


def _form(value: Any, lenient: Log | None) -> dict[str, Any]:
    """`text.format`, whose schema stands one level higher than in chat completions."""
    if isinstance(value, dict) and value.get("type") == "json_schema":
        value = {"type": "json_schema", "json_schema": {key: item for key, item in value.items() if key != "type"}}
    if value is not None and not isinstance(value, dict):
        raise ApiError(400, "text.format: expected an object", param="text.format")
    return read_form(value, lenient, "text.format")


def _thinking(reasoning: Mapping[str, Any], sampling: dict[str, Any], lenient: Log | None) -> bool:
    only(reasoning, ["effort", "summary"], "reasoning", lenient)
    effort = reasoning.get("effort")
    if reasoning.get("summary") not in (None, "auto"):
        raise ApiError(400, "reasoning.summary: this server gives the whole text: leave it out", "reasoning.summary")
    if effort is None:
        return False
    if effort not in list(EFFORTS):
        expected = ", ".join(EFFORTS)
        raise ApiError(400, f"reasoning.effort={effort!r:.80}: expected one of {expected}", param="reasoning.effort")
    if EFFORTS[effort]:
        sampling.setdefault("thinking_budget", EFFORTS[effort])
    return EFFORTS[effort] != 0


def _tools(call: dict[str, Any], lenient: Log | None) -> dict[str, Any]:
    tools = []
    for i, tool in enumerate(call.pop("tools", [])):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else tool
            raise ApiError(400, f"tools[{i}]: {kind!r:.80}: expected a tool of type function", param=f"tools[{i}]")
        tools.append(read_function(tool, f"tools[{i}]", "parameters", lenient))
    choice = call.pop("tool_choice", "auto")
    if isinstance(choice, dict):
        only(choice, ["type", "name"], "tool_choice", lenient)
        name = check_choice(choice.get("name"), True, tools)
    else:
        name = check_choice(choice if choice in ("none", "auto", "required") else None, False, tools)
    return {"tools": tools, "tool_choice": name} | {
        key: call.pop(key) for key in ("parallel_tool_calls",) if key in call
    }


def _input(value: Any, rules: MediaRules, lenient: Log | None) -> list[dict[str, Any]]:
    bounds = Bounds()
    if isinstance(value, str):
        return [{"role": "user", "content": bounds.text(value, "input")}]
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(bounds.messages(value, "input")):
        message = _item(item, f"input[{i}]", rules, bounds, lenient)
        last = messages[-1] if messages else None
        if message["role"] == "assistant" and last and last["role"] == "assistant":
            # Thoughts, text and calls of one answer are separate items.
            merged = {**last, **{key: item for key, item in message.items() if item}}
            merged["tool_calls"] = [*last.get("tool_calls", []), *message.get("tool_calls", [])]
            messages[-1] = {key: item for key, item in merged.items() if item or key == "content"}
        else:
            messages.append(message)
    return messages


def _item(item: Any, place: str, rules: MediaRules, bounds: Bounds, lenient: Log | None) -> dict[str, Any]:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    match kind:
        case "message":
            only(item, ["type", "role", "content", "id", "status", "phase"], place, lenient)
            role = item.get("role")
            if role not in _ROLES:
                raise ApiError(400, f"{place}.role: expected one of {', '.join(_ROLES)}", param=f"{place}.role")
            content = item.get("content")
            if isinstance(content, list):
                parts = [_part(part, f"{place}.content[{i}]", rules, bounds, lenient) for i, part in enumerate(content)]
            else:
                parts = [{"type": "text", "text": bounds.text(content, f"{place}.content")}]
            return {"role": "system" if role == "developer" else role, "content": parts}
        case "function_call":
            only(item, ["type", "id", "call_id", "name", "arguments", "status"], place, lenient)
            name, call_id, arguments = (bounds.text(item.get(key), f"{place}.{key}")
                                        for key in ("name", "call_id", "arguments"))  # fmt: skip
            call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            return {"role": "assistant", "content": "", "tool_calls": [call]}
        case "function_call_output":
            only(item, ["type", "id", "call_id", "output", "status"], place, lenient)
            output = item.get("output")
            content = (
                [_part(part, f"{place}.output[{i}]", rules, bounds, lenient) for i, part in enumerate(output)]
                if isinstance(output, list)
                else bounds.text(output, f"{place}.output")
            )
            return {"role": "tool", "tool_call_id": bounds.text(item.get("call_id"), place), "content": content}
        case "reasoning":
            only(item, ["type", "id", "summary", "content", "encrypted_content", "status"], place, lenient)
            thoughts = bounds.items(item.get("content") or [], f"{place}.content")
            text = "".join(
                bounds.text(part.get("text") if isinstance(part, dict) else None, place) for part in thoughts
            )
            return {"role": "assistant", "content": "", "reasoning_content": text}
    expected = "message, function_call, function_call_output or reasoning"
    raise ApiError(400, f"{place}: an item of type {kind!r:.80}: expected {expected}", param=place)


def _part(part: Any, place: str, rules: MediaRules, bounds: Bounds, lenient: Log | None) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "input_text" | "output_text" | "text":
            only(part, ["type", "text", "annotations", "logprobs"], place, lenient)
            return {"type": "text", "text": bounds.text(part.get("text"), f"{place}.text")}
        case "input_image":
            only(part, ["type", "image_url", "detail"], place, lenient)
            return {"type": "image", "image": bounds.media(rules.source(part.get("image_url"), f"{place}.image_url"))}
        case "input_audio":
            only(part, ["type", kind], place, lenient)
            return {"type": "audio", "audio": bounds.media(read_sound(part.get(kind), f"{place}.{kind}", lenient))}
    expected = "input_text, output_text, input_image or input_audio"
    raise ApiError(400, f"{place}: type {kind!r:.80}: expected {expected}", place)
