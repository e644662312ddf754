"""`model.generate(**inputs)`, as code written for transformers calls it: its arguments read and checked."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine.drafters import DraftModel, PromptLookup, same_vocabulary
from ..engine.modes import Drafter
from ..engine.params import StoppingCriterion, check_callable
from ..engine.store import PrefixCache
from ..errors import UnsupportedError
from ..models.base import Model
from .arguments import (
    batch_of_ids,
    check_batch,
    check_setting_ids,
    checkpoint_settings,
    known_tensors,
    merge_inputs,
    negative_prompts,
    prompts_of,
)
from .call import Call
from .config import GenerationSettings
from .outputs import PastKeyValues
from .processors import AllowedTokens
from .resolve import NAMES, resolve
from .values import as_list


def generate(
    model: Model,
    inputs: Any = None,
    generation_config: Any = None,
    logits_processor: Iterable[Any] | None = None,
    stopping_criteria: Any = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    synced_gpus: bool | None = None,
    assistant_model: Model | None = None,
    streamer: Any = None,
    negative_prompt_ids: Any = None,
    negative_prompt_attention_mask: Any = None,
    custom_generate: Callable[..., Any] | None = None,
    past_key_values: PastKeyValues | None = None,
    prompt_cache: PrefixCache | None = None,
    **kwargs: Any,
) -> Any:
    """Token ids (rows, prompt + new), an mlx array; with return_dict_in_generate a `GenerateOutput`.

    rows = batch * num_return_sequences. Prompts are padded on the left as they came, answers on the right with
    pad_token_id. Without max_new_tokens or max_length there are 128 new tokens at most.

    inputs: token ids (batch, length), or a mapping of all tensors; None: tensors in kwargs, or bos_token_id
    generation_config: transformers' or a mapping; wins over the checkpoint's generation_config.json
    logits_processor: functions of ids (1, n), without padding, and scores (1, V) -> scores (1, V)
    stopping_criteria: functions of ids (1, n) and None -> whether the row ends; one, or a list
    prefix_allowed_tokens_fn: function of the row's number and ids (n,) -> the ids that may come next
    synced_gpus: ranks of `mlx.launch` wait for each other at the end
    assistant_model: guesses tokens, which this model checks; the answer is the same
    streamer: transformers', or any object with put() and end(); gets the prompt, then each token
    negative_prompt_ids: (batch, length), with guidance_scale; placeholders in it stand for the row's pictures
    negative_prompt_attention_mask: (batch, length), 0 where negative_prompt_ids is padding
    custom_generate: function that decodes instead, of the model, the tensors and the settings
    past_key_values: of an earlier output; the prompts begin with the tokens in it
    prompt_cache: what earlier prompts and answers in it begin alike with is not computed again
    kwargs: the processor's tensors (`inputs.tensors`) and settings (`hf.config`), which win over generation_config

    All functions get mlx arrays. Raises what is wrong with a row's request; TypeError for an unknown name, ValueError
    for a value out of range, UnsupportedError for what cannot be honoured here.
    """
    if custom_generate is not None and not callable(custom_generate):
        raise UnsupportedError(
            f"custom_generate={custom_generate!r:.80}: code from the Hub is not run here; give a function"
        )
    if prefix_allowed_tokens_fn is not None:
        check_callable("prefix_allowed_tokens_fn", prefix_allowed_tokens_fn)
    with _ending(None if custom_generate else streamer):  # custom_generate ends it
        settings, tensors = resolve(checkpoint_settings(model), generation_config, kwargs)
        check_setting_ids(settings, model.vocab_size)
        if past_key_values is not None and not isinstance(past_key_values, PastKeyValues):
            raise TypeError(f"past_key_values={past_key_values!r:.80}: expected that of an earlier output")
        if prompt_cache is not None and not isinstance(prompt_cache, PrefixCache):
            raise TypeError(f"prompt_cache={prompt_cache!r:.80}: expected a PrefixCache")
        tensors = merge_inputs(inputs, known_tensors(model, tensors, {*NAMES, *_PARAMETERS}), settings.bos_token_id)
        if custom_generate is not None:
            return custom_generate(
                model, **tensors, generation_config=settings, logits_processor=logits_processor,
                stopping_criteria=stopping_criteria, streamer=streamer,
            )  # fmt: skip
        ids = tensors["input_ids"] = batch_of_ids("input_ids", tensors["input_ids"])
        if tensors.get("attention_mask") is None and settings.pad_token_id not in (None, *settings.eos_token_id):
            tensors["attention_mask"] = (ids != settings.pad_token_id).astype(int)  # as transformers guesses
        check_batch("input_ids", ids, tensors.get("attention_mask"), model.vocab_size)
        call = Call(
            model,
            replace(settings, max_new_tokens=settings.max_tokens_after(ids.shape[1]), max_length=None),
            ids,
            prompts=prompts_of(model, tensors, past_key_values),
            negatives=negative_prompts(model, settings, tensors, negative_prompt_ids, negative_prompt_attention_mask),
            past=past_key_values.rows if past_key_values else None,
            user_processors=_functions("logits_processor", logits_processor),
            criteria=_criteria(stopping_criteria),
            allowed=prefix_allowed_tokens_fn,
            drafter=_drafter(model, assistant_model, settings),
            prefixes=prompt_cache,
        )
        if streamer is not None and (len(ids) > 1 or settings.num_return_sequences > 1 or settings.num_beams > 1):
            raise ValueError("streamer: it takes one row, without beams; leave it out, or give one prompt")
        output = call.run(streamer)
    if synced_gpus and mx.distributed.is_available():
        mx.eval(mx.distributed.all_sum(mx.array(1)))
    return output


_PARAMETERS = tuple(inspect.signature(generate).parameters)


@contextmanager
def _ending(streamer: Any) -> Iterator[None]:
    """Ends the streamer whatever happens: who listens to it in another thread would wait for ever."""
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise TypeError(f"streamer={streamer!r:.80}: expected an object with put() and end(), as transformers' are")
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()


def _functions(name: str, value: Any) -> list[Any]:
    functions = [] if value is None else as_list(name, value, "a list of functions")
    for function in functions:
        check_callable(name, function)
    return functions


def _criteria(value: Any) -> list[StoppingCriterion]:
    """The caller's criteria, which take a batch of ids and answer for each row, as criteria of one row."""

    def is_met(criterion: Any, tokens: mx.array, scores: mx.array | None) -> bool:
        return bool(np.all(np.asarray(criterion(tokens[None], None))))

    several = value is None or isinstance(value, Iterable)
    return [partial(is_met, criterion) for criterion in _functions("stopping_criteria", value if several else [value])]


def _drafter(model: Model, assistant: Model | None, settings: GenerationSettings) -> Callable[[], Drafter] | None:
    lookup_tokens = settings.prompt_lookup_num_tokens
    if assistant is None:
        return None if lookup_tokens is None else partial(PromptLookup, lookup_tokens, settings.max_matching_ngram_size)
    if lookup_tokens is not None:
        raise UnsupportedError("assistant_model and prompt_lookup_num_tokens do not go together: leave one of them out")
    if not same_vocabulary(model.processor, assistant.processor):
        raise UnsupportedError("assistant_model: it has another vocabulary than the model; take one of the same family")
    return partial(
        DraftModel,
        assistant,
        settings.num_assistant_tokens,
        settings.num_assistant_tokens_schedule,
        settings.assistant_confidence_threshold,
        reads_media=bool(assistant.processor.placeholders),
    )
