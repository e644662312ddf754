"""Messages to prompt text, in which a user's text never becomes a placeholder or control token."""

import functools
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError
from . import template_sandbox
from .kinds import KINDS, Kind
from .literal import Mask, Masker, Segment, check_text, iter_text, map_text, split_at
from .template_budget import Budget, BudgetError

Message = Mapping[str, Any]

_KINDS: Mapping[str, Kind] = {type_: kind for kind, record in KINDS.items() for type_ in record.part_types}
"""Content part types of the two conventions (transformers', OpenAI's) -> what they hold."""

_SOURCES = (*_KINDS, "url", "path", "base64")
_IGNORED = ("type", "text", "detail", "cache_control")
"""Keys of a media part that change nothing here: OpenAI's level of detail, Anthropic's caching."""

_TEMPLATE_CALL = ("add_generation_prompt", "continue_final_message", "tools", "documents", "enable_thinking")
"""Keywords of transformers' `apply_chat_template` that a template need not mention."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of an assistant's reasoning; most templates read the first."""


@dataclass(frozen=True)
class MediaPart:
    """An image, video or audio clip in messages; source is None where it is not in them."""

    kind: Kind
    source: Any = None


def media_parts(messages: Sequence[Message]) -> Iterator[MediaPart]:
    """The media in messages, in order."""
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
        kind = "an empty one" if isinstance(messages, list | tuple) else f"a {type(messages).__name__}"
        raise PromptError(f"a prompt is a string, a message or a list of messages; this is {kind}")
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
        if unread := [key for key in part if key not in _SOURCES + _IGNORED and part[key] is not None]:
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


def _check_keys(mapping: Mapping[Any, Any]) -> None:
    for key in mapping:
        if not isinstance(key, str):
            raise PromptError(f"the keys of messages and their parts are strings; this is {reprlib.repr(key)}")


def _kind(part: Mapping[str, Any]) -> Kind | None:
    """The kind of media of a part by its type, or else by its keys; data sets fill keys that a part lacks with None."""
    if (kind := _KINDS.get(part.get("type") or "")) or part.get("text") is not None:
        return kind
    return next((kind for key, kind in _KINDS.items() if part.get(key) is not None), None)


def _source(part: Mapping[str, Any]) -> Any:
    sources = {key: part[key] for key in _SOURCES if part.get(key) is not None}
    if len(sources) > 1:
        raise PromptError(f"a content part holds one picture or video; this one has {' and '.join(sources)}")
    for key, source in sources.items():
        packed = source
        if key == "input_audio":  # OpenAI's {"data": base64, "format": "wav"}
            packed = source.get("data") if isinstance(source, Mapping) else source
        if key in ("base64", "input_audio"):
            if not isinstance(packed, str):
                raise PromptError(f"{key!r} of a content part is a string; this is {reprlib.repr(packed)}")
            return packed if packed.startswith("data:") else f"data:;base64,{packed}"
        return source.get("url") if isinstance(source, Mapping) else source
    return None


def insert_media_parts(messages: list[dict[str, Any]], counts: Mapping[Kind, int]) -> list[dict[str, Any]]:
    """Messages with parts for so many media of each kind before the text of the last message of a user; for a kind that
    they have parts of already, unchanged."""
    present = {part.kind for part in media_parts(messages)}
    parts = [{"type": kind} for kind, count in counts.items() if kind not in present for _ in range(count)]
    if not parts:
        return messages
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise PromptError("pictures or video were given, and no message of role 'user' that could hold them")
    content = messages[last].get("content") or []
    text_parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [*messages[:last], {**messages[last], "content": parts + text_parts}, *messages[last + 1 :]]


def parts_to_string(message: Message) -> dict[str, Any]:
    """A message with its text parts as one string: templates of text models are often made for nothing else. One with
    media stays as it is."""
    content = message.get("content")
    if isinstance(content, list) and all("text" in part for part in content):
        return {**message, "content": "".join(part["text"] for part in content)}
    return dict(message)


def string_to_parts(message: Message) -> dict[str, Any]:
    """A message with a list of parts as its content: some templates loop over it, and find no part in a string."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    return dict(message)


def render(
    tokenizer: Any,
    template: str | None,
    messages: Sequence[Message],
    control: frozenset[str],
    media: frozenset[str],
    **kwargs: Any,
) -> list[Segment]:
    """Messages through the chat template. kwargs: `add_generation_prompt`, `enable_thinking`, …

    control: strings that control a conversation. Where one of them is text of a user or tool, it is a literal segment,
    however it comes about: in one part, in several that the template joins, or half of it the template's. An
    assistant's text goes through as it is, but for `media`, placeholders without an image or video.

    The template is run twice: on messages whose control strings are masked, and on messages whose whole text is masked,
    which shows what of the prompt the template wrote. Where the two differ, the template depends on the text; then it
    is run with less of it masked. If it depends on that, too, it must have written the same control strings both times.
    """
    template = _checked(template, kwargs)
    bare: list[dict[str, Any]] = [
        template_sandbox.to_plain({**message, "content": _without_sources(message.get("content"))})
        for message in messages
    ]
    variables = _variables(tokenizer, kwargs)
    texts = list(iter_text([bare, variables]))
    for text in texts:
        check_text(text)
    for message in bare:
        if len(split_at(control, message["role"])) > 1:
            raise PromptError(f"a message's role is a name like 'user' or 'system'; this is {message['role']!r:.80}")
    masker = Masker(control, texts)
    renderer = _Template(template, Budget(texts), variables, variables.pop("continue_final_message", False))
    if any(isinstance(message["content"], str) for message in bare) and _reads_only_parts(
        template, tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    ):
        bare = [string_to_parts(message) for message in bare]

    def render_masked(mask: Mask) -> str | PromptError:
        return renderer.render_any_shape([_masked(message, mask, masker, media) for message in bare])

    least_masked = render_masked(masker.mask_control)
    if isinstance(least_masked, PromptError):
        raise least_masked
    _check_complete(messages, masker.unmask(least_masked))
    text = ""
    for mask in (masker.mask_all, masker.mask_edges):
        masked = render_masked(mask)
        if isinstance(masked, PromptError):  # a template may refuse what it cannot read
            continue
        text = masked
        if masker.unmask(text) == masker.unmask(least_masked):
            return masker.segments(text)
    same = not text or masker.unmasked_control(text) == masker.unmasked_control(least_masked)
    return masker.segments(least_masked if same else text)


def knows_thinking(template: str | None) -> bool:
    """Whether a checkpoint's chat template can ask the model to think first."""
    return template is not None and ("enable_thinking" in template or "<think>" in template)


def _checked(template: str | None, kwargs: Mapping[str, Any]) -> str:
    """The template; PromptError where there is none, TypeError for a variable that it does not use."""
    if template is None:
        raise PromptError(
            "this checkpoint has no chat template, so it takes no messages: give the prompt as a string that is "
            "formatted already"
        )
    thinking = kwargs.get("enable_thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise TypeError(f"enable_thinking={thinking!r:.80}: expected True or False")
    if thinking and not knows_thinking(template):
        raise PromptError("enable_thinking: this checkpoint's chat template knows no thinking; leave it out")
    for name in kwargs:
        if name not in _TEMPLATE_CALL and not re.search(rf"\b{re.escape(name)}\b", template):
            raise TypeError(f"unknown keyword {name!r}: this checkpoint's chat template does not use it")
    return template


@dataclass(frozen=True)
class _Template:
    """A chat template with everything that it is rendered with but the messages. continued: the key of the last
    message that the model goes on with, True for "content"."""

    source: str
    budget: Budget
    variables: Mapping[str, Any]
    continued: bool | str

    def render(self, messages: Sequence[Message]) -> str | PromptError:
        """The text, or why the template refuses the messages. BudgetError is raised."""
        named = [_with_all_names(message) for message in messages]
        try:
            if self.continued:
                return self._continue(named)
            return template_sandbox.render(self.source, self.budget, messages=named, **self.variables)
        except BudgetError:
            raise
        except PromptError as refusal:
            return refusal

    def render_any_shape(self, messages: list[dict[str, Any]]) -> str | PromptError:
        """The text. Where a template refuses lists of text parts, or writes them down as lists, they become strings."""
        text = self.render(messages)
        strings = [parts_to_string(message) for message in messages]
        if strings == messages:
            return text
        unreadable = isinstance(text, PromptError) or "[{'type': 'text', 'text': " in text
        return self.render(strings) if unreadable else text

    def _continue(self, messages: list[dict[str, Any]]) -> str:
        """The text up to the end of the last message."""
        if self.variables.get("add_generation_prompt"):
            raise PromptError(
                "continue_final_message and add_generation_prompt do not go together: one goes on with the last "
                "message, the other begins a new one; set add_generation_prompt=False"
            )
        key = self.continued if isinstance(self.continued, str) else "content"
        last, mark = dict(messages[-1]), "\ue0fc\ue0fd\ue0fc"
        match last.get(key):
            case str(text):
                last |= {name: text + mark + " " for name in (key, *_REASONING) if last.get(name) == text}
            case [*parts] if indices := [i for i, part in enumerate(parts) if "text" in part]:
                parts[indices[-1]] = {**parts[indices[-1]], "text": parts[indices[-1]]["text"] + mark + " "}
                last[key] = parts
            case _:
                raise PromptError(f"continue_final_message: the last message has no text under {key!r} to go on with")
        messages = [*messages[:-1], last]
        text = template_sandbox.render(self.source, self.budget, messages=messages, **self.variables)
        before, found_mark, after = text.rpartition(mark)
        if not found_mark:
            raise PromptError(
                "continue_final_message: this checkpoint's chat template leaves out the last message's text"
            )
        return before if after.startswith(" ") else before.rstrip()  # a template that trims, trims the end, too


@functools.lru_cache(maxsize=16)
def _reads_only_parts(template: str, special_tokens: tuple[tuple[str, str], ...]) -> bool:
    """Whether the template reads contents that are lists of parts and ignores strings, as LLaVA's do."""

    def reads(probe: Message) -> bool:
        variables = {"tools": None, "documents": None, **dict(special_tokens)}
        text = _Template(template, Budget(), template_sandbox.to_plain(variables), continued=False).render([probe])
        return isinstance(text, str) and probe_text in text

    probe_text = "\ue0fd"
    probe = {"role": "user", "content": probe_text}
    return not reads(probe) and reads(string_to_parts(probe))


def _masked(message: Message, mask: Mask, masker: Masker, media: frozenset[str]) -> dict[str, Any]:
    if message["role"] != "assistant":
        return dict(map_text(message, mask, skip=("role", "type")))
    masked = dict(map_text(message, functools.partial(masker.mask_strings, strings=media), skip=("role", "type")))
    if isinstance(content := masked["content"], list):
        indices = [i for i, part in enumerate(content) if "text" in part]
        texts = masker.mask_across([content[i]["text"] for i in indices], media)
        for i, text in zip(indices, texts, strict=True):
            content[i] = {"type": "text", "text": text}
    return masked


def _with_all_names(message: Message) -> dict[str, Any]:
    """A message as transformers hands it to a template: without keys that are None, and with its reasoning under each
    of the names that templates have for it."""
    named = {key: value for key, value in message.items() if value is not None}
    reasoning = next((named[name] for name in _REASONING if name in named), None)
    return named if reasoning is None else {"thinking": reasoning, **named, "reasoning_content": reasoning}


def _variables(tokenizer: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All variables of a template but the messages."""
    variables = {"tools": None, "documents": None, **kwargs}
    if variables["tools"] is not None:
        variables["tools"] = _schemas(variables["tools"])
    return dict(template_sandbox.to_plain({**tokenizer.special_tokens_map, **variables}))


def _schemas(tools: Any) -> list[Any] | None:
    """JSON schemas of tools: of functions, which describe themselves by their docstrings; schemas as they are."""
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
        except Exception as error:  # it has its errors for what a docstring lacks
            raise TypeError(f"tools: {tool!r:.80} does not describe itself as a function: {error}") from None
    return schemas or None


def _check_complete(messages: Sequence[Message], text: str) -> None:
    """PromptError when the template left a message out, as some do with a role they do not know, or a second system
    message. An assistant's reasoning and what tools returned may be left out or rewritten."""
    for number, message in enumerate(messages, 1):
        role, content = message["role"], message.get("content") or ()
        texts = [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        if role not in ("assistant", "tool") and any(part.strip() not in text for part in texts):
            raise PromptError(
                f"this checkpoint's chat template leaves out message {number}, of role {role!r}: it takes one system "
                "message, at the start, and then roles that it knows (user, assistant)"
            )


def _without_sources(content: Any) -> Any:
    """A template learns that there is an image, and never its bytes."""
    if not isinstance(content, list):
        return content
    return [{"type": part["type"]} if _kind(part) else part for part in content]
