"""`model.generate(**inputs)`, as code written for transformers calls it: a face of the token iterator."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine.iterator import TokenIterator
from ..engine.kv_settings import KVSettings
from ..engine.modes import Beams, Drafter, Guidance, Past, Trace
from ..engine.params import LogitsProcessor, SamplingParams, StoppingCriterion, check_callable
from ..engine.request import Request
from ..engine.speculative import DraftModel, PromptLookup, same_vocabulary
from ..errors import UnsupportedError
from ..inputs.prompt import Prompt
from ..models.base import Model
from ..results import GenerationResult
from .arguments import (
    check_rows,
    check_settings,
    named,
    negative_prompts,
    prompts_of,
    rows_of_ids,
    settings_of_files,
    take_harmless,
)
from .config import NAMES, Settings, resolve
from .encoding import Array
from .outputs import GenerateOutput, PastKeyValues, attentions_of, hidden_states_of, steps_of
from .processors import AllowedTokens, UserProcessor, native, processors, warpers
from .values import listed


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
    if custom_generate is not None and not callable(custom_generate):
        raise UnsupportedError(
            f"custom_generate={custom_generate!r:.80}: code from the Hub is not run here; give a function"
        )
    if prefix_allowed_tokens_fn is not None:
        check_callable("prefix_allowed_tokens_fn", prefix_allowed_tokens_fn)
    with _ended(None if custom_generate else streamer):  # such a function ends it itself
        settings, tensors = resolve(settings_of_files(model), generation_config, kwargs)
        check_settings(settings, model.vocab_size)
        past = tensors.pop("past_key_values", None)
        if past is not None and not isinstance(past, PastKeyValues):
            raise TypeError(f"past_key_values={past!r:.80}: expected that of an earlier output")
        take_harmless(tensors, {*NAMES, *_PARAMETERS})
        tensors = named(inputs, tensors, settings.bos_token_id)
        if custom_generate is not None:
            return custom_generate(
                model, **tensors, generation_config=settings, logits_processor=logits_processor,
                stopping_criteria=stopping_criteria, streamer=streamer,
            )  # fmt: skip
        ids = tensors["input_ids"] = rows_of_ids("input_ids", tensors["input_ids"])
        if tensors.get("attention_mask") is None and settings.pad_token_id not in (None, *settings.eos_token_id):
            tensors["attention_mask"] = (ids != settings.pad_token_id).astype(int)  # as transformers guesses
        check_rows("input_ids", ids, tensors.get("attention_mask"), model.vocab_size)
        call = Call(
            model,
            settings,
            ids,
            prompts_of(model, tensors, past),
            _criteria(stopping_criteria),
            _functions("logits_processor", logits_processor),
            prefix_allowed_tokens_fn,
            _drafter(model, assistant_model, settings),
            negative_prompts(model, settings, tensors, negative_prompt_ids, negative_prompt_attention_mask),
            past.rows if past else None,
        )
        if streamer is not None and (len(ids) > 1 or settings.num_return_sequences > 1 or settings.num_beams > 1):
            raise ValueError("streamer: it takes one row, without beams; leave it out, or give one prompt")
        out = call.run(streamer)
    if synced_gpus and mx.distributed.is_available():
        mx.eval(mx.distributed.all_sum(mx.array(1)))
    return out


@contextmanager
def _ended(streamer: Any) -> Iterator[None]:
    """Tells the streamer the end, whatever happens: who listens to it in another thread would wait for ever."""
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise TypeError(f"streamer={streamer!r:.80}: expected an object with put() and end(), as transformers' are")
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()


def _functions(name: str, given: Any) -> list[Any]:
    functions = [] if given is None else listed(name, given, "a list of functions")
    for function in functions:
        check_callable(name, function)
    return functions


_PARAMETERS = tuple(inspect.signature(generate).parameters)
_STRUCTURE = "json_schema", "regex", "grammar", "choices"


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

    def met(criterion: Any, tokens: mx.array, scores: mx.array | None) -> bool:
        return bool(np.all(np.asarray(criterion(tokens[None], None))))

    several = given is None or isinstance(given, Iterable)
    return [partial(met, criterion) for criterion in _functions("stopping_criteria", given if several else [given])]
