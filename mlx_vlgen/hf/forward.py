"""`model(**inputs)`, as code written for transformers calls it: the logits of whole prompts."""

import inspect
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine import cache as kv
from ..errors import PromptError
from ..inputs.prompt import Prompt
from ..inputs.tensors import unpack
from ..models.base import Model
from .arguments import batch_of_ids, check_batch, known_tensors, merge_inputs
from .encoding import Array
from .outputs import CausalLMOutput
from .values import Unsupported, refuse_unsupported

_BY_GENERATE = "call model.generate with return_dict_in_generate=True and this"
_UNSUPPORTED: Unsupported = {
    "use_cache": ((True, False), ""),
    "return_dict": ((True,), "the output's fields have names, and it can be unpacked by to_tuple()"),
    "past_key_values": ((), "model.generate goes on from one"),
    "output_hidden_states": ((False,), _BY_GENERATE),
    "output_attentions": ((False,), _BY_GENERATE),
    "labels": ((), "no loss is computed here; take it from the logits"),
}


def forward(model: Model, inputs: Any = None, **tensors: Any) -> CausalLMOutput:
    """Logits (B, L, V) of whole prompts. Every row is computed alone, and nothing is cached.

    inputs: token ids (B, L), or a mapping of all tensors; None: they are keywords
    tensors: the processor's, as in `generate`; rows may be padded on either side, and there logits mean nothing

    PromptError for what does not fit together; TypeError for an unknown name; UnsupportedError for what is not computed
    here.
    """
    for name in _UNSUPPORTED:
        refuse_unsupported(_UNSUPPORTED, name, tensors.pop(name, None))
    tensors = merge_inputs(inputs, known_tensors(model, tensors, _PARAMETERS))
    ids = batch_of_ids("input_ids", tensors["input_ids"])
    attention_mask = tensors.pop("attention_mask", None)
    check_batch("input_ids", ids, attention_mask, model.vocab_size)
    mask = np.ones_like(ids) if attention_mask is None else np.atleast_2d(np.asarray(attention_mask))
    if mask.shape != ids.shape:
        raise PromptError(f"attention_mask has shape {mask.shape}, and input_ids {ids.shape}: give one of that shape")
    spans = [_span(row) for row in mask]
    per_token = {"input_ids": ids, "mm_token_type_ids": tensors.get("mm_token_type_ids")}
    unpadded = {
        name: [row[start:end] for row, (start, end) in zip(np.atleast_2d(np.asarray(value)), spans, strict=True)]
        for name, value in per_token.items()
        if value is not None
    }
    rows = []
    for prompt, (start, end) in zip(unpack(model.processor, {**tensors, **unpadded}), spans, strict=True):
        row = mx.pad(_logits(model, prompt), [(start, ids.shape[1] - end), (0, 0)])
        mx.eval(row)
        rows.append(row)
    return CausalLMOutput(Array(mx.stack(rows)))


_PARAMETERS = (*inspect.signature(forward).parameters, *_UNSUPPORTED)


def _span(mask: np.ndarray) -> tuple[int, int]:
    """Where a row's tokens begin and end."""
    positions = np.flatnonzero(mask)
    if not len(positions):
        raise PromptError("a row's attention_mask is 0 throughout: the prompt is empty")
    start, end = int(positions[0]), int(positions[-1]) + 1
    if len(positions) != end - start:
        raise PromptError("a row's attention_mask has zeros between its tokens: they must follow each other")
    return start, end


def _logits(model: Model, prompt: Prompt) -> mx.array:
    """(L, V)."""
    features = [model.encode([media])[0] for media in prompt.media]
    return model.forward(model.embed(prompt, features), kv.make_cache(model.cache_layout()))[0]
