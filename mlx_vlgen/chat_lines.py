"""What a person types in a chat: a line becomes a question with its media, or a command. Nothing here acts."""

import argparse
import os
import re
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from .errors import VlgenError
from .inputs.kinds import KINDS, kind_of_file
from .options import OPTIONS, did_you_mean
from .session import Message, Session, Turn

FENCE = '"""'

DEFAULTS: Mapping[str, Any] = {"max_tokens": 2048, "sampling": "model"}
"""Settings of a chat that differ from those of `generate`."""


class LineError(VlgenError, ValueError):
    """A line that means nothing."""


class Usage(NamedTuple):
    arguments: str
    help: str


COMMANDS = {
    "image": Usage("PATH ...", "pictures of the next question; alone, lists them"),
    "video": Usage("PATH ...", "videos of the next question"),
    "audio": Usage("PATH ...", "sounds of the next question"),
    "undo": Usage("", "take back what is pending, else the last question"),
    "retry": Usage("", "answer the last question again"),
    "edit": Usage("", "the last question, in the line again; sent, it replaces it"),
    "clear": Usage("", "forget all that was said; settings stay"),
    "system": Usage("TEXT", 'set the system message; "" removes it; alone, shows it'),
    "set": Usage("NAME VALUE", "change a setting, to default too; alone, lists them"),
    "show": Usage("", "model, context, settings, and the file of the talk"),
    "thoughts": Usage("[open|fold]", "what was thought last; open shows it as it comes"),
    "save": Usage("FILE", "write a copy of the talk to a new file"),
    "load": Usage("FILE", "go on with another talk; alone, lists the last ones"),
    "model": Usage("NAME", "go on with another model"),
    "help": Usage("", "this list"),
    "quit": Usage("", "leave, as Ctrl-D does"),
}


@dataclass(frozen=True)
class Command:
    name: str
    argument: str = ""


@dataclass(frozen=True)
class Question:
    """text: without the paths at its beginning and end. media: (kind, path) of each path in the line, in order.
    missing: what ends like a path and is no file's; it stays in the text."""

    text: str
    media: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = field(default=(), compare=False)


def is_open(line: str) -> bool:
    '''Whether a line has begun a text between """ and """ that it does not end.'''
    text = line.strip()
    return text.startswith(FENCE) and (len(text) < 6 or not text.endswith(FENCE))


def parse_line(line: str, exists: Callable[[str], bool] = os.path.exists) -> Command | Question:
    """What a line means. exists: whether there is a file of a name.

    LineError for an unknown command.
    """
    text = line.strip()
    if text.startswith(FENCE):
        return Question(text.removeprefix(FENCE).removesuffix(FENCE).strip("\n"))
    if match := re.match(r"/([A-Za-z?]+)(?:\s+|$)", text):
        if match[1] not in COMMANDS:
            hint = did_you_mean(match[1], COMMANDS).replace("mean '", "mean '/")
            raise LineError(f"unknown command /{match[1]}{hint or '; /help lists them'}")
        return Command(match[1], text[match.end() :])
    return _find_media(text, exists)


# Paths in a question


_SUFFIXES = sorted(suffix for record in KINDS.values() for suffix in record.suffixes)
_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, _SUFFIXES))})(?![A-Za-z0-9])", re.IGNORECASE)
_WORD = re.compile(r"(?<!\S)\S")
_SURELY_A_PATH = re.compile(r"""['"]?(/|~/|\.\.?/|file:///?)""", re.IGNORECASE)
_CANDIDATES, _LONGEST = 16, 1024
"""Names of files that a word may begin, at most, since a name may hold blanks and suffixes; characters of one."""


def _find_media(text: str, exists: Callable[[str], bool]) -> Question:
    """A question whose media stand in it as paths: as a terminal pastes a dragged file, quoted, with a backslash before
    each blank, or as a file: URL; or typed as they are."""
    media, missing, pieces, at = [], list[str](), [], 0
    ends = [suffix.end() for suffix in _SUFFIX.finditer(text)]
    for word in _WORD.finditer(text):
        start = word.start()
        first = bisect_right(ends, start)
        near = [end for end in ends[first : first + _CANDIDATES] if end - start <= _LONGEST]
        if start < at:
            continue
        if (found := _path_at(text, start, near, exists)) is None:
            if near and not re.search(r"\s", name := text[start : near[0]]):
                missing.append(name)
            continue
        path, end = found
        media.append((kind_of_file(path) or "image", path))
        pieces += [text[at:start], os.path.basename(path)]  # noqa: PTH119
        at = end
    pieces.append(text[at:])
    inside = [i for i in range(0, len(pieces), 2) if pieces[i].strip()]
    if not inside:
        return Question("", tuple(media))
    kept = pieces[inside[0] : inside[-1] + 1]
    words = re.sub(r"[ \t]{2,}", " ", "".join(kept)).strip() if media else text
    return Question(words, tuple(media), tuple(dict.fromkeys(missing)))


def _path_at(text: str, start: int, ends: Sequence[int], exists: Callable[[str], bool]) -> tuple[str, int] | None:
    """The path that begins at `start` and may end at `ends`, and where it does; None for a word that is none. What can
    only be a path is one without there being such a file: who asks about it is told then."""
    surely = _SURELY_A_PATH.match(text, start)
    missing = None
    for end in ends:
        raw = text[start:end]
        if "\n" in raw:
            break
        quote = text[start] if text[start] in "'\"" else ""
        if quote and text[end : end + 1] != quote:
            continue
        end += len(quote)
        names = _readings(raw + quote)
        for name in names:
            if (surely or quote or not re.search(r"\s", name) or "\\" in raw) and exists(os.path.expanduser(name)):  # noqa: PTH111
                return name, end
        if surely and missing is None and (quote or not re.search(r"\s", raw.replace("\\ ", ""))):
            missing = names[0], end
    return missing


def _readings(raw: str) -> list[str]:
    """What a pasted path may mean."""
    if raw.lower().startswith("file:"):
        return [unquote(re.sub(r"(?i)^file:(//(localhost)?)?", "", raw))]
    try:
        words = shlex.split(raw)
    except ValueError:
        words = []
    return [*(words if len(words) == 1 else []), raw]


def split_paths(argument: str, exists: Callable[[str], bool] = os.path.exists) -> list[str]:
    """The paths and URLs of /image and its like: as a shell splits them, or the whole where that is a file's name."""
    if exists(os.path.expanduser(argument)):  # noqa: PTH111
        return [argument]
    try:
        words = shlex.split(argument)
    except ValueError:
        words = argument.split()
    return [_readings(word)[0] if word.lower().startswith("file:") else word for word in words]


# Settings

_BY_NAME = {option.name: option for option in OPTIONS}


def parse_setting(name: str, value: str) -> Any:
    """The value of a setting, read as its flag's. LineError for what it cannot be."""
    option = setting(name)
    if option.parse is None:
        if (known := {"on": True, "true": True, "off": False, "false": False}.get(value.lower())) is None:
            raise LineError(f"{name} is on or off, not {value!r}")
        return known
    try:
        if option.many or option.nargs > 1:
            return [option.parse(word) for word in shlex.split(value)]
        return option.parse(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        expected = {int: "a whole number", float: "a number"}.get(option.parse)
        raise LineError(f"{name}: {f'{value!r} is not {expected}' if expected else error}") from None


def setting(name: str) -> Any:
    """A setting's Option. LineError with the nearest name for one that is not known."""
    name = name.removeprefix("--").replace("-", "_")
    if name not in _BY_NAME:
        raise LineError(f"unknown setting {name!r}{did_you_mean(name, _BY_NAME)}")
    return _BY_NAME[name]


def describe_settings(session: Session) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in {**DEFAULTS, **session.settings}.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(shlex.quote(str(item)) for item in value)
    return "all" if value is None else str(value)


# Completion


def complete(text: str) -> Iterator[tuple[str, int, str]]:
    """What may stand in the place of the end of `text`, the line before the cursor: (replacement, characters that it
    replaces, description)."""
    if match := re.fullmatch(r"/([a-z]*)", text):
        yield from (
            (f"/{name}", len(text), usage.help) for name, usage in COMMANDS.items() if name.startswith(match[1])
        )
    elif match := re.fullmatch(r"/set\s+([\w-]*)", text):
        start = match[1].replace("-", "_")
        yield from ((option.name, len(match[1]), option.help) for option in OPTIONS if option.name.startswith(start))
    elif re.match(r"/(thoughts)\s", text):
        yield from ((word, len(text.split()[-1]), "") for word in ("open", "fold") if word.startswith(text.split()[-1]))
    else:
        match = re.search(r"(?:^|(?<=\s))(?:\\.|[^\s\\])*$", text)
        if match and ("/" in match[0] or re.match(r"/(image|video|audio|load|save|model)\s", text)):
            yield from _complete_path(match[0])


def _complete_path(word: str) -> Iterator[tuple[str, int, str]]:
    """Files and folders whose names go on from `word`, with backslashes before blanks as a shell writes them."""
    plain = re.sub(r"\\(.)", r"\1", word)
    folder, _, start = plain.rpartition("/")
    base = Path(os.path.expanduser(folder + "/" if "/" in plain else "."))  # noqa: PTH111
    try:
        entries = sorted(os.scandir(base), key=lambda entry: entry.name.lower())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
            name = re.sub(r"([\s\\'\"()&;])", r"\\\1", entry.name)
            written = re.sub(r"[^/]*$", "", word) if "/" in plain else ""
            yield written + name + ("/" if entry.is_dir() else ""), len(word), ""


# What is shown


def status_line(
    tokens: int, speed: float, used: int, maximum: int | None, reason: str | None = None, reused: int = 0
) -> str:
    """Of an answer: its tokens and their speed, how much of the context was computed before, and how much of what the
    model has is used."""
    parts = [f"{tokens:,} token{'s' * (tokens != 1)}"]
    parts += [f"{speed:.1f} tokens/s"] if speed else []
    parts += [f"reused {reused:,}"] if reused else []
    parts += [f"context {used:,} of {maximum:,} ({used / maximum:.0%})" if maximum else f"context {used:,}"]
    return " · ".join(["stopped", *parts] if reason == "cancelled" else parts)


def context_warning(used: int, maximum: int | None) -> str | None:
    """What to do where the context is nearly full; None where it is not."""
    if not maximum or used < 0.8 * maximum:
        return None
    state = "full" if used >= maximum else f"{used / maximum:.0%} full, with room for {maximum - used:,} tokens"
    return f"the context is {state}: {REMEDIES}"


REMEDIES = (
    "/clear begins anew, /undo takes turns back, /set max_pixels N makes pictures smaller, "
    "and /model NAME goes on with a model that has more"
)


def describe_turn(turn: Turn) -> str:
    names = [media_name(part) for part in turn.media]
    return " ".join([*(f"[{name}]" for name in names), turn.text])


def media_name(part: Message) -> str:
    source = str(part[part["type"]])
    return "data: URI" if source.startswith("data:") else source.rstrip("/").rpartition("/")[2] or source
