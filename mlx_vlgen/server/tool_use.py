"""What a call's tools mean for its request and its answer, in the format that the model's chat template speaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .call import Call, ToolPiece
from .errors import ApiError
from .tools import ToolCall, ToolParser, to_template_messages, tool_format


@dataclass(frozen=True)
class ToolUse:
    """messages: for the chat template, with its variables; grammar: of an answer that must be a call."""

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    grammar: str | None = None


def tool_use(call: Call, messages: Sequence[Mapping[str, Any]], processor: Any) -> ToolUse:
    """ApiError for tools that the model cannot call; PromptError and UnsupportedError for what is wrong with one."""
    template = processor.chat_template
    messages = to_template_messages(messages, template)
    if not call.tools or call.tool_choice == "none":
        return ToolUse(messages)
    form = tool_format(template)
    if form is None:
        raise ApiError(400, "tools: this model's chat template knows none: leave them out", param="tools")
    variables = {"tools": [{"type": "function", "function": dict(tool)} for tool in call.tools]}
    if call.tool_choice == "auto":
        return ToolUse(messages, variables)
    if taken := {"json_schema"} & call.sampling.keys():
        raise ApiError(400, f"tool_choice: it demands a call, and {taken.pop()} another form", param="tool_choice")
    tokens = processor.tokenizer.get_added_vocab()
    grammar = form.grammar(call.tools, call.tool_choice, call.parallel_tool_calls, tokens)
    return ToolUse(messages, variables, grammar)


@dataclass
class CallReader:
    """Takes calls out of an answer's text as it comes. parallel: whether there may be several."""

    parser: ToolParser
    parallel: bool = True
    count: int = 0  # calls so far

    def read(self, text: str, over: bool) -> tuple[str, list[ToolPiece]]:
        """The text to show, and the calls. Nothing after the one call that may be."""
        shown, pieces = "", []
        for event in [*self.parser.feed(text), *(self.parser.finish() if over else [])]:
            if self.full:
                break
            if isinstance(event, ToolCall):
                pieces.append(ToolPiece(self.count, event.name, event.arguments))
                self.count += 1
            else:
                shown += event
        return shown, pieces

    @property
    def full(self) -> bool:
        return self.count > 0 and not self.parallel
