"""`python -m mlx_vlgen.chat`: a conversation on a terminal, or through a pipe."""

if __name__ == "__main__":  # before the imports below: --help is instant, Ctrl-C works
    from .entry import run

    run("main_chat")

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .chat_lines import (
    COMMANDS,
    DEFAULTS,
    Command,
    LineError,
    Question,
    describe_settings,
    describe_turn,
    media_name,
    parse_line,
    parse_setting,
    setting,
    split_paths,
)
from .cli import TRACEBACK_VARIABLE, LoadModel, check_files, check_keywords, on_ranks, run_with_model, usage_error
from .conversation import Conversation, say
from .entry import staying
from .errors import VlgenError, one_line, printable
from .flags import Parser
from .inputs.kinds import KINDS
from .notices import notice, print_stderr, rewriting_notices
from .options import OPTIONS
from .screens import dim, safe, terminal_width
from .session import Message, SessionError, Turn, kept_talks, question, read_talk, save_copy, state_folder
from .terminal import open_line

LISTED = 10
"""Talks that /load lists."""


def run_chat(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    settings = {option.name: getattr(args, option.name) for option in OPTIONS if hasattr(args, option.name)}
    if settings:  # what checks them takes time to import
        try:
            check_keywords(settings)
        except ValueError as error:
            usage_error(parser, error)
    if sys.stdin is None or sys.stdout is None:
        raise VlgenError(f"{'stdin' if sys.stdin is None else 'stdout'} is closed: a chat needs both")
    piped = not sys.stdin.isatty()
    if args.json and not piped:
        parser.error("--json is for a pipe; here questions come from the terminal")
    check_files([*args.image, *args.video, *args.audio])
    if args.resume is not None:
        if not args.resume and not kept_talks():
            raise SessionError("--resume: there is no talk to go on with yet")
        args.resume = Path(args.resume or kept_talks()[0])
        args.model = read_talk(args.resume)[0].model if args.model is None else args.model
    return run_with_model("chat", args, arguments, lambda load: converse(args, settings, load))


def converse(args: argparse.Namespace, settings: dict[str, Any], load: LoadModel) -> int:
    piped = not sys.stdin.isatty()
    chat = Chat(args, None if piped else open_line(state_folder() / "history"), load)
    with rewriting_notices(partial(_once, set())), closing(chat):
        if args.resume is not None:
            chat.open(args.resume)
        chat.load()
        if args.system is not None:
            chat.change({"event": "system", "value": args.system or None})
        if settings:
            chat.change({"event": "set", "values": settings})
        if not piped:
            chat.greet()
        for kind in KINDS:
            for source in getattr(args, kind):
                chat.attach(kind, source)
        return answer_lines(chat) if piped else talk(chat)


def talk(chat: "Chat") -> int:
    """Until Ctrl-D."""
    text = ""
    with staying():
        while True:
            try:
                text = chat.run(chat.read_line(text))
            except KeyboardInterrupt:
                text = chat.cancel_edit()
                say("Ctrl-D or /quit leaves, /help lists the commands")
            except EOFError:
                print_stderr("")
                return 0
            except Exception as error:
                if os.environ.get(TRACEBACK_VARIABLE):
                    raise
                say(f"error: {_flags_to_settings(one_line(error))}")
                text = chat.take_back()


def answer_lines(chat: "Chat") -> int:
    """Each line on stdin is a question, whose answer is a line on stdout. A question that fails has an empty one, and
    makes the exit code 1."""
    failed = False
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are refused with their question
    for number, line in enumerate(sys.stdin, 1):
        answer: dict[str, Any] = {"question": line.strip()}
        chat.answered = None
        try:
            chat.run(line)
            if chat.answered is None:  # a command
                continue
            answer |= describe_answer(chat.answered, chat.cached_tokens)
        except EOFError:
            break
        except BrokenPipeError:
            raise
        except Exception as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            failed = True
            notice(f"error: line {number}: {_flags_to_settings(one_line(error))}")
            answer["error"] = one_line(error)
            chat.session = replace(chat.session, pending=())
        text = json.dumps(answer) if chat.args.json else answer.get("answer", "").replace("\n", "\\n")
        print(text, flush=True)
    return int(failed)


def describe_answer(turn: Turn, cached_tokens: int) -> dict[str, Any]:
    """For --json."""
    return {
        "question": turn.text,
        "media": [part[part["type"]] for part in turn.media],
        "answer": turn.answer["content"],
        "thinking": turn.thinking,
        "finish_reason": turn.finish_reason,
        "context_tokens": turn.tokens,
        "cached_tokens": cached_tokens,
    }


_FLAG = re.compile(rf"--({'|'.join(option.flag[2:] for option in OPTIONS)})\b")


def _flags_to_settings(message: str) -> str:
    """A message that names flags, for one who types: /set max_pixels for --max-pixels."""
    return _FLAG.sub(lambda flag: "/set " + flag[1].replace("-", "_"), message)


def _once(said: set[str], message: str) -> str:
    """A notice for one who types, the first time; nothing after that: a large picture is large in each turn."""
    message = _flags_to_settings(message)
    if message in said and not message.startswith("error"):
        return ""
    said.add(message)
    return message


class Chat(Conversation):
    """What a line does. Each command is a method, do_NAME; what it returns stands in the next line already."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.answered: Turn | None = None  # by the last line
        self._asked = ""  # a question's text, until it has an answer
        self._editing: tuple[Message, ...] | None = None  # what was pending before /edit

    # -- lines

    def greet(self) -> None:
        maximum = self.model.max_positions
        say(f"{self.args.model}{f', {maximum:,} tokens of context' if maximum else ''}", faint=True)
        say("Ask, or drop a picture here. /help lists the commands, Ctrl-D leaves.\n", faint=True)
        self._show_last_turn()

    def _show_last_turn(self) -> None:
        if not self.session.turns:
            return
        count, last = len(self.session.turns), self.session.turns[-1]
        say(
            f"going on after {count} question{'s' * (count != 1)}; the last one:\n\n> {describe_turn(last)}", faint=True
        )
        print_stderr(dim(safe(last.answer["content"])) + "\n")

    def read_line(self, text: str) -> str:
        assert self.line is not None
        pending = [media_name(part) for part in self.session.pending]
        label = f"{len(pending)} pictures" if len(pending) > 1 else "".join(pending)
        marks = ["edit"] * (self._editing is not None) + ([printable(label[-40:])] if label else [])
        return self.line.read(" ".join([*marks, "> "]), text)

    def run(self, line: str) -> str:
        """Do what a line says."""
        self._asked = ""
        if not line.strip():
            return ""
        action = parse_line(line)
        if isinstance(action, Command):
            command = getattr(self, f"do_{action.name}")
            return command(action.argument.strip()) or ""
        return self._ask_question(action, line)

    def _ask_question(self, action: Question, line: str) -> str:
        pending, self._asked = self.session.pending, line.strip()
        try:
            for kind, source in action.media:
                self.attach(kind, source)
        except Exception:
            self.session = replace(self.session, pending=pending)
            raise
        self._asked = action.text
        if not action.text:
            return ""
        for name in action.missing[:3]:
            say(f"{name} is no file here: the model reads the name only. /image takes paths and URLs")
        self.answered = self.ask(question(self.session.pending, action.text), replaces=self._editing is not None)
        if self.answered is None:
            say("stopped before there was an answer; the question is in the line again")
            return self.take_back()
        self._asked, self._editing = "", None
        self._leave_space()
        return ""

    def _leave_space(self) -> None:
        if self.line is not None:
            print_stderr("")

    def take_back(self) -> str:
        """The text of a question that has no answer, for the line. Its media are pending still."""
        text, self._asked = self._asked, ""
        return text

    def cancel_edit(self) -> str:
        """Leave the last turn as it is."""
        if self._editing is not None:
            self.session, self._editing = replace(self.session, pending=self._editing), None
        return ""

    # -- commands

    def do_image(self, argument: str, kind: str = "image") -> None:
        if not argument:
            names = [str(part[part["type"]]) for part in self.session.pending]
            say("\n".join(names) or f"no {kind} is pending; /{kind} PATH adds one to the next question")
        for source in split_paths(argument) if argument else ():
            self.attach(kind, source)

    def do_video(self, argument: str) -> None:
        self.do_image(argument, "video")

    def do_audio(self, argument: str) -> None:
        self.do_image(argument, "audio")

    def do_clear(self, argument: str) -> None:
        self._editing = None
        self.change({"event": "clear"})
        say("all that was said is forgotten; system message and settings stay")

    def do_undo(self, argument: str) -> None:
        self.cancel_edit()
        if pending := self.session.pending:
            self.session = replace(self.session, pending=())
            say(f"taken back: {', '.join(map(media_name, pending))}")
        elif self.session.turns:
            undone = self.session.turns[-1]
            self.change({"event": "undo"})
            say(f"taken back: {describe_turn(undone)}")
        else:
            raise LineError("there is nothing to take back")

    def do_retry(self, argument: str) -> None:
        last = self._last_turn()
        self.answered = self.ask(last.question, replaces=True)
        if self.answered is None:
            say("stopped before there was an answer; the last one stands")
        elif self.answered.answer == last.answer and self.answered.finish_reason == last.finish_reason == "stop":
            say("the same answer; /set temperature 0.7 allows others", faint=True)
        self._leave_space()

    def do_edit(self, argument: str) -> str:
        if self.line is None:
            raise LineError("/edit needs a terminal")
        last = self._last_turn()
        self.cancel_edit()
        self._editing = self.session.pending
        self.session = replace(self.session, pending=last.media)
        return last.text

    def _last_turn(self) -> Turn:
        if not self.session.turns:
            raise LineError("nothing has been asked yet")
        return self.session.turns[-1]

    def do_system(self, argument: str) -> None:
        if not argument:
            say(self.session.system or "there is no system message; /system TEXT sets one")
            return
        self.change({"event": "system", "value": None if argument in ('""', "''") else argument})
        say(f"system message: {self.session.system or 'none'}", faint=True)

    def do_set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if not name:
            say(describe_settings(self.session))
            return
        option, value = setting(name), value.strip()
        if not value:
            current = {**DEFAULTS, **self.session.settings}.get(option.name, "default")
            say(f"{option.name} {current}: {option.help}")
        elif value == "default":
            self.change({"event": "unset", "name": option.name})
            say(describe_settings(self.session), faint=True)
        else:
            parsed = parse_setting(option.name, value)
            check_keywords({**self.session.settings, option.name: parsed})
            self.change({"event": "set", "values": {option.name: parsed}})
            say(describe_settings(self.session), faint=True)

    def do_show(self, argument: str) -> None:
        maximum, turns = self.model.max_positions, self.session.turns
        say(f"model     {self.args.model} ({self.model.config['model_type']})")
        say(f"context   {self.session.tokens:,} tokens" + (f" of {maximum:,}" if maximum else ""))
        kinds = [part["type"] for turn in turns for part in turn.media]
        sounds = kinds.count("audio")
        seen = f"pictures and videos: {len(kinds) - sounds}" + (f", sounds: {sounds}" if sounds else "")
        say(f"talk      questions: {len(turns)}, {seen}")
        say(f"system    {self.session.system or '-'}")
        say(f"settings  {describe_settings(self.session)}")
        say(f"file      {self.journal.path if self.journal else 'none yet; the first answer begins one'}")

    def do_thoughts(self, argument: str) -> None:
        if argument in ("open", "fold"):
            self.fold_thinking = argument == "fold"
        elif argument:
            raise LineError(f"/thoughts {argument}: expected open, fold or nothing")
        elif thinking := self._last_turn().thinking:
            print_stderr(dim(safe(thinking)))
        else:
            say("nothing was thought before the last answer; /set enable_thinking on asks for it")

    def do_save(self, argument: str) -> None:
        if not argument:
            raise LineError("/save FILE: give the name of a new file")
        path = Path(split_paths(argument)[0]).expanduser()
        save_copy(path, self.session)
        say(f"saved; --resume {path} goes on from here")

    def do_load(self, argument: str) -> None:
        if not argument:
            for number, path in enumerate(kept_talks()[:LISTED], 1):
                with suppress(SessionError):
                    turns = read_talk(path)[0].turns
                    line = f"{number:2}  {path.stem[:16]}  {len(turns):3}  {' '.join(describe_turn(turns[0]).split())}"
                    say(line[: terminal_width()])
            return
        path = Path(split_paths(argument)[0]).expanduser()
        if argument.isdigit() and not path.exists() and 0 < int(argument) <= len(kept := kept_talks()):
            path = kept[int(argument) - 1]
        model = self.args.model
        self.open(path)
        self._editing = None
        if self.session.model != model:
            say(f"that talk was with {self.session.model}; it goes on with {model}, and /model NAME takes another")
            self.change({"event": "model", "value": model})
        self._show_last_turn()

    def do_model(self, argument: str) -> None:
        if not argument:
            say(self.args.model)
            return
        if on_ranks(self.args):
            raise LineError("/model: several ranks have one model; leave, and begin again with --model")
        self.change_model(argument)
        say(f"{argument} goes on with the talk")

    def do_help(self, argument: str) -> None:
        for name, (arguments, help) in COMMANDS.items():
            say(f"/{name} {arguments}".ljust(22) + help)
        say(
            "\nA path in a question, typed, pasted or dropped here, becomes its picture, video or sound. "
            'Alt-Enter begins a new line, as Enter does between """ and """. Ctrl-C stops an answer, which stays as '
            "far as it came."
        )

    def do_quit(self, argument: str) -> None:
        raise EOFError
