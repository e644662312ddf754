"""What a call's tools mean for its request and its answer, in the format that the model's chat template speaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .call import Call, ToolPiece
from .errors import ApiError
from .log import log
from .tools import ToolCall, ToolParser, to_template_messages, tool_format


@dataclass(frozen=True)
class ToolUse:
    """messages: for the chat template, with its variables; grammar: of an answer that must be a call."""

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    grammar: str | None = None


def tool_use(call: Call, messages: Sequence[Mapping[str, Any]], processor: Any, lenient: bool = False) -> ToolUse:
    """lenient: tools that a model need not call are left out where it knows none, with a line in the log.
    ApiError for tools that the model cannot call; PromptError and UnsupportedError for what is wrong with one."""
    template = processor.chat_template
    messages = to_template_messages(messages, template)
    if not call.tools or call.tool_choice == "none":
        return ToolUse(messages)
    form = tool_format(template)
    if form is None and lenient and call.tool_choice == "auto":
        log("lenient", field="tools: this model's chat template knows none, left out")
        return ToolUse(messages)
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
    """Takes calls out of an answer's text as it comes. parallel: whether there may be several.

    A call's arguments are handed out while they come. What then ends before it is whole stays a call with a part of
    its arguments; what turns out to be malformed is text, too.
    """

    parser: ToolParser
    parallel: bool = True
    count: int = 0  # calls so far, all of them whole but for what was malformed
    whole: int = 0
    _told: int | None = None  # characters of the open call's arguments that were handed out; None: not even its name

    def read(self, text: str, over: bool) -> tuple[str, list[ToolPiece]]:
        """The text to show, and what is new of calls: first of the one that was open. Nothing after the one call that
        may be."""
        shown, pieces = "", []
        events = self.parser.feed(text)
        if over and self.parser.begun is None:
            events += self.parser.finish()
        for event in events:
            if self.full:
                break
            if isinstance(event, ToolCall):
                pieces.append(self._piece(event))
                self.whole += 1
            else:
                shown += event
            self.count += isinstance(event, ToolCall) or self._told is not None
            self._told = None
        if not self.full and (call := self.parser.begun) and (self._told is None or len(call.arguments) > self._told):
            pieces.append(self._piece(call))
            self._told = len(call.arguments)
        return shown, pieces

    def _piece(self, call: ToolCall) -> ToolPiece:
        if self._told is None:
            return ToolPiece(self.count, call.name, call.arguments)
        return ToolPiece(self.count, None, call.arguments[self._told :])

    @property
    def full(self) -> bool:
        return self.whole > 0 and not self.parallel
