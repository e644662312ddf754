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

_BESIDE = frozenset("title description default $defs definitions".split())
"""What may stand beside alternatives and asks for nothing."""

_OF_OBJECTS = frozenset("anyOf oneOf allOf $ref patternProperties minProperties maxProperties".split())
"""What it may ask of an object, and cannot be held to where that is not JSON."""


_MAX_RULES = 5000

_QUOTE = '<|"|>'


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
        if len(self._lines) >= _MAX_RULES:
            raise UnsupportedError("the schema is too large to be enforced in this model's format of calls")
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
    if others := sorted(_OF_OBJECTS.intersection(schema)):
        raise UnsupportedError(f"{others[0]!r} of an object cannot be enforced in this model's format of calls")
    properties, required = properties_of(schema), as_list(schema.get("required"))
    if unknown := [name for name in required if name not in properties]:
        raise UnsupportedError(f"{unknown[0]!r:.80} is required, and not one of its properties")
    check({**schema, "properties": {}, "required": []})
    return [(write(name, part, root), name in required) for name, part in properties.items()]


def _alternatives(schema: Any, root: Any, seen: set[str] | None = None) -> list[Mapping[str, Any]]:
    """The schemas of one type each of which a value has to meet one. seen: references that were followed."""
    seen = set() if seen is None else seen
    if not isinstance(schema, Mapping):
        return [{}]
    if isinstance(reference := schema.get("$ref"), str):
        if reference in seen:
            return []
        seen.add(reference)
        return _alternatives(resolve(reference, root), root, seen)
    for name in ("anyOf", "oneOf", "allOf"):
        parts = as_list(schema.get(name))
        if name in schema and (set(schema) - _BESIDE - {name} or (name != "anyOf" and len(parts) != 1)):
            raise UnsupportedError(f"{name!r} of this kind cannot be enforced in this model's format of calls")
        if parts:
            return [one for part in parts for one in _alternatives(part, root, seen)]
    kinds = schema.get("type")
    if isinstance(kinds, list) and "enum" not in schema:
        return [{**schema, "type": kind} for kind in kinds]
    return [schema]


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    return as_list(schema.get("enum")) or [schema[name] for name in ("const",) if name in schema]


def _bare(rules: Rules, schema: Any, root: Any, end: str) -> str:
    """A value and what ends it, where strings have no quotation marks."""
    if "string" not in kinds_of(schema, root):
        return f"{rules.json(schema, root)} {rules.mark(end)}"
    found = []
    for part in _alternatives(schema, root):
        if choices := _choices(part):
            texts = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
            found.append(f"({' | '.join(map(rules.text, texts))}) {rules.mark(end)}")
        else:
            found.append(
                _string(rules, part, end)
                if part.get("type") == "string"
                else f"{rules.json(part, root)} {rules.mark(end)}"
            )
    return rules.any_of(found)


def _string(rules: Rules, schema: Mapping[str, Any], end: str) -> str:
    if lost := [name for name in _UNWRITTEN if name in schema]:
        raise UnsupportedError(f"{lost[0]!r} of a string cannot be enforced in this model's format of calls")
    check(schema)
    return rules.until(end)


def _by_name(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with its properties in the order in which Gemma's template writes them."""
    return {**schema, "properties": dict(sorted(properties_of(schema).items(), key=lambda item: item[0].lower()))}


def _gemma_value(rules: Rules, schema: Any, root: Any, depth: int = 0) -> str:
    """A value with `<|"|>` around strings, and names without quotation marks."""
    if depth > 8:
        raise UnsupportedError("values nested so deeply cannot be enforced in this model's format of calls")
    parts = _alternatives(schema, root)
    if not parts:
        raise UnsupportedError("a schema that refers to nothing but itself allows no value")
    return rules.any_of([_gemma_part(rules, part, root, depth) for part in parts])


def _gemma_part(rules: Rules, schema: Mapping[str, Any], root: Any, depth: int) -> str:
    quote = rules.mark(_QUOTE)
    if choices := _choices(schema):
        texts = [
            f"{quote} {rules.text(choice)} {quote}" if isinstance(choice, str) else rules.json({"const": choice})
            for choice in choices
        ]
        return rules.any_of(texts)
    kind = schema.get("type")
    if kind == "string":
        return f"{quote} {_string(rules, schema, _QUOTE)}"
    if kind == "array":
        if lost := sorted({"minItems", "maxItems", "prefixItems"}.intersection(schema)):
            raise UnsupportedError(f"{lost[0]!r} of an array cannot be enforced in this model's format of calls")
        item = _gemma_value(rules, schema.get("items"), root, depth + 1)
        return rules.rule(f"{rules.text('[')} ({item} ({rules.text(',')} {item})*)? {rules.text(']')}")
    if kind == "object":

        def write(name: str, part: Any, root: Any) -> str:
            return f"{rules.text(f'{name}:')} {_gemma_value(rules, part, root, depth + 1)}"

        members = _members(_by_name(schema), write, root)
        return rules.rule(f"{rules.text('{')} {rules.listed(members, ',')} {rules.text('}')}")
    if kind is None:
        raise UnsupportedError("a value without a type cannot be enforced in this model's format of calls")
    return rules.json(schema, root)
