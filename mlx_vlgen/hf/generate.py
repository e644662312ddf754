"""`model.generate(**inputs)`, as code written for transformers calls it: a face of the token iterator."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine.asked import Beams, Drafter, Guidance, Past, Trace
from ..engine.iterator import TokenIterator
from ..engine.kv_settings import KVSettings
from ..engine.params import LogitsProcessor, SamplingParams, StoppingCriterion
from ..engine.request import Request
from ..engine.speculative import DraftModel, PromptLookup, same_vocabulary
from ..errors import PromptError, UnsupportedError
from ..inputs.prompt import Prompt
from ..inputs.tensors import NAMES as TENSORS
from ..inputs.tensors import unpack
from ..models.base import Model
from ..options import did_you_mean
from ..results import GenerationResult
from .config import NAMES, Settings, resolve
from .encoding import Array
from .outputs import GenerateOutput, PastKeyValues, attentions_of, hidden_states_of, steps_of
from .processors import AllowedTokens, UserProcessor, native, processors, warpers


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
    **kwargs: Any,
) -> Any:
    """Token ids (rows, prompt + new) as an mlx array, rows = batch * num_return_sequences, padded as they came on the
    left, and with pad_token_id on the right; with return_dict_in_generate a `GenerateOutput`.

    inputs: token ids (batch, length), or all tensors by name in a mapping. kwargs: those tensors, as the processor
    gives them (`inputs.tensors`), and every setting of transformers' GenerationConfig, each honoured or refused with
    its reason (`hf.config`); without any input the prompt is the model's first token. Without max_new_tokens or
    max_length 128 new tokens at most.

    generation_config: a GenerationConfig of transformers or a mapping; keywords win over it, and it over the
    checkpoint's generation_config.json. logits_processor: called with ids (1, n), without padding, and scores (1, V) of
    one row. stopping_criteria: called with (1, n) and None. prefix_allowed_tokens_fn: with the row's number and ids
    (n,). All get mlx arrays. assistant_model: guesses tokens, which this model checks; the answer stays its own.
    streamer: transformers' own; gets the prompt, then each token. negative_prompt_ids: with guidance_scale; its
    placeholders, if any, stand for the row's own pictures. custom_generate: a function that is called in the place of
    decoding, with the model, the tensors and the settings. past_key_values: of an earlier output; prompts then begin
    with what that one held. synced_gpus: ranks of `mlx.launch` wait for each other at the end.

    Raises what is wrong with a row's request; TypeError for an unknown name, ValueError for a value out of range,
    UnsupportedError for what cannot be honoured here.
    """
    own = {name: model.config[name] for name in _TOKENS if model.config.get(name) is not None}
    settings, tensors = resolve(own | model.generation_config, generation_config, kwargs)
    past = tensors.pop("past_key_values", None)
    _take_harmless(tensors)
    tensors = _named(inputs, tensors, settings)
    if custom_generate is not None:
        return _custom(custom_generate)(
            model, **tensors, generation_config=settings, logits_processor=logits_processor,
            stopping_criteria=stopping_criteria, streamer=streamer,
        )  # fmt: skip
    ids = np.atleast_2d(np.asarray(tensors["input_ids"]))
    tensors["input_ids"] = ids
    if tensors.get("attention_mask") is None and settings.pad_token_id not in (None, *settings.eos_token_id):
        tensors["attention_mask"] = (ids != settings.pad_token_id).astype(int)  # as transformers guesses
    call = Call(
        model,
        settings,
        ids,
        _prompts(model, tensors, past),
        _criteria(stopping_criteria),
        list(logits_processor or ()),
        prefix_allowed_tokens_fn,
        _drafter(model, assistant_model, settings),
        _negatives(model, settings, tensors, negative_prompt_ids, negative_prompt_attention_mask),
        past.rows if past else None,
    )
    if streamer is not None and (len(ids) > 1 or settings.num_return_sequences > 1 or settings.num_beams > 1):
        raise ValueError("streamer: it takes one row, without beams; leave it out, or give one prompt")
    out = call.run(streamer)
    if synced_gpus and mx.distributed.is_available():
        mx.eval(mx.distributed.all_sum(mx.array(1)))
    return out


_STRUCTURE = "json_schema", "regex", "grammar", "choices"
_TOKENS = "bos_token_id", "eos_token_id", "pad_token_id"


@dataclass
class Call:
    """One call of `generate`: its rows as requests, and what comes back as transformers has it."""

    model: Model
    settings: Settings
    ids: np.ndarray  # (batch, length), padded
    prompts: list[Prompt]
    criteria: list[StoppingCriterion]
    users: list[UserProcessor]
    allowed: AllowedTokens | None
    drafter: Callable[[], Drafter] | None
    negatives: list[Prompt] | None
    past: list[Past] | None

    def run(self, streamer: Any) -> Any:
        settings = self.settings
        copies = 1 if settings.num_beams > 1 else settings.num_return_sequences
        requests = [self._request(row, copy) for row in range(len(self.prompts)) for copy in range(copies)]
        if streamer is not None:
            streamer.put(mx.array(self.ids))
        results = [GenerationResult()] * len(requests)
        step: dict[str, Any] = {}
        if settings.prefill_step_size is not None:
            step["prefill_step_size"] = settings.prefill_step_size
        with TokenIterator(self.model, self.model.processor, **step) as iterator:
            place = {iterator.add(request): index for index, request in enumerate(requests)}
            for id, result in iterator:
                if result.error is not None:
                    raise result.error
                if streamer is not None and result.token is not None:
                    streamer.put(mx.array([result.token]))
                if result.finish_reason is not None:
                    results[place[id]] = result
        if streamer is not None:
            streamer.end()
        return self._output(requests, results)

    def _request(self, row: int, copy: int) -> Request:
        settings, prompt = self.settings, self.prompts[row]
        most = settings.most_new_tokens(self.ids.shape[1])
        traced = settings.return_dict_in_generate
        beams = settings.num_beams > 1
        own = replace(settings, max_new_tokens=most, max_length=None)
        by_hand = self.users or self.allowed or traced or self.negatives
        drawing = None if by_hand else native(own, media=bool(prompt.media))
        chain: list[LogitsProcessor] = []
        if drawing is None:
            length = len(prompt.tokens)
            chain = processors(
                own,
                prompt_length=length,
                row=row,
                padding=self.ids.shape[1] - length,
                prefix_allowed_tokens_fn=self.allowed,
                users=self.users,
            ) + warpers(own, prompt_length=length)
            drawing = {"temperature": 1.0 if own.do_sample and not beams else 0.0}
        answer = {name: getattr(settings, name) for name in _STRUCTURE if getattr(settings, name) is not None}
        sampling = SamplingParams(
            max_tokens=most,
            seed=self._seed(row, copy),
            stop=settings.stop_strings,
            max_time=settings.max_time,
            thinking_budget=settings.thinking_budget,
            logits_processors=chain,
            stopping_criteria=self.criteria,
            logprobs=False,
            **drawing,
            **answer,
        )
        return Request(
            prompt,
            sampling=sampling,
            kv=KVSettings(settings.kv_bits, settings.kv_group_size, settings.quantized_kv_start, settings.max_kv_size),
            end_tokens=frozenset(settings.eos_token_id),
            guidance=None if not self.negatives else Guidance(settings.guidance_scale or 1.0, self.negatives[row]),
            beams=self._beams() if beams else None,
            drafter=self.drafter,
            past=self.past[row] if self.past else None,
            trace=self._trace() if traced else None,
        )

    def _beams(self) -> Beams:
        settings = self.settings
        early: Any = settings.early_stopping
        return Beams(
            settings.num_beams, settings.length_penalty, early, settings.num_return_sequences, settings.do_sample
        )

    def _trace(self) -> Trace:
        settings = self.settings
        return Trace(
            states=settings.output_hidden_states,
            attentions=settings.output_attentions,
            keep_cache=settings.num_beams == 1 and self.drafter is None,
        )

    def _seed(self, row: int, copy: int) -> int | None:
        """One seed gives each row the draw that it has alone; of several returned sequences each has its own."""
        seed = self.settings.seed
        if seed is None:
            return None
        if isinstance(seed, tuple):
            if len(seed) != len(self.prompts):
                raise ValueError(f"seed: {len(seed)} given for {len(self.prompts)} rows; give one, or one a row")
            seed = seed[row]
        return seed if copy == 0 else int(np.random.SeedSequence((abs(seed), copy)).generate_state(1, np.uint64)[0])

    def _output(self, requests: Sequence[Request], results: Sequence[GenerationResult]) -> Any:
        settings = self.settings
        beams = [(row, beam) for row, result in enumerate(results) for beam in result.beams]
        made = [beam.tokens for _, beam in beams] or [list(result.tokens) for result in results]
        sequences = self._sequences(made)
        if not settings.return_dict_in_generate:
            return sequences
        traces = [request.trace for request in requests if request.trace]
        out = GenerateOutput(sequences)
        if settings.output_scores:
            out.scores = steps_of([trace.scores for trace in traces])
        if settings.output_logits:
            out.logits = steps_of([trace.logits for trace in traces])
        if settings.output_hidden_states:
            out.hidden_states = hidden_states_of(traces, self.model.last_norm, self.ids.shape[1])
        if settings.output_attentions:
            out.attentions = attentions_of(traces, self.ids.shape[1])
        if beams:
            if settings.output_scores:
                out.sequences_scores = mx.array([beam.score for _, beam in beams])
            origins = [[row * settings.num_beams + at for at in beam.origins] for row, beam in beams]
            out.beam_indices = mx.array(_right_padded(origins, -1))
        elif all(trace.past for trace in traces):
            held = [list(result.tokens) for result in results]
            copies = settings.num_return_sequences
            prompts = [self.prompts[index // copies].tokens.tolist() for index in range(len(results))]
            out.past_key_values = PastKeyValues(
                [trace.past for trace in traces if trace.past],
                [[*prompt, *new[:-1]] for prompt, new in zip(prompts, held, strict=True)],
            )
        return out

    def _sequences(self, made: Sequence[Sequence[int]]) -> mx.array:
        copies = len(made) // len(self.ids)
        pad = self.settings.pad_token_id
        new = _right_padded(made, 0 if pad is None else pad)
        return Array(np.concatenate([np.repeat(self.ids, copies, axis=0), new], axis=1).astype(np.int32))


def _right_padded(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    made = np.full((len(rows), max(map(len, rows))), filler, np.int32)
    for row, own in zip(made, rows, strict=True):
        row[: len(own)] = own
    return made


# -- what was given


def _take_harmless(tensors: dict[str, Any]) -> None:
    """Drop what says nothing new, and refuse what is no input of `generate` here."""
    for name in ("tokenizer", "token_type_ids", "cache_position", "logits_to_keep"):
        tensors.pop(name, None)
    for name, remedy in _REFUSED.items():
        if tensors.pop(name, None) is not None:
            raise UnsupportedError(f"{name}: {remedy}")
    for name in tensors.keys() - set(TENSORS):
        raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, {*TENSORS, *NAMES, *_PARAMETERS})}")


_PARAMETERS = tuple(inspect.signature(generate).parameters)
_REFUSED = {
    "inputs_embeds": "give input_ids, and pictures as pixel_values",
    "position_ids": "positions follow from input_ids and attention_mask; leave it out",
    "assistant_tokenizer": "an assistant model must have the tokenizer of the model itself; leave it out",
    "head_mask": "heads cannot be left out",
}


def _named(inputs: Any, tensors: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """All tensors by name."""
    if isinstance(inputs, Mapping):
        if both := sorted(set(inputs) & set(tensors)):
            raise TypeError(f"{both[0]} is given twice, in inputs and as a keyword: give it once")
        return {**inputs, **tensors}
    if inputs is not None:
        if "input_ids" in tensors:
            raise TypeError("inputs and input_ids are the same: give one of them")
        return {"input_ids": inputs, **tensors}
    if "input_ids" in tensors:
        return tensors
    if tensors or settings.bos_token_id is None:
        raise PromptError("no input_ids: give the prompt's token ids, as the processor makes them")
    return {"input_ids": [[settings.bos_token_id]]}


def _prompts(model: Model, tensors: Mapping[str, Any], past: PastKeyValues | None) -> list[Prompt]:
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


_WORDS = "input_ids", "attention_mask", "mm_token_type_ids"


def _padded(rows: Sequence[np.ndarray]) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (width - len(row), 0)) for row in rows])
    mask = np.stack([np.arange(width) >= width - len(row) for row in rows]).astype(int)
    return dict(zip(_WORDS, (ids, mask, None), strict=True))


def _negatives(
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
    given = {"input_ids": np.atleast_2d(np.asarray(ids))} | ({} if mask is None else {"attention_mask": mask})
    try:
        return unpack(model.processor, given)
    except PromptError:
        media = {name: value for name, value in tensors.items() if name not in _WORDS}
        return unpack(model.processor, given | media)


def _drafter(model: Model, assistant: Model | None, settings: Settings) -> Callable[[], Drafter] | None:
    if assistant is None:
        if settings.prompt_lookup_num_tokens is None:
            return None
        return lambda: PromptLookup(settings.prompt_lookup_num_tokens or 1, settings.max_matching_ngram_size)
    if settings.prompt_lookup_num_tokens is not None:
        raise UnsupportedError("assistant_model and prompt_lookup_num_tokens do not go together: leave one of them out")
    if not same_vocabulary(model.processor, assistant.processor):
        raise UnsupportedError("assistant_model: it has another vocabulary than the model; take one of the same family")
    return lambda: DraftModel(
        assistant,
        settings.num_assistant_tokens,
        settings.num_assistant_tokens_schedule,
        settings.assistant_confidence_threshold,
        reads_media=bool(assistant.processor.placeholders),
    )


def _criteria(given: Any) -> list[StoppingCriterion]:
    """The user's criteria, which take rows of ids and answer for each, as a row's."""
    if given is None:
        return []
    listed = list(given) if isinstance(given, Iterable) else [given]

    def met(own: Any, tokens: mx.array, scores: mx.array | None) -> bool:
        return bool(np.all(np.asarray(own(tokens[None], None))))

    return [partial(met, own) for own in listed]


def _custom(given: Any) -> Callable[..., Any]:
    if callable(given):
        return given
    raise UnsupportedError(f"custom_generate={given!r:.80}: code from the Hub is not run here; give a function")
