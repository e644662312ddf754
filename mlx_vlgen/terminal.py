"""What a chat does with a terminal: the line and its history."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from .chat_lines import complete, is_open
from .entry import interruptible
from .notices import on_terminal, print_stderr

HISTORY = 1000
"""Lines that the history offers."""


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
        enable_suspend=True,
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
