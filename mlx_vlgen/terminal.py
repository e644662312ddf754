"""What a chat does with a terminal: the line, its history, and how an answer is shown while it comes."""

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from .chat_lines import complete, is_open
from .entry import interruptible
from .notices import notice, on_terminal, print_stderr, print_wrapped
from .results import GenerationResult

HISTORY = 1000
"""Lines that the history offers."""


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


# Answers


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


@contextmanager
def no_echo() -> Iterator[None]:
    """What is typed while an answer comes does not show in it; it stands in the next line."""
    import termios

    try:
        stdin = sys.stdin.fileno()
        before = termios.tcgetattr(stdin)
    except (OSError, ValueError, termios.error):
        yield
        return
    changed = before.copy()
    changed[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(stdin, termios.TCSANOW, changed)
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSANOW, before)


# The line


class Line(Protocol):
    """Reads what a person types."""

    def read(self, prompt: str, text: str = "") -> str:
        """A question or command; `text` stands in the line already. Ctrl-D: EOFError; Ctrl-C: KeyboardInterrupt."""

    def ask(self, question: str) -> str:
        """The answer to a question of the program's."""


def open_line(history: Path) -> Line:
    """prompt_toolkit's line where it is installed (extra `chat`) and the terminal can; a plain one elsewhere."""
    if find_spec("prompt_toolkit") and os.environ.get("TERM") != "dumb" and (on_terminal() or sys.stdout.isatty()):
        return _rich_line(history)
    return PlainLine(history)


def read_history(path: Path) -> list[str]:
    """The last lines, oldest first; what cannot be read is passed over."""
    lines = []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-HISTORY:]:
            with suppress(ValueError):
                lines.append(str(json.loads(line)))
    return lines


def add_to_history(path: Path, text: str) -> None:
    """A line of JSON each, which holds line breaks; for its owner only."""
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, (json.dumps(text) + "\n").encode())
        finally:
            os.close(file)


class PlainLine:
    """`input`, with readline's keys, history and completion where Python has it."""

    def __init__(self, history: Path):
        self._history = history
        self._readline: Any = None
        with suppress(ImportError):
            import readline

            self._readline = readline
            readline.set_auto_history(False)
            readline.set_completer(self._complete)
            readline.set_completer_delims(" \t\n")
            readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
            for line in read_history(history):
                readline.add_history(line.replace("\n", " "))

    def read(self, prompt: str, text: str = "") -> str:
        lines = [self._input(prompt, text)]
        while is_open("\n".join(lines)):
            lines.append(self._input("… "))
        line = "\n".join(lines)
        if line.strip():
            add_to_history(self._history, line)
            if self._readline:
                self._readline.add_history(line.replace("\n", " "))
        return line

    def ask(self, question: str) -> str:
        return self._input(question).strip()

    def _input(self, prompt: str, text: str = "") -> str:
        with interruptible():
            return self._read(prompt, text)

    def _read(self, prompt: str, text: str) -> str:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):  # `input` would write the prompt on stdout
            print_stderr(prompt, end="")
            if not (line := sys.stdin.readline()):
                raise EOFError
            return line.removesuffix("\n")
        if not self._readline or not text:
            return input(prompt)
        self._readline.set_startup_hook(lambda: self._readline.insert_text(text.replace("\n", " ")))
        try:
            return input(prompt)
        finally:
            self._readline.set_startup_hook(None)

    def _complete(self, word: str, state: int) -> str | None:
        before = self._readline.get_line_buffer()[: self._readline.get_endidx()]
        found = list(complete(before))
        if state >= len(found):
            return None
        replacement, length, _ = found[state]
        return word[: len(word) - length] + replacement if length <= len(word) else replacement[length - len(word) :]


def _rich_line(history_path: Path) -> Line:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    class LineHistory(History):
        def load_history_strings(self) -> Iterator[str]:
            yield from reversed(read_history(history_path))

        def store_string(self, string: str) -> None:
            add_to_history(history_path, string)

    class LineCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            for text, length, help in complete(document.text_before_cursor):
                yield Completion(text, start_position=-length, display_meta=help)

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def typing_command() -> bool:
        return get_app().current_buffer.text.startswith("/")

    session: Any = PromptSession(
        output=create_output(always_prefer_tty=True),
        history=LineHistory(),
        completer=LineCompleter(),
        complete_while_typing=Condition(typing_command),
        reserve_space_for_menu=6,
        key_bindings=keys,
        multiline=True,
        prompt_continuation=lambda width, line, wrapped: "" if wrapped else "… ",
    )
    asking: Any = PromptSession(output=session.output)
    return _PromptToolkitLine(session.prompt, asking.prompt)


class _PromptToolkitLine:
    """Ctrl-C is a key here. As a signal, just before the terminal is raw, it must not raise inside prompt_toolkit."""

    def __init__(self, prompt: Callable[..., str], ask: Callable[..., str]):
        self._prompt, self._ask = prompt, ask

    def read(self, prompt: str, text: str = "") -> str:
        return self._prompt([("bold", prompt)], default=text)

    def ask(self, question: str) -> str:
        return self._ask(question).strip()
