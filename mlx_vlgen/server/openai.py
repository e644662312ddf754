"""OpenAI's chat completions: a body as a `Call`. Source: https://platform.openai.com/docs/api-reference/chat."""

from collections.abc import Mapping, Sequence
from typing import Any

from .call import Call
from .errors import ApiError
from .media import MediaRules
from .messages import Bounds
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
from .settings import MAX_CHOICES

EFFORTS: Mapping[str, int | None] = {
    "none": 0, "minimal": 0, "low": 1024, "medium": 4096, "high": None, "xhigh": None,
}  # fmt: skip
"""Tokens that a model may think at each `reasoning_effort`; None: as many as it wants, 0: it does not think."""

COMMON = (
    Parameter("model", text),
    Parameter("stream", flag),
    Parameter("stream_options", mapping),
    Parameter("max_tokens", whole(1), "sampling"),
    Parameter("stop", texts(16), "sampling"),
    Parameter("n", whole(1, MAX_CHOICES), keyword="count"),
    *SAMPLING,
    *OURS,
)
"""What chat and text completions share."""

CHAT = (
    *COMMON,
    Parameter("messages", items),
    Parameter("max_completion_tokens", whole(1), "sampling", "max_tokens"),
    Parameter("logprobs", flag),
    Parameter("top_logprobs", whole(0, 20)),
    Parameter("response_format", mapping),
    Parameter("tools", items),
    Parameter("tool_choice", anything),
    Parameter("parallel_tool_calls", flag),
    Parameter("reasoning_effort", one_of(*EFFORTS)),
    Parameter("enable_thinking", flag),
    Parameter("chat_template_kwargs", mapping),
    Parameter("thinking_budget", whole(0), "sampling"),
    Parameter("max_pixels", whole(1, 1 << 40), "media"),
)

TOLERATED: Mapping[str, Reader] = {
    "user": anything,
    "metadata": anything,
    "store": one_of(False),
    "prompt_cache_key": anything,
    "service_tier": anything,
    "safety_identifier": anything,
    "modalities": one_of(["text"]),
}
"""What changes no answer; the readers refuse values that would."""

_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_chat(body: Mapping[str, Any], rules: MediaRules, lenient: Log | None) -> tuple[Call, bool]:
    """The call, and whether its stream ends with the usage. ApiError names what is wrong."""
    groups = read_fields(CHAT, TOLERATED, body, lenient)
    sampling, call = groups["sampling"], groups["call"]
    if "messages" not in call:
        raise ApiError(400, "messages: the body has none", param="messages")
    bounds = Bounds()
    messages = [
        _message(message, f"messages[{i}]", rules, bounds, lenient)
        for i, message in enumerate(bounds.messages(call.pop("messages")))
    ]
    include_usage = usage_wanted(call, lenient)
    logprobs = call.pop("logprobs", False)
    top = call.pop("top_logprobs", None)
    if top is not None and not logprobs:
        raise ApiError(400, f"top_logprobs={top}: it needs logprobs=true", param="top_logprobs")
    sampling |= read_form(call.pop("response_format", None), lenient)
    thinking = _thinking(call, sampling, lenient)
    tools = read_tools(call, lenient)
    logprob_count = (top or 0) if logprobs else None
    request = Call(
        prompts=[messages], sampling=sampling, media=groups["media"], enable_thinking=thinking,
        logprobs=logprob_count, **tools, **{"model": None, **call},
    )  # fmt: skip
    return request, include_usage


def usage_wanted(call: dict[str, Any], lenient: Log | None) -> bool:
    """Takes stream_options out of the call."""
    options = call.pop("stream_options", None)
    if options is None:
        return False
    if not call.get("stream"):
        raise ApiError(400, "stream_options: it needs stream=true", param="stream_options")
    only(options, ["include_usage", "include_obfuscation"], "stream_options", lenient)
    for name, value in options.items():
        if value is not None and not isinstance(value, bool):
            raise ApiError(
                400, f"stream_options.{name}={value!r:.80}: expected true or false", f"stream_options.{name}"
            )
    return bool(options.get("include_usage"))


def read_form(value: Mapping[str, Any] | None, lenient: Log | None, place: str = "response_format") -> dict[str, Any]:
    """`response_format` as a keyword of `SamplingParams`."""
    kind = None if value is None else value.get("type")
    if value is None or kind == "text":
        return {}
    if kind == "json_object":
        only(value, ["type"], place, lenient)
        return {"json_schema": {"type": "object"}}
    schema = value.get("json_schema")
    if kind != "json_schema" or not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        expected = '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": …}}'
        raise ApiError(400, f"{place}={value!r:.80}: expected {expected}", param=place)
    only(value, ["type", "json_schema"], place, lenient)
    only(schema, ["schema", "name", "description", "strict"], f"{place}.json_schema", lenient)
    return {"json_schema": schema["schema"]}


def _thinking(call: dict[str, Any], sampling: dict[str, Any], lenient: Log | None) -> bool:
    """Whether the model thinks first, of the three fields that say so."""
    said: dict[str, bool] = {}
    effort, variables = call.pop("reasoning_effort", None), call.pop("chat_template_kwargs", {})
    if effort is not None:
        budget = EFFORTS[effort]
        said["reasoning_effort"] = budget != 0
        if budget:
            sampling.setdefault("thinking_budget", budget)
    only(variables, ["enable_thinking"], "chat_template_kwargs", lenient)
    for name, value in (
        ("enable_thinking", call.pop("enable_thinking", None)),
        ("chat_template_kwargs.enable_thinking", variables.get("enable_thinking")),
    ):
        if value is not None and not isinstance(value, bool):
            raise ApiError(400, f"{name}={value!r:.80}: expected true or false", param=name)
        if value is not None:
            said[name] = value
    if len(set(said.values())) > 1:
        raise ApiError(400, f"{' and '.join(said)} do not agree", param=next(iter(said)))
    return any(said.values())


def read_tools(call: dict[str, Any], lenient: Log | None) -> dict[str, Any]:
    """The keywords of `Call` about tools, taken out of the call."""
    tools = []
    for i, tool in enumerate(call.pop("tools", [])):
        place = f"tools[{i}]"
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise ApiError(400, f'{place}: expected {{"type": "function", "function": {{…}}}}', param=place)
        only(tool, ["type", "function"], place, lenient)
        tools.append(read_function(tool["function"], f"{place}.function", "parameters", lenient))
    keywords: dict[str, Any] = {"tools": tools, "tool_choice": _choice(call.pop("tool_choice", "auto"), tools, lenient)}
    if "parallel_tool_calls" in call:
        keywords["parallel_tool_calls"] = call.pop("parallel_tool_calls")
    return keywords


def read_function(function: Mapping[str, Any], place: str, schema: str, lenient: Log | None) -> dict[str, Any]:
    """A function that a model may call: its name, description and parameters. schema: the key of those."""
    only(function, ["name", "description", schema, "strict", "cache_control", "type"], place, lenient)
    name, parameters = function.get("name"), function.get(schema) or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not name or name in ("none", "auto", "required"):
        raise ApiError(400, f"{place}.name={name!r:.80}: expected the name of a function", param=f"{place}.name")
    if not isinstance(parameters, dict):
        raise ApiError(400, f"{place}.{schema}: expected a JSON schema", param=f"{place}.{schema}")
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise ApiError(400, f"{place}.description: expected text", param=f"{place}.description")
    return {"name": name, "description": description, "parameters": parameters}


def _choice(value: Any, tools: Sequence[Mapping[str, Any]], lenient: Log | None) -> str:
    name = value
    if isinstance(value, dict):
        only(value, ["type", "function"], "tool_choice", lenient)
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else None
    elif value not in ("none", "auto", "required"):
        name = None
    return check_choice(name, isinstance(value, dict), tools)


def check_choice(name: Any, is_tool: bool, tools: Sequence[Mapping[str, Any]]) -> str:
    """ApiError for a choice that is none, or of a tool that is not among `tools`."""
    if not isinstance(name, str) or (is_tool and name not in [tool["name"] for tool in tools]):
        raise ApiError(400, f"tool_choice: {name!r:.80}: expected none, auto, required or one of tools", "tool_choice")
    if not tools and name not in ("auto", "none"):
        raise ApiError(400, f"tool_choice={name!r:.80}: it needs tools", param="tool_choice")
    return name


def _message(message: Any, place: str, rules: MediaRules, bounds: Bounds, lenient: Log | None) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise ApiError(400, f"{place}: expected an object with a role, one of {', '.join(_ROLES)}", param=place)
    role = message["role"]
    known = ["role", "content", "name", "cache_control"]
    known += ["tool_calls", "refusal", "reasoning_content", "reasoning", "audio"] if role == "assistant" else []
    known += ["tool_call_id"] if role == "tool" else []
    only(message, known, place, lenient)
    if message.get("audio") is not None:
        raise ApiError(400, f"{place}.audio: this server does not speak; leave it out", param=f"{place}.audio")
    read: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = message.get("content")
    if content is None and role == "assistant" and (refusal := message.get("refusal")) is not None:
        content = refusal
    if isinstance(content, list):
        parts = [_part(part, f"{place}.content[{i}]", rules, bounds, lenient) for i, part in enumerate(content)]
        read["content"] = parts
    elif content is not None or role != "assistant":
        read["content"] = bounds.text(content, f"{place}.content")
    elif not message.get("tool_calls"):
        raise ApiError(400, f"{place}.content: there is none", param=f"{place}.content")
    else:
        read["content"] = ""
    for name in ("name", "tool_call_id", "reasoning_content", "reasoning"):
        if message.get(name) is not None:
            value = bounds.text(message[name], f"{place}.{name}")
            read["reasoning_content" if name == "reasoning" else name] = value
    if message.get("tool_calls"):
        read["tool_calls"] = [
            _tool_call(call, f"{place}.tool_calls[{i}]", bounds)
            for i, call in enumerate(bounds.items(message["tool_calls"], f"{place}.tool_calls"))
        ]
    return read


def _part(part: Any, place: str, rules: MediaRules, bounds: Bounds, lenient: Log | None) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "text" | "refusal":
            only(part, ["type", kind, "cache_control"], place, lenient)
            return {"type": "text", "text": bounds.text(part.get(kind), f"{place}.{kind}")}
        case "image_url" | "video_url" | "audio_url":
            only(part, ["type", kind, "cache_control"], place, lenient)
            source = part.get(kind)
            if isinstance(source, dict):
                only(source, ["url", "detail"], f"{place}.{kind}", lenient)
                source = source.get("url")
            name = kind.removesuffix("_url")
            return {"type": name, name: bounds.media(rules.source(source, f"{place}.{kind}"))}
        case "input_audio":
            only(part, ["type", kind, "cache_control"], place, lenient)
            return {"type": "audio", "audio": bounds.media(read_sound(part.get(kind), f"{place}.{kind}", lenient))}
    expected = "text, image_url, video_url, audio_url or input_audio"
    raise ApiError(400, f"{place}: type {kind!r:.80}: expected {expected}", place)


def read_sound(value: Any, place: str, lenient: Log | None) -> str:
    """`input_audio`, of responses too, as a data: URI."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), str):
        raise ApiError(400, f'{place}: expected {{"data": base64, "format": "wav"}}', place)
    only(value, ["data", "format"], place, lenient)
    return f"data:;base64,{value['data']}"


def _tool_call(call: Any, place: str, bounds: Bounds) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(400, f'{place}: expected {{"id", "type": "function", "function": {{…}}}}', param=place)
    arguments = bounds.text(function.get("arguments") or "{}", f"{place}.function.arguments")
    call_id = bounds.text(call.get("id") or "", f"{place}.id")
    return {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
