"""One call of `model.generate`: its rows become requests to the token iterator, and their results what transformers
returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine.draw_keys import seed_of_draw
from ..engine.iterator import TokenIterator
from ..engine.kv_settings import KVSettings
from ..engine.modes import Beams, Drafter, Guidance, Past, Trace
from ..engine.params import LogitsProcessor, SamplingParams, StoppingCriterion
from ..engine.request import Request
from ..engine.store import PrefixCache
from ..inputs.prompt import Prompt
from ..models.base import Model
from ..results import GenerationResult
from .config import GenerationSettings
from .encoding import Array
from .outputs import GenerateOutput, PastKeyValues, attentions_of, hidden_states_of, steps_of
from .processors import AllowedTokens, UserProcessor, processors, sampling_keywords, warpers


@dataclass
class Call:
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
    prefixes: PrefixCache | None

    def run(self, streamer: Any) -> Any:
        """Decode all rows. The streamer gets the tokens meanwhile."""
        settings = self.settings
        draws = 1 if settings.num_beams > 1 else settings.num_return_sequences
        requests = [self._request(row, draw) for row in range(len(self.prompts)) for draw in range(draws)]
        if streamer is not None:
            streamer.put(mx.array(self.ids))
        results = [GenerationResult()] * len(requests)
        options: dict[str, Any] = {"reuse": self.prefixes or False}
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
        seed = self.settings.seed
        if seed is None:
            return None
        if isinstance(seed, tuple):
            if len(seed) != len(self.prompts):
                raise ValueError(f"seed: {len(seed)} given for {len(self.prompts)} rows; give one, or one a row")
            seed = seed[row]
        return seed_of_draw(seed, draw)

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
