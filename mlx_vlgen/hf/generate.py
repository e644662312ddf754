"""`model.generate(**inputs)`, as code written for transformers calls it: its rows become requests to the token
iterator, and their results become what transformers returns."""

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
    batch_of_ids,
    check_batch,
    check_setting_ids,
    checkpoint_settings,
    known_tensors,
    merge_inputs,
    negative_prompts,
    prompts_of,
)
from .config import GenerationSettings
from .encoding import Array
from .outputs import GenerateOutput, PastKeyValues, attentions_of, hidden_states_of, steps_of
from .processors import AllowedTokens, UserProcessor, processors, sampling_keywords, warpers
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
    **kwargs: Any,
) -> Any:
    """Token ids (rows, prompt + new), an mlx array; with return_dict_in_generate a `GenerateOutput`.

    rows = batch * num_return_sequences. Prompts are padded on the left as they came, answers on the right with
    pad_token_id. Without max_new_tokens or max_length there are 128 new tokens at most.

    inputs: token ids (batch, length), or a mapping of all tensors; None: the model's first token, or tensors in kwargs
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
    with _ending(None if custom_generate else streamer):  # such a function ends it itself
        settings, tensors = resolve(checkpoint_settings(model), generation_config, kwargs)
        check_setting_ids(settings, model.vocab_size)
        if past_key_values is not None and not isinstance(past_key_values, PastKeyValues):
            raise TypeError(f"past_key_values={past_key_values!r:.80}: expected that of an earlier output")
        tensors = merge_inputs(inputs, known_tensors(tensors, {*NAMES, *_PARAMETERS}), settings.bos_token_id)
        if custom_generate is not None:
            return custom_generate(
                model, **tensors, generation_config=settings, logits_processor=logits_processor,
                stopping_criteria=stopping_criteria, streamer=streamer,
            )  # fmt: skip
        ids = tensors["input_ids"] = batch_of_ids("input_ids", tensors["input_ids"])
        if tensors.get("attention_mask") is None and settings.pad_token_id not in (None, *settings.eos_token_id):
            tensors["attention_mask"] = (ids != settings.pad_token_id).astype(int)  # as transformers guesses
        check_batch("input_ids", ids, tensors.get("attention_mask"), model.vocab_size)
        call = _Call(
            model,
            replace(settings, max_new_tokens=settings.max_tokens_after(ids.shape[1]), max_length=None),
            ids,
            prompts_of(model, tensors, past_key_values),
            negative_prompts(model, settings, tensors, negative_prompt_ids, negative_prompt_attention_mask),
            past_key_values.rows if past_key_values else None,
            _functions("logits_processor", logits_processor),
            _criteria(stopping_criteria),
            prefix_allowed_tokens_fn,
            _drafter(model, assistant_model, settings),
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


@dataclass
class _Call:
    """One call of `generate`, its arguments checked."""

    model: Model
    settings: GenerationSettings  # max_new_tokens is set
    ids: np.ndarray  # (B, L), padded
    prompts: list[Prompt]  # B
    negatives: list[Prompt] | None  # B, with guidance
    past: list[Past] | None  # B, with past_key_values
    user_processors: list[UserProcessor]
    criteria: list[StoppingCriterion]
    allowed: AllowedTokens | None
    drafter: Callable[[], Drafter] | None  # makes one for each row

    def run(self, streamer: Any) -> Any:
        """Decode all rows. The streamer gets the tokens meanwhile."""
        settings = self.settings
        draws = 1 if settings.num_beams > 1 else settings.num_return_sequences
        requests = [self._request(row, draw) for row in range(len(self.prompts)) for draw in range(draws)]
        if streamer is not None:
            streamer.put(mx.array(self.ids))
        results = [GenerationResult()] * len(requests)
        options: dict[str, Any] = {}
        if settings.prefill_step_size is not None:
            options["prefill_step_size"] = settings.prefill_step_size
        with TokenIterator(self.model, self.model.processor, **options) as iterator:
            index_of = {iterator.add(request): index for index, request in enumerate(requests)}
            for id, result in iterator:
                if result.error is not None:
                    raise result.error
                if streamer is not None and result.token is not None:
                    streamer.put(mx.array([result.token]))
                if result.finish_reason is not None:
                    results[index_of[id]] = result
        return self._output(requests, results)

    def _request(self, row: int, draw: int) -> Request:
        """draw: number of the returned sequence, of several from one prompt."""
        settings = self.settings
        kv = KVSettings(settings.kv_bits, settings.kv_group_size, settings.quantized_kv_start, settings.max_kv_size)
        return Request(
            self.prompts[row],
            sampling=self._sampling(row, draw),
            kv=kv,
            end_tokens=frozenset(settings.eos_token_id),
            guidance=Guidance(settings.guidance_scale or 1.0, self.negatives[row]) if self.negatives else None,
            beams=self._beams() if settings.num_beams > 1 else None,
            drafter=self.drafter,
            past=self.past[row] if self.past else None,
            trace=self._trace() if settings.return_dict_in_generate else None,
        )

    def _sampling(self, row: int, draw: int) -> SamplingParams:
        """The engine's parameters where they suffice, for these are computed for all rows together; else functions of
        one row, in transformers' order."""
        settings, prompt = self.settings, self.prompts[row]
        needs_functions = self.user_processors or self.allowed or self.negatives or settings.return_dict_in_generate
        keywords = None if needs_functions else sampling_keywords(settings, media=bool(prompt.media))
        functions: list[LogitsProcessor] = []
        if keywords is None:
            length = len(prompt.tokens)
            functions = processors(
                settings,
                prompt_length=length,
                row=row,
                padding=self.ids.shape[1] - length,
                prefix_allowed_tokens_fn=self.allowed,
                user_processors=self.user_processors,
            ) + warpers(settings, prompt_length=length)
            keywords = {"temperature": 1.0 if settings.do_sample and settings.num_beams == 1 else 0.0}
        return SamplingParams(
            max_tokens=settings.max_tokens_after(self.ids.shape[1]),
            seed=self._seed(row, draw),
            stop=settings.stop_strings,
            max_time=settings.max_time,
            thinking_budget=settings.thinking_budget,
            json_schema=settings.json_schema,
            regex=settings.regex,
            grammar=settings.grammar,
            choices=settings.choices,
            logits_processors=functions,
            stopping_criteria=self.criteria,
            logprobs=False,
            **keywords,
        )

    def _seed(self, row: int, draw: int) -> int | None:
        """A row's first draw is the one that it has alone; each further draw has another seed."""
        seed = self.settings.seed
        if seed is None:
            return None
        if isinstance(seed, tuple):
            if len(seed) != len(self.prompts):
                raise ValueError(f"seed: {len(seed)} given for {len(self.prompts)} rows; give one, or one a row")
            seed = seed[row]
        return seed if draw == 0 else int(np.random.SeedSequence((abs(seed), draw)).generate_state(1, np.uint64)[0])

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

    def _output(self, requests: Sequence[Request], results: Sequence[GenerationResult]) -> Any:
        settings = self.settings
        beams = [(row, beam) for row, result in enumerate(results) for beam in result.beams]
        answers = [beam.tokens for _, beam in beams] or [result.tokens for result in results]
        prompts = np.repeat(self.ids, len(answers) // len(self.ids), axis=0)
        padded = _pad_right(answers, 0 if settings.pad_token_id is None else settings.pad_token_id)
        sequences = Array(np.concatenate([prompts, padded], axis=1).astype(np.int32))
        if not settings.return_dict_in_generate:
            return sequences
        traces = [request.trace for request in requests if request.trace]
        output = GenerateOutput(sequences)
        if settings.output_scores:
            output.scores = steps_of([trace.scores for trace in traces])
        if settings.output_logits:
            output.logits = steps_of([trace.logits for trace in traces])
        if settings.output_hidden_states:
            output.hidden_states = hidden_states_of(traces, self.model.last_norm, self.ids.shape[1])
        if settings.output_attentions:
            output.attentions = attentions_of(traces, self.ids.shape[1])
        if beams:
            if settings.output_scores:
                output.sequences_scores = mx.array([beam.score for _, beam in beams])
            origins = [[row * settings.num_beams + origin for origin in beam.origins] for row, beam in beams]
            output.beam_indices = mx.array(_pad_right(origins, -1))
        elif all(trace.past for trace in traces):
            draws = settings.num_return_sequences
            output.past_key_values = PastKeyValues(
                [trace.past for trace in traces if trace.past],
                [[*self.prompts[i // draws].tokens.tolist(), *answer[:-1]] for i, answer in enumerate(answers)],
            )
        return output


def _pad_right(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), filler, np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
