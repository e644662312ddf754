"""Tool calls whose arguments are handed out while they come."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.test_tools import BY_NAME, CALLS, STOP, WEATHER, pieces_of_answers

from mlx_vlgen.server.anthropic_format import MessagesFormat
from mlx_vlgen.server.call import Answer, Delta, Usage
from mlx_vlgen.server.openai_format import ChatFormat
from mlx_vlgen.server.reply import Format
from mlx_vlgen.server.responses import Said
from mlx_vlgen.server.responses_format import ResponsesFormat
from mlx_vlgen.server.tool_use import CallReader

STREAMED = [name for name, form in BY_NAME.items() if form.syntax.begin_call]
LONG = {"city": 'line "one"\n\tdef f(x): return "<tool_call>"\nŒ é\\', "days": 2, "unit": "1", "at": {"x": 4.5}}


def deltas(name: str, pieces: Sequence[str], parallel: bool = True) -> list[Delta]:
    reader, found = CallReader(BY_NAME[name].parser([WEATHER, STOP]), parallel), []
    for i, piece in enumerate([*pieces, ""]):
        text, tools = reader.read(piece, over=i == len(pieces))
        found.append(Delta(text=text, tools=tools))
    return found


def joined(found: Sequence[Delta]) -> Answer:
    answer = Answer()
    for delta in found:
        answer.add(delta)
    return answer


def calls(answer: Answer) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in answer.tools]


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_joined_pieces_are_the_whole(name: str, size: int) -> None:
    text = CALLS[name] + "\nDone."
    found = deltas(name, [text[i : i + size] for i in range(0, len(text), size)])
    assert calls(joined(found)) == calls(joined(deltas(name, [text])))
    assert joined(found).text == "Done."
    arguments = [piece.arguments for delta in found for piece in delta.tools]
    assert (len(arguments) > 1) == (name in STREAMED)
    assert json.loads("".join(arguments)) == {"city": 'a"b', "days": 2, "unit": "1", "at": {"x": 4.5}}


@pytest.mark.parametrize("name", STREAMED)
def test_a_long_string_comes_as_it_is_written(name: str) -> None:
    quoted = name not in ("tags", "pairs")
    text = CALLS[name].replace('a\\"b' if quoted else 'a"b', json.dumps(LONG["city"])[1:-1] if quoted else LONG["city"])
    found = deltas(name, list(text))
    [call] = joined(found).tools
    assert json.loads(call.arguments) == LONG
    pieces = [piece.arguments for delta in found for piece in delta.tools]
    assert max(map(len, pieces)) < 80 and len(pieces) > 40


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=60)
@given(pieces=pieces_of_answers, data=st.data())
def test_whole_calls_do_not_depend_on_the_cuts(name: str, pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    found = deltas(name, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    whole = [event for event in BY_NAME[name].parser([WEATHER, STOP]).feed(text) if not isinstance(event, str)]
    streamed = calls(joined(found))
    assert [call for call in streamed if call in [(event.name, event.arguments) for event in whole]] == [
        (event.name, event.arguments) for event in whole
    ]
    for delta in found:  # pieces of an open call come first, so that no text stands between
        assert all(piece.name is not None for piece in delta.tools[1:])


@pytest.mark.parametrize("name", STREAMED)
def test_a_call_that_is_cut_stays_one(name: str) -> None:
    cut = CALLS[name][:-30]
    answer, whole = joined(deltas(name, list(cut))), joined(deltas(name, [cut]))
    assert calls(answer) == calls(whole) and answer.text == whole.text == ""
    [call] = answer.tools
    assert call.name == "weather" and call.arguments.startswith('{"city": "a\\"b"')
    assert MessagesFormat("m").whole([Answer(tools=answer.tools, finish="length")])["content"][0]["input"] == {}


def test_a_malformed_call_is_text_too() -> None:
    text = (
        '<tool_call>{"name": "stop", "arguments": {"a": oh}}</tool_call> <tool_call>{"name": "stop", "arguments": {}}'
    )
    answer = joined(deltas("hermes", [*text, "</tool_call>"]))
    assert calls(answer) == [("stop", '{"a": oh}'), ("stop", "{}")]
    assert answer.text == text[: text.index(" <tool_call>")]


def events(form: Format, found: Sequence[Delta]) -> list[Any]:
    stream = b"".join(form.delta(0, delta) for delta in [*found, Delta(finish="tool_calls", usage=Usage())])
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


def test_each_interface_streams_the_pieces() -> None:
    text = f"Look.\n{CALLS['hermes']}\nThen.\n{CALLS['hermes']}"
    found = deltas("hermes", list(text))
    first, second = (call.arguments for call in joined(found).tools)

    pieces = [call for chunk in events(ChatFormat("m"), found)
              for call in chunk["choices"][0]["delta"].get("tool_calls", [])]  # fmt: skip
    assert [piece["index"] for piece in pieces if "id" in piece] == [0, 1] and len(pieces) > 20
    for index, arguments in enumerate((first, second)):
        assert "".join(p["function"]["arguments"] for p in pieces if p["index"] == index) == arguments

    blocks: dict[int, str] = {}
    kinds = []
    for event in events(MessagesFormat("m"), found):
        if event["type"] == "content_block_start":
            kinds.append(event["content_block"]["type"])
            blocks[event["index"]] = ""
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(kinds) - 1  # the one that is open
            blocks[event["index"]] += event["delta"].get("partial_json", "") or event["delta"].get("text", "")
    assert kinds == ["text", "tool_use", "text", "tool_use"]
    assert list(blocks.values()) == ["Look.", first, "Then.", second]

    said = Said({"store": False}, [], False)
    found_events = events(ResponsesFormat("m", said, lambda *_: None), found)
    pieces = [event for event in found_events if event["type"] == "response.function_call_arguments.delta"]
    done = [event for event in found_events if event["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == [first, second] and len(pieces) > 20
    for event in done:
        assert "".join(p["delta"] for p in pieces if p["item_id"] == event["item_id"]) == event["arguments"]
