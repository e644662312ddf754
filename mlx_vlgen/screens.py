"""How an answer is shown while it comes: by `generate`, and in a chat."""

import os
import sys
import unicodedata
from contextlib import suppress

from .notices import notice, on_terminal, print_stderr, print_wrapped
from .results import GenerationResult


def styled() -> bool:
    """Whether stderr shows dim text."""
    return on_terminal() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def dim(text: str) -> str:
    return f"\033[2m{text}\033[0m" if styled() else text


def terminal_width() -> int:
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns
    return 80


def safe(text: str) -> str:
    """A model's text without what would steer the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def last_columns(text: str, columns: int) -> str:
    """The end of a text that takes at most so many columns, on one line."""
    text, width, start = " ".join(text.split()), 0, 0
    for start in range(len(text), 0, -1):
        character = text[start - 1]
        width += 2 if unicodedata.east_asian_width(character) in "WF" else not unicodedata.combining(character)
        if width > columns:
            return text[start:]
    return text


class Screen:
    """Prints a stream: the answer on stdout; the thinking before it on stderr, dim on a terminal, or not at all."""

    def __init__(self, hide_thinking: bool):
        self._hide = hide_thinking
        self._thinking_printed = self._answer_printed = 0  # characters
        self._line_open = False  # on stderr

    def show(self, result: GenerationResult) -> None:
        thinking, answer = result.thinking or "", result.answer or ""
        if thinking[self._thinking_printed :] and not self._hide:
            self._show_thinking(thinking, thinking[self._thinking_printed :])
        self._thinking_printed = len(thinking)
        if len(answer) < self._answer_printed:  # the model thinks again: that was no answer yet
            self._answer_printed = 0
        if answer[self._answer_printed :]:
            self._end_thinking()
            self._show_answer(answer[self._answer_printed :])
        self._answer_printed = len(answer)

    def finish(self) -> None:
        self._end_thinking()
        print(flush=True)

    def _show_thinking(self, thinking: str, new: str) -> None:
        print_stderr(dim(new), end="")
        self._line_open = True

    def _show_answer(self, new: str) -> None:
        print(new, end="", flush=True)

    def _end_thinking(self) -> None:
        if self._line_open:
            print_stderr("")
        self._line_open = False


class ChatScreen(Screen):
    """A stream on a terminal. Thinking takes one line, which shows its end as it comes and then how long it was."""

    def __init__(self, hide_thinking: bool, fold: bool):
        super().__init__(hide_thinking)
        self._fold = fold and on_terminal() and os.environ.get("TERM") != "dumb"
        self._thinking_tokens = 0
        self._thought = False  # since the last such line

    def wait(self, text: str) -> None:
        """Show what is being done before the first token."""
        if on_terminal() and os.environ.get("TERM") != "dumb":
            self._replace_line(text)

    def warn(self, text: str | None) -> None:
        """Say something before the answer."""
        if text:
            self._clear_line()
            print_wrapped(text)

    def show(self, result: GenerationResult) -> None:
        self._thinking_tokens = result.thinking_tokens
        super().show(result)

    def finish(self) -> None:
        self._end_thinking()
        if self._answer_printed:
            print(flush=True)

    def _show_thinking(self, thinking: str, new: str) -> None:
        if self._fold:
            label = f"thinking, {self._thinking_tokens:,} tokens: "
            self._replace_line(label + last_columns(safe(thinking), terminal_width() - len(label) - 1))
        else:
            if not self._thought:
                self._clear_line()
            super()._show_thinking(thinking, safe(new))
        self._thought = True

    def _show_answer(self, new: str) -> None:
        super()._show_answer(safe(new))

    def _replace_line(self, text: str) -> None:
        self._clear_line()
        print_stderr(dim(text[: max(1, terminal_width() - 1)]), end="\r")  # what is printed meanwhile goes over it
        self._line_open = True

    def _clear_line(self) -> None:
        if self._line_open:
            print_stderr("\r\033[K", end="")
        self._line_open = False

    def _end_thinking(self) -> None:
        if self._thought and not self._fold:
            super()._end_thinking()
        self._clear_line()
        if self._thought:
            more = "; /thoughts shows them" if self._fold else ""
            print_stderr(dim(f"thought for {self._thinking_tokens:,} tokens{more}"))
        self._thought = False


class PipeScreen(Screen):
    """Of a stream the thinking only: the answer becomes one line when it is whole."""

    def wait(self, text: str) -> None:
        pass

    def warn(self, text: str | None) -> None:
        if text:
            notice(text)

    def finish(self) -> None:
        self._end_thinking()

    def _show_answer(self, new: str) -> None:
        pass
