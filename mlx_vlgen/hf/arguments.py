"""What `generate` and `forward` are called with: tensors by name, checked, and the prompts that they make."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..engine.token_ids import check_ids, ids_of_file
from ..errors import PromptError, UnsupportedError
from ..inputs.prompt import Prompt
from ..inputs.tensors import read_array, tensor_names, unpack
from ..models.base import Model
from ..options import did_you_mean
from .config import GenerationSettings
from .outputs import PastKeyValues

_SPECIAL_TOKENS = "bos_token_id", "eos_token_id", "pad_token_id"
_WITHOUT_EFFECT = "tokenizer", "token_type_ids", "cache_position", "logits_to_keep"
_UNSUPPORTED = {
    "inputs_embeds": "give input_ids, and pictures as pixel_values",
    "position_ids": "positions follow from input_ids and attention_mask; leave it out",
    "assistant_tokenizer": "an assistant model must have the tokenizer of the model itself; leave it out",
    "head_mask": "heads cannot be left out",
}
_PER_TOKEN = "input_ids", "attention_mask", "mm_token_type_ids"


def checkpoint_settings(model: Model) -> dict[str, Any]:
    """The checkpoint's generation_config.json, and of its config.json the ids of special tokens."""
    values = {name: model.config[name] for name in _SPECIAL_TOKENS if model.config.get(name) is not None}
    values |= model.generation_config
    for name in values.keys() & set(_SPECIAL_TOKENS):
        ids = ids_of_file(name, values[name], model.vocab_size)
        values[name] = ids if name == "eos_token_id" else next(iter(ids), None)
    return values


def check_setting_ids(settings: GenerationSettings, vocab_size: int) -> None:
    """PromptError, by name, for an id in the settings that is no token of the model."""
    for name in ("bos_token_id", "pad_token_id", "forced_bos_token_id"):
        token = getattr(settings, name)
        check_ids(name, () if token is None else (token,), vocab_size)
    for name in ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        check_ids(name, getattr(settings, name), vocab_size)
    for sequence in settings.bad_words_ids:
        check_ids("bad_words_ids", sequence, vocab_size)
    for sequence, _ in settings.sequence_bias:
        check_ids("sequence_bias", sequence, vocab_size)


def batch_of_ids(name: str, ids: Any) -> np.ndarray:
    """(B, L), of one row or several. PromptError for another shape."""
    batch = np.atleast_2d(read_array(name, ids))
    if batch.ndim != 2:
        raise PromptError(f"{name} has the shape {batch.shape}; expected (batch, length)")
    return batch


def check_batch(name: str, ids: np.ndarray, mask: Any, vocab_size: int) -> None:
    """PromptError for an id of (B, L) that is no token. Padding, where the mask is 0, may be anything."""
    if mask is not None and (kept := read_array("attention_mask", mask)).shape == ids.shape:
        ids = ids[kept.astype(bool)]
    check_ids(name, ids, vocab_size)


def known_tensors(model: Model, tensors: Mapping[str, Any], parameters: Collection[str]) -> dict[str, Any]:
    """The tensors, without those that change nothing. TypeError for a name that is no tensor's, UnsupportedError for
    what is no input here.

    parameters: names of the call's other parameters, to suggest
    """
    for name, remedy in _UNSUPPORTED.items():
        if tensors.get(name) is not None:
            raise UnsupportedError(f"{name}: {remedy}")
    unread = [*_WITHOUT_EFFECT, *_UNSUPPORTED]
    if model.processor.hears_videos:
        if tensors.get("return_audio"):
            raise UnsupportedError("return_audio: speech is not made here, only its text; leave it out")
        unread += ["return_audio", "use_audio_in_video"]  # input_ids say which videos are heard
    known = {name: value for name, value in tensors.items() if name not in unread}
    names = set(tensor_names(model.processor))
    for name in known.keys() - names:
        raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, {*names, *parameters})}")
    return known


def merge_inputs(inputs: Any, tensors: Mapping[str, Any], first_token: int | None = None) -> dict[str, Any]:
    """All tensors by name.

    inputs: token ids, a mapping of tensors, or None
    first_token: the prompt where there is no input
    """
    merged = dict(tensors)
    if isinstance(inputs, Mapping):
        if both := sorted(set(inputs) & set(tensors)):
            raise TypeError(f"{both[0]} is given twice, in inputs and as a keyword: give it once")
        merged |= inputs
    elif inputs is not None:
        if "input_ids" in tensors:
            raise TypeError("inputs and input_ids are the same: give one of them")
        merged["input_ids"] = inputs
    elif not tensors and first_token is not None:
        merged["input_ids"] = [[first_token]]
    if merged.get("input_ids") is None:
        raise PromptError("no input_ids: give the prompt's token ids, as the processor makes them")
    return merged


def prompts_of(model: Model, tensors: Mapping[str, Any], past: PastKeyValues | None) -> list[Prompt]:
    """A prompt a row. With `past` its media are those after it: the pictures in the past may be given again, and need
    not be."""
    if past is None:
        return unpack(model.processor, tensors)
    ids = np.asarray(tensors["input_ids"])
    mask = np.asarray(tensors["attention_mask"]) if tensors.get("attention_mask") is not None else np.ones_like(ids)
    rows = [row[is_token.astype(bool)].astype(np.int32) for row, is_token in zip(ids, mask, strict=True)]
    if len(rows) != len(past.rows):
        raise PromptError(f"past_key_values: {len(past.rows)} rows, and the prompt has {len(rows)}: give as many")
    lengths = [row.length for row in past.rows]
    for row, length, tokens in zip(rows, lengths, past.tokens, strict=True):
        if row[:length].tolist() != tokens[:length] or len(row) <= length:
            raise PromptError("past_key_values: the prompt must begin with the tokens that it holds, and go on")
    new = [row[length:] for row, length in zip(rows, lengths, strict=True)]
    try:  # as if the tensors held the media of the new tokens only
        later = unpack(model.processor, {**tensors, **dict.fromkeys(_PER_TOKEN), "input_ids": new})
        media = [prompt.after(-length).media for prompt, length in zip(later, lengths, strict=True)]
    except PromptError:
        media = [
            tuple(item for item in prompt.media if item.spans[0][0] >= length)
            for prompt, length in zip(unpack(model.processor, tensors), lengths, strict=True)
        ]
    return [Prompt(row, items, model.processor.two_way(row, items)) for row, items in zip(rows, media, strict=True)]


def negative_prompts(
    model: Model, settings: GenerationSettings, tensors: Mapping[str, Any], ids: Any, mask: Any
) -> list[Prompt] | None:
    """The negative prompts, where the settings ask for guidance. Without ids each is its row's last token, as in
    transformers. One with placeholders takes the row's pictures."""
    if settings.guidance_scale in (None, 1.0):
        if ids is not None:
            raise PromptError("negative_prompt_ids does nothing without guidance_scale: give that too, more than 1")
        return None
    if ids is None:
        return [Prompt(row[-1:].astype(np.int32)) for row in tensors["input_ids"]]
    negative = {"input_ids": batch_of_ids("negative_prompt_ids", ids), "attention_mask": mask}
    check_batch("negative_prompt_ids", negative["input_ids"], mask, model.vocab_size)
    if len(negative["input_ids"]) != (rows := len(tensors["input_ids"])):
        raise PromptError(
            f"negative_prompt_ids: {len(negative['input_ids'])} rows, and the prompt has {rows}: give as many"
        )
    try:
        return unpack(model.processor, negative)
    except PromptError:  # it has placeholders
        media = {name: value for name, value in tensors.items() if name not in _PER_TOKEN}
        return unpack(model.processor, media | negative)
