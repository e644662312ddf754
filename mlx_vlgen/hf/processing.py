"""The processor as code written for transformers calls it: messages, or texts and media, to what `generate` takes.

These are methods of `inputs.processor.Processor`, which imports them when they are called.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import PromptError
from ..inputs import chat_template as templates
from ..inputs.kinds import KINDS, Kind
from ..inputs.processor import Processor
from ..inputs.prompt import MediaInputs, Prompt
from ..inputs.tensors import pack
from ..options import did_you_mean
from ..prompt_utils import as_several, check_hears
from .encoding import Encoding, check_return_tensors, make_encoding
from .values import Unsupported, refuse_unsupported

_MEDIA = {
    "min_pixels": "min_pixels",
    "max_pixels": "max_pixels",
    "fps": "video_fps",
    "num_frames": "num_frames",
    "max_frames": "max_frames",
    "resize_shape": "resize_shape",
    "use_audio_in_video": "use_audio_in_video",
    "load_audio_from_video": "use_audio_in_video",
}
"""Keywords of processing -> fields of `MediaInputs`."""

_PADDING = ("padding", "padding_side", "max_length", "pad_to_multiple_of", "return_tensors")
_UNSUPPORTED: Unsupported = {
    "truncation": ((False, "do_not_truncate"), "a row cut short would lose placeholders; shorten its text"),
    "add_special_tokens": ((True,), "a text that begins with the first token gets no second one; leave it out"),
    "do_sample_frames": ((True,), "a file is always sampled; give its frames, of which none is left out"),
}
_PROCESSING = (*_MEDIA, *_PADDING, *_UNSUPPORTED)
_PARAMETERS = (
    "images", "text", "videos", "audio", "sampling_rate", "chat_template", "tools", "documents", "tokenize",
    "add_generation_prompt", "continue_final_message", "return_dict", "enable_thinking", "processor_kwargs",
)  # fmt: skip

Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Padding:
    """How rows become arrays: keywords of `pack`, and the kind of the arrays."""

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
    """The text of a conversation, or of a list of them; with `tokenize` the token ids, and with `return_dict` too an
    `Encoding` with all that `generate` takes.

    Media stand in the messages under "image", "video", "audio", "url", "path" or "base64", as paths, URLs, PIL pictures
    or arrays. What looks like a placeholder or a special token in a message is plain text.

    conversation: messages, or a list of such
    chat_template: Jinja source in place of the processor's
    tools, documents, add_generation_prompt, continue_final_message: as the template takes them
    return_tensors: "mlx", "np", or None for lists
    processor_kwargs: keywords of processing: padding (default False), padding_side, max_length, pad_to_multiple_of,
        min_pixels, max_pixels, fps, num_frames, max_frames, resize_shape, use_audio_in_video
    kwargs: keywords of processing, and variables of the template (`enable_thinking`, …)

    TypeError for a keyword that neither the template nor the processor knows; PromptError, MediaError and
    UnsupportedError for what is wrong with the messages.
    """
    batched = isinstance(conversation, list | tuple) and bool(conversation) and _is_list(conversation[0])
    conversations: Any = conversation if batched else [conversation]
    template = processor.chat_template if chat_template is None else chat_template
    templated = copy.copy(processor)
    templated.chat_template = template
    processing = dict(processor_kwargs or {})
    if return_tensors not in (None, "auto"):  # "auto" is transformers' word for what processor_kwargs say
        processing["return_tensors"] = return_tensors
    variables = {}
    check_hears(processor, "audio", as_several("audio", kwargs.get("audio")))
    for name, value in kwargs.items():
        if name in _PROCESSING:
            processing[name] = value
        elif name == "enable_thinking" or re.search(rf"\b{re.escape(name)}\b", template or ""):
            variables[name] = value
        else:
            raise _unknown(name)
    media, padding = _read(processing)
    if continue_final_message:
        variables["continue_final_message"] = continue_final_message
    optional = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
    variables |= {name: value for name, value in optional.items() if value is not None}
    if not tokenize:
        texts = [
            "".join(segment.text for segment in templated.format(templates.normalize(messages), **variables))
            for messages in conversations
        ]
        return texts if batched else texts[0]
    prompts = [templated.prepare(messages, media, **variables) for messages in conversations]
    encoding = _encode(templated, prompts, padding)
    return encoding if return_dict else encoding["input_ids"]


def process(
    processor: Processor,
    images: Any = None,
    text: Any = None,
    videos: Any = None,
    audio: Any = None,
    sampling_rate: int | None = None,
    **kwargs: Any,
) -> Encoding:
    """Texts and their media -> all that `generate` takes.

    images: one, a list for all rows together, or one list a row; each anything that `load_image` takes
    text: a formatted prompt, or a list of them, each placeholder for one medium in order; or messages
    videos, audio: as images
    sampling_rate: of sound that is given as arrays; default the model's
    kwargs: return_tensors and the keywords of processing, as for `apply_chat_template`
    """
    media, padding = _read(kwargs)
    if text is None:
        raise PromptError("text is missing: a picture alone is no prompt; give its placeholder as text")
    single = isinstance(text, str | Mapping) or (_is_list(text) and text and isinstance(text[0], Mapping))
    rows = [text] if single else list(text)
    check_hears(processor, "audio", as_several("audio", audio))
    given: dict[Kind, Any] = {"image": images, "video": videos, "audio": audio}
    divided = {kind: _divide(processor, kind, value, rows) for kind, value in given.items()}
    if sampling_rate is not None:
        divided["audio"] = [tuple(_with_rate(clip, sampling_rate) for clip in clips) for clips in divided["audio"]]
    prompts = [
        processor.prepare(row, media.with_sources({kind: of_rows[number] for kind, of_rows in divided.items()}))
        for number, row in enumerate(rows)
    ]
    return _encode(processor, prompts, padding)


def batch_decode(
    processor: Processor,
    sequences: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
) -> list[str]:
    """The text of each row of token ids, which are arrays or lists."""
    return [decode(processor, row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]


def decode(
    processor: Processor,
    token_ids: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
) -> Any:
    """The text of token ids, or a list of texts for a list of rows."""
    return processor.tokenizer.decode(
        token_ids,
        skip_special_tokens=skip_special_tokens,
        clean_up_tokenization_spaces=clean_up_tokenization_spaces,
    )


def post_process_image_text_to_text(
    processor: Processor,
    generated_outputs: Any,
    skip_special_tokens: bool = True,
    clean_up_tokenization_spaces: bool = False,
) -> list[str]:
    """`batch_decode` of what `generate` returned, without special tokens."""
    return batch_decode(processor, generated_outputs, skip_special_tokens, clean_up_tokenization_spaces)


def _unknown(name: str) -> TypeError:
    return TypeError(f"unknown keyword {name!r}{did_you_mean(name, (*_PROCESSING, *_PARAMETERS))}")


def _read(keywords: Mapping[str, Any]) -> tuple[MediaInputs, _Padding]:
    """Keywords of processing, divided. TypeError for an unknown one."""
    for name, value in keywords.items():
        if name not in _PROCESSING:
            raise _unknown(name)
        if name in _UNSUPPORTED:
            refuse_unsupported(_UNSUPPORTED, name, value)
    set_ = {name: value for name, value in keywords.items() if value is not None}
    check_return_tensors(set_.get("return_tensors"))
    media: dict[str, Any] = {field: set_[name] for name, field in _MEDIA.items() if name in set_}
    return MediaInputs(**media), _Padding(**{name: set_[name] for name in _PADDING if name in set_})


def _encode(processor: Processor, prompts: Sequence[Prompt], how: _Padding) -> Encoding:
    max_length = how.max_length or processor.tokenizer.model_max_length
    if how.padding == "max_length" and max_length > 1e9:  # what transformers has where a tokenizer does not say
        raise PromptError('padding="max_length" needs max_length: this tokenizer has none')
    as_lists = how.return_tensors is None
    ragged = as_lists and how.padding in (False, "do_not_pad")  # padded here and cut again
    tensors = pack(
        processor,
        prompts,
        processor.tokenizer.pad_token_id if not ragged else 0,
        side=how.padding_side or processor.tokenizer.padding_side,
        padding=ragged or how.padding,
        max_length=max_length,
        pad_to_multiple_of=how.pad_to_multiple_of,
    )
    encoding = make_encoding(tensors, how.return_tensors)
    if as_lists:
        mask = tensors["attention_mask"] == 1 if ragged else np.ones_like(tensors["attention_mask"], bool)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            encoding[name] = [row[row_mask].tolist() for row, row_mask in zip(tensors[name], mask, strict=True)]
    return encoding


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _with_rate(clip: Any, rate: int) -> Any:
    return (clip, rate) if isinstance(clip, np.ndarray) else clip


def _divide(processor: Processor, kind: Kind, media: Any, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Pictures, videos or clips of sound, by the row that they belong to.

    media: one; a list of one list a row; or a list for all, which rows take from by their placeholders
    """

    as_tuple = partial(as_several, kind)
    placeholder = processor.placeholders.get(kind)
    counts = [_count(row, kind, placeholder) for row in rows]
    by_row = _is_list(media) and len(media) == len(rows) and all(item is None or _is_list(item) for item in media)
    if by_row and (kind != "video" or [len(as_tuple(item)) for item in media] == counts or not sum(counts)):
        return [as_tuple(item) for item in media]  # otherwise each list holds the frames of a video
    flat = as_tuple(media)
    if len(rows) == 1:
        return [flat]
    if len(flat) != sum(counts):
        raise PromptError(
            f"{KINDS[kind].plural}: {len(flat)} given, and the {len(rows)} texts have {sum(counts)} placeholders for "
            "them: give as many, or one list a text"
        )
    ends = np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _count(row: Any, kind: Kind, placeholder: str | None) -> int:
    """How many media of a kind a text or messages need from outside."""
    if isinstance(row, str):
        return row.count(placeholder) if placeholder else 0
    parts = templates.media_parts(templates.normalize(row))
    return sum(part.kind == kind and part.source is None for part in parts)
