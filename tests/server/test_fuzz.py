"""A seeded fuzz of bodies: each is read, or refused by an `ApiError`, and nothing else comes out; also over HTTP.

`pytest -m load -n 0 tests/server/test_fuzz.py`; FUZZ_BODIES (5,000), FUZZ_HTTP_BODIES (2,000), FUZZ_SEED (0).
"""

import base64
import copy
import io
import json
import os
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from mlx_vlgen.server.anthropic import read_messages
from mlx_vlgen.server.body import parse
from mlx_vlgen.server.completions import read_completion
from mlx_vlgen.server.errors import ApiError, dump
from mlx_vlgen.server.media import MediaRules
from mlx_vlgen.server.models import Source
from mlx_vlgen.server.openai import read_chat
from mlx_vlgen.server.responses import Talks, read_response

from .serving import Loaded, running
from .test_tool_calls import TEMPLATE

HTTP_BODIES = int(os.environ.get("FUZZ_HTTP_BODIES", "2000"))
BODIES, SEED = int(os.environ.get("FUZZ_BODIES", "5000")), int(os.environ.get("FUZZ_SEED", "0"))
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
SOURCE = {"type": "base64", "media_type": "image/png", "data": "AA=="}

CHAT = {
    "model": "demo", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3, "stop": ["a"], "n": 2,
    "temperature": 1, "top_p": 0.5, "seed": 1, "logit_bias": {"1": 2}, "logprobs": True, "top_logprobs": 1,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}], "tool_choice": "auto",
    "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}, "user": "u", "metadata": {"a": "b"},
    "messages": [{"role": "system", "content": "S"},
                 {"role": "user", "content": [IMAGE, {"type": "text", "text": "T"}]},
                 {"role": "assistant", "content": None, "tool_calls": [CALL]},
                 {"role": "tool", "tool_call_id": "1", "content": "R"}],
}  # fmt: skip
MESSAGES = {
    "model": "demo", "max_tokens": 3, "system": [{"type": "text", "text": "S"}], "stop_sequences": ["a"],
    "thinking": {"type": "enabled", "budget_tokens": 3}, "output_config": {"effort": "low", "format": {
        "type": "json_schema", "schema": SCHEMA}}, "tool_choice": {"type": "tool", "name": "f"},
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}], "stream": False,
    "messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}, {"type": "text", "text": "T"}]},
                 {"role": "assistant", "content": [{"type": "thinking", "thinking": "H", "signature": ""},
                                                   {"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
                 {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "R"}]}],
}  # fmt: skip
RESPONSE = {
    "model": "demo", "instructions": "I", "max_output_tokens": 3, "store": False, "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}, "metadata": {}, "include": [],
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
    "tool_choice": {"type": "function", "name": "f"},
    "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
              {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "H"}]},
              {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
              {"type": "function_call_output", "call_id": "1", "output": "R"}],
}  # fmt: skip
COMPLETION = {"model": "demo", "prompt": ["a", [1, 2]], "logprobs": 2, "echo": False, "n": 2}
VALUES = [None, True, False, 0, -1, 1.5, 1e308, 10**30, "", "a", "none", "\ud800", [], {}, [[]], [None], {"": ""},
          {"type": "text"}, "data:,", "/etc/passwd", "http://[", ["a"] * 20, {"1": "x"}]  # fmt: skip


def mutated(value: Any, generator: random.Random) -> Any:
    """A copy with some of its values replaced, left out, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(generator.randrange(1, 4)):
        place = value
        while isinstance(place, dict | list) and place:
            key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if generator.random() < 0.4 or not isinstance(place[key], dict | list):
                match generator.randrange(4):
                    case 0 | 1:
                        place[key] = copy.deepcopy(generator.choice(VALUES))
                    case 2:
                        del place[key]
                    case 3 if isinstance(place, dict):
                        place[generator.choice(["type", "x", "content"])] = place.pop(key)
                    case 3:
                        place.append(place[key])
                break
            place = place[key]
    return value


def broken(data: bytes, generator: random.Random) -> bytes:
    """Every fifth one has a byte that is another, is left out or stands between."""
    if generator.random() >= 0.2:
        return data
    at = generator.randrange(len(data))
    return data[:at] + bytes([generator.randrange(256)]) + data[at + generator.randrange(3) :]


@pytest.mark.load
def test_any_body_is_read_or_refused() -> None:
    generator, rules, talks, outcomes = random.Random(SEED), MediaRules(), Talks(), Counter[str]()
    readers = [
        (CHAT, lambda body: read_chat(body, rules, None)),
        (MESSAGES, lambda body: read_messages(body, rules, None)),
        (RESPONSE, lambda body: read_response(body, rules, None, talks)),
        (COMPLETION, lambda body: read_completion(body, None)),
    ]
    for body, read in readers:
        read(body)
    for number in range(BODIES):
        body, read = readers[number % len(readers)]
        data = broken(json.dumps(mutated(body, generator)).encode(), generator)
        try:
            read(parse(data))
            outcomes["read"] += 1
        except ApiError as error:
            assert 400 <= error.status < 500 and json.loads(dump(error.openai()))
            outcomes[str(error.status)] += 1
    assert outcomes["read"] > BODIES // 50 and outcomes["400"] > BODIES // 4, outcomes


@pytest.mark.load
@pytest.mark.timeout(1800)
def test_any_body_is_answered(loaded: Loaded, capfd: pytest.CaptureFixture[str]) -> None:
    """Over HTTP, of a server that runs: answered, or refused with its error, and the log has no fault of ours."""
    generator, outcomes = random.Random(SEED), Counter[str]()
    picture = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    bodies = [
        ("chat/completions", CHAT),
        ("messages", {**MESSAGES, "tool_choice": {"type": "auto"}}),
        ("responses", {**RESPONSE, "tool_choice": "auto", "stream": True}),
        ("completions", COMPLETION),
        ("messages/count_tokens", {key: MESSAGES[key] for key in ("model", "system", "tools", "messages")}),
        ("marks", {"model": "demo", "text": '{"bbox_2d": [1, 2, 3, 4]}', "sizes": [[9, 9]], "max_pixels": 100}),
    ]
    model, processor = loaded
    speaking = replace(processor, chat_template=TEMPLATE + processor.chat_template)
    sources = {"demo": Source(lambda: (model, speaking))}
    with running(sources, max_tokens=4, timeout=20) as server, httpx.Client() as client:
        for number in range(HTTP_BODIES):
            path, body = bodies[number % len(bodies)]
            text = json.dumps(mutated(body, generator)).replace("data:,", f"data:;base64,{encoded}")
            data = broken(text.replace("AA==", encoded).encode(), generator)
            response = client.post(
                f"{server.url}/v1/{path}", content=data, headers={"Content-Type": "application/json"}, timeout=60
            )
            outcomes[str(response.status_code)] += 1
            assert response.status_code < 500, (number, data, response.text)
            assert response.status_code == 200 or response.json()["error"]["message"], data
        server.wait_until_idle()
    assert outcomes["200"] > HTTP_BODIES // 50 and outcomes["400"] > HTTP_BODIES // 4, outcomes
    log = capfd.readouterr().err
    assert '"event": "error"' not in log and "Traceback" not in log
    print(dict(outcomes))
