"""What a call of the model was given: named tensors, as prompts; all of it checked."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.token_ids import check_ids, ids_of_file
from ..errors import PromptError, UnsupportedError
from ..inputs.prompt import Prompt
from ..inputs.tensors import NAMES as TENSORS
from ..inputs.tensors import unpack
from ..models.base import Model
from ..options import did_you_mean
from .config import Settings
from .outputs import PastKeyValues

_TOKENS = "bos_token_id", "eos_token_id", "pad_token_id"


def settings_of_files(model: Model) -> dict[str, Any]:
    """What the checkpoint's generation_config.json says, and of its config.json the ids of special tokens."""
    values = {name: model.config[name] for name in _TOKENS if model.config.get(name) is not None}
    values |= model.generation_config
    for name in values.keys() & set(_TOKENS):
        known = ids_of_file(name, values[name], model.vocab_size)
        values[name] = known if name == "eos_token_id" else next(iter(known), None)
    return values


def check_settings(settings: Settings, vocab_size: int) -> None:
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


def rows_of_ids(name: str, given: Any) -> np.ndarray:
    """(B, L), of one row or several. PromptError for another shape."""
    ids = np.atleast_2d(np.asarray(given))
    if ids.ndim != 2:
        raise PromptError(f"{name} has the shape {ids.shape}; expected (batch, length)")
    return ids


def check_rows(name: str, ids: np.ndarray, mask: Any, vocab_size: int) -> None:
    """PromptError for an id of (B, L) that is none. Where the mask is 0 nobody reads them: padding may be anything."""
    fits = mask is not None and np.shape(mask) == ids.shape
    check_ids(name, ids[np.asarray(mask).astype(bool)] if fits else ids, vocab_size)


def take_harmless(tensors: dict[str, Any], parameters: Collection[str]) -> None:
    """Drop what says nothing new, and refuse what is no input here. parameters: the call's own, for suggestions."""
    for name in ("tokenizer", "token_type_ids", "cache_position", "logits_to_keep"):
        tensors.pop(name, None)
    for name, remedy in _REFUSED.items():
        if tensors.pop(name, None) is not None:
            raise UnsupportedError(f"{name}: {remedy}")
    for name in tensors.keys() - set(TENSORS):
        raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, {*TENSORS, *parameters})}")


_REFUSED = {
    "inputs_embeds": "give input_ids, and pictures as pixel_values",
    "position_ids": "positions follow from input_ids and attention_mask; leave it out",
    "assistant_tokenizer": "an assistant model must have the tokenizer of the model itself; leave it out",
    "head_mask": "heads cannot be left out",
}


def named(inputs: Any, tensors: dict[str, Any], first_token: int | None = None) -> dict[str, Any]:
    """All tensors by name, as they were given. first_token: what the prompt is where there is no input."""
    if isinstance(inputs, Mapping):
        if both := sorted(set(inputs) & set(tensors)):
            raise TypeError(f"{both[0]} is given twice, in inputs and as a keyword: give it once")
        tensors = {**inputs, **tensors}
    elif inputs is not None:
        if "input_ids" in tensors:
            raise TypeError("inputs and input_ids are the same: give one of them")
        tensors = {"input_ids": inputs, **tensors}
    elif not tensors and first_token is not None:
        tensors = {"input_ids": [[first_token]]}
    if tensors.get("input_ids") is None:
        raise PromptError("no input_ids: give the prompt's token ids, as the processor makes them")
    return tensors


def prompts_of(model: Model, tensors: Mapping[str, Any], past: PastKeyValues | None) -> list[Prompt]:
    """With a past, their media are those after it: pictures that it holds may be given again, and need not be."""
    if past is None:
        return unpack(model.processor, tensors)
    ids = np.asarray(tensors["input_ids"])
    mask = np.asarray(tensors["attention_mask"]) if tensors.get("attention_mask") is not None else np.ones_like(ids)
    rows = [own[kept.astype(bool)].astype(np.int32) for own, kept in zip(ids, mask, strict=True)]
    if len(rows) != len(past.rows):
        raise PromptError(f"past_key_values: {len(past.rows)} rows, and the prompt has {len(rows)}: give as many")
    for row, own, held in zip(rows, past.rows, past.tokens, strict=True):
        if row[: own.length].tolist() != held[: own.length] or len(row) <= own.length:
            raise PromptError("past_key_values: the prompt must begin with the tokens that it holds, and go on")
    new = [row[own.length :] for row, own in zip(rows, past.rows, strict=True)]
    try:
        later = unpack(model.processor, {**tensors, **_padded(new)})
        media = [prompt.after(-own.length).media for prompt, own in zip(later, past.rows, strict=True)]
    except PromptError:
        whole = unpack(model.processor, tensors)
        media = [
            tuple(one for one in prompt.media if one.spans[0][0] >= own.length)
            for prompt, own in zip(whole, past.rows, strict=True)
        ]
    return [Prompt(row, own, model.processor.two_way(row, own)) for row, own in zip(rows, media, strict=True)]


_BY_TOKEN = "input_ids", "attention_mask", "mm_token_type_ids"


def _padded(rows: Sequence[np.ndarray]) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (width - len(row), 0)) for row in rows])
    mask = np.stack([np.arange(width) >= width - len(row) for row in rows]).astype(int)
    return dict(zip(_BY_TOKEN, (ids, mask, None), strict=True))


def negative_prompts(
    model: Model, settings: Settings, tensors: Mapping[str, Any], ids: Any, mask: Any
) -> list[Prompt] | None:
    """The negative prompts, where the settings ask for guidance. Without any given: each row's last token, as in
    transformers. One with placeholders takes the row's own pictures."""
    if settings.guidance_scale in (None, 1.0):
        if ids is not None:
            raise PromptError("negative_prompt_ids does nothing without guidance_scale: give that too, more than 1")
        return None
    if ids is None:
        return [Prompt(row[-1:].astype(np.int32)) for row in tensors["input_ids"]]
    given = {"input_ids": rows_of_ids("negative_prompt_ids", ids)} | ({} if mask is None else {"attention_mask": mask})
    check_rows("negative_prompt_ids", given["input_ids"], mask, model.vocab_size)
    if len(given["input_ids"]) != (rows := len(tensors["input_ids"])):
        raise PromptError(
            f"negative_prompt_ids: {len(given['input_ids'])} rows, and the prompt has {rows}: give as many"
        )
    try:
        return unpack(model.processor, given)
    except PromptError:
        media = {name: value for name, value in tensors.items() if name not in _BY_TOKEN}
        return unpack(model.processor, given | media)
