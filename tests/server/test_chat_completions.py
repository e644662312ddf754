"""OpenAI's package as the client: each parameter has its effect, streamed = unstreamed = what `generate` says."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from mlx_vlgen import GenerationResult, batch_generate

from .conftest import SHAPES
from .serving import Loaded, Running

Body = dict[str, Any]


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    """The answer, which is the same streamed."""

    def ask(both: bool = True, **body: Any) -> Any:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, **body}
        whole = client.post(
            "/chat/completions", body={"model": "demo", **body}, cast_to=openai.types.chat.ChatCompletion
        )
        assert not both or streamed(client, body) == [seen(choice) for choice in whole.choices]
        return whole

    return ask


def streamed(client: openai.OpenAI, body: Body) -> list[Body]:
    """What a stream says of each choice, put together."""
    stream = client.chat.completions.create(
        model="demo", stream=True, stream_options={"include_usage": True}, messages=body["messages"],
        extra_body={key: value for key, value in body.items() if key != "messages"},
    )  # fmt: skip
    choices: dict[int, Body] = {}
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            so_far = choices.setdefault(choice.index, {"text": "", "thinking": "", "logprobs": [], "finish": None})
            so_far["text"] += choice.delta.content or ""
            so_far["thinking"] += getattr(choice.delta, "reasoning_content", None) or ""
            so_far["logprobs"] += choice.logprobs.content if choice.logprobs else []
            so_far["finish"] = choice.finish_reason or so_far["finish"]
    assert usage is not None and usage.completion_tokens > 0
    return [choices[index] for index in sorted(choices)]


def seen(choice: Any) -> Body:
    thinking = getattr(choice.message, "reasoning_content", None) or ""
    logprobs = choice.logprobs.content if choice.logprobs else []
    return {"text": choice.message.content, "thinking": thinking, "logprobs": logprobs, "finish": choice.finish_reason}


def text(answer: Any) -> str:
    return answer.choices[0].message.content


@pytest.fixture(scope="module")
def plain(ask: Callable[..., Any]) -> str:
    return text(ask())


def test_the_answer_is_that_of_generate(
    ask: Callable[..., Any], messages: list[Body], described: GenerationResult
) -> None:
    answer = ask(messages=messages, enable_thinking=True, max_tokens=24, thinking_budget=6)
    thinking = answer.choices[0].message.reasoning_content
    assert (text(answer), thinking) == (described.answer, described.thinking)
    assert answer.usage.completion_tokens_details.reasoning_tokens == described.thinking_tokens == 6
    assert answer.usage.prompt_tokens == described.prompt_tokens


DRAW = {"temperature": 2.0, "seed": 4}
SCHEMA = {"type": "object", "properties": {"circle": {"enum": ["red", "green", "blue"]}}, "required": ["circle"],
          "additionalProperties": False}  # fmt: skip


def test_each_parameter_has_its_effect(ask: Callable[..., Any], plain: str) -> None:
    drawn = text(ask(**DRAW))
    for name in ("max_tokens", "max_completion_tokens"):
        short = ask(**{"max_tokens": None, name: 3})
        assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    assert drawn != plain == text(ask(temperature=2.0, seed=2))
    for change in ({"top_p": 0.01}, {"top_k": 1}, {"min_p": 1.0}):
        assert text(ask(**{**DRAW, **change})) == plain, change
    longer = DRAW | {"max_tokens": 18, "both": False}
    without = text(ask(**longer))
    for change in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 3.0}):
        assert text(ask(**longer, **change)) != without, change
    word = plain.split()[1]
    assert text(ask(stop=[word])) == plain[: plain.index(word)]
    two = ask(**DRAW, n=2)
    assert text(two) == drawn != two.choices[1].message.content
    tolerated = {"user": "x", "metadata": {"a": "b"}, "store": False, "prompt_cache_key": "k", "service_tier": "auto"}
    for same in ({"prompt_lookup": 4, "reuse": False, **tolerated}, {"reuse": True, "temperature": 0}):
        assert text(ask(**same)) == plain, same
    assert text(ask(response_format={"type": "json_object"})).startswith("{") and not plain.startswith("{")
    form = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": SCHEMA}}
    assert json.loads(text(ask(response_format=form, max_tokens=20)))["circle"] in ("red", "green", "blue")


def test_thinking(ask: Callable[..., Any]) -> None:
    for change in ({"reasoning_effort": "low"}, {"chat_template_kwargs": {"enable_thinking": True}}):
        assert ask(**change).choices[0].message.reasoning_content
    assert "reasoning_content" not in ask(reasoning_effort="none").choices[0].message.model_extra


def test_logprobs_and_logit_bias(ask: Callable[..., Any], plain: str, loaded: Loaded) -> None:
    answer = ask(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == plain
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token for token in content)
    alone = ask(logprobs=True).choices[0].logprobs.content
    assert [token.logprob for token in alone] == pytest.approx([token.logprob for token in content], abs=1e-5)
    tokenizer = loaded[1].tokenizer
    banned = tokenizer.encode(content[1].token, add_special_tokens=False)[0]
    assert content[1].token not in [
        t.token for t in ask(logprobs=True, logit_bias={str(banned): -100}).choices[0].logprobs.content
    ]


AUDIO = {"type": "input_audio", "input_audio": {"data": "aaaa", "format": "wav"}}


@pytest.mark.parametrize(
    ("change", "param", "status"),
    [
        ({"foo": 1}, "foo", 400),
        ({"temperature": 3}, "temperature", 400),
        ({"top_logprobs": 2}, "top_logprobs", 400),
        ({"store": True}, "store", 400),
        ({"audio": {"voice": "x"}}, "audio", 400),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens", 400),
        ({"response_format": {"type": "yaml"}}, "response_format", 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "json_schema", 400),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", 400),
        ({"tool_choice": "required"}, "tool_choice", 400),
        ({"stream_options": {"include_usage": True}}, "stream_options", 400),
        ({"model": "gpt-7"}, "model", 404),
        ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "messages[0].weight", 400),
        ({"messages": [{"role": "user", "content": [AUDIO]}]}, None, 400),
        ({"messages": []}, "messages", 400),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(client: openai.OpenAI, change: Body, param: str | None, status: int) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], **change}
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert (caught.value.status_code, caught.value.param) == (status, param)
    assert caught.value.request_id


def test_files_below_the_media_path(client: openai.OpenAI) -> None:
    counts = set()
    for source, bound in ((SHAPES.name, {}), (SHAPES.as_uri(), {"max_pixels": 64 * 64})):
        content = [{"type": "image_url", "image_url": {"url": source}}, {"type": "text", "text": "Which shapes?"}]
        messages: Any = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=1, extra_body=bound)
        counts.add(answer.usage.prompt_tokens)
    assert len(counts) == 2


def test_many_clients_at_once(served: Running, client: openai.OpenAI, loaded: Loaded) -> None:
    """32 at once, half of them streamed, each with its own seed: what each has alone."""
    question = [{"role": "user", "content": "Sing."}]

    def one(seed: int) -> str:
        body: Body = {"model": "other", "messages": question, "temperature": 2, "seed": seed, "max_tokens": 6}
        if seed % 2:
            return text(client.chat.completions.create(**body))
        return "".join(
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)
        )

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, range(32)))
    alone = batch_generate(*loaded, prompts=[question] * 32, temperature=2.0, seed=list(range(32)), max_tokens=6)
    assert answers == [result.answer for result in alone.results] and len(set(answers)) > 4
    served.wait_until_idle()


def test_a_client_that_goes_away_frees_its_rows(served: Running, client: openai.OpenAI) -> None:
    body: Body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000, "n": 3,
                  "logit_bias": {"568": -100, "566": -100}}  # fmt: skip
    stream = client.chat.completions.create(**body, stream=True)
    next(iter(stream))
    assert sum(served.server.rows()) == 3
    stream.close()
    served.wait_until_idle()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(**body)
    served.wait_until_idle()
