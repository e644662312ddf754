"""Messages to prompt text, without letting a person's own words become a picture."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError

Message = Mapping[str, Any]

_KINDS = {"image": "image", "image_url": "image", "video": "video", "video_url": "video", "audio": "audio"}
"""Content part types of the two conventions (transformers', OpenAI's) -> what they hold."""

_SOURCES = ("image", "video", "audio", "url", "path", "image_url", "video_url", "base64")
_NO_MATTER = ("type", "text", "detail", "cache_control")
"""Keys of a media part that change nothing here: OpenAI's level of detail, Anthropic's caching."""

_TEMPLATE_CALL = ("add_generation_prompt", "continue_final_message", "tools", "documents", "enable_thinking")
"""Keywords of transformers' `apply_chat_template` that a template need not mention."""


@dataclass(frozen=True)
class Segment:
    """Part of a formatted prompt. literal: a person's words that look like a placeholder and are none."""

    text: str
    literal: bool = False


@dataclass(frozen=True)
class MediaPart:
    """A picture or video in messages; source is None where it was given beside them."""

    kind: str
    source: Any = None


def media_parts(messages: Sequence[Message]) -> Iterator[MediaPart]:
    """The pictures and videos in messages, in order."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and (kind := _kind(part)):
                yield MediaPart(kind, _source(part))


def normalize(messages: Message | Sequence[Message]) -> list[dict[str, Any]]:
    """Copies with contents that are a string or a list of {"type": "text" | "image" | "video" | "audio", …}."""
    if isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, list | tuple) or not messages:
        given = "an empty one" if messages in ([], ()) else f"a {type(messages).__name__}"
        raise PromptError(f"a prompt is a string, a message or a list of messages; this is {given}")
    return [_normal_message(message) for message in messages]


def _normal_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise PromptError(f'a message is a mapping like {{"role": "user", "content": "…"}}; this is {message!r:.80}')
    content = message.get("content")
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, list | tuple):
        content = [_normal_part(part) for part in content]
    elif content is not None and not isinstance(content, str):
        raise PromptError(f"a message's content is a string or a list of parts; this is {type(content).__name__}")
    return {**message, "content": content} if "content" in message else dict(message)


def _normal_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise PromptError(f'a content part is a mapping like {{"type": "text", "text": "…"}}; this is {part!r:.80}')
    if kind := _kind(part):
        if unread := [key for key in part if key not in _SOURCES + _NO_MATTER and part[key] is not None]:
            raise PromptError(
                f"{unread[0]!r} in a content part of type {kind!r} is not read: settings like max_pixels and video_fps "
                "are keywords of the call"
            )
        return {"type": kind, kind: _source(part)}
    if isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}  # templates look at keys, too: no others
    raise PromptError(
        f"a content part of type {part.get('type')!r} with {', '.join(map(repr, part)) or 'nothing'} is not known: "
        'expected {"type": "text", "text": "…"}, {"type": "image", "image": …} or {"type": "video", "video": …}'
    )


def _kind(part: Mapping[str, Any]) -> str | None:
    """What a part holds by its type, or else by its keys; data sets fill the keys that a part lacks with None."""
    if (kind := _KINDS.get(part.get("type") or "")) or part.get("text") is not None:
        return kind
    return next((kind for key, kind in _KINDS.items() if part.get(key) is not None), None)


def _source(part: Mapping[str, Any]) -> Any:
    sources = {key: part[key] for key in _SOURCES if part.get(key) is not None}
    if len(sources) > 1:
        raise PromptError(f"a content part holds one picture or video; this one has {' and '.join(sources)}")
    for key, source in sources.items():
        if key == "base64" and not source.startswith("data:"):
            return f"data:;base64,{source}"
        return source.get("url") if isinstance(source, Mapping) else source
    return None


def place(messages: list[dict[str, Any]], images: int, videos: int) -> list[dict[str, Any]]:
    """Messages with parts for media that were given beside them, before the text of the last message of a user;
    unchanged when they have parts of their own for them."""
    parts = [part.kind for part in media_parts(messages)]
    new = [{"type": "image"}] * (images if "image" not in parts else 0)
    new += [{"type": "video"}] * (videos if "video" not in parts else 0)
    if not new:
        return messages
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise PromptError("pictures or video were given, and no message of role 'user' that could hold them")
    content = messages[last].get("content") or []
    old = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*messages[:last], {**messages[last], "content": new + old}, *messages[last + 1 :]]


def joined(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose contents are strings: templates of text models are often made for nothing else."""
    return [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in messages
    ]


def words_joined(message: Message) -> Message:
    """The same for one message, if it holds words only."""
    content = message.get("content")
    words = isinstance(content, list) and all("text" in part for part in content)
    return joined([message])[0] if words else message


def in_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose contents are lists of parts: some templates go through them without a look, and a string has no
    parts to them."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else dict(message)
        for message in messages
    ]


def render(
    tokenizer: Any, template: str | None, messages: Sequence[Message], placeholders: Sequence[str], **kwargs: Any
) -> list[Segment]:
    """Messages through the chat template. Where a person's own text holds a placeholder string, that is a literal
    segment; everything else, in the order of the text, is not. kwargs: `add_generation_prompt`, `enable_thinking`, …"""
    if template is None:
        raise PromptError(
            "this checkpoint has no chat template, so it takes no messages: give the prompt as a string that is "
            "formatted already"
        )
    if kwargs.get("enable_thinking") and "enable_thinking" not in template and "<think>" not in template:
        raise PromptError("enable_thinking: this checkpoint's chat template knows no thinking; leave it out")
    for name in kwargs:
        if name not in _TEMPLATE_CALL and not re.search(rf"\b{re.escape(name)}\b", template):
            raise TypeError(f"unknown keyword {name!r}: this checkpoint's chat template does not use it")
    marks: dict[str, str] = {}
    protected = [_protect(message, placeholders, marks) for message in messages]
    bare = [{**message, "content": _without_sources(message.get("content"))} for message in protected]

    def write(messages: list[dict[str, Any]]) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **kwargs))
        except Exception as error:  # a template is the checkpoint's program, and says no in its own words
            raise PromptError(f"the chat template refuses these messages: {error}") from None

    if any(isinstance(message["content"], str) for message in bare) and _reads_parts_only(write):
        bare = in_parts(bare)
    text = _written(write, bare)
    _check_kept(protected, text)
    if not marks:
        return [Segment(text)]
    pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text)
    return [Segment(marks.get(piece, piece), piece in marks) for piece in pieces if piece]


def _reads_parts_only(write: Callable[[list[dict[str, Any]]], str]) -> bool:
    """Whether a template looks for parts in every content and finds nothing in one that is a string, as LLaVA's do."""

    words = [{"role": "user", "content": "\ue0fd"}]

    def reads(messages: list[dict[str, Any]]) -> bool:
        try:
            return "\ue0fd" in write(messages)
        except PromptError:
            return False

    return not reads(words) and reads(in_parts(words))


def _written(write: Callable[[list[dict[str, Any]]], str], messages: list[dict[str, Any]]) -> str:
    """The text. Where a template refuses a list of words, or writes the list down as it is, they go as a string."""
    strings = [dict(words_joined(message)) for message in messages]
    try:
        text = write(messages)
    except PromptError:
        if strings == messages:
            raise
        return write(strings)
    return write(strings) if "[{'type': 'text', 'text': " in text and strings != messages else text


def _protect(message: Message, placeholders: Sequence[str], marks: dict[str, str]) -> dict[str, Any]:
    """The message with each placeholder string in its text replaced by a mark, which is noted in `marks`."""
    pattern = re.compile("|".join(map(re.escape, placeholders)) or r"(?!)")

    def mark(match: re.Match[str]) -> str:
        # Private-use characters, numbered by what they stand for; nobody's text holds them in this order.
        name = f"\ue0ff\ue0fe{placeholders.index(match.group())}\ue0fe\ue0ff"
        marks[name] = match.group()
        return name

    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": pattern.sub(mark, content)}
    parts = content or []
    return {**message, "content": [{**p, "text": pattern.sub(mark, p["text"])} if "text" in p else p for p in parts]}


def _check_kept(messages: Sequence[Message], text: str) -> None:
    """PromptError when the template left a message out, as some do with a role they do not know, or a second system
    message. What an assistant thought and what tools returned may be left out or rewritten."""
    for number, message in enumerate(messages, 1):
        role, content = message["role"], message.get("content") or ()
        words = [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        if role not in ("assistant", "tool") and any(word.strip() not in text for word in words):
            raise PromptError(
                f"this checkpoint's chat template leaves out message {number}, of role {role!r}: it takes one system "
                "message, at the start, and then roles that it knows (user, assistant)"
            )


def _without_sources(content: Any) -> Any:
    """A template sees that there is a picture, and never its bytes."""
    if not isinstance(content, list):
        return content
    return [{"type": part["type"]} if _kind(part) else part for part in content]
