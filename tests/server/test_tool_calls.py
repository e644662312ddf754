"""Tools through the clients. The built-in model knows none: its template is given Hermes's format, to which a demanded
call is held."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from langchain_openai import ChatOpenAI

from mlx_vlgen.server.models import Source

from .serving import Loaded, Running, running

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip
CALLED = {"name": "f", "description": "?", "parameters": SCHEMA}
TOOLS: Any = [{"type": "function", "function": {**CALLED, "strict": True}}]
HI: Any = [{"role": "user", "content": "Hi"}]
TEMPLATE = """{%- if tools %}<|im_start|>system
Calls are written in <tool_call></tool_call>: {{ tools | tojson }}<|im_end|>
{% endif %}{%- for message in messages %}{%- for call in message.tool_calls or [] %}
<tool_call>{{ call.function | tojson }}{%- endfor %}{%- endfor %}"""


@pytest.fixture(scope="module")
def tooled(loaded: Loaded) -> Iterator[Running]:
    model, processor = loaded
    speaking = dataclasses.replace(processor, chat_template=TEMPLATE + processor.chat_template)
    with running({"demo": Source(lambda: (model, speaking)), "mute": Source(lambda: loaded)}) as server:
        yield server


@pytest.fixture(scope="module")
def client(tooled: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0)


def test_a_demanded_call_fits_its_schema(tooled: Running, client: openai.OpenAI) -> None:
    choice: Any = "required"
    body: Any = {"model": "demo", "messages": HI, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    [choice] = client.chat.completions.create(**body).choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "f")
    assert json.loads(call.function.arguments)["a"] in ("x", "y")
    body["tool_choice"] = {"type": "function", "function": {"name": "f"}}
    with client.chat.completions.stream(**body) as stream:
        [streamed] = stream.get_final_completion().choices
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    assert (streamed.finish_reason, streamed.message.content or None) == ("tool_calls", None)
    tooled.wait_until_idle()


def test_messages_with_calls_and_their_results(client: openai.OpenAI) -> None:
    function = {"name": "f", "arguments": '{"a": "x"}'}
    called = [*HI, {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]},
              {"role": "tool", "tool_call_id": "a", "content": "done"}]  # fmt: skip
    counts = [
        client.chat.completions.create(model="demo", messages=messages, tools=TOOLS, max_tokens=1).usage.prompt_tokens
        for messages in (HI, called)
    ]
    assert counts[0] < counts[1]
    without = client.chat.completions.create(model="demo", messages=HI, tools=TOOLS, tool_choice="none", max_tokens=1)
    assert without.usage.prompt_tokens < counts[0]


@pytest.mark.parametrize(
    ("change", "param"),
    [({"model": "mute"}, "tools"), ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
     ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
     ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]}, "tools[0].function.parameters")],
)  # fmt: skip
def test_what_cannot_be_called_is_named(client: openai.OpenAI, change: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "demo", "messages": HI, "tools": TOOLS, **change})
    assert caught.value.param == param


def test_anthropics_client(tooled: Running) -> None:
    client = anthropic.Anthropic(base_url=tooled.url, api_key="none", max_retries=0)
    tool = {"name": "f", "description": "?", "input_schema": SCHEMA}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body: Any = {"model": "demo", "max_tokens": 60, "messages": HI, "tools": [tool], "tool_choice": choice}
    with client.messages.stream(**body) as stream:
        answer = stream.get_final_message()
    [call] = answer.content
    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "f")
    assert call.input["a"] in ("x", "y")


def test_langchain_with_a_picture_and_with_a_tool(tooled: Running, messages: Any) -> None:
    chat = ChatOpenAI(base_url=f"{tooled.url}/v1", api_key="none", model="demo", max_tokens=60, temperature=0)
    content = messages[0]["content"]
    assert "red circle" in chat.invoke([("human", content)]).content
    caller = chat.bind_tools(TOOLS, tool_choice="f", parallel_tool_calls=False)
    [call] = caller.invoke("Hi").tool_calls
    assert call["name"] == "f" and call["args"]["a"] in ("x", "y")
