"""Tool calls in the formats of the families: read from an answer as it streams, demanded of one, written in a prompt.

The chat template of a checkpoint says which format it speaks.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import PromptError
from . import grammar, readers
from .grammar import Tokens, Tool, Writer
from .parser import Event, Syntax, ToolParser
from .readers import Beginner, ToolCall

__all__ = ["Event", "ToolCall", "ToolFormat", "ToolParser", "to_template_messages", "tool_format"]


@dataclass(frozen=True)
class ToolFormat:
    """signs: a template that has one of them speaks it. write: its grammar. nine_digits: whether ids of calls are nine
    letters and digits."""

    name: str
    signs: tuple[str, ...]
    syntax: Syntax
    write: Writer
    nine_digits: bool = False

    def parser(self, tools: Sequence[Tool] = ()) -> ToolParser:
        """A parser for one answer. tools: whose schemas tell the types of arguments that are written as bare text."""
        return ToolParser(self.syntax, {tool["name"]: tool.get("parameters") for tool in tools})

    def grammar(
        self, tools: Sequence[Tool], choice: str = "required", parallel: bool = True, tokens: Tokens | None = None
    ) -> str:
        """A Lark grammar for `grammar=`, by which the answer is one call or several of them, and nothing else.

        choice: "required", or the name of the tool to call. parallel: whether there may be several calls.
        tokens: `tokenizer.get_added_vocab()`: the marks among them are tokens, and no text.

        PromptError for a tool that is not there. UnsupportedError for what of a schema cannot be enforced: what
        `json_schema=` cannot; where strings have no quotation marks (Qwen3-Coder, GLM, Gemma) their `pattern`, `format`
        and lengths; in Gemma's format values without a type, and how many items an array has.
        """
        return grammar.make_grammar(self.write, tools, choice, parallel, tokens or {})


def _mistral(name: str, signs: tuple[str, ...], write: Writer, begin_call: Beginner | None = None) -> ToolFormat:
    syntax = Syntax("[TOOL_CALLS]", "", ("",), readers.read_named_json, begin_call=begin_call)
    return ToolFormat(name, signs, syntax, write, nine_digits=True)


# The first whose sign a template has: later signs stand in the templates of earlier formats, too.
FORMATS = (
    _mistral("mistral", ("[ARGS]",), grammar.write_mistral, readers.begin_named_json),
    _mistral("mistral_list", ("[TOOL_CALLS]",), grammar.write_mistral_list),
    ToolFormat(
        "gemma",
        ("<|tool_call>call:",),
        Syntax("<|tool_call>", "<tool_call|>", ("call:",), readers.read_gemma),
        grammar.write_gemma,
    ),
    ToolFormat(
        "pythonic",
        ("<|tool_call_start|>", "<|tool_list_start|>", "List of tools: "),
        Syntax("<|tool_call_start|>", "<|tool_call_end|>", ("[",), readers.read_pythonic),
        grammar.write_pythonic,
    ),
    ToolFormat(
        "tags",
        ("<function=",),
        Syntax("<tool_call>", "</tool_call>", ("<function=",), readers.read_tags, begin_call=readers.begin_tags),
        grammar.write_tags,
    ),
    ToolFormat(
        "pairs",
        ("<arg_key>",),
        Syntax("<tool_call>", "</tool_call>", ("",), readers.read_pairs, begin_call=readers.begin_pairs),
        grammar.write_pairs,
    ),
    ToolFormat(
        "hermes",
        ("<tool_call>",),
        Syntax("<tool_call>", "</tool_call>", ("{", "[{"), readers.read_json_calls, begin_call=readers.begin_json_call),
        grammar.write_hermes,
    ),
    ToolFormat(
        "llama",
        ("<|python_tag|>", '{"name": function name, "parameters":'),
        Syntax(
            "<|python_tag|>",
            "",
            ('{"name":', '{"type":"function"'),
            readers.read_json_calls,
            bare=True,
            begin_call=readers.begin_json_call,
        ),
        grammar.write_llama,
    ),
)


def tool_format(template: str | None) -> ToolFormat | None:
    """The format that a chat template speaks; None for a model without tools."""
    if not template or "tools" not in template:
        return None
    return next((form for form in FORMATS if any(sign in template for sign in form.signs)), None)


def to_template_messages(messages: Sequence[Mapping[str, Any]], template: str | None) -> list[dict[str, Any]]:
    """OpenAI's messages as a chat template takes them: the arguments of `tool_calls` become objects, and calls become
    text where a template does not write them. PromptError for a model without tools, and for arguments that are none.
    """
    form, found = tool_format(template), []
    for message in messages:
        message = dict(message)
        calls = message.get("tool_calls")
        if not calls and message.get("role") != "tool":
            found.append({key: value for key, value in message.items() if key != "tool_calls"})
            continue
        if form is None:
            raise PromptError(
                "this checkpoint's chat template knows no tools: leave messages with tool_calls or of role 'tool' out"
            )
        if calls:
            message["tool_calls"] = [_template_call(call, form) for call in calls]
            if "tool_calls" not in (template or ""):
                message |= {"content": _written(message), "tool_calls": None}
        if form.nine_digits and isinstance(message.get("tool_call_id"), str):
            message["tool_call_id"] = _nine_digits(message["tool_call_id"])
        found.append(message)
    return found


def _template_call(call: Any, form: ToolFormat) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError('a tool call is {"id": "…", "type": "function", "function": {"name": "…", "arguments": "…"}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = readers.read_json(arguments or "{}")
        except ValueError as error:
            raise PromptError(f"tool_calls: the arguments of {function['name']!r:.80} are no JSON: {error}") from None
    if not isinstance(arguments, Mapping | None):
        raise PromptError(f"tool_calls: the arguments of {function['name']!r:.80} are no object")
    call = {**call, "type": "function", "function": {**function, "arguments": dict(arguments or {})}}
    if form.nine_digits and isinstance(call.get("id"), str):
        call["id"] = _nine_digits(call["id"])
    return call


def _nine_digits(id: str) -> str:
    """Mistral's templates refuse other ids. The same for a call and for its result."""
    return id if re.fullmatch("[a-zA-Z0-9]{9}", id) else hashlib.sha256(id.encode()).hexdigest()[:9]


def _written(message: Mapping[str, Any]) -> str:
    """LFM2's first templates take an assistant's calls as a part of its text."""
    calls = []
    for function in (call["function"] for call in message["tool_calls"]):
        pairs = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in function["arguments"].items())
        calls.append(f"{function['name']}({', '.join(pairs)})")
    content = message.get("content") or ""
    parts = content if isinstance(content, list) else [{"text": content}]
    text = "".join(str(part.get("text", "")) for part in parts)
    return f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>{text}"
