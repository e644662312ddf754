"""OpenAI's responses, by its own package: whole, streamed event by event, gone on with, cancelled."""

import json
from typing import Any

import openai
import pytest

from mlx_vlgen import GenerationResult
from mlx_vlgen.server.responses import Talks

from .serving import Running

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip
ENDLESS = {"logit_bias": {"568": -100, "566": -100}}


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **body: Any) -> Any:
    """The response, which is the same streamed; its events come in their order."""
    body = {"model": "demo", "input": "Hi", "max_output_tokens": 4, **body}
    whole = client.post("/responses", body=body, cast_to=openai.types.responses.Response)
    stream = client.post("/responses", body=body | {"stream": True}, cast_to=openai.types.responses.Response,
                         stream=True, stream_cls=openai.Stream[openai.types.responses.ResponseStreamEvent])  # fmt: skip
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1].response
    assert events[-1].type == f"response.{last.status}" and last.output_text == whole.output_text
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == added == [item.id for item in last.output]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == last.output_text and last.usage.total_tokens == whole.usage.total_tokens
    assert [item.type for item in last.output] == [item.type for item in whole.output]
    return whole


def test_an_answer_with_a_picture_and_thoughts(
    client: openai.OpenAI, data_uri: str, described: GenerationResult
) -> None:
    content = [{"type": "input_image", "image_url": data_uri, "detail": "auto"},
               {"type": "input_text", "text": "Describe this image."}]  # fmt: skip
    response = ask(client, input=[{"role": "user", "content": content}], reasoning={"effort": "low"},
                   thinking_budget=6, max_output_tokens=24)  # fmt: skip
    thoughts, message = response.output
    assert (thoughts.content[0].text, response.output_text) == (described.thinking, described.answer)
    assert (message.role, response.status, response.usage.input_tokens) == (
        "assistant",
        "completed",
        described.prompt_tokens,
    )
    assert response.usage.output_tokens_details.reasoning_tokens == 6


def test_parameters(client: openai.OpenAI) -> None:
    plain = ask(client)
    assert (plain.status, plain.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert ask(client, instructions="Be brief.").usage.input_tokens > plain.usage.input_tokens
    form = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
    assert json.loads(ask(client, text=form, max_output_tokens=20).output_text)["a"] in ("x", "y")
    for param, change in {
        "foo": {"foo": 1},
        "background": {"background": True},
        "truncation": {"truncation": "auto"},
        "tools[0]": {"tools": [{"type": "web_search"}]},
        "input[0]": {"input": [{"type": "x"}]},
        "reasoning.effort": {"reasoning": {"effort": "much"}},
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/responses", body={"model": "demo", "input": "Hi", **change}, cast_to=object)
        assert caught.value.param == param


def test_a_talk_goes_on(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input="Hi", max_output_tokens=4)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(model="demo", input="Why?", previous_response_id=first.id, max_output_tokens=2)
    whole = [{"role": "user", "content": "Hi"}, *first.output, {"role": "user", "content": "Why?"}]
    items: Any = [item if isinstance(item, dict) else item.model_dump(exclude_none=True) for item in whole]
    same = client.responses.create(model="demo", input=items, max_output_tokens=2, store=False)
    assert (second.usage.input_tokens, second.output_text) == (same.usage.input_tokens, same.output_text)
    client.responses.delete(first.id)
    for gone in (first.id, same.id):
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="demo", input="Why?", previous_response_id=gone)


def test_cancelling(client: openai.OpenAI, served: Running) -> None:
    stream = client.responses.create(model="demo", input="Hi", stream=True, extra_body=ENDLESS)
    events = iter(stream)
    id = next(events).response.id
    next(event for event in events if event.type == "response.output_text.delta")
    assert client.responses.cancel(id).status == "cancelled"
    *_, last = events
    assert (last.type, last.response.status) == ("response.incomplete", "cancelled") and last.response.output_text
    served.wait_until_idle()
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel(id)


def test_talks_have_a_bound() -> None:
    talks = Talks(max_bytes=1000)
    for name in "abc":
        talks.add(name, [{"role": "user", "content": "x" * 400}], {})
    assert talks.messages("c") and talks.messages("b")
    with pytest.raises(Exception, match="not kept"):
        talks.messages("a")
