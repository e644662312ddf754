"""Anthropic's package as the client, and OpenAI's for text completions."""

import json
from typing import Any

import anthropic
import openai
import pytest

from mlx_vlgen import GenerationResult, generate
from mlx_vlgen.server.anthropic import read_messages
from mlx_vlgen.server.media import MediaRules

from .serving import Loaded, Running

Body = dict[str, Any]
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def client(served: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)


def ask(client: anthropic.Anthropic, **body: Any) -> anthropic.types.Message:
    """The answer, which is the same streamed."""
    body = {"model": "demo", "max_tokens": 8, "messages": HI, **body}
    extra = {name: body.pop(name) for name in list(body) if name not in ("model", "max_tokens", "messages")}
    with client.messages.stream(**body, extra_body=extra) as stream:
        kinds = [event.type for event in stream if event.type not in ("text", "thinking", "input_json")]
        streamed = stream.get_final_message()
    whole = client.messages.create(**body, extra_body=extra)
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(whole.content)
    for answer in (streamed, whole):
        answer.id = ""
        answer.usage.input_tokens += answer.usage.cache_read_input_tokens  # the second one may find what the first did
        answer.usage.cache_read_input_tokens = 0
    assert streamed.to_dict(exclude_unset=False) | {"parsed": None} == whole.to_dict(exclude_unset=False) | {
        "parsed": None
    }
    return whole


def text(answer: anthropic.types.Message) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


def test_the_answer_is_that_of_generate(
    client: anthropic.Anthropic, described: GenerationResult, data_uri: str
) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": data_uri.partition(",")[2]}
    content = [{"type": "image", "source": source, "cache_control": {"type": "ephemeral"}},
               {"type": "text", "text": "Describe this image."}]  # fmt: skip
    thinking = {"type": "enabled", "budget_tokens": 6}
    answer = ask(client, messages=[{"role": "user", "content": content}], max_tokens=24, thinking=thinking)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert (answer.content[0].thinking, text(answer)) == (described.thinking, described.answer)
    assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", described.prompt_tokens)
    assert answer.usage.output_tokens == described.generation_tokens


def test_each_parameter_has_its_effect(client: anthropic.Anthropic) -> None:
    plain = text(ask(client))
    assert ask(client, max_tokens=3).stop_reason == "max_tokens"
    word = plain.split()[1]
    stopped = ask(client, stop_sequences=["zzz", word])
    assert (text(stopped), stopped.stop_reason) == (plain[: plain.index(word)], "stop_sequence")
    assert stopped.stop_sequence == word
    assert text(ask(client, temperature=2, seed=4)) != plain == text(ask(client, temperature=2, seed=4, top_k=1))
    assert text(ask(client, temperature=2, seed=4, top_p=0.01)) == plain
    assert text(ask(client, metadata={"user_id": "a"}, service_tier="auto")) == plain
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert json.loads(text(ask(client, output_config=form, max_tokens=20)))["a"] in ("x", "y")
    assert ask(client, thinking={"type": "adaptive"}).content[0].type == "thinking"
    begun = [*HI, {"role": "assistant", "content": plain[:16]}]
    assert plain[16:].startswith(text(ask(client, messages=begun, max_tokens=2)))


def test_count_tokens(client: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "Be brief."}]
    count = client.beta.messages.count_tokens(model="demo", messages=HI, system=system).input_tokens
    answer = ask(client, system=system)
    assert count == answer.usage.input_tokens > ask(client).usage.input_tokens


@pytest.mark.parametrize(
    ("change", "status", "kind", "named"),
    [
        ({"foo": 1}, 400, "invalid_request_error", "foo"),
        ({"model": "claude-x"}, 404, "not_found_error", "demo"),
        ({"thinking": {"type": "maybe"}}, 400, "invalid_request_error", "thinking.type"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            400,
            "invalid_request_error",
            "web_search",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, 400, "invalid_request_error", "document"),
        ({"context_management": {}}, 400, "invalid_request_error", "context_management"),
    ],
)
def test_errors_have_their_form(client: anthropic.Anthropic, change: Body, status: int, kind: str, named: str) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.post("/v1/messages", body={"model": "demo", "max_tokens": 1, "messages": HI, **change}, cast_to=object)
    error = caught.value.body["error"]
    assert (caught.value.status_code, error["type"]) == (status, kind) and named in error["message"]


def test_a_conversation_with_tools_as_ours() -> None:
    body = {"max_tokens": 1, "system": "S", "tools": [{"name": "f", "input_schema": {"type": "object"}}], "messages": [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": ""},
                                          {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "text", "text": "Now"},
                                     {"type": "tool_result", "tool_use_id": "1", "content": "ok", "is_error": True}]},
    ]}  # fmt: skip
    [messages] = read_messages(body, MediaRules(), None).prompts
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    texts = [{"type": "text", "text": "Error: "}, {"type": "text", "text": "ok"}]
    assert messages[1:] == [
        {"role": "assistant", "content": [], "tool_calls": [call], "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "1", "content": texts},
        {"role": "user", "content": [{"type": "text", "text": "Now"}]},
    ]


def test_completions(served: Running, loaded: Loaded) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    prompts = ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "red blue green red"]
    expected = [generate(*loaded, prompt, max_tokens=6).text for prompt in prompts]
    body: Body = {"model": "demo", "prompt": prompts, "max_tokens": 6, "logprobs": 2}
    whole = client.completions.create(**body)
    assert [choice.text for choice in whole.choices] == expected
    assert "".join(whole.choices[0].logprobs.tokens) == expected[0]
    assert whole.choices[0].logprobs.text_offset[1] == len(whole.choices[0].logprobs.tokens[0])
    streamed = ["", ""]
    for chunk in client.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected and chunk.usage.total_tokens == whole.usage.total_tokens
    ids = loaded[1].tokenizer.encode(prompts[1])
    assert client.completions.create(model="demo", prompt=ids, max_tokens=6).choices[0].text == expected[1]
    for change, param in (({"echo": True}, "echo"), ({"prompt": [[]]}, "prompt"), ({"suffix": "x"}, "suffix")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{**body, **change})
        assert caught.value.param == param


def test_models_health_and_metrics(served: Running) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["demo", "other"]
    assert (model := client.models.retrieve("demo")).owned_by == "mlx-vlgen"
    assert model.input_modalities == ["text", "image", "video"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")
    assert [model.id for model in anthropic.Anthropic(base_url=served.url, api_key="none").models.list()] == [
        "demo",
        "other",
    ]
    client.chat.completions.create(model="demo", messages=HI, max_tokens=3)  # type: ignore[arg-type]
    page = client._client.get(f"{served.url}/metrics").text
    for name in ("requests_total", "prompt_tokens_total", "cached_tokens_total", "generated_tokens_total",
                 "time_to_first_token_seconds_bucket", "time_between_tokens_seconds_bucket", "rows_running",
                 "rows_waiting", "memory_active_bytes", "disconnects_total"):  # fmt: skip
        assert f"mlx_vlgen_{name}" in page, name
    assert client._client.get(f"{served.url}/health").json()["status"] == "ok"
    assert client._client.post(f"{served.url}/health").status_code == 405
