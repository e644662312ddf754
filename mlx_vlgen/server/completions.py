"""OpenAI's text completions: prompts as they are, without a chat template.
Source: https://platform.openai.com/docs/api-reference/completions."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from .call import Answer, Call, Delta, Prompt, TokenLogprob, Usage
from .errors import ApiError
from .messages import Bounds
from .openai import COMMON, TOLERATED, usage_wanted
from .openai_format import DONE, event, usage_json
from .parameters import Log, Parameter, anything, one_of, read_fields, whole
from .settings import MAX_CHOICES

COMPLETIONS = (
    *COMMON,
    Parameter("prompt", anything),
    Parameter("logprobs", whole(0, 20)),
    Parameter("thinking_budget", whole(0), "sampling"),
)

_TOLERATED = {**TOLERATED, "echo": one_of(False), "best_of": one_of(1), "suffix": one_of("")}
"""The readers refuse what would change an answer."""


def read_completion(body: Mapping[str, Any], lenient: Log | None) -> tuple[Call, bool]:
    """The call, and whether its stream ends with the usage. ApiError names what is wrong."""
    groups = read_fields(COMPLETIONS, _TOLERATED, body, lenient)
    call = groups["call"]
    if "prompt" not in call:
        raise ApiError(400, "prompt: the body has none", param="prompt")
    prompts = _prompts(call.pop("prompt"), Bounds())
    count = call.get("count", 1)
    if len(prompts) * count > MAX_CHOICES:
        raise ApiError(
            400, f"prompt: {len(prompts)} given, n={count}: expected {MAX_CHOICES} answers at most", "prompt"
        )
    include_usage = usage_wanted(call, lenient)
    return Call(prompts=prompts, sampling=groups["sampling"], raw=True, **{"model": None, **call}), include_usage


def _prompts(value: Any, bounds: Bounds) -> list[Prompt]:
    """Of a text, token ids, or a list of either."""
    values = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
    prompts: list[Prompt] = []
    for i, prompt in enumerate(values):
        if isinstance(prompt, str) and prompt:
            prompts.append(bounds.text(prompt, "prompt"))
        elif isinstance(prompt, list) and prompt and all(type(id) is int and 0 <= id < 1 << 31 for id in prompt):
            prompts.append(prompt)
        else:
            raise ApiError(400, f"prompt: the one at {i} is neither text nor a list of token ids", param="prompt")
    return prompts


@dataclass
class CompletionFormat:
    """model: its name. prompts: how many. include_usage: whether a stream ends with the usage. logprobs: whether they
    were asked for."""

    model: str
    prompts: int = 1
    include_usage: bool = False
    logprobs: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    keepalive: bytes = b": keep-alive\n\n"
    _lengths: dict[int, int] = field(default_factory=dict)  # of each answer's tokens so far, in characters

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices = [self._choice(i, answer.text, answer.logprobs, answer.finish) for i, answer in enumerate(answers)]
        return self._object(choices) | {"usage": usage_json([answer.usage for answer in answers], self.prompts)}

    def begin(self, usages: Sequence[Usage]) -> bytes:
        return b""

    def delta(self, index: int, delta: Delta) -> bytes:
        usage = {"usage": None} if self.include_usage else {}
        return event(self._object([self._choice(index, delta.text, delta.logprobs, delta.finish)]) | usage)

    def end(self, usages: Sequence[Usage]) -> bytes:
        if not self.include_usage:
            return DONE
        return event(self._object([]) | {"usage": usage_json(usages, self.prompts)}) + DONE

    def error(self, error: ApiError) -> bytes:
        return event(error.openai())

    def _choice(self, index: int, text: str, tokens: Sequence[TokenLogprob], finish: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(index, tokens) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets, at = [], self._lengths.get(index, 0)
        for token in tokens:
            offsets.append(at)
            at += len(token.text)
        self._lengths[index] = at
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{text: logprob for text, _, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _object(self, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
                "choices": choices}  # fmt: skip
