"""`model(**inputs)`, as code written for transformers calls it: the logits of whole prompts."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine import cache as kv
from ..errors import PromptError, UnsupportedError
from ..inputs.prompt import Prompt
from ..inputs.tensors import unpack
from ..models.base import Model
from .arguments import check_rows, named, take_harmless
from .encoding import Array
from .outputs import CausalLMOutput

_ASKED = "call model.generate with return_dict_in_generate=True and this"
_FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "use_cache": ((None, True, False), ""),
    "return_dict": ((None, True), "the output's fields have names, and it can be unpacked by to_tuple()"),
    "past_key_values": ((None,), "model.generate goes on from one"),
    "output_hidden_states": ((None, False), _ASKED),
    "output_attentions": ((None, False), _ASKED),
    "labels": ((None,), "no loss is computed here; take it from the logits"),
}
"""Keywords that may have these values only, which ask for nothing, and what to do instead."""


def forward(model: Model, inputs: Any = None, **tensors: Any) -> CausalLMOutput:
    """`.logits` (B, L, V) of token ids (B, L) with their media; where attention_mask is 0 they mean nothing.

    inputs: token ids, or all tensors by name in a mapping, as in `generate`; else these as keywords. Rows may be padded
    on either side. Every row is computed alone, and nothing is kept of it.

    PromptError for what does not fit together; TypeError for an unknown name; UnsupportedError for what is not computed
    here.
    """
    for name, (idle, remedy) in _FIXED.items():
        if (value := tensors.pop(name, None)) not in idle:
            raise UnsupportedError(f"{name}={value!r:.80}: {remedy}")
    take_harmless(tensors, _PARAMETERS)
    tensors = named(inputs, tensors)
    ids = np.atleast_2d(np.asarray(tensors["input_ids"]))
    given = tensors.pop("attention_mask", None)
    check_rows("input_ids", ids, given, model.vocab_size)
    mask = np.ones_like(ids) if given is None else np.atleast_2d(np.asarray(given))
    if mask.shape != ids.shape:
        raise PromptError(f"attention_mask has shape {mask.shape}, and input_ids {ids.shape}: give one of that shape")
    spans = [_span(row) for row in mask]
    by_token = {"input_ids": ids, "mm_token_type_ids": tensors.get("mm_token_type_ids")}
    rows = {
        name: [row[start:end] for row, (start, end) in zip(np.atleast_2d(np.asarray(value)), spans, strict=True)]
        for name, value in by_token.items()
        if value is not None
    }
    made = []
    for prompt, (start, end) in zip(unpack(model.processor, {**tensors, **rows}), spans, strict=True):
        padded = mx.pad(_logits(model, prompt), [(start, ids.shape[1] - end), (0, 0)])
        mx.eval(padded)
        made.append(padded)
    return CausalLMOutput(Array(mx.stack(made)))


_PARAMETERS = (*inspect.signature(forward).parameters, *_FIXED)


def _span(mask: np.ndarray) -> tuple[int, int]:
    """Where a row's tokens begin and end."""
    kept = np.flatnonzero(mask)
    if not len(kept):
        raise PromptError("a row's attention_mask is 0 throughout: the prompt is empty")
    start, end = int(kept[0]), int(kept[-1]) + 1
    if len(kept) != end - start:
        raise PromptError("a row's attention_mask has zeros between its tokens: they must follow each other")
    return start, end


def _logits(model: Model, prompt: Prompt) -> mx.array:
    """(L, V)."""
    features = [model.encode([media])[0] for media in prompt.media]
    return model.forward(model.embed(prompt, features), kv.make_cache(model.cache_layout()))[0]
