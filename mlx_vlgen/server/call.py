"""One call as the engine takes it, and its answers as they come: what all interfaces translate to and from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import ApiError

Prompt = str | list[int] | list[dict[str, Any]]
"""A text as it is, token ids, or messages."""


@dataclass(frozen=True)
class Call:
    """One request to a model.

    model: the name that the client gave; None: it gave none.
    prompts: one, but of completions.
    sampling: keywords of `SamplingParams`, over the checkpoint's.
    media: keywords of `MediaInputs`.
    enable_thinking: for the chat template.
    adaptive: whether a model that does not think answers all the same.
    continues: whether the answer goes on with the last message, an assistant's.
    count: answers to each prompt.
    stream: whether the answer is sent as it comes.
    raw: whether what is thought is text like all else.
    logprobs: best tokens to tell beside the one that was drawn; None: not even that one.
    prompt_lookup: guesses at a time; None: none.
    reuse: whether what was computed before may be used.
    tools: functions that the model may call, each with name, description and parameters.
    tool_choice: "none", "auto", "required" or a tool's name.
    parallel_tool_calls: whether there may be several calls.
    """

    model: str | None
    prompts: Sequence[Prompt]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    enable_thinking: bool = False
    adaptive: bool = False
    continues: bool = False
    count: int = 1
    stream: bool = False
    raw: bool = False
    logprobs: int | None = None
    prompt_lookup: int | None = None
    reuse: bool = True
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer. text: alone; raw: its bytes. top: the best ones in its place as (text, bytes, log-prob)."""

    text: str
    raw: bytes
    logprob: float
    top: Sequence[tuple[str, bytes, float]] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens: of the prompt, of it not computed again, of the answer, and of it inside thinking blocks."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
"""The last: by another request of the client."""


@dataclass(frozen=True)
class ToolPiece:
    """Of a call to a tool, the index-th of an answer. name: where it begins; arguments: JSON text that is new."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """What is new of an answer. finish: of its last one; stop: the stop string that ended it."""

    thinking: str = ""
    text: str = ""
    tools: Sequence[ToolPiece] = ()
    logprobs: Sequence[TokenLogprob] = ()
    finish: FinishReason | None = None
    stop: str | None = None
    usage: Usage = Usage()
    error: ApiError | None = None

    @property
    def empty(self) -> bool:
        return not (self.thinking or self.text or self.tools or self.logprobs or self.finish or self.error)


@dataclass
class ToolCall:
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """A whole answer, of its deltas."""

    thinking: str = ""
    text: str = ""
    tools: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason = "stop"
    stop: str | None = None
    usage: Usage = Usage()

    def add(self, delta: Delta) -> None:
        self.thinking += delta.thinking
        self.text += delta.text
        self.logprobs += delta.logprobs
        for piece in delta.tools:
            if piece.name is not None:
                self.tools.append(ToolCall(piece.name))
            self.tools[piece.index].arguments += piece.arguments
        self.finish, self.stop, self.usage = delta.finish or self.finish, delta.stop, delta.usage
