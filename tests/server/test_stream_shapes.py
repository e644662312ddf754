"""Streams event by event, in the shapes that are documented: OpenAI's (API reference, "Streaming"), vLLM's (reasoning
outputs) and Anthropic's ("Streaming messages")."""

import json
from typing import Any

from mlx_vlgen.server.anthropic_format import MessagesFormat
from mlx_vlgen.server.call import Delta, ToolPiece, Usage
from mlx_vlgen.server.errors import ApiError
from mlx_vlgen.server.openai_format import ChatFormat
from mlx_vlgen.server.reply import Format

USAGE = Usage(prompt=25, cached=5, completion=15, reasoning=2)
DELTAS = [
    Delta(thinking="Hm."), Delta(text="Hello"), Delta(text="!"),
    Delta(tools=[ToolPiece(0, "get_weather", '{"location": "Paris"}')]), Delta(finish="tool_calls", usage=USAGE),
]  # fmt: skip


def events(form: Format) -> list[Any]:
    """(the event's name, its data)."""
    stream = form.begin([Usage(25)]) + b"".join(form.delta(0, delta) for delta in DELTAS) + form.end([USAGE])
    found = []
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        *name, data = block.split("\n")
        data = data.removeprefix("data: ")
        found.append(("".join(name).removeprefix("event: "), data if data == "[DONE]" else json.loads(data)))
    return found


def test_chat_completions() -> None:
    *chunks, usage, done = [data for _, data in events(ChatFormat("m", True, id="chatcmpl-123", created=1694268190))]
    head = {"id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1694268190, "model": "m"}
    for chunk in chunks:
        assert chunk.items() >= {**head, "usage": None}.items()
        assert chunk["choices"][0].keys() == {"index", "delta", "logprobs", "finish_reason"}
    deltas = [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]
    call = deltas[4][0]["tool_calls"][0]
    assert call.pop("id").startswith("call_")
    assert call == {"index": 0, "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"location": "Paris"}'}}  # fmt: skip
    assert [delta for delta, _ in deltas[:4]] == [
        {"role": "assistant", "content": ""}, {"reasoning_content": "Hm."}, {"content": "Hello"}, {"content": "!"},
    ]  # fmt: skip
    assert [finish for _, finish in deltas] == [None] * 5 + ["tool_calls"] and deltas[-1][0] == {}
    assert usage["choices"] == [] and done == "[DONE]"
    assert usage["usage"] == {
        "prompt_tokens": 25, "completion_tokens": 15, "total_tokens": 40,
        "prompt_tokens_details": {"cached_tokens": 5}, "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip


def test_messages() -> None:
    found = events(MessagesFormat("m", id="msg_1"))
    assert all(name == data["type"] for name, data in found)
    data = [data for _, data in found]
    call = data[9]["content_block"]
    assert call.pop("id").startswith("toolu_")
    assert data == [
        {"type": "message_start", "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": {"input_tokens": 25, "cache_creation_input_tokens": 0,
                                             "cache_read_input_tokens": 0, "output_tokens": 0}}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0,
         "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "!"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2,
         "content_block": {"type": "tool_use", "name": "get_weather", "input": {}}},
        {"type": "content_block_delta", "index": 2,
         "delta": {"type": "input_json_delta", "partial_json": '{"location": "Paris"}'}},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"input_tokens": 20, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 5,
                   "output_tokens": 15}},
        {"type": "message_stop"},
    ]  # fmt: skip


def test_errors_inside_a_stream() -> None:
    error = ApiError(503, "It stops.", code="stopping")
    assert ChatFormat("m").error(error).startswith(b'data: {"error":{"message":"It stops.","type":"server_error"')
    assert MessagesFormat("m").error(error) == (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"It stops."}}\n\n'
    )
