"""A talk: messages and settings as a value that events change, and the JSONL file that those events are written to."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import VlgenError
from .inputs.kinds import KINDS

Message = dict[str, Any]
Event = dict[str, Any]

VERSION = 1


class SessionError(VlgenError, ValueError):
    """A session file that cannot be read, written or gone on with."""


@dataclass(frozen=True)
class Turn:
    """A question with its answer, which may have been cut.

    question: a user's message whose content is a list of parts; those of media have the path or URL under their type,
        and the SHA-256 of what was read there under "sha256".
    answer: the assistant's message. thinking: what was thought before it. finish_reason: "cancelled" where a person
    stopped it. tokens: of the context, when it ended.
    """

    question: Message
    answer: Message
    thinking: str | None = None
    thinking_tokens: int = 0
    finish_reason: str | None = None
    tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.question["content"] if part["type"] == "text")

    @property
    def media(self) -> tuple[Message, ...]:
        return tuple(part for part in self.question["content"] if part["type"] in KINDS)


@dataclass(frozen=True)
class Session:
    """A talk as it stands. settings: those that differ from the defaults. pending: media of the next question."""

    model: str | None = None
    system: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    pending: tuple[Message, ...] = ()

    def messages(self, source: Callable[[Message], Any]) -> list[Message]:
        """All messages, as `stream_generate` takes them. source: what stands for a medium, by its part."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        talk = [message for turn in self.turns for message in (_with_sources(turn.question, source), turn.answer)]
        return [*system, *talk]

    @property
    def tokens(self) -> int:
        """Of the context, after the last turn."""
        return self.turns[-1].tokens if self.turns else 0


def question(media: Iterable[Message], text: str) -> Message:
    """A user's message: media first, in the order that models are trained on."""
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


def _with_sources(message: Message, source: Callable[[Message], Any]) -> Message:
    parts = [
        {"type": kind, kind: source(part)} if (kind := part["type"]) in KINDS else part for part in message["content"]
    ]
    return {**message, "content": parts}


# Events


def apply(session: Session, event: Event) -> Session:
    """The session after an event. ValueError, KeyError, TypeError or IndexError for what is none."""
    match event["event"]:
        case "talk" if event["version"] > VERSION:
            raise SessionError("written by a newer version of mlx_vlgen")
        case "talk":
            return session
        case "model" | "system" as name:
            return replace(session, **{name: event["value"]})
        case "set":
            return replace(session, settings={**session.settings, **event["values"]})
        case "unset":
            left = {name: value for name, value in session.settings.items() if name != event["name"]}
            return replace(session, settings=left)
        case "turn":
            turns = session.turns[:-1] if event.get("replaces") else session.turns
            return replace(session, turns=(*turns, Turn(**event["turn"])), pending=())
        case "undo":
            return replace(session, turns=session.turns[:-1])
        case "clear":
            return replace(session, turns=(), pending=())
        case "medium":
            return replace(session, turns=_with_medium(session.turns, event["turn"], event["index"], event["part"]))
    raise SessionError(f"an event {event['event']!r}, which is not known")


def _with_medium(turns: tuple[Turn, ...], number: int, index: int, part: Message | None) -> tuple[Turn, ...]:
    """The turns with another medium in one place, or None of it."""
    turn = turns[number]
    parts = list(turn.question["content"])
    parts[index : index + 1] = [] if part is None else [part]
    changed = replace(turn, question={**turn.question, "content": parts})
    return (*turns[:number], changed, *turns[number + 1 :])


def snapshot(session: Session) -> list[Event]:
    """The fewest events that make this session, without what is pending."""
    events: list[Event] = [{"event": "talk", "version": VERSION}]
    events += [{"event": "model", "value": session.model}] if session.model is not None else []
    events += [{"event": "system", "value": session.system}] if session.system is not None else []
    events += [{"event": "set", "values": dict(session.settings)}] if session.settings else []
    return events + [turn_event(turn) for turn in session.turns]


def turn_event(turn: Turn, replaces: bool = False) -> Event:
    event: Event = {"event": "turn", "turn": vars(turn)}
    return event | {"replaces": True} if replaces else event


# Files


def state_folder() -> Path:
    """Where this program keeps talks and the history of the line; made for its owner only."""
    default = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/state")
    folder = Path(os.environ.get("XDG_STATE_HOME") or default) / "mlx-vlgen"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def talks_folder() -> Path:
    folder = state_folder() / "chats"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def kept_talks() -> list[Path]:
    """The newest first."""
    return sorted(talks_folder().glob("*.jsonl"), key=lambda path: -path.stat().st_mtime_ns)


def read_talk(path: Path) -> tuple[Session, int]:
    """The session in a file, and how many bytes of an unfinished line end it. SessionError for a file that is none."""
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror}") from None
    session = Session()
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line.decode("utf-8", "surrogatepass"))
            if number == 1 and event["event"] != "talk":
                raise ValueError("a talk begins with another event")
            session = apply(session, event)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = error if isinstance(error, SessionError) else "no event of a talk"
            raise SessionError(f"{path}, line {number}: {reason}") from None
    if not lines:
        raise SessionError(f"{path}: no talk; expected a file that /save or a chat wrote")
    return session, len(torn)


class Journal:
    """The file of a session: a line an event, appended whole as the talk goes. One process at a time."""

    def __init__(self, path: Path, *, new: bool):
        """new: whether the file must not be there yet. It is for its owner only. SessionError says what is wrong."""
        import fcntl  # not on Windows, where other commands import this file

        self.path = path
        flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | (os.O_CREAT | os.O_EXCL if new else 0)
        try:
            self._file = os.open(path, flags, 0o600)
        except FileExistsError:
            raise SessionError(f"{path}: is there already; give another name") from None
        except OSError as error:
            raise SessionError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise SessionError(f"{path}: another chat goes on with this talk; end that one first") from None

    def append(self, *events: Event) -> None:
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        data = text.encode("utf-8", "surrogatepass")
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:  # a full disk must not leave half a line, on which the next would go on
            os.ftruncate(self._file, size)
            raise SessionError(f"{self.path}: the talk cannot be written: {error.strerror}") from None

    def read(self) -> tuple[Session, int]:
        """The session, and how many bytes of a line that a killed process did not finish were cut off."""
        session, torn = read_talk(self.path)
        if torn:
            os.ftruncate(self._file, os.fstat(self._file).st_size - torn)
        return session, torn

    def close(self) -> None:
        os.close(self._file)


def save_copy(path: Path, session: Session) -> None:
    """Write a session to a new file."""
    copy = Journal(path, new=True)
    try:
        copy.append(*snapshot(session))
    finally:
        copy.close()
