"""Requests as programs were seen to send them, shortened: Claude Code 2.1, Continue's CLI 1.5, `llm` 0.36."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from mlx_vlgen.server.anthropic import read_messages
from mlx_vlgen.server.errors import ApiError
from mlx_vlgen.server.media import MediaRules
from mlx_vlgen.server.models import Source

from .serving import Loaded, Running, running

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
CLAUDE_CODE: dict[str, Any] = {
    "model": "demo",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>\nToday.\n</system-reminder>\n\n"},
                                     {"type": "text", "text": "Hi", **EPHEMERAL}]},
        {"role": "system", "content": "Available agent types:\n- claude"},
    ],
    "system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197;"},
               {"type": "text", "text": "You are an agent.", **EPHEMERAL}],
    "tools": [],
    "metadata": {"user_id": '{"device_id":"a"}'},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "stream": True,
}  # fmt: skip
HEADERS = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
           "authorization": "Bearer KEY"}  # fmt: skip


def test_claude_code(served: Running) -> None:
    assert httpx.head(served.url).status_code == 200
    response = httpx.post(f"{served.url}/v1/messages?beta=true", json=CLAUDE_CODE, headers=HEADERS)
    assert response.status_code == 200 and "event: message_stop" in response.text


def test_a_model_that_does_not_think_answers_adaptively(loaded: Loaded) -> None:
    model, processor = loaded
    plain = """{% for m in messages %}<|im_start|>{{ m.role }}{% for part in m.content %}{{ part.text }}{% endfor %}
<|im_end|>{% endfor %}"""
    with running({"demo": Source(lambda: (model, replace(processor, chat_template=plain)))}) as server:
        body = {**CLAUDE_CODE, "max_tokens": 4}
        assert httpx.post(f"{server.url}/v1/messages", json=body).status_code == 200
        body["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        refused = httpx.post(f"{server.url}/v1/messages", json=body)
        assert refused.status_code == 400 and "thinking" in refused.json()["error"]["message"]


def test_what_the_system_says_later_is_the_users_turn() -> None:
    messages = [*CLAUDE_CODE["messages"], {"role": "assistant", "content": "Hello"},
                {"role": "system", "content": "S"}, {"role": "user", "content": "U"}]  # fmt: skip
    [read] = read_messages({**CLAUDE_CODE, "messages": messages}, MediaRules(), None).prompts
    assert [message["role"] for message in read] == ["system", "user", "assistant", "user"]
    texts = ["".join(part["text"] for part in message["content"]) for message in read]
    assert texts[1].endswith("\n\nHi\n\nAvailable agent types:\n- claude") and texts[3] == "S\n\nU"


@pytest.mark.parametrize("edits", [[], [{"type": "clear_tool_uses_20250919"}], [{"type": "clear_thinking_20251015"}]])
def test_a_context_is_not_cleared(edits: Any) -> None:
    with pytest.raises(ApiError, match=r"context_management.*clears nothing"):
        read_messages({**CLAUDE_CODE, "context_management": {"edits": edits}}, MediaRules(), None)


@pytest.mark.parametrize(
    "change",
    [
        {"stream": True, "stream_options": {"include_usage": True}},
        {"max_tokens": 5, "seed": 3, "temperature": 0.0, "stop": "e"},
        {"reasoning_effort": "low"},
    ],
)
def test_llm_and_continue(served: Running, change: dict[str, Any]) -> None:
    system = {"role": "system", "content": "You are an agent in the Continue CLI."}
    body = {"model": "demo", "messages": [system, {"role": "user", "content": "Hi"}], "max_tokens": 8, **change}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body).status_code == 200


def test_tools_of_a_model_that_knows_none(loaded: Loaded) -> None:
    """Open WebUI 0.12 and Continue send tools to every model."""
    tool = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "tools": [tool], "max_tokens": 3}
    with running({"demo": Source(lambda: loaded)}, lenient=True) as server:
        url = f"{server.url}/v1/chat/completions"
        assert httpx.post(url, json=body).status_code == 200
        assert httpx.post(url, json={**body, "tool_choice": "required"}).status_code == 400
