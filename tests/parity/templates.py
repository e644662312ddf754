"""Conversations through chat templates, ours and transformers'."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_vlgen import apply_chat_template
from mlx_vlgen.errors import PromptError
from mlx_vlgen.inputs import chat_template
from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.inputs.prompt import MediaInputs

from . import media

SENTENCES = (
    "Describe  the café, s'il te plaît: naïve e\u0301, 図書館で続けて。 12345 + 678?\n\n\tdef f(x):\n        return x\n"
    "🙂👩‍👩‍👧 مرحبا Привет “quoted” … don't WE'RE http://a.b/c?d=e&f=1 \u00a0 end  "
)
IMAGE, VIDEO = {"type": "image", "image": "a.png"}, {"type": "video", "video": "a.mp4"}
SUM = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    },
}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def turn(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(content)}


ANSWERED = [turn(text_part("One?")), turn(text_part("A café."), role="assistant"), turn(text_part("Two?"))]
THOUGHT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>\nSum.\n</think>\n\n4"}]


@dataclass(frozen=True)
class Conversation:
    """needs: a string that the template must contain for the conversation to test anything of it."""

    messages: list[dict[str, Any]]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""


CONVERSATIONS = {
    "text": Conversation([turn(text_part(SENTENCES))]),
    "string": Conversation([{"role": "user", "content": SENTENCES}]),
    "picture": Conversation([turn(IMAGE, text_part("What is it?"))]),
    "picture last": Conversation([turn(text_part("What is it? "), IMAGE)]),
    "two pictures": Conversation([turn(IMAGE, text_part(" and "), IMAGE, text_part("What differs?"))]),
    "video": Conversation([turn(VIDEO, text_part("What moves?"))]),
    "picture and video": Conversation([turn(IMAGE, VIDEO, text_part("Compare."))]),
    "system": Conversation([turn(text_part("Be brief."), role="system"), turn(IMAGE, text_part("Hi"))]),
    "system string": Conversation([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]),
    "dialogue": Conversation([turn(IMAGE, text_part("One?")), *ANSWERED[1:]]),
    "dialogue of strings": Conversation([*THOUGHT, {"role": "user", "content": "Sure?"}]),
    "pictures in turns": Conversation([turn(IMAGE, text_part("One?")), ANSWERED[1], turn(text_part("And "), IMAGE)]),
    "no answer": Conversation(ANSWERED[:2], {"add_generation_prompt": False}),
    "thinking": Conversation([*ANSWERED], {"enable_thinking": True}, needs="enable_thinking"),
    "no thinking": Conversation([*ANSWERED], {"enable_thinking": False}, needs="enable_thinking"),
    "tools": Conversation([turn(text_part("1 + 2?"))], {"tools": [SUM]}, needs="tools"),
    "numbered": Conversation([turn(IMAGE, IMAGE, text_part("Hi"))], {"add_vision_id": True}, needs="add_vision_id"),
}


def fitting(processor: Processor) -> Iterator[tuple[str, Conversation]]:
    """The conversations that the template and the family can take."""
    for name, conversation in CONVERSATIONS.items():
        kinds = {part.kind for part in chat_template.media_parts(conversation.messages)}
        if kinds <= set(processor.placeholders) and conversation.needs in (processor.chat_template or ""):
            yield name, conversation


def ours(processor: Processor, conversation: Conversation) -> str:
    """Our rendering."""
    return apply_chat_template(processor, {}, conversation.messages, **conversation.keywords)


def theirs(processor: Processor, messages: Sequence[Mapping[str, Any]], keywords: Mapping[str, Any]) -> str:
    """transformers' rendering, with our default of enable_thinking."""
    options = {"add_generation_prompt": True, "enable_thinking": False} | dict(keywords)
    rendered = processor.tokenizer.apply_chat_template(
        list(messages), chat_template=processor.chat_template, tokenize=False, **options
    )
    return str(rendered)


def expected_text(processor: Processor, conversation: Conversation) -> str:
    """transformers' rendering, or "" where there is none. Where it leaves a person's words out without a word, writes
    parts down as a list, or refuses them, that of the same messages in the shape that the template reads."""
    for shape in (dict, chat_template.string_to_parts, chat_template.parts_to_string):
        messages = [shape(message) for message in conversation.messages]
        try:
            rendered = theirs(processor, messages, conversation.keywords)
        except Exception:  # a template may raise anything
            continue
        if all(text in rendered for text in texts(messages)) and "[{'type'" not in rendered:
            return rendered
    return ""


def difference(processor: Processor, conversation: Conversation) -> str:
    """Between the two renderings, or "". What transformers cannot render whole, ours has to refuse."""
    expected = expected_text(processor, conversation)
    try:
        rendered = ours(processor, conversation)
    except PromptError as error:
        return f"ours refuses: {error}" if expected else ""
    if not expected:
        return f"ours does not refuse: {rendered!r:.200}"
    return "" if rendered == expected else f"ours {rendered!r}\ntheirs {expected!r}"


def texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What people said, and not the assistant, whose thoughts templates rewrite; templates trim it."""
    said = [message["content"] for message in messages if message["role"] != "assistant"]
    parts = [[content] if isinstance(content, str) else [p["text"] for p in content if "text" in p] for content in said]
    return [text.strip() for part in parts for text in part]


def ids_difference(processor: Processor, conversation: Conversation) -> str | None:
    """Between our ids of a conversation and those of transformers' tokenizer on transformers' rendering, each picture's
    placeholder as often there as the picture has features; or "". None where that is not all that the family writes."""
    parts = list(chat_template.media_parts(conversation.messages))
    if any(part.kind == "video" for part in parts) or (parts and type(processor).expand is Processor.expand):
        return None
    bare = [{**message, "content": _bare(message["content"])} for message in conversation.messages]
    keywords = dict(conversation.keywords)
    images = [media.picture(name) for name in ("plain", "upright")][: len(parts)]
    prompt = processor.prepare(bare, MediaInputs(images=images), **keywords)
    text = expected_text(processor, conversation)
    if parts:
        placeholder = processor.placeholders["image"]
        first, *rest = text.split(placeholder)
        counts = [sum(end - start for start, end in medium.spans) for medium in prompt.media]
        text = first + "".join(placeholder * count + part for count, part in zip(counts, rest, strict=True))
    expected = processor.tokenizer(text)["input_ids"]
    ids = prompt.tokens.tolist()
    return "" if ids == expected else f"ours {ids}\ntheirs {expected}"


def _bare(content: Any) -> Any:
    """Without the sources of pictures."""
    if isinstance(content, str):
        return content
    return [{"type": part["type"]} if part["type"] == "image" else part for part in content]
