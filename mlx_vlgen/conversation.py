"""A conversation with a model: its session, that session's file and media, and how a question is answered."""

import argparse
import gc
import os
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from .chat_lines import DEFAULTS, REMEDIES, context_warning, media_name, split_paths, status_line
from .chat_media import MediaStore
from .cli import LoadModel, on_ranks
from .entry import interruptible
from .errors import PromptError, VlgenError, printable
from .notices import on_terminal, print_stderr, print_wrapped
from .previews import has_truecolor, preview, terminal_graphics
from .results import GenerationResult
from .screens import ChatScreen, PipeScreen, dim, terminal_width
from .session import Event, Journal, Message, Session, SessionError, Turn, apply, snapshot, talks_folder, turn_event
from .terminal import Line, no_echo


def say(text: str, faint: bool = False) -> None:
    """To the person, on stderr."""
    text = "\n".join(map(printable, text.split("\n")))
    print_wrapped(dim(text) if faint else text)


class Conversation:
    """args: the command's; line: None in a pipe. A question without its answer is never part of the session."""

    def __init__(self, args: argparse.Namespace, line: Line | None, load_model: LoadModel):
        self.args, self.line, self._load_model = args, line, load_model
        self.session = Session()
        self.journal: Journal | None = None
        self.media = MediaStore()
        self.fold_thinking = True
        self.model: Any = None
        self.processor: Any = None
        self._draft: tuple[Any, Any] = (None, None)  # name and model
        self._prefixes: Any = None  # what earlier turns computed
        self.cached_tokens = 0  # how much of that served the last answer

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    # -- the session and its file

    def change(self, event: Event) -> None:
        """Apply an event and write it down. A file is begun with the first turn, and never for a pipe."""
        self.session = apply(self.session, event)
        if self.journal is not None:
            self.journal.append(event)
        elif self.line is not None and event["event"] == "turn":
            path = talks_folder() / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}.jsonl"
            self.journal = Journal(path, new=True)
            self.journal.append(*snapshot(self.session))

    def open(self, path: Path) -> None:
        """Go on with a talk, and write to its file. Where it cannot be, the present one stays."""
        journal = Journal(path, new=False)
        before = self.session, self.journal
        try:
            self.session, torn = journal.read()
            self.journal = journal
            self.settle()
        except BaseException:
            self.session, self.journal = before
            journal.close()
            raise
        if before[1]:
            before[1].close()
        if torn:
            say(f"{path}: the last line was not whole, so {torn:,} bytes were cut off")

    def settle(self) -> None:
        """Ask what to do about media that are gone or have changed. SessionError where nobody can say, or wants to."""
        while found := self._first_problem():
            turn, index, problem = found
            part, changed = self.session.turns[turn].question["content"][index], problem.endswith("has changed since")
            if self.line is None:
                raise SessionError(f"{problem}; a chat on a terminal asks what to do about it")
            say(f"{problem}. It belongs to the question {self.session.turns[turn].text!r}.")
            use = "u: use it as it is now, " if changed else ""
            try:
                reply = self.line.ask(f"{use}l: leave it out, s: stop, or the path of another: ")
            except EOFError:
                reply = "s"
            if reply in ("", "s"):
                raise SessionError(f"stopped: {problem}")
            new: Message | None = None
            if reply != "l":
                source = part[part["type"]] if changed and reply == "u" else split_paths(reply)[0]
                try:
                    new, _ = self.media.read(part["type"], source)
                except VlgenError as error:
                    say(str(error))
                    continue
            self.change({"event": "medium", "turn": turn, "index": index, "part": new})

    def _first_problem(self) -> tuple[int, int, str] | None:
        for number, turn in enumerate(self.session.turns):
            for index, part in enumerate(turn.question["content"]):
                if part["type"] != "text" and (problem := self.media.problem(part)):
                    return number, index, problem
        return None

    # -- the model

    def load(self) -> None:
        """Load the model that the arguments name."""
        screen = self._screen()
        screen.wait("loading the model")
        try:
            self.model, self.processor = self._load_model(self.args)
        finally:
            screen.finish()
        if self.session.model != self.args.model:
            self.change({"event": "model", "value": self.args.model})
        parts = [part for turn in self.session.turns for part in turn.media] + [*self.session.pending]
        if kinds := {part["type"] for part in parts} - set(self.processor.placeholders):
            say(f"{self.processor.unsupported(min(kinds))}: /clear begins anew, /model NAME takes another model")

    def change_model(self, name: str) -> None:
        """Load another model in the place of this one, which stays where that fails."""
        before = self.args.model, self.args.adapter_path, self.args.revision
        self.model = self.processor = None  # there may not be memory for two
        gc.collect()
        self.args.model, self.args.adapter_path, self.args.revision = name, None, None
        try:
            with interruptible():
                self.load()
        except BaseException:
            self.args.model, self.args.adapter_path, self.args.revision = before
            self.load()
            raise

    def _draft_model(self) -> dict[str, Any]:
        """The model that guesses, loaded once."""
        name = self.session.settings.get("draft_model")
        if name is None:
            return {}
        if self._draft[0] != name:
            from . import load

            self._draft = name, load(name)[0]
        return {"draft_model": self._draft[1]}

    # -- questions and answers

    def attach(self, kind: str, source: str) -> None:
        """Make a medium part of the next question, and show it."""
        if kind not in self.processor.placeholders:
            raise self.processor.unsupported(kind)
        part, picture = self.media.read(kind, source)
        self.session = replace(self.session, pending=(*self.session.pending, part))
        if self.line is None:
            return
        if picture is not None and on_terminal() and (graphics := terminal_graphics()):
            print_stderr(preview(picture, graphics, terminal_width(), has_truecolor(os.environ)), end="")
        size = f", {picture.width} x {picture.height}" if picture is not None else ""
        say(f"{media_name(part)}{size}", faint=True)

    def ask(self, asked: Message, replaces: bool = False) -> Turn | None:
        """Answer a user's message; both become a turn, which may replace the last one. None where Ctrl-C came before
        there was an answer: then nothing changes."""
        self.settle()
        before = self.session.turns[:-1] if replaces else self.session.turns
        unanswered = Turn(asked, {"role": "assistant", "content": ""})
        messages = replace(self.session, turns=(*before, unanswered)).messages(self.media.source)[:-1]
        result, stopped = self._answer(messages)
        if result is None or (stopped and not result.answer):
            return None
        reason = result.finish_reason or ("cancelled" if stopped else "length")
        turn = Turn(
            asked,
            {"role": "assistant", "content": result.answer or ""},
            result.thinking,
            result.thinking_tokens,
            reason,
            result.prompt_tokens + result.generation_tokens,
        )
        self.change(turn_event(turn, replaces))
        self.cached_tokens = result.cached_tokens
        if self.line is not None:
            maximum = self.model.max_positions
            speed, reused = result.generation_tps, result.cached_tokens
            say(status_line(result.generation_tokens, speed, turn.tokens, maximum, reason, reused), faint=True)
        self._say_if_cut(turn, result)
        return turn

    def _screen(self) -> ChatScreen | PipeScreen:
        hide = self.args.hide_thinking
        return PipeScreen(hide) if self.line is None else ChatScreen(hide, self.fold_thinking)

    def _answer(self, messages: list[Message]) -> tuple[GenerationResult | None, bool]:
        """Show an answer as it comes: its last result, and whether Ctrl-C stopped it."""
        from .engine.disk import default_folder
        from .engine.store import cache_on_disk
        from .generate import stream_generate

        maximum, last, stopped = self.model.max_positions, None, False
        on_line, screen = self.line is not None, self._screen()

        def progress(done: int, total: int) -> None:
            screen.wait(f"reading the prompt, {done:,} of {total:,} tokens")

        if self._prefixes is None and not self.args.no_reuse:  # on disk for --resume, but not of questions from a pipe
            on_disk = (on_line or self.args.resume is not None) and not on_ranks(self.args)
            self._prefixes = cache_on_disk(default_folder() if on_disk else None)
        keywords = {**DEFAULTS, **self.session.settings, "prompt_progress_callback": progress}
        keywords |= {"prompt_cache": self._prefixes}
        try:
            with no_echo() if on_line else nullcontext(), interruptible() if on_line else nullcontext():
                screen.wait("reading the prompt")
                keywords |= self._draft_model()
                with closing(stream_generate(self.model, self.processor, messages, **keywords)) as stream:  # type: ignore[type-var]
                    for last in stream:
                        if last.generation_tokens == 1:
                            screen.warn(context_warning(last.prompt_tokens, maximum))
                        screen.show(last)
                        if maximum and last.prompt_tokens + last.generation_tokens >= maximum:
                            break
        except KeyboardInterrupt:
            if not on_line:
                raise
            stopped = True
        except PromptError as error:
            screen.finish()
            raise PromptError(f"{error}. {REMEDIES}" if "positions" in str(error) else str(error)) from None
        except BaseException:
            screen.finish()
            raise
        if last is not None:
            screen.show(last)
        screen.finish()
        return last, stopped

    def _say_if_cut(self, turn: Turn, result: GenerationResult) -> None:
        maximum, limit = self.model.max_positions, self.session.settings.get("max_tokens") or DEFAULTS["max_tokens"]
        warning = context_warning(turn.tokens, maximum)
        if turn.finish_reason == "length" and turn.tokens != maximum and result.generation_tokens >= limit:
            say(f"the answer was cut after {limit:,} tokens: /set max_tokens N allows more, /retry answers again")
        elif warning and (turn.tokens == maximum or not context_warning(result.prompt_tokens, maximum)):
            say(warning)
