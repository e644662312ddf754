"""What a model wrote between the marks of a call, as calls: a reader for each format."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    return [make_call(call.get("name"), call.get("arguments", call.get("parameters"))) for call in calls]


def read_named_json(body: str, schemas: Schemas) -> list[ToolCall]:
    """Mistral's: `name[ARGS]{…}`, or in older checkpoints a JSON list."""
    if head := re.match(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)", body):
        try:
            return [make_call(head[1], read_json(body[head.end() :]))]
        except json.JSONDecodeError as error:
            raise UnfinishedError(str(error)) from None
    return read_json_calls(body, schemas)


_PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|</function>\s*\Z))", re.DOTALL
)
_PAIR = re.compile(
    r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>(?=\s*(?:<arg_key>|\Z))", re.DOTALL
)  # fmt: skip


def read_tags(body: str, schemas: Schemas) -> list[ToolCall]:
    """Qwen3-Coder's: `<function=f><parameter=a>…</parameter></function>`, with values that their schemas type."""
    return _read_tagged(body, r"\s*<function=([^>\n]+)>", _PARAMETER, r"\s*</function>\s*\Z", schemas)


def read_pairs(body: str, schemas: Schemas) -> list[ToolCall]:
    """GLM's: `f`, and then `<arg_key>a</arg_key><arg_value>…</arg_value>`, with values that their schemas type."""
    return _read_tagged(body, r"\s*([\w.:-]+)(?=\s|<|\Z)", _PAIR, r"\s*\Z", schemas)


def _read_tagged(body: str, head: str, argument: re.Pattern[str], tail: str, schemas: Schemas) -> list[ToolCall]:
    if not (begin := re.match(head, body)):
        raise ValueError("a call begins with the tool's name")
    schema = schemas.get(begin[1])
    properties = properties_of(schema)
    arguments, at = {}, begin.end()
    while match := argument.match(body, at):
        arguments[match[1]] = _typed(match[2], properties.get(match[1]), schema)
        at = match.end()
    if not re.compile(tail).match(body, at):
        raise UnfinishedError("text beside the arguments")
    return [make_call(begin[1], arguments)]


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
