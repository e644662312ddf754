"""The processor as code written for transformers calls it: messages, or texts and media, to what `generate` takes.

These are methods of `inputs.processor.Processor`, which imports them when they are called.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import PromptError, UnsupportedError
from ..inputs import chat_template as templates
from ..inputs.processor import Kind, Processor
from ..inputs.prompt import MediaInputs, Prompt
from ..inputs.tensors import pack
from ..options import did_you_mean
from ..prompt_utils import as_videos
from .encoding import Encoding, check_return_tensors, encoding, plain

MEDIA = {
    "min_pixels": "min_pixels",
    "max_pixels": "max_pixels",
    "fps": "video_fps",
    "num_frames": "num_frames",
    "max_frames": "max_frames",
    "resize_shape": "resize_shape",
}
"""Keywords of processing -> fields of `MediaInputs`."""

_TEXT = ("padding", "padding_side", "max_length", "pad_to_multiple_of", "return_tensors")
_FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "truncation": ((None, False, "do_not_truncate"), "a row cut short would lose placeholders; shorten its text"),
    "add_special_tokens": ((None, True), "a text that begins with the first token gets no second one; leave it out"),
    "do_sample_frames": ((None, True), "a file is always sampled; give its frames, of which none is left out"),
    "audio": ((None,), "this model does not hear; leave it out"),
}
"""Keywords that may have these values only, which change nothing, and why."""

Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Padding:
    """How rows become arrays: `pack`'s keywords, and what of arrays."""

    padding: bool | str = False
    padding_side: str | None = None
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: Any = None


def apply_chat_template(
    processor: Processor,
    conversation: Conversation | Sequence[Conversation],
    chat_template: str | None = None,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, str]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    tokenize: bool = False,
    return_dict: bool = False,
    return_tensors: Any = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """One conversation, or a list of them, through the chat template.

    Gives the text; with `tokenize` the token ids, and with `return_dict` all that `generate` takes, as an
    `Encoding`. Pictures and videos stand in the messages by "image", "video", "url", "path" or "base64": paths,
    URLs, PIL pictures, arrays. A person's words stay words there: what looks like a placeholder or steers is text.

    return_tensors: "mlx", "np", or None for lists. kwargs: variables of the template (`enable_thinking`, …) and, as
    in processor_kwargs, keywords of processing: padding (default False), padding_side, max_length,
    pad_to_multiple_of, min_pixels, max_pixels, fps, num_frames, max_frames, resize_shape.

    TypeError for a keyword that neither the template nor the processor knows; PromptError, MediaError and
    UnsupportedError for what is wrong with the messages.
    """
    batched = isinstance(conversation, list | tuple) and bool(conversation) and _is_list(conversation[0])
    conversations: Any = conversation if batched else [conversation]
    template = processor.chat_template if chat_template is None else chat_template
    templated = _with(processor, template)
    processing = dict(processor_kwargs or {})
    if return_tensors not in (None, "auto"):  # "auto" is transformers' word for what processor_kwargs say
        processing["return_tensors"] = return_tensors
    variables = {}
    for name, value in kwargs.items():
        if name in (*MEDIA, *_TEXT, *_FIXED):
            processing[name] = value
        elif name != "enable_thinking" and not re.search(rf"\b{re.escape(name)}\b", template or ""):
            raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, (*MEDIA, *_TEXT, *_CALL))}")
        else:
            variables[name] = value
    media, padding = _read(processing)
    if continue_final_message:
        variables["continue_final_message"] = continue_final_message
    given = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
    variables |= {name: value for name, value in given.items() if value is not None}
    if not tokenize:
        texts = [
            "".join(segment.text for segment in templated.format(templates.normalize(messages), **variables))
            for messages in conversations
        ]
        return texts if batched else texts[0]
    made = _encode(templated, [templated.prepare(messages, media, **variables) for messages in conversations], padding)
    return made if return_dict else made["input_ids"]


def process(
    processor: Processor,
    images: Any = None,
    text: Any = None,
    videos: Any = None,
    **kwargs: Any,
) -> Encoding:
    """Texts and their media -> all that `generate` takes.

    text: a formatted prompt or a list of them, in which each placeholder stands for a picture or video, in order;
    or messages, or a list of such. images: one, a list for all rows together, or one list a row; each anything that
    `load_image` takes. videos: likewise. kwargs: return_tensors and the keywords of processing, as for
    `apply_chat_template`.
    """
    media, padding = _read(kwargs)
    if text is None:
        raise PromptError("text is missing: a picture alone is no prompt; give its placeholder as text")
    one = isinstance(text, str | Mapping) or (_is_list(text) and text and isinstance(text[0], Mapping))
    rows = [text] if one else list(text)
    pictures = _shared(processor, "image", images, rows)
    clips = _shared(processor, "video", videos, rows)
    prompts = [
        processor.prepare(row, replace(media, images=own, videos=shown))
        for row, own, shown in zip(rows, pictures, clips, strict=True)
    ]
    return _encode(processor, prompts, padding)


def batch_decode(
    processor: Processor,
    sequences: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
) -> list[str]:
    """Texts of token ids, given as arrays or lists, a row each."""
    return [decode(processor, row, skip_special_tokens, clean_up_tokenization_spaces) for row in plain(sequences)]


def decode(
    processor: Processor,
    token_ids: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
) -> Any:
    """The text of token ids, or a list of texts for a list of rows."""
    return processor.tokenizer.decode(
        plain(token_ids),
        skip_special_tokens=skip_special_tokens,
        clean_up_tokenization_spaces=clean_up_tokenization_spaces,
    )


def post_process_image_text_to_text(
    processor: Processor,
    generated_outputs: Any,
    skip_special_tokens: bool = True,
    clean_up_tokenization_spaces: bool = False,
) -> list[str]:
    """The texts of what `generate` returned."""
    return batch_decode(processor, generated_outputs, skip_special_tokens, clean_up_tokenization_spaces)


def _with(processor: Processor, template: str | None) -> Processor:
    """The processor with a template of a call's own."""
    templated = copy.copy(processor)
    templated.chat_template = template
    return templated


def _read(keywords: Mapping[str, Any]) -> tuple[MediaInputs, _Padding]:
    """Keywords of processing, divided. TypeError for an unknown one."""
    media: dict[str, Any] = {}
    text: dict[str, Any] = {}
    for name, value in keywords.items():
        if name in MEDIA:
            media |= {MEDIA[name]: value} if value is not None else {}
        elif name in _TEXT:
            text |= {name: value} if value is not None else {}
        elif name not in _FIXED:
            raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, (*MEDIA, *_TEXT, *_CALL))}")
        elif value not in _FIXED[name][0]:
            raise UnsupportedError(f"{name}={value!r:.80}: {_FIXED[name][1]}")
    check_return_tensors(text.get("return_tensors"))
    return MediaInputs(**media), _Padding(**text)


def _encode(processor: Processor, prompts: Sequence[Prompt], how: _Padding) -> Encoding:
    most = how.max_length or processor.tokenizer.model_max_length
    if how.padding == "max_length" and most > 1e9:  # what transformers has where a tokenizer does not say
        raise PromptError('padding="max_length" needs max_length: this tokenizer has none of its own')
    lists = how.return_tensors is None
    ragged = lists and how.padding in (False, "do_not_pad")  # padded and cut again
    tensors = pack(
        prompts,
        processor.tokenizer.pad_token_id if not ragged else 0,
        side=how.padding_side or processor.tokenizer.padding_side,
        padding=ragged or how.padding,
        max_length=most,
        pad_to_multiple_of=how.pad_to_multiple_of,
    )
    made = encoding(tensors, how.return_tensors)
    if lists:
        kept = tensors["attention_mask"] == 1 if ragged else np.ones_like(tensors["attention_mask"], bool)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            made[name] = [row[own].tolist() for row, own in zip(tensors[name], kept, strict=True)]
    return made


_CALL = (
    "images", "text", "videos", "chat_template", "tools", "documents", "add_generation_prompt", "tokenize",
    "continue_final_message", "return_dict", "enable_thinking", "processor_kwargs", *_FIXED,
)  # fmt: skip
"""Parameters of the calls, for suggestions."""


def _is_list(given: Any) -> bool:
    return isinstance(given, list | tuple)


def _shared(processor: Processor, kind: Kind, given: Any, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Pictures, or videos, by the row that they belong to. given: one; a list of one list a row; or a list for all,
    which rows take from by their placeholders."""

    def listed(own: Any) -> tuple[Any, ...]:
        return as_videos(own) if kind == "video" else () if own is None else tuple(own) if _is_list(own) else (own,)

    placeholder = processor.placeholders.get(kind)
    wanted = [_wanted(row, kind, placeholder) for row in rows]
    by_row = _is_list(given) and len(given) == len(rows) and all(own is None or _is_list(own) for own in given)
    if by_row and (kind == "image" or [len(listed(own)) for own in given] == wanted or not sum(wanted)):
        return [listed(own) for own in given]  # and else each list is a clip's frames
    flat = listed(given)
    if len(rows) == 1:
        return [flat]
    if len(flat) != sum(wanted):
        raise PromptError(
            f"{kind}s: {len(flat)} given, and the {len(rows)} texts have {sum(wanted)} placeholders for them: "
            "give as many, or one list a text"
        )
    ends = np.cumsum(wanted).tolist()
    return [flat[end - count : end] for end, count in zip(ends, wanted, strict=True)]


def _wanted(row: Any, kind: str, placeholder: str | None) -> int:
    """How many media beside it a text, or messages, need."""
    if isinstance(row, str):
        return row.count(placeholder) if placeholder else 0
    parts = templates.media_parts(templates.normalize(row))
    return sum(part.kind == kind and part.source is None for part in parts)
