"""Tool calls: read in any cuts, demanded by a grammar, and written by the chat templates that the formats come from."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants.family import Family

from mlx_vlgen import generate
from mlx_vlgen.engine.structured import Forms
from mlx_vlgen.errors import PromptError, UnsupportedError
from mlx_vlgen.inputs import chat_template
from mlx_vlgen.server.tools import FORMATS, Event, ToolCall, ToolFormat, to_template_messages, tool_format

HERE = Path(__file__).parent
TOKENIZERS = HERE.parent / "parity" / "reference" / "tokenizers"
BY_NAME = {form.name: form for form in FORMATS}
# How the published templates of these families write a call, and nothing else of them.
_GLM = """{% for m in messages if m.tool_calls %}{% for tc in m.tool_calls %}{{ '\n<tool_call>' + tc.function.name }}
{% for k, v in tc.function.arguments.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson if v is not string else v }}</arg_value>
{% endfor %}</tool_call>{% endfor %}{% endfor %}"""
_MISTRAL = """{% for m in messages if m.tool_calls %}{% for tc in m.tool_calls %}{{ '[TOOL_CALLS]' + tc.function.name
+ '[CALL_ID]' + tc.id + '[ARGS]' + tc.function.arguments | tojson }}{% endfor %}{% endfor %}"""
_MISTRAL_LIST = """{% for m in messages if m.tool_calls %}[TOOL_CALLS] [{% for tc in m.tool_calls %}{{
(tc.function | tojson)[:-1] + ', "id": "' + tc.id + '"}' }}{{ '' if loop.last else ', ' }}{% endfor %}]{% endfor %}"""
_LFM2 = """<|tool_list_start|>{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"""
_QUESTION = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{# tools #}"

# The published templates of Qwen3-VL, Qwen3.5, Gemma 4 and Llama 3.2 Vision, and those above.
TEMPLATES = {
    "hermes": (TOKENIZERS / "qwen" / "chat_template.jinja").read_text(),
    "tags": (TOKENIZERS / "qwen3_5" / "chat_template.jinja").read_text(),
    "gemma": (HERE / "tool_templates" / "gemma4.jinja").read_text(),
    "llama": (HERE / "tool_templates" / "llama.jinja").read_text(),
    "pairs": _QUESTION + _GLM,
    "mistral": _QUESTION + _MISTRAL,
    "mistral_list": _QUESTION + _MISTRAL_LIST,
    "pythonic": "{# tools #}" + _LFM2,
}

WEATHER = {
    "name": "weather",
    "description": "Tells it.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1},
            "unit": {"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}], "default": None},
            "at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
            "loud": {"type": "boolean"},
        },
        "required": ["city", "days"],
        "$defs": {"Unit": {"enum": ["1", "2"]}},
    },
}
STOP = {"name": "stop", "description": "Stops."}
ARGUMENTS = {"city": 'Saint-"Œuf"\n<b>', "days": 2, "unit": "1", "at": {"x": 4.5}, "loud": True}

# One call of each format, as its template writes it.
CALLS = {
    "mistral": '[TOOL_CALLS]weather[ARGS]{"city": "a\\"b", "days": 2, "unit": "1", "at": {"x": 4.5}}',
    "mistral_list": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "a\\"b", "days": 2, "unit": "1", '
    '"at": {"x": 4.5}}}]',
    "gemma": '<|tool_call>call:weather{at:{x:4.5},city:<|"|>a"b<|"|>,days:2,unit:<|"|>1<|"|>}<tool_call|>',
    "pythonic": '<|tool_call_start|>[weather(city="a\\"b", days=2, unit="1", at={"x": 4.5})]<|tool_call_end|>',
    "tags": '<tool_call>\n<function=weather>\n<parameter=city>\na"b\n</parameter>\n<parameter=days>\n2\n</parameter>\n'
    '<parameter=unit>\n1\n</parameter>\n<parameter=at>\n{"x": 4.5}\n</parameter>\n</function>\n</tool_call>',
    "pairs": '<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>a"b</arg_value>\n<arg_key>days</arg_key>\n'
    "<arg_value>2</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>1</arg_value>\n<arg_key>at</arg_key>\n"
    '<arg_value>{"x": 4.5}</arg_value>\n</tool_call>',
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "a\\"b", "days": 2, "unit": "1", '
    '"at": {"x": 4.5}}}\n</tool_call>',
    "llama": '{"name": "weather", "parameters": {"city": "a\\"b", "days": 2, "unit": "1", "at": {"x": 4.5}}}',
}
MARKS = (
    "<tool_call> </tool_call> <arg_key> </arg_key> <arg_value> </arg_value> [TOOL_CALLS] [ARGS] <|tool_call> "
    '<tool_call|> <|"|> <|tool_call_start|> <|tool_call_end|>'
).split()

every_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


@pytest.fixture(scope="module")
def demo(load_family: Callable[[str], Family]) -> Family:
    return load_family("demo")


def read(form: ToolFormat, pieces: Sequence[str]) -> list[Event]:
    """Events, with neighbouring texts joined."""
    parser, joined = form.parser([WEATHER, STOP]), []
    for event in [*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()]:
        if isinstance(event, str) and joined and isinstance(joined[-1], str):
            joined[-1] += event
        else:
            joined.append(event)
    return joined


def values(event: Event) -> tuple[str, Any]:
    assert isinstance(event, ToolCall)
    return event.name, json.loads(event.arguments)


@every_format
def test_what_a_template_writes_is_read(form: ToolFormat, demo: Family) -> None:
    template = TEMPLATES[form.name]
    assert tool_format(template) is form
    call = {"id": "call_12", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_12", "content": "sunny"},
    ]
    rendered = chat_template.render(
        demo.processor.tokenizer,
        template,
        chat_template.normalize(to_template_messages(messages, template)),
        frozenset(),
        frozenset(),
        tools=[{"type": "function", "function": WEATHER}],
    )
    text = "".join(segment.text for segment in rendered)
    begin = text.rfind('{"name": "weather"' if form.syntax.bare else form.syntax.begin)
    assert [values(event) for event in read(form, [text[begin:]]) if not isinstance(event, str)] == [
        ("weather", ARGUMENTS)
    ]


def test_messages_need_tools_and_arguments() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1'}}
    with pytest.raises(PromptError, match="knows no tools"):
        to_template_messages([{"role": "tool", "content": "x"}], "{{ messages }}")
    with pytest.raises(PromptError, match="arguments of 'f' are no JSON"):
        to_template_messages([{"role": "assistant", "tool_calls": [call]}], TEMPLATES["hermes"])
    assert tool_format((TOKENIZERS / "qwen2_vl" / "chat_template.jinja").read_text()) is None
    plain = [{"role": "assistant", "content": "x", "tool_calls": []}, {"role": "user", "content": "y"}]
    assert to_template_messages(plain, None) == [{"role": "assistant", "content": "x"}, plain[1]]


pieces_of_answers = st.lists(
    st.sampled_from([*CALLS.values(), *MARKS, *"{}[]\n ", "text", '{"name": "f"', ', "arguments": {', "call:f{", "f("])
    | st.text(max_size=4),
    max_size=8,
)


@every_format
@settings(max_examples=60)
@given(pieces=pieces_of_answers, data=st.data())
def test_streamed_is_unstreamed(form: ToolFormat, pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    streamed = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    events = read(form, [text])
    assert read(form, streamed) == read(form, text) == events
    shown = "".join(event for event in events if isinstance(event, str))
    assert shown == text or any(isinstance(event, ToolCall) for event in events)
    for event in events:
        if isinstance(event, ToolCall):
            assert isinstance(json.loads(event.arguments), dict)


@every_format
def test_a_call_among_text(form: ToolFormat) -> None:
    call = ("weather", {"city": 'a"b', "days": 2, "unit": "1", "at": {"x": 4.5}})
    before = "" if form.syntax.bare else "Let me see.\n\n"
    first, *rest = read(form, [f"{before}{CALLS[form.name]}\nDone. "])[bool(before) :]
    assert values(first) == call and rest == ["Done. "]
    cut = CALLS[form.name][:-3]
    assert read(form, [cut]) == [cut]  # an answer that ended within a call


def test_types_come_from_the_schema() -> None:
    parameters = (
        "<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=loud>\nFalse\n</parameter>"
    )
    (call,) = read(BY_NAME["tags"], [f"<tool_call>\n<function=weather>\n{parameters}\n</function>\n</tool_call>"])
    assert values(call) == ("weather", {"city": "12", "days": 3, "loud": False})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
         [("f", '{"x": "</tool_call>"}')]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', ['<tool_call>{"name": "f"}</tool_call>']),
        ("hermes", "The <tool_call> mark.", ["The <tool_call> mark."]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', None),
        ("hermes", f'<tool_call>{{"name": {"[" * 100000}</tool_call>', None),
        ("pythonic", "<|tool_call_start|>[f(a='it's', b=None), g()]<|tool_call_end|>",
         [("f", '{"a": "it\'s", "b": null}'), ("g", "{}")]),
        ("llama", '{"name": "Ann", "age": 3} is JSON', None),
        ("llama", 'It is {"name": "f", "parameters": {}}', None),
        ("llama", '<|python_tag|>{"name": "f", "parameters": {}}', [("f", "{}")]),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}[TOOL_CALLS]g[ARGS]{}', [("f", "{}"), ("g", "{}")]),
        ("tags", "<tool_call>\n<function=f>\n</function>\n</tool_call>", [("f", "{}")]),
        ("pairs", "<tool_call>f\n</tool_call>", [("f", "{}")]),
    ],
)  # fmt: skip
def test_what_is_a_call_and_what_is_text(name: str, text: str, expected: list[Any] | None) -> None:
    events = [(e.name, e.arguments) if isinstance(e, ToolCall) else e for e in read(BY_NAME[name], [text])]
    assert events == ([text] if expected is None else expected)


@every_format
@pytest.mark.parametrize("as_tokens", [False, True], ids=["text", "tokens"])
def test_a_grammar_holds_calls_to_their_schemas(form: ToolFormat, as_tokens: bool, demo: Family) -> None:
    tokenizer = demo.processor.tokenizer
    if as_tokens:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens(MARKS)
    marks = {mark: id for mark, id in tokenizer.get_added_vocab().items() if mark in MARKS}
    assert len(marks) == as_tokens * len(MARKS)

    def allows(text: str, **keywords: Any) -> bool:
        matcher = Forms.of(tokenizer).get("grammar", form.grammar([WEATHER, STOP], tokens=marks, **keywords)).begin()
        tokens = tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    call = CALLS[form.name]
    assert allows(call) and allows(call, choice="weather") and not allows(call, choice="stop")
    for right, wrong in [
        ("2", "0"),
        ("4.5", "true"),
        ("weather", "water"),
        ("weather", "stop"),
        ("days", "dates"),
        ("1", "3"),
    ]:
        assert not allows(call.replace(right, wrong, 1))
    assert not allows(call + "x") and not allows("Hi")
    if form.name in ("hermes", "tags", "pairs"):
        assert allows(f"{call}\n{call}") and not allows(f"{call}\n{call}", parallel=False)


@pytest.mark.parametrize(
    ("name", "schema", "error", "message"),
    [
        ("hermes", {"not": {}}, UnsupportedError, "tool 'f': json_schema at /properties/a: 'not' cannot be enforced"),
        ("tags", {"type": "string", "pattern": "x"}, UnsupportedError, "tool 'f': 'pattern' of a string"),
        ("pairs", {"not": {}}, UnsupportedError, "'not' cannot be enforced"),
        ("gemma", {}, UnsupportedError, "tool 'f': a value without a type"),
        ("tags", {"oneOf": [{"type": "string"}, {"type": "null"}]}, UnsupportedError, "'oneOf' of this kind"),
    ],
)
def test_what_cannot_be_enforced(name: str, schema: Any, error: type[Exception], message: str) -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}
    with pytest.raises(error, match=message):
        BY_NAME[name].grammar([tool])
    with pytest.raises(PromptError, match="tool_choice: 'g' is no tool; expected 'required' or one of: f"):
        BY_NAME[name].grammar([tool], choice="g")


@pytest.mark.parametrize("name", ["hermes", "tags"])
def test_an_answer_is_a_call(name: str, demo: Family) -> None:
    """By a model that knows no tools."""
    tool = {
        "name": "count",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "yes": {"enum": ["a", "b"]}},
            "required": ["n", "yes"],
            "additionalProperties": False,
        },
    }
    grammar = BY_NAME[name].grammar([tool], parallel=False)
    result = generate(demo.model, demo.processor, "How many?", grammar=grammar, max_tokens=120)
    (call,) = read(BY_NAME[name], [result.text])
    called, arguments = values(call)
    assert called == "count" and arguments["n"] in range(10) and arguments["yes"] in ("a", "b")
