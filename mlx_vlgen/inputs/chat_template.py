"""Messages to prompt text, without letting a person's own words become a picture."""

import functools
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError
from . import template_sandbox
from .literal import Change, Hiding, Segment, Strings, check_text, mapped, texts
from .template_budget import Budget, BudgetError

Message = Mapping[str, Any]

_KINDS = {"image": "image", "image_url": "image", "video": "video", "video_url": "video", "audio": "audio"}
"""Content part types of the two conventions (transformers', OpenAI's) -> what they hold."""

_SOURCES = ("image", "video", "audio", "url", "path", "image_url", "video_url", "base64")
_NO_MATTER = ("type", "text", "detail", "cache_control")
"""Keys of a media part that change nothing here: OpenAI's level of detail, Anthropic's caching."""

_TEMPLATE_CALL = ("add_generation_prompt", "continue_final_message", "tools", "documents", "enable_thinking")
"""Keywords of transformers' `apply_chat_template` that a template need not mention."""

_THOUGHT = ("reasoning_content", "thinking", "reasoning")
"""Names of what an assistant thought; the first is what most templates read."""


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
        given = "an empty one" if isinstance(messages, list | tuple) else f"a {type(messages).__name__}"
        raise PromptError(f"a prompt is a string, a message or a list of messages; this is {given}")
    return [_normal_message(message) for message in messages]


def _normal_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise PromptError(
            f'a message is a mapping like {{"role": "user", "content": "…"}}; this is {reprlib.repr(message)}'
        )
    _check_keys(message)
    if not isinstance(role := message["role"], str) or not role:
        raise PromptError(f"a message's role is a name like 'user' or 'system'; this is {reprlib.repr(role)}")
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
        raise PromptError(
            f'a content part is a mapping like {{"type": "text", "text": "…"}}; this is {reprlib.repr(part)}'
        )
    _check_keys(part)
    if not isinstance(part.get("type", ""), str | None):
        raise PromptError(
            f"a content part's type is a name like 'text' or 'image'; this is {reprlib.repr(part['type'])}"
        )
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


def _check_keys(given: Mapping[Any, Any]) -> None:
    for key in given:
        if not isinstance(key, str):
            raise PromptError(f"the keys of messages and their parts are strings; this is {reprlib.repr(key)}")


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
        if key == "base64" and not isinstance(source, str):
            raise PromptError(f"'base64' of a content part is a string; this is {reprlib.repr(source)}")
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
    tokenizer: Any,
    template: str | None,
    messages: Sequence[Message],
    steering: frozenset[str],
    media: frozenset[str],
    **kwargs: Any,
) -> list[Segment]:
    """Messages through the chat template. kwargs: `add_generation_prompt`, `enable_thinking`, …

    steering: strings that steer the conversation. Where one of them is a person's or a tool's words, it is a literal
    segment, wherever it comes from: whole, in several parts that the template joins, or half the template's own. What
    an assistant said goes through as it is, but for `media`, placeholders that no medium was given for.

    The template is run twice: on messages whose steering strings are hidden from it, and on messages of which every
    word is hidden, which shows what of the text is the template's own. Where the texts differ, the template reads what
    it is given; then it is run with less hidden. If it reads that, too, its own strings must be the same both times.
    """
    if template is None:
        raise PromptError(
            "this checkpoint has no chat template, so it takes no messages: give the prompt as a string that is "
            "formatted already"
        )
    thinking = kwargs.get("enable_thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise TypeError(f"enable_thinking={thinking!r:.80}: expected True or False")
    if thinking and "enable_thinking" not in template and "<think>" not in template:
        raise PromptError("enable_thinking: this checkpoint's chat template knows no thinking; leave it out")
    for name in kwargs:
        if name not in _TEMPLATE_CALL and not re.search(rf"\b{re.escape(name)}\b", template):
            raise TypeError(f"unknown keyword {name!r}: this checkpoint's chat template does not use it")
    bare: list[dict[str, Any]] = [
        template_sandbox.plain({**message, "content": _without_sources(message.get("content"))}) for message in messages
    ]
    variables = _variables(tokenizer, kwargs)
    given = list(texts([bare, variables]))
    for text in given:
        check_text(text)
    for message in bare:
        if len(Strings.of(steering).split(message["role"])) > 1:
            raise PromptError(f"a message's role is a name like 'user' or 'system'; this is {message['role']!r:.80}")
    hiding, budget = Hiding(steering, given), Budget(given)
    continued = variables.pop("continue_final_message", False)

    def write(messages: list[dict[str, Any]]) -> str:
        messages = [_named_as_read(message) for message in messages]
        if continued:
            return _continue(template, budget, messages, continued, variables)
        return template_sandbox.render(template, budget, messages=messages, **variables)

    def written(change: Change) -> str:
        return _written(write, [_changed(message, change, hiding, media) for message in bare])

    if any(isinstance(message["content"], str) for message in bare) and _reads_parts_only(write):
        bare = in_parts(bare)
    least = written(hiding.matches)
    _check_kept(messages, hiding.show(least))
    text = ""
    for change in (hiding.all, hiding.edges):
        try:
            text = written(change)
        except BudgetError:
            raise
        except PromptError:  # a template may refuse what it cannot read
            continue
        if hiding.show(text) == hiding.show(least):
            return hiding.cut(text)
    same = not text or hiding.steering_in(text) == hiding.steering_in(least)
    return hiding.cut(least if same else text)


def _changed(message: Message, change: Change, hiding: Hiding, media: frozenset[str]) -> dict[str, Any]:
    if message["role"] != "assistant":
        return dict(mapped(message, change, but=("role", "type")))
    changed = dict(mapped(message, functools.partial(hiding.matches, strings=Strings.of(media)), but=("role", "type")))
    if isinstance(content := changed["content"], list):
        places = [i for i, part in enumerate(content) if "text" in part]
        for i, text in zip(places, hiding.across([content[i]["text"] for i in places], Strings.of(media)), strict=True):
            content[i] = {"type": "text", "text": text}
    return changed


def _named_as_read(message: Message) -> dict[str, Any]:
    """As transformers hands it to a template: without keys that say nothing, and what was thought under each of the
    names that templates have for it."""
    kept = {key: value for key, value in message.items() if value is not None}
    thought = next((kept[name] for name in _THOUGHT if name in kept), None)
    return kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}


def _variables(tokenizer: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All that a template can name but the messages."""
    given = {"tools": None, "documents": None, **kwargs}
    if given["tools"] is not None:
        given["tools"] = _schemas(given["tools"])
    return dict(template_sandbox.plain({**tokenizer.special_tokens_map, **given}))


def _schemas(tools: Any) -> list[Any] | None:
    """Of functions, which describe themselves by their docstrings, and of schemas."""
    from transformers.utils import get_json_schema

    if not isinstance(tools, list | tuple):
        raise TypeError(f"tools={tools!r:.80}: expected a list of functions, or of their JSON schemas")
    schemas: list[Any] = []
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(tool)
            continue
        try:
            schemas.append(get_json_schema(tool))
        except Exception as error:  # it has errors of its own for what a docstring lacks
            raise TypeError(f"tools: {tool!r:.80} does not describe itself as a function: {error}") from None
    return schemas or None


def _continue(
    template: str,
    budget: Budget,
    messages: list[dict[str, Any]],
    field: bool | str,
    variables: Mapping[str, Any],
) -> str:
    """The text up to the end of the last message, which the model goes on with. field: its key; True is "content"."""
    if variables.get("add_generation_prompt"):
        raise PromptError(
            "continue_final_message and add_generation_prompt do not go together: one goes on with the last message, "
            "the other begins a new one; set add_generation_prompt=False"
        )
    key = field if isinstance(field, str) else "content"
    last, mark = dict(messages[-1]), "\ue0fc\ue0fd\ue0fc"
    match last.get(key):
        case str(text):
            last |= {name: text + mark + " " for name in (key, *_THOUGHT) if last.get(name) == text}
        case [*parts] if places := [i for i, part in enumerate(parts) if "text" in part]:
            parts[places[-1]] = {**parts[places[-1]], "text": parts[places[-1]]["text"] + mark + " "}
            last[key] = parts
        case _:
            raise PromptError(f"continue_final_message: the last message has no text under {key!r} to go on with")
    text = template_sandbox.render(template, budget, messages=[*messages[:-1], last], **variables)
    begun, found, rest = text.rpartition(mark)
    if not found:
        raise PromptError("continue_final_message: this checkpoint's chat template leaves out the last message's text")
    return begun if rest.startswith(" ") else begun.rstrip()  # a template that trims, trims the end, too


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
