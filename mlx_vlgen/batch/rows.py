"""From an item of an input to the rows that are asked: its prompts, pages, media and keywords, read and checked."""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import PromptError, UnsupportedError, one_line
from ..inputs import chat_template
from ..inputs.kinds import KINDS
from ..inputs.media import is_local, local_path
from ..options import DRAFTS, ENGINE, OPTIONS, group_keywords
from . import openai, pdf
from .sources import Item

FIELDS = ("custom_id", "images", *KINDS, "prompt", "messages")
"""What a row has beside keywords."""

FILE_COLUMNS = frozenset(["name", "folder"])
"""What templates may name of every file."""

_OPTIONS = {option.name: option for option in OPTIONS}
_OF_THE_JOB = frozenset(option.name for option in DRAFTS + ENGINE)
_NOT_SHOWN = ("logprobs", "top_logprobs", "logits_processors", "sampler", "stopping_criteria")
_TEMPLATE = re.compile(r"\{([^\W\d]\w*)\}")


@dataclass(frozen=True)
class Row:
    """One request of a job.

    where: names its item in messages. custom_id: the input's; None where it has none. name: its media as the input
    names them; empty for text.
    prompt: the text that is asked, None for messages. messages: with their media, beside which images, videos and
    audios go. keywords: over those of the job. files: the local ones that it reads. stem: what names its sidecar.
    openai: whether it came as a line of OpenAI's format. error: what keeps it from being asked.
    """

    where: str = ""
    custom_id: str | int | None = None
    name: str = ""
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    audios: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    stem: str | None = None
    openai: bool = False
    error: str | None = None

    @property
    def identity(self) -> list[Any]:
        """What tells it from rows of other things, but not from a second row about the same."""
        if self.custom_id is not None:
            return ["custom_id", self.custom_id]
        if self.name or self.error is not None:
            return ["media", self.name] if self.name else ["line", self.where]
        return ["text", self.digest]

    @property
    def title(self) -> str:
        """What a person knows it by."""
        return self.name.partition("\n")[0] or (self.where if self.custom_id is None else str(self.custom_id))

    @cached_property
    def digest(self) -> str:
        """Of what is asked, media by their names: 16 hexadecimal digits."""
        asked = [self.prompt, self.messages, self.images, self.videos, self.keywords]
        if self.audios:  # other rows are those of jobs that were begun before there were any
            asked.append(self.audios)
        return hashlib.sha256(json.dumps(asked, default=show_source, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Asked:
    """What a job asks of each item, where the item does not say.

    prompts: templates. system: a first message. columns: what the templates name.
    unread: columns of tables that nothing reads; models: what lines of OpenAI's format name, as they are found.
    """

    prompts: Sequence[str] = ()
    system: str | None = None
    columns: frozenset[str] = field(init=False)
    unread: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.columns = template_columns(*self.prompts)


def rows_of(item: Item, asked: Asked) -> Iterator[Row]:
    """The rows of an item: one for each prompt, and for each page of a PDF file. What is wrong with it is the error of
    its one row."""
    if item.error is not None:
        yield Row(item.where, error=f"{item.where}: {item.error}")
        return
    is_openai = not item.table and openai.is_batch_line(item.fields)
    named = Row(item.where, _id_or_none(item.fields.get("custom_id")), _name(item.fields), openai=is_openai)
    try:
        fields = openai.read_line(item.fields) if is_openai else item.fields
        if is_openai and item.fields["body"].get("model") is not None:
            asked.models.add(str(item.fields["body"]["model"]))
        rows = list(_read(item, fields, asked, named))
        for row in rows:
            row.digest  # noqa: B018  what is nested too deeply for it is told here
    except Exception as error:  # a fault of one row's input ends that row only
        prefix = "" if item.fields.keys() <= KINDS.keys() else f"{item.where}: "
        rows = [replace(named, error=prefix + one_line(error))]
    yield from rows


def _read(item: Item, fields: Mapping[str, Any], asked: Asked, named: Row) -> Iterator[Row]:
    custom_id = fields.get("custom_id")
    if custom_id is not None and _id_or_none(custom_id) is None:
        raise PromptError(f"custom_id={custom_id!r:.80}: expected text or a whole number")
    keywords = _keywords(item, fields, asked)
    media = {kind: _sources(fields, kind, item.base, table=item.table) for kind in KINDS}
    stem = item.stem or _safe_stem(custom_id)
    images, others = media.pop("image"), [source for sources in media.values() for source in sources]
    by_kind: dict[str, Any] = {KINDS[kind].plural: tuple(sources) for kind, sources in media.items()}
    row = replace(named, keywords=keywords, stem=stem, **by_kind)
    if fields.get("messages") is not None:
        yield _with_messages(row, fields, item, images, asked.system)
        return
    if not images and not others and fields.get("prompt") is None:
        raise PromptError("nothing to ask about: it has no image, images, video, audio, prompt or messages")
    kind = "image" if images else next((kind for kind in media if media[kind]), "image")
    prompts = _prompts(item, fields, asked, kind)
    by_page = len(images) > 1 and "images" not in fields
    for group in [(image,) for image in images] if by_page else [tuple(images)]:
        shown = [*map(show_source, group), *map(show_source, others)]
        page = f"#{group[0].number}" if by_page else ""
        row = replace(
            row,
            custom_id=f"{custom_id}{page}" if page and custom_id is not None else named.custom_id,
            name=named.name if not page else _unresolved(shown[0], named.name),
            files=_files([*group, *others]),
            stem=f"{stem}{page.replace('#', '-')}" if stem and page else stem,
        )
        for number, prompt in enumerate(prompts):
            system = [{"role": "system", "content": asked.system}] if asked.system else []
            messages = [*system, {"role": "user", "content": prompt}]
            several = len(prompts) > 1 and row.custom_id is not None
            copies = tuple(map(copy.copy, group))  # of a page each is read by one thread
            yield replace(row, prompt=prompt, messages=messages, images=copies,
                          custom_id=f"{row.custom_id}/{number + 1}" if several else row.custom_id)  # fmt: skip


def _with_messages(row: Row, fields: Mapping[str, Any], item: Item, images: list[Any], system: str | None) -> Row:
    if fields.get("prompt") is not None:
        raise PromptError("it has prompt and messages: leave one of them out")
    messages = fields["messages"]
    if isinstance(messages, str):  # in a table
        messages = json.loads(messages)
    if isinstance(messages, list):  # tables fill the keys that a message lacks with null
        messages = [_without_nulls(message) for message in messages]
    messages, sources = chat_template.normalize(messages), [*images, *row.videos, *row.audios]
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = [opened for part in message["content"] for opened in _open_part(part, item.base)]
    sources += [part.source for part in chat_template.media_parts(messages) if part.source is not None]
    if system and all(message["role"] != "system" for message in messages):
        messages = [{"role": "system", "content": system}, *messages]
    name = "\n".join(map(show_source, sources)) if sources else ""
    return replace(row, messages=messages, images=tuple(images), files=_files(sources), name=name or row.name)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _prompts(item: Item, fields: Mapping[str, Any], asked: Asked, kind: str) -> list[str]:
    if (prompt := fields.get("prompt")) is not None:
        if not isinstance(prompt, str):
            raise PromptError(f"prompt={prompt!r:.80}: expected text")
        return [prompt]
    templates = asked.prompts or [f"Describe this {kind}."]
    return [fill_template(template, {**_path_fields(item), **fields}) for template in templates]


def template_columns(*templates: str | None) -> frozenset[str]:
    """What templates name."""
    return frozenset(name for template in templates if template for name in _TEMPLATE.findall(template))


def _path_fields(item: Item) -> dict[str, str]:
    """What a template may name of every file."""
    path = Path(_name(item.fields).partition("\n")[0])
    return {"name": path.stem, "folder": path.resolve().parent.name}


def fill_template(template: str, fields: Mapping[str, Any]) -> str:
    """The template with each {column} replaced. PromptError for a column that is not there."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise PromptError(f"{match[0]} in a template: this row has no such column; it has {', '.join(fields)}")
        found = fields[match[1]]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=show_source)

    return _TEMPLATE.sub(value, template)


# Keywords


def _keywords(item: Item, fields: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for name, value in fields.items():
        if name in FIELDS or (name in asked.columns and name not in _OPTIONS):
            continue
        if item.table and name not in _OPTIONS:
            asked.unread.add(name)
            continue
        if name in _OF_THE_JOB:
            raise UnsupportedError(f"{name} is of the whole job: give it on the command line")
        if name in _NOT_SHOWN:
            raise UnsupportedError(f"{name}: a job does not have it; leave it out")
        if item.table and isinstance(value, str):
            value = _parse(name, value)
        keywords[name] = value
    if keywords:
        group_keywords(keywords)
    return {name: value for name, value in keywords.items() if value is not None}


def _parse(name: str, text: str) -> Any:
    """A keyword's value from a table's text."""
    option = _OPTIONS[name]
    if option.many and text.startswith("["):
        return json.loads(text)
    if option.nargs > 1:
        return [int(part) for part in text.replace(",", " ").split()]
    if option.parse is None:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name}={text!r:.80}: expected true or false")
        return text.lower() in ("true", "1")
    if option.parse in (int, float):
        try:
            return option.parse(text)
        except ValueError:
            raise ValueError(f"{name}={text!r:.80}: expected a {'whole ' * (option.parse is int)}number") from None
    return text if name in ("grammar", "json_schema") else option.parse(text)


# Media


def _sources(fields: Mapping[str, Any], kind: str, base: str, table: bool) -> list[Any]:
    """What `load_image` and its like take, of each medium of a kind of the row."""
    names = (kind, "images") if kind == "image" else (kind,)
    given = [name for name in names if fields.get(name) is not None]
    if len(given) > 1:
        raise PromptError("it has image and images: leave one of them out")
    value = fields[given[0]] if given else []
    if table and isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    values = value if isinstance(value, list | tuple) else [value]
    return [source for item in values for source in _open_source(item, kind, base)]


def _open_part(part: dict[str, Any], base: str) -> list[dict[str, Any]]:
    kind = part["type"]
    if kind not in KINDS or part[kind] is None:
        return [part]
    return [{"type": kind, kind: source} for source in _open_source(part[kind], kind, base)]


def _open_source(source: Any, kind: str, base: str) -> list[Any]:
    if isinstance(source, Mapping):  # as Hugging Face's data sets have pictures
        names = ("bytes", "path", "url")
        source = next((source[name] for name in names if source.get(name) is not None), None)
    if isinstance(source, bytes):
        return [source]
    if not isinstance(source, str) or not source:
        raise PromptError(f"{kind}: expected a path, a URL or a data: URI; this is {type(source).__name__}")
    if not is_local(source):
        return [source]
    document = pdf.split_source(source) if kind == "image" else None
    if document is None:
        return [_resolve(source, base)]
    path, pages = _resolve(document[0], base), document[1]
    return [pdf.Page(path, number) for number in pdf.page_numbers(path, pages)]


def _resolve(path: str, base: str) -> str:
    """A path that begins at `base`, where there is such a file, or at the current folder."""
    beside = os.path.join(base, path)  # noqa: PTH118  a URL of a file stays one
    return beside if base and os.path.exists(beside) else path  # noqa: PTH110  Path's raises for long names


def _files(sources: Sequence[Any]) -> tuple[str, ...]:
    paths = [source.path if isinstance(source, pdf.Page) else source for source in sources]
    return tuple(dict.fromkeys(local_path(path) for path in paths if isinstance(path, str) and is_local(path)))


def show_source(source: Any) -> str:
    """A medium as outputs name it: its path or URL, or a hash of what has neither."""
    if isinstance(source, pdf.Page):
        return source.name
    if isinstance(source, Mapping):
        return show_source(source.get("path") or source.get("url") or source.get("bytes") or "")
    if isinstance(source, bytes) or (isinstance(source, str) and source[:5].lower() == "data:"):
        data = source if isinstance(source, bytes) else source.encode(errors="surrogateescape")
        return f"sha256:{hashlib.sha256(data).hexdigest()[:32]}"
    return str(source)


def _name(fields: Mapping[str, Any]) -> str:
    """The media of a row as the input names them."""
    sources = [fields.get(name) for name in ("image", "images", "video", "audio")]
    flat = [item for source in sources for item in (source if isinstance(source, list | tuple) else [source])]
    return "\n".join(show_source(item) for item in flat if isinstance(item, str | bytes | Mapping) and item)


def _unresolved(page: str, name: str) -> str:
    """The name of a page, of the file as the input names it."""
    document = pdf.split_source(name)
    return f"{document[0] if document else name}#{page.rpartition('#')[2]}"


def _id_or_none(value: object) -> str | int | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _safe_stem(custom_id: object) -> str | None:
    text = str(custom_id) if custom_id is not None else ""
    return text if re.fullmatch(r"\w[\w.-]*", text) else None
