"""What a model wrote between the marks of a call, as calls: a reader for each format."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Schemas = Mapping[str, Any]
"""The JSON schema of each tool's parameters, by the tool's name."""

_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_MAX_DEPTH = 64


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for. name: the tool's; arguments: a JSON object as text."""

    name: str
    arguments: str


class UnfinishedError(ValueError):
    """The text is no call yet, and could become one: its end mark may have been part of a string."""


Reader = Callable[[str, Schemas], list[ToolCall]]
"""A body and the tools' schemas to the calls in it. UnfinishedError, or ValueError for what can be none any more."""

Beginner = Callable[[str, Schemas], ToolCall | None]
"""The beginning of a body to that of its only call, whose arguments are a beginning of what the reader gives for the
whole body. None while no declared tool is named, and where there may be several calls."""


def read_json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def make_call(name: Any, arguments: Any) -> ToolCall:
    """ValueError where they are not a name and an object."""
    if isinstance(arguments, str):  # some models quote the whole object
        arguments = read_json(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call has a name, and an object of arguments")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    (name + text).encode()  # half a surrogate pair is an error here
    return ToolCall(name, text)


def read_json_calls(body: str, schemas: Schemas) -> list[ToolCall]:
    """`{"name": …, "arguments": {…}}`, or a list of such; Llama's have "parameters"."""
    try:
        value = read_json(body)
    except json.JSONDecodeError as error:
        raise UnfinishedError(str(error)) from None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise ValueError("no object with a name and arguments")
    made = [make_call(call.get("name"), call.get("arguments", call.get("parameters"))) for call in calls]
    return [_as_written(body, _JSON_HEAD, made[0])] if isinstance(value, dict) else made


def read_named_json(body: str, schemas: Schemas) -> list[ToolCall]:
    """Mistral's: `name[ARGS]{…}`, or in older checkpoints a JSON list."""
    if head := _NAMED_HEAD.match(body):
        try:
            return [_as_written(body, _NAMED_HEAD, make_call(head["name"], read_json(body[head.end() :])))]
        except json.JSONDecodeError as error:
            raise UnfinishedError(str(error)) from None
    return read_json_calls(body, schemas)


_JSON_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAMED_HEAD = re.compile(r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
_JSON_MARK = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\Z)|[{}\[\]]', re.DOTALL)


def _as_written(body: str, head: re.Pattern[str], call: ToolCall) -> ToolCall:
    """The call with its arguments as the model wrote them, which a stream has handed out before they were whole."""
    begun = _begin_written(body, head)
    if begun and begun.name != call.name:
        raise ValueError("a call has one name")
    return begun or call


def _begin_written(body: str, head: re.Pattern[str]) -> ToolCall | None:
    if not (begin := head.match(body)):
        return None
    depth = 0
    for mark in _JSON_MARK.finditer(body, begin.end()):
        depth += (mark[0] in "{[") - (mark[0] in "}]")
        if not depth:
            return ToolCall(begin["name"], body[begin.end() : mark.end()])
    return ToolCall(begin["name"], body[begin.end() :])


def begin_json_call(body: str, schemas: Schemas) -> ToolCall | None:
    call = _begin_written(body, _JSON_HEAD)
    return call if call and call.name in schemas else None


def begin_named_json(body: str, schemas: Schemas) -> ToolCall | None:
    call = _begin_written(body, _NAMED_HEAD)
    return call if call and call.name in schemas else None


@dataclass(frozen=True)
class _Tagged:
    """head: up to the tool's name. argument: one, with its name and its value. last: what may follow the last one, at
    the body's end; another: what begins one. opening: an argument up to its value; end: what may end that."""

    head: re.Pattern[str]
    argument: str
    another: str
    last: str
    opening: re.Pattern[str]
    end: str

    @cached_property
    def whole(self) -> re.Pattern[str]:
        return re.compile(rf"{self.argument}(?=\s*(?:{self.another}|{self.last}\Z))", re.DOTALL)

    @cached_property
    def settled(self) -> re.Pattern[str]:
        """An argument that no further text makes longer."""
        return re.compile(rf"{self.argument}(?=\s*{self.another})", re.DOTALL)

    @cached_property
    def tail(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{self.last}\Z")


_TAGS = _Tagged(
    re.compile(r"\s*<function=([^>\n]+)>"),
    r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>",
    "<parameter=",
    r"</function>\s*",
    re.compile(r"\s*<parameter=([^>\n]+)>(?:\n|(?=[^\n]))"),
    "\n</parameter>",
)
_PAIRS = _Tagged(
    re.compile(r"\s*([\w.:-]+)(?=\s|<|\Z)"),
    r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>",
    "<arg_key>",
    "",
    re.compile(r"\s*<arg_key>((?:(?!</arg_key>).)*)</arg_key>\s*<arg_value>", re.DOTALL),
    "</arg_value>",
)


def read_tags(body: str, schemas: Schemas) -> list[ToolCall]:
    """Qwen3-Coder's: `<function=f><parameter=a>…</parameter></function>`, with values that their schemas type."""
    return _read_tagged(body, _TAGS, schemas)


def read_pairs(body: str, schemas: Schemas) -> list[ToolCall]:
    """GLM's: `f`, and then `<arg_key>a</arg_key><arg_value>…</arg_value>`, with values that their schemas type."""
    return _read_tagged(body, _PAIRS, schemas)


def begin_tags(body: str, schemas: Schemas) -> ToolCall | None:
    return _begin_tagged(body, _TAGS, schemas)


def begin_pairs(body: str, schemas: Schemas) -> ToolCall | None:
    return _begin_tagged(body, _PAIRS, schemas)


def _read_tagged(body: str, form: _Tagged, schemas: Schemas) -> list[ToolCall]:
    if not (begin := form.head.match(body)):
        raise ValueError("a call begins with the tool's name")
    arguments, at = _tagged_arguments(body, begin, form.whole, schemas.get(begin[1]))
    if not form.tail.match(body, at):
        raise UnfinishedError("text beside the arguments")
    return [make_call(begin[1], arguments)]


def _tagged_arguments(
    body: str, begin: re.Match[str], argument: re.Pattern[str], schema: Any
) -> tuple[dict[str, Any], int]:
    """The arguments after the head, and where they end. ValueError for one that is given twice."""
    properties, arguments, at = properties_of(schema), dict[str, Any](), begin.end()
    while match := argument.match(body, at):
        if match[1] in arguments:
            raise ValueError(f"{match[1]!r:.80} is given twice")
        arguments[match[1]] = _typed(match[2], properties.get(match[1]), schema)
        at = match.end()
    return arguments, at


def _begin_tagged(body: str, form: _Tagged, schemas: Schemas) -> ToolCall | None:
    """Strings come as they are written, other values once they are whole: only their end tells their type."""
    begin = form.head.match(body)
    if not begin or begin[1] not in schemas or begin.end() == len(body):
        return None
    schema = schemas[begin[1]]
    try:
        arguments, at = _tagged_arguments(body, begin, form.settled, schema)
    except ValueError:
        return None
    text = json.dumps(arguments, ensure_ascii=False)[:-1]
    opening = form.opening.match(body, at)
    if opening and opening[1] not in arguments:
        kinds = kinds_of(properties_of(schema).get(opening[1]), schema)
        if "string" in kinds and "null" not in kinds:
            value = body[opening.end() :]
            end = value.find(form.end.strip())
            value = value[: max(0, len(value) - len(form.end))] if end < 0 else value[:end].removesuffix("\n")
            name = json.dumps(opening[1], ensure_ascii=False)
            text += f"{', ' if arguments else ''}{name}: {json.dumps(value, ensure_ascii=False)[:-1]}"
    return ToolCall(begin[1], text)


def _typed(text: str, schema: Any, root: Any) -> Any:
    """A value that was written without quotation marks, as its schema has it; a string where nothing tells."""
    kinds = kinds_of(schema, root)
    try:
        value = _CONSTANTS[text.strip()] if text.strip() in _CONSTANTS else read_json(text)
    except ValueError:
        return text
    return text if "string" in kinds and not (value is None and "null" in kinds) else value


def kinds_of(schema: Any, root: Any, seen: set[str] | None = None) -> set[str]:
    """The types that a schema names; none where it allows any. root: the schema that its references are of. seen:
    references that were followed."""
    seen = set() if seen is None else seen
    if not isinstance(schema, Mapping):
        return set()
    if isinstance(reference := schema.get("$ref"), str):
        if reference in seen:
            return set()
        seen.add(reference)
        return kinds_of(resolve(reference, root), root, seen)
    kinds = schema.get("type")
    found = {kinds} if isinstance(kinds, str) else set(map(str, as_list(kinds)))
    values = [*as_list(schema.get("enum")), *([schema["const"]] if "const" in schema else ())]
    found |= {"string" if isinstance(value, str) else "null" if value is None else "other" for value in values}
    for name in ("anyOf", "oneOf", "allOf"):
        for part in as_list(schema.get(name)):
            found |= kinds_of(part, root, seen)
    return found


def as_list(value: Any) -> list[Any]:
    """A schema's list; empty for anything else, which nothing has checked."""
    return value if isinstance(value, list) else []


def properties_of(schema: Any) -> Mapping[str, Any]:
    """The parameters of a tool, by name."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def resolve(reference: str, root: Any) -> Any:
    """What a reference like `#/$defs/Color` names; None where there is nothing."""
    for step in reference.removeprefix("#/").split("/"):
        root = root.get(step) if isinstance(root, Mapping) else None
    return root


_STRING = re.compile(
    # A quotation mark ends a string only before what may follow one: LFM2's template escapes no apostrophe.
    r"""<\|"\|>(.*?)<\|"\|>|(["'])((?:\\.|[^\\])*?)\2(?=\s*(?:[,:)\]}]|\Z))""",
    re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?(?![\w.])")
_NAME = re.compile(r"[\w.-]+")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}


class _Literals:
    """Reads values as Python, JSON and Gemma write them, one after another."""

    def __init__(self, text: str):
        self._text, self._at = text, 0

    def accept(self, pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        """What comes next, white space aside, if it is that."""
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        match = re.compile(pattern).match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match

    def expect(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        if match := self.accept(pattern):
            return match
        raise UnfinishedError(f"something else at character {self._at}")

    def value(self, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if self.accept(r"\["):
            return [self.value(depth + 1) for _ in self.items(r"\]")]
        if self.accept(r"\{"):
            return self.pairs(r"\}", ":", depth + 1)
        if match := self.accept(_STRING):
            return match[1] if match[2] is None else _unescape(match[3])
        if match := self.accept(_NUMBER):
            return float(match[0]) if match[1] or match[2] else int(match[0])
        name = self.expect(_NAME)[0]
        if name not in _CONSTANTS:
            raise ValueError(f"{name} is no value")
        return _CONSTANTS[name]

    def pairs(self, end: str, sign: str, depth: int = 0) -> dict[str, Any]:
        """Names, each with a value after a sign. Names may stand in quotation marks."""
        found: dict[str, Any] = {}
        for _ in self.items(end):
            quoted = self.accept(_STRING)
            name = (quoted[1] or quoted[3] or "") if quoted else self.expect(_NAME)[0]
            self.expect(sign)
            found[name] = self.value(depth)
        return found

    def items(self, end: str) -> Iterator[None]:
        """Yields before each item of a list with commas, and passes its end."""
        while not self.accept(end):
            yield
            if not self.accept(","):
                self.expect(end)
                return


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        escape = match[1]
        if escape[0] in "ux" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        return _ESCAPED.get(escape, escape if escape in "\\/'\"" else match[0])

    return _ESCAPE.sub(character, text).encode("utf-16", "surrogatepass").decode("utf-16")


def read_gemma(body: str, schemas: Schemas) -> list[ToolCall]:
    """Gemma 4's: `call:f{a:<|"|>text<|"|>,b:1}`."""
    literals = _Literals(body)
    literals.expect("call:")
    name = literals.expect(r"[\w.:-]+")[0]
    literals.expect(r"\{")
    call = make_call(name, literals.pairs(r"\}", ":"))
    literals.expect(r"\Z")
    return [call]


def read_pythonic(body: str, schemas: Schemas) -> list[ToolCall]:
    """LFM2's: `[f(a="text", b=1), g()]`, or the same as JSON."""
    if re.match(r"\s*\[\s*\{", body):
        return read_json_calls(body, schemas)
    literals, calls = _Literals(body), []
    literals.expect(r"\[")
    for _ in literals.items(r"\]"):
        name = literals.expect(_NAME)[0]
        literals.expect(r"\(")
        calls.append(make_call(name, literals.pairs(r"\)", "=")))
    literals.expect(r"\Z")
    return calls
