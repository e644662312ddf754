"""The settings of one call of `model.generate`: each one's name, default and reader, in one table."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .values import (
    Reader,
    any_number,
    anything,
    boolean,
    fraction,
    ids,
    integer,
    not_negative,
    one_of,
    positive,
    positive_fraction,
    seeds,
    sequences,
    start_and_factor,
    strings,
    weighted_sequences,
)
from .watermark import Watermark, watermark

NEW_TOKENS = 128
"""max_new_tokens where nothing says how many."""


def setting(default: Any, read: Reader, *, when_none: Any = None, ours: bool = False) -> Any:
    """A field of `GenerationSettings`.

    default: where nothing sets it
    read: reads its value
    when_none: what a keyword of None stands for, where that is not the default
    ours: transformers has no setting of this name; in a generation_config.json it may mean anything
    """
    metadata = {"read": read, "when_none": default if when_none is None else when_none, "ours": ours}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class GenerationSettings:
    """Every setting of one call, resolved. Names and meanings are those of transformers' GenerationConfig, but for
    those marked `ours`. None, 0 or an empty tuple: off."""

    # Just one of max_new_tokens and max_length is set.
    max_new_tokens: int | None = setting(None, integer(1))  # generated tokens at most
    max_length: int | None = setting(
        None, integer(1)
    )  # tokens of prompt and answer at most, padding of the prompt included
    min_length: int = setting(0, integer(0))  # no end token before so many, prompt and padding included
    min_new_tokens: int | None = setting(None, integer(0))  # no end token before so many generated ones
    early_stopping: bool | str = setting(False, one_of(True, False, "never"))  # when a beam search ends
    max_time: float | None = setting(None, not_negative)  # seconds, after which a row ends
    stop_strings: tuple[str, ...] = setting((), strings)  # a row ends where its text has one of these

    do_sample: bool = setting(False, boolean)  # False too where the temperature is 0, or below 1e-30
    num_beams: int = setting(1, integer(1, 1000))  # more than 1: beam search
    length_penalty: float = setting(1.0, any_number)  # exponent of a beam's length, which its score is divided by
    num_return_sequences: int = setting(1, integer(1, 10_000))  # answers to each prompt
    guidance_scale: float | None = setting(None, any_number)  # how far away from the negative prompt
    seed: int | tuple[int, ...] | None = setting(None, seeds, ours=True)  # one, or one a row

    temperature: float = setting(1.0, not_negative)  # logits are divided by it
    top_k: int = setting(50, integer(-1), when_none=0)  # draw from the k likeliest tokens
    top_p: float = setting(1.0, fraction)  # from the likeliest that make up this probability
    min_p: float | None = setting(None, fraction)  # from those at least so likely, relative to the likeliest
    top_h: float | None = setting(None, positive_fraction)  # from the likeliest with this share of the entropy
    typical_p: float = setting(1.0, positive_fraction)  # from the most typical that make up this probability
    epsilon_cutoff: float = setting(0.0, fraction)  # from those at least so likely
    eta_cutoff: float = setting(0.0, fraction)  # the same, with a lower bound for flat distributions

    repetition_penalty: float = setting(1.0, positive)  # tokens of the prompt and the answer get less likely
    encoder_repetition_penalty: float = setting(1.0, positive)  # tokens of the prompt get likelier
    presence_penalty: float = setting(0.0, any_number, ours=True)  # subtracted from logits of the answer's tokens
    no_repeat_ngram_size: int = setting(0, integer(0))  # no sequence of so many tokens occurs twice
    encoder_no_repeat_ngram_size: int = setting(0, integer(0))  # nor one of the prompt's
    bad_words_ids: tuple[tuple[int, ...], ...] = setting((), sequences)  # sequences that never occur
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = setting((), weighted_sequences)  # added to a logit
    suppress_tokens: tuple[int, ...] = setting((), ids)  # ids that are never generated
    begin_suppress_tokens: tuple[int, ...] = setting((), ids)  # ids that are not generated first
    forced_bos_token_id: int | None = setting(None, integer(0))  # the token after a prompt of one token
    forced_eos_token_id: tuple[int, ...] = setting((), ids)  # the last token where max_length is reached
    exponential_decay_length_penalty: tuple[int, float] | None = setting(None, start_and_factor)  # urges to end
    remove_invalid_values: bool = setting(False, boolean)  # NaN and infinite logits are replaced
    renormalize_logits: bool = setting(False, boolean)  # scores become log-probabilities
    watermarking_config: Watermark | None = setting(None, watermark)  # marks the generated text

    bos_token_id: int | None = setting(None, integer(0))  # the prompt where there is no input
    eos_token_id: tuple[int, ...] = setting((), ids)  # a row ends with one of these
    pad_token_id: int | None = setting(None, integer())  # follows a row's end; the first end token where not set

    num_assistant_tokens: int = setting(20, integer(1))  # guesses of assistant_model at a time
    num_assistant_tokens_schedule: str = setting("constant", one_of("constant", "heuristic", "heuristic_transient"))
    assistant_confidence_threshold: float = setting(0.4, fraction, when_none=0.0)  # less likely guesses end a turn
    prompt_lookup_num_tokens: int | None = setting(None, integer(1))  # guesses from the prompt at a time
    max_matching_ngram_size: int = setting(2, integer(1))  # longest sequence that is looked up there

    return_dict_in_generate: bool = setting(False, boolean)  # return a GenerateOutput, with the following in it
    output_scores: bool = setting(False, boolean)  # what tokens were drawn from
    output_logits: bool = setting(False, boolean)  # the model's logits
    output_attentions: bool = setting(False, boolean)  # attention weights
    output_hidden_states: bool = setting(False, boolean)  # every layer's output

    use_cache: bool = setting(True, boolean)  # changes nothing: a cache is always used
    prefill_step_size: int | None = setting(None, integer(1), ours=True)  # prompt tokens a forward takes at most
    kv_bits: int | None = setting(None, integer(2), ours=True)  # of quantized keys and values
    kv_group_size: int = setting(64, integer(1), ours=True)  # of which so many share a scale
    quantized_kv_start: int = setting(0, integer(0), ours=True)  # positions below it stay unquantized
    max_kv_size: int | None = setting(None, integer(1), ours=True)  # positions that the cache holds at most

    thinking_budget: int | None = setting(None, integer(0), ours=True)  # tokens inside a thinking block at most
    # The form of the answer, at most one of these four; `SamplingParams` checks them.
    json_schema: Any = setting(None, anything, ours=True)  # a schema, as a mapping or its JSON
    regex: str | None = setting(None, anything, ours=True)  # a regular expression for the whole answer
    grammar: str | None = setting(None, anything, ours=True)  # a Lark grammar
    choices: Any = setting(None, anything, ours=True)  # a list of texts, one of which is the answer

    def max_tokens_after(self, prompt_length: int) -> int:
        """How many tokens may follow a prompt of so many, padding included. ValueError where the prompt is already as
        long as max_length."""
        if self.max_length is None:
            return self.max_new_tokens or NEW_TOKENS
        if prompt_length >= self.max_length:
            raise ValueError(
                f"max_length={self.max_length}: the prompt has {prompt_length} tokens already, which it counts; give "
                "more, or max_new_tokens"
            )
        return self.max_length - prompt_length


FIELDS = {field.name: field for field in dataclasses.fields(GenerationSettings)}
READERS: dict[str, Reader] = {name: field.metadata["read"] for name, field in FIELDS.items()}
OURS = frozenset(name for name, field in FIELDS.items() if field.metadata["ours"])
