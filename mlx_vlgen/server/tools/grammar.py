"""Calls as Lark grammars for llguidance, so that an answer must be one, with arguments that their schemas allow."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...engine.json_schema import OPTIONS, check
from ...errors import PromptError, UnsupportedError
from .readers import as_list, kinds_of, properties_of, resolve

Tokens = Mapping[str, int]
"""The id of each mark that is one token: a grammar takes such a token for no text."""

Tool = Mapping[str, Any]
"""{"name", "description", "parameters"}, as in OpenAI's `function`."""

_UNWRITTEN = ("pattern", "format", "minLength", "maxLength")
"""What a schema may ask of a string, and cannot be held to where that has no quotation marks."""


class Rules:
    """A grammar under construction. Its methods return what stands for a part in another rule."""

    def __init__(self, tokens: Tokens):
        self._tokens = tokens
        self._lines: list[str] = []

    def text(self, text: str) -> str:
        return json.dumps(text)

    def mark(self, text: str) -> str:
        return f"<[{self._tokens[text]}]>" if text in self._tokens else json.dumps(text)

    def rule(self, body: str, attribute: str = "") -> str:
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}{attribute}: {body}")
        return name

    def any_of(self, parts: Sequence[str]) -> str:
        return self.rule(" | ".join(parts))

    def json(self, schema: Any, root: Any = None) -> str:
        """A value of a JSON schema. root: the schema that its references are of."""
        shared = {name: root[name] for name in ("$defs", "definitions") if isinstance(root, Mapping) and name in root}
        schema = check({**shared, **schema} if isinstance(schema, Mapping) else schema)
        return self.rule(f"%json {json.dumps({'x-guidance': OPTIONS, **schema})}")

    def until(self, end: str) -> str:
        """Any text up to a mark, and the mark."""
        if end in self._tokens:
            return f"{self.rule('/(?s:.*)/')} {self.mark(end)}"
        escaped = "".join(f"\\x{ord(c):02x}" for c in end)
        return self.rule(f"/(?s:.*){escaped}/", "[lazy]")

    def listed(self, parts: Sequence[tuple[str, bool]], separator: str) -> str:
        """Parts in their order, of which some may be left out, with a separator between. parts: with whether each must
        be there."""
        first = later = '""'
        for part, required in reversed(parts):
            rest = later
            later = self.any_of([f"{self.text(separator)} {part} {rest}", *([] if required else [rest])])
            first = self.any_of([f"{part} {rest}", *([] if required else [first])])
        return first

    def finish(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._lines])


Writer = Callable[[Rules, Sequence[Tool], bool], str]
"""The rules of a format, the tools and whether several may be called -> what an answer must be."""


def make_grammar(write: Writer, tools: Sequence[Tool], choice: str, parallel: bool, tokens: Tokens) -> str:
    """choice: "required", or the name of the only tool that may be called."""
    chosen = [tool for tool in tools if choice in ("required", tool["name"])]
    if not chosen:
        names = ", ".join(tool["name"] for tool in tools)
        raise PromptError(f"tool_choice: {choice!r:.80} is no tool; expected 'required' or one of: {names or 'none'}")
    rules = Rules(tokens)
    return rules.finish(write(rules, chosen, parallel))


def parameters_of(tool: Tool) -> Mapping[str, Any]:
    """The schema of a tool's arguments; of one without, the empty object's."""
    schema = tool.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, Mapping):
        raise PromptError(f"its parameters are a {type(schema).__name__}; expected a JSON schema")
    return schema


def _for_each(tools: Sequence[Tool], write: Callable[[Tool], str]) -> list[str]:
    """Rules of each tool; what cannot be held to its schema is an error that names the tool."""
    found = []
    for tool in tools:
        try:
            found.append(write(tool))
        except (PromptError, UnsupportedError) as error:
            raise type(error)(f"tool {tool['name']!r:.80}: {error}") from None
    return found


def _repeated(rules: Rules, call: str, separator: str, parallel: bool) -> str:
    return f"{call} ({rules.text(separator)} {call})*" if parallel else call


def _json_call(rules: Rules, tool: Tool, key: str = "arguments") -> str:
    begin = f'{{"name": {json.dumps(tool["name"])}, "{key}": '
    return f"{rules.text(begin)} {rules.json(parameters_of(tool))} {rules.text('}')}"


def write_hermes(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    body = rules.any_of(_for_each(tools, lambda tool: _json_call(rules, tool)))
    line = rules.text("\n")
    call = rules.rule(f"{rules.mark('<tool_call>')} {line} {body} {line} {rules.mark('</tool_call>')}")
    return _repeated(rules, call, "\n", parallel)


def write_llama(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    return rules.any_of(_for_each(tools, lambda tool: _json_call(rules, tool, "parameters")))


def write_mistral_list(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    call = rules.any_of(_for_each(tools, lambda tool: _json_call(rules, tool)))
    calls = _repeated(rules, call, ", ", parallel)
    return f"{rules.mark('[TOOL_CALLS]')} {rules.text(' ')}? {rules.text('[')} {calls} {rules.text(']')}"


def write_mistral(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    def write(tool: Tool) -> str:
        return f"{rules.text(tool['name'])} {rules.mark('[ARGS]')} {rules.json(parameters_of(tool))}"

    call = rules.rule(f"{rules.mark('[TOOL_CALLS]')} ({' | '.join(_for_each(tools, write))})")
    return f"{call}+" if parallel else call


def write_pythonic(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    def write_argument(name: str, schema: Any, root: Any) -> str:
        return f"{rules.text(f'{name}=')} {rules.json(schema, root)}"

    def write(tool: Tool) -> str:
        arguments = _members(parameters_of(tool), write_argument)
        return f"{rules.text(tool['name'] + '(')} {rules.listed(arguments, ', ')} {rules.text(')')}"

    calls = _repeated(rules, rules.any_of(_for_each(tools, write)), ", ", parallel)
    begin, end = rules.mark("<|tool_call_start|>"), rules.mark("<|tool_call_end|>")
    return f"{begin} {rules.text('[')} {calls} {rules.text(']')} {end}"


def write_tags(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    line = rules.text("\n")

    def write_argument(name: str, schema: Any, root: Any) -> str:
        head, value = rules.text(f"<parameter={name}>\n"), _bare(rules, schema, root, "\n</parameter>")
        return rules.rule(f"{head} {value} {line}")

    def write(tool: Tool) -> str:
        arguments = rules.listed(_members(parameters_of(tool), write_argument), "")
        head = rules.text("<function=" + tool["name"] + ">\n")
        return f"{head} {arguments} {rules.text('</function>')}"

    body = rules.any_of(_for_each(tools, write))
    call = rules.rule(f"{rules.mark('<tool_call>')} {line} {body} {line} {rules.mark('</tool_call>')}")
    return _repeated(rules, call, "\n", parallel)


def write_pairs(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    line = rules.text("\n")

    def write_argument(name: str, schema: Any, root: Any) -> str:
        key = f"{rules.mark('<arg_key>')} {rules.text(name)} {rules.mark('</arg_key>')}"
        value = _bare(rules, schema, root, "</arg_value>")
        return rules.rule(f"{key} {line} {rules.mark('<arg_value>')} {value} {line}")

    def write(tool: Tool) -> str:
        return f"{rules.text(tool['name'])} {line} {rules.listed(_members(parameters_of(tool), write_argument), '')}"

    body = rules.any_of(_for_each(tools, write))
    call = rules.rule(f"{rules.mark('<tool_call>')} {body} {rules.mark('</tool_call>')}")
    return _repeated(rules, call, "\n", parallel)


def write_gemma(rules: Rules, tools: Sequence[Tool], parallel: bool) -> str:
    def write_argument(name: str, schema: Any, root: Any) -> str:
        return f"{rules.text(f'{name}:')} {_gemma_value(rules, schema, root)}"

    def write(tool: Tool) -> str:
        head = rules.text("call:" + tool["name"] + "{")
        arguments = _members(_by_name(parameters_of(tool)), write_argument)
        return f"{head} {rules.listed(arguments, ',')} {rules.text('}')}"

    body = rules.any_of(_for_each(tools, write))
    call = rules.rule(f"{rules.mark('<|tool_call>')} {body} {rules.mark('<tool_call|>')}")
    return f"{call}+" if parallel else call


def _members(schema: Any, write: Callable[[str, Any, Any], str], root: Any = None) -> list[tuple[str, bool]]:
    """What stands for each property of an object, by its schema, and whether it must be there."""
    root = schema if root is None else root
    if others := sorted({"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "minProperties"}.intersection(schema)):
        raise UnsupportedError(f"{others[0]!r} of an object cannot be enforced in this model's format of calls")
    properties, required = properties_of(schema), as_list(schema.get("required"))
    if unknown := [name for name in required if name not in properties]:
        raise UnsupportedError(f"{unknown[0]!r:.80} is required, and not one of its properties")
    check({**schema, "properties": {}, "required": []})
    return [(write(name, part, root), name in required) for name, part in properties.items()]


def _bare(rules: Rules, schema: Any, root: Any, end: str) -> str:
    """A value and what ends it, where strings have no quotation marks."""
    if "string" not in kinds_of(schema, root):
        return f"{rules.json(schema, root)} {rules.mark(end)}"
    return _string(rules, schema, root, end)


def _string(rules: Rules, schema: Any, root: Any, end: str) -> str:
    schema = resolved(schema, root)
    if choices := as_list(schema.get("enum")) or [schema[name] for name in ("const",) if name in schema]:
        texts = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
        return f"({' | '.join(map(rules.text, texts))}) {rules.mark(end)}"
    if lost := [name for name in _UNWRITTEN if name in schema]:
        raise UnsupportedError(f"{lost[0]!r} of a string cannot be enforced in this model's format of calls")
    check(schema)
    return rules.until(end)


def resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """A schema, or the one that it refers to."""
    for _ in range(8):
        if isinstance(schema, Mapping) and isinstance(reference := schema.get("$ref"), str):
            schema = resolve(reference, root)
    return schema if isinstance(schema, Mapping) else {}


def _by_name(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with its properties in the order in which Gemma's template writes them."""
    return {**schema, "properties": dict(sorted(properties_of(schema).items(), key=lambda item: item[0].lower()))}


def _gemma_value(rules: Rules, schema: Any, root: Any, depth: int = 0) -> str:
    """A value with `<|"|>` around strings, and names without quotation marks."""
    quote, schema = '<|"|>', resolved(schema, root)
    kinds = kinds_of(schema, root)
    plain = not kinds & {"string", "array", "object"}
    if not kinds or depth > 8 or not (plain or len(kinds) == 1):
        raise UnsupportedError("a value of several types cannot be enforced in this model's format of calls")
    if kinds == {"string"}:
        return f"{rules.mark(quote)} {_string(rules, schema, root, quote)}"
    if kinds == {"array"}:
        item = _gemma_value(rules, schema.get("items"), root, depth + 1)
        if lost := sorted(set(schema) & {"minItems", "maxItems", "prefixItems"}):
            raise UnsupportedError(f"{lost[0]!r} of an array cannot be enforced in this model's format of calls")
        return rules.rule(f"{rules.text('[')} ({item} ({rules.text(',')} {item})*)? {rules.text(']')}")
    if kinds == {"object"}:

        def write(name: str, part: Any, root: Any) -> str:
            return f"{rules.text(f'{name}:')} {_gemma_value(rules, part, root, depth + 1)}"

        members = _members(_by_name(schema), write, root)
        return rules.rule(f"{rules.text('{')} {rules.listed(members, ',')} {rules.text('}')}")
    return rules.json(schema, root)
