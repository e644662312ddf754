"""What a call of `model.generate` asks for: generation_config.json, GenerationConfig and keywords in one `Settings`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.params import GREEDY_BELOW, finite
from ..errors import UnsupportedError
from ..notices import notice
from ..options import did_you_mean
from .values import choice, entries, flag, ids, number, pair, sequences, strings, weighted_sequences, whole
from .watermark import Watermark, watermark

NEW_TOKENS = 128
"""Where nothing says how many."""


@dataclass(frozen=True)
class Settings:
    """Every setting of one call, resolved. Names and meanings are those of transformers' GenerationConfig; what it does
    not have is said below. None, 0 or an empty tuple: not asked for.

    max_new_tokens, max_length: just one of them is set; the second counts the prompt, padding included.
    eos_token_id: none, one or several, as a tuple. pad_token_id: where the model has none, its first end token.
    sequence_bias: pairs of a sequence and its bias. do_sample: False too where the temperature is 0, or
    below 1e-30.
    presence_penalty: off the logit of each generated token. seed: one, or one a row; of several returned sequences the
    i-th uses it folded with i. prefill_step_size is also called prefill_chunk_size; None: the engine's own.
    kv_bits to max_kv_size: as in `generate` (cache_implementation="quantized" sets the first two). thinking_budget:
    tokens inside a thinking block at most. json_schema, regex, grammar, choices: what the answer must match.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    early_stopping: bool | str = False
    max_time: float | None = None
    stop_strings: tuple[str, ...] = ()

    do_sample: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    guidance_scale: float | None = None
    seed: int | tuple[int, ...] | None = None

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    watermarking_config: Watermark | None = None

    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None

    num_assistant_tokens: int = 20
    num_assistant_tokens_schedule: str = "constant"
    assistant_confidence_threshold: float = 0.4
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int = 2

    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False

    use_cache: bool = True
    prefill_step_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    max_kv_size: int | None = None

    thinking_budget: int | None = None
    json_schema: Any = None
    regex: str | None = None
    grammar: str | None = None
    choices: Any = None

    def most_new_tokens(self, prompt_length: int) -> int:
        """After a prompt of so many tokens, padding included. ValueError where the prompt is already as long as
        max_length."""
        if self.max_length is None:
            assert self.max_new_tokens is not None
            return self.max_new_tokens
        if prompt_length >= self.max_length:
            raise ValueError(
                f"max_length={self.max_length}: the prompt has {prompt_length} tokens already, which it counts; give "
                "more, or max_new_tokens"
            )
        return self.max_length - prompt_length


_share = number("0 to 1", lambda value: 0 <= value <= 1)
_share_not_0 = number("more than 0, at most 1", lambda value: 0 < value <= 1)
_not_negative = number("at least 0", lambda value: value >= 0 and finite(value))
_positive = number("more than 0", lambda value: value > 0 and finite(value))
_any_number = number("a number")
_id = whole(0)

_READERS = {
    "max_new_tokens": whole(1),
    "max_length": whole(1),
    "min_length": whole(0),
    "min_new_tokens": whole(0),
    "early_stopping": choice(True, False, "never"),
    "max_time": _not_negative,
    "stop_strings": strings,
    "do_sample": flag,
    "num_beams": whole(1, 1000),
    "length_penalty": _any_number,
    "num_return_sequences": whole(1, 10_000),
    "guidance_scale": _any_number,
    "seed": lambda name, value: ids(name, value) if isinstance(value, list | tuple) else whole()(name, value),
    "temperature": _not_negative,
    "top_k": whole(-1),
    "top_p": _share,
    "min_p": _share,
    "top_h": _share_not_0,
    "typical_p": _share_not_0,
    "epsilon_cutoff": _share,
    "eta_cutoff": _share,
    "repetition_penalty": _positive,
    "encoder_repetition_penalty": _positive,
    "presence_penalty": _any_number,
    "no_repeat_ngram_size": whole(0),
    "encoder_no_repeat_ngram_size": whole(0),
    "bad_words_ids": sequences,
    "sequence_bias": weighted_sequences,
    "suppress_tokens": ids,
    "begin_suppress_tokens": ids,
    "forced_bos_token_id": _id,
    "forced_eos_token_id": ids,
    "exponential_decay_length_penalty": pair,
    "remove_invalid_values": flag,
    "renormalize_logits": flag,
    "watermarking_config": watermark,
    "bos_token_id": _id,
    "eos_token_id": ids,
    "pad_token_id": whole(),
    "num_assistant_tokens": whole(1),
    "num_assistant_tokens_schedule": choice("constant", "heuristic", "heuristic_transient"),
    "assistant_confidence_threshold": _share,
    "prompt_lookup_num_tokens": whole(1),
    "max_matching_ngram_size": whole(1),
    "return_dict_in_generate": flag,
    "output_scores": flag,
    "output_logits": flag,
    "output_attentions": flag,
    "output_hidden_states": flag,
    "use_cache": flag,
    "prefill_step_size": whole(1),
    "kv_bits": whole(2),
    "kv_group_size": whole(1),
    "quantized_kv_start": whole(0),
    "max_kv_size": whole(1),
    "thinking_budget": whole(0),
    "json_schema": lambda name, value: value,  # engine.structured reads these four
    "regex": lambda name, value: value,
    "grammar": lambda name, value: value,
    "choices": lambda name, value: value,
}

_WHEN_NONE = {"top_k": 0, "assistant_confidence_threshold": 0.0}
"""What a keyword of None means where it is not the default: with None transformers switches these off."""

_OURS = frozenset(
    "presence_penalty seed prefill_step_size kv_bits kv_group_size quantized_kv_start max_kv_size thinking_budget "
    "json_schema regex grammar choices".split()
)
"""Not in transformers: in a generation_config.json these names may mean anything."""

_ALIASES = {"prefill_chunk_size": "prefill_step_size"}

_MOVED = "transformers moved {} out of its core, to custom_generate, and it is not here; leave it out"
_OTHER_TOKENIZER = "it is for an assistant with another tokenizer, which is not supported; leave it out"
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "penalty_alpha": ((0,), _MOVED.format("contrastive search")),
    "dola_layers": ((), _MOVED.format("DoLa")),
    "num_beam_groups": ((1,), _MOVED.format("group beam search")),
    "diversity_penalty": ((0,), _MOVED.format("group beam search")),
    "constraints": (([],), _MOVED.format("constrained beam search")),
    "force_words_ids": (([],), _MOVED.format("constrained beam search")),
    "use_mtp": ((False,), "a model's own extra heads are not loaded; give assistant_model or prompt_lookup_num_tokens"),
    "assistant_early_exit": ((), "no layer but the last is read; give assistant_model or prompt_lookup_num_tokens"),
    "assistant_lookbehind": ((10,), _OTHER_TOKENIZER),
    "target_lookbehind": ((10,), _OTHER_TOKENIZER),
    "assistant_ensemble_weight": ((), "drafts never change what is drawn here; leave it out"),
    "speculation_type": ((), "drafts come from assistant_model or prompt_lookup_num_tokens; leave it out"),
    "is_assistant": ((False,), "a model is an assistant by being given as assistant_model; leave it out"),
    "token_healing": ((False,), "the prompt is taken as it is; leave its unfinished word out of it"),
    "continuous_batching_config": ((), "rows are batched continuously as they are; see TokenIterator"),
    "generator": ((), "give seed, a number or a list of one a row"),
}
"""What is not honoured: the values (None apart) that ask for nothing, and the reason with the remedy."""

_IDLE: Mapping[str, str] = {
    "decoder_start_token_id": "only encoder-decoder models start with it",
    "low_memory": "beams run together",
    "compile_config": "nothing is compiled",
    "disable_compile": "nothing is compiled",
    "max_cache_len": "the cache grows as it must",
}
"""What changes no answer here, and why."""

_GROWS = "dynamic", "dynamic_full"
_FIXED = "static", "sliding_window", "hybrid", "hybrid_chunked", "paged"
_OFFLOADED = "offloaded", "offloaded_static", "offloaded_hybrid", "offloaded_hybrid_chunked"
_CACHE = "cache_implementation", "cache_config"
_CACHE_CONFIG = {"nbits": "kv_bits", "bits": "kv_bits", "q_group_size": "kv_group_size", "group_size": "kv_group_size"}
_CACHE_CONFIG_IDLE = "backend", "residual_length", "axis_key", "axis_value"

NAMES = frozenset((*_READERS, *_ALIASES, *_REFUSED, *_IDLE, *_CACHE))
"""Every name that is a setting."""

_DRAWN: Mapping[str, tuple[float, ...]] = {
    "temperature": (1, 0),
    "top_k": (50, 0, -1),
    "top_p": (1,),
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
"""What only drawing uses, with the values that change nothing."""


def resolve(own: Mapping[str, Any], given: Any, keywords: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings of a call, and the keywords that are none.

    own: the checkpoint's generation_config.json, of which names that transformers does not know count for nothing.
    given: a GenerationConfig of transformers, `Settings`, a mapping, or None; what is None in it is not set. keywords
    win over `given`, and that over `own`; one of None takes the setting back, as in transformers.

    ValueError for a value that is none or does not go with another; UnsupportedError for what is known and cannot be
    honoured. What is known and changes nothing here is told.
    """
    unnamed = {name: value for name, value in keywords.items() if name not in NAMES}
    asked = _given(given) | {name: value for name, value in keywords.items() if name in NAMES}
    asked = {_ALIASES.get(name, name): value for name, value in asked.items()}
    values = {_ALIASES.get(name, name): value for name, value in own.items() if value is not None}
    values = {name: value for name, value in values.items() if name in NAMES - _OURS} | asked
    _refuse(values)
    values |= _cache(values, told=set(asked))
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Settings)} | _WHEN_NONE
    spelled = {name: alias for alias, name in _ALIASES.items() if alias in keywords}
    read: dict[str, Any] = {
        name: defaults[name] if values[name] is None else reader(spelled.get(name, name), values[name])
        for name, reader in _READERS.items()
        if name in values
    }
    settings = _combined(Settings(**read))
    _check(settings)
    _tell(settings, {name: value for name, value in asked.items() if value is not None})
    return settings, unnamed


def _given(config: Any) -> dict[str, Any]:
    """What is set in it. A name that is no setting is told and not refused: a GenerationConfig carries whatever else
    stood in the file that it was read from."""
    if config is None:
        return {}
    held = entries("generation_config", config)
    if unnamed := [name for name in held if not isinstance(name, str)]:
        raise ValueError(f"generation_config: {unnamed[0]!r:.80} is no name of a setting")
    held = {name: value for name, value in held.items() if value is not None and not name.startswith("_")}
    held.pop("transformers_version", None)
    for name in sorted(set(held) - NAMES):
        notice(f"generation_config: {name!r} is no setting and does nothing{did_you_mean(name, NAMES)}")
        del held[name]
    return held


def _refuse(values: Mapping[str, Any]) -> None:
    for name, (nothing, reason) in _REFUSED.items():
        value = values.get(name)
        idle = isinstance(value, int | float | list) and value in nothing
        if value is not None and not idle:
            raise UnsupportedError(f"{name}={value!r:.80}: {reason}")


def _cache(values: Mapping[str, Any], told: set[str]) -> dict[str, Any]:
    """What cache_implementation and cache_config ask of our cache, where no keyword of ours says otherwise."""
    kind, config = values.get("cache_implementation"), values.get("cache_config")
    if kind in _OFFLOADED:
        raise UnsupportedError(
            f"cache_implementation={kind!r}: memory is shared by all devices, so there is nowhere to move a cache to; "
            "leave it out, or give kv_bits or max_kv_size for a smaller one"
        )
    if kind not in (None, "quantized", *_GROWS, *_FIXED):
        known = ", ".join(map(repr, (*_GROWS, "quantized", *_FIXED)))
        raise ValueError(f"cache_implementation={kind!r:.80}: expected one of {known}")
    if kind in _FIXED and "cache_implementation" in told:
        notice(f"cache_implementation={kind!r}: nothing is compiled here, so the cache grows; the answer is the same")
    if kind != "quantized":
        if config and "cache_config" in told:
            notice('cache_config does nothing without cache_implementation="quantized"')
        return {}
    config = entries("cache_config", config or {})
    if unknown := set(config) - {*_CACHE_CONFIG, *_CACHE_CONFIG_IDLE}:
        raise ValueError(f"cache_config: unknown {min(unknown)!r}{did_you_mean(min(unknown), _CACHE_CONFIG)}")
    if config.get("backend") == "fp8":
        raise UnsupportedError('cache_config: backend "fp8" is not here; leave it out and give nbits')
    if idle := [name for name in _CACHE_CONFIG_IDLE[1:] if config.get(name) is not None]:
        notice(f"cache_config: {', '.join(idle)} does nothing, for keys and values are quantized as they are written")
    asked = {ours: config[theirs] for theirs, ours in _CACHE_CONFIG.items() if config.get(theirs) is not None}
    return {name: value for name, value in ({"kv_bits": 4} | asked).items() if values.get(name) is None}


def _combined(settings: Settings) -> Settings:
    """With what follows from several settings together."""
    length: dict[str, Any] = {}
    if settings.max_new_tokens is not None:
        length["max_length"] = None
    elif settings.max_length is None:
        length["max_new_tokens"] = NEW_TOKENS
    ends = tuple(token for token in settings.eos_token_id if token != -1)  # which is how some say "none"
    pad = None if settings.pad_token_id == -1 else settings.pad_token_id
    return dataclasses.replace(
        settings,
        **length,
        do_sample=settings.do_sample and settings.temperature >= GREEDY_BELOW,
        guidance_scale=None if settings.guidance_scale == 1 else settings.guidance_scale,
        eos_token_id=ends,
        pad_token_id=ends[0] if pad is None and ends else pad,
    )


def _check(settings: Settings) -> None:
    """ValueError for what does not go together."""
    count, beams = settings.num_return_sequences, settings.num_beams
    if count > beams > 1:
        raise ValueError(f"num_return_sequences={count}: there are only num_beams={beams} beams to return")
    if count > 1 and beams == 1 and not settings.do_sample:
        raise ValueError(
            f"num_return_sequences={count}: greedy decoding has one answer; give do_sample=True, or num_beams"
        )
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        value = getattr(settings, name)
        forced = set() if value is None else {value} if isinstance(value, int) else set(value)
        if forced and forced <= set(settings.suppress_tokens):
            raise ValueError(f"{name}={value}: suppress_tokens forbids it; leave it out of one of them")


def _tell(settings: Settings, asked: Mapping[str, Any]) -> None:
    """What the caller, not the checkpoint, asked for that changes nothing."""
    if not settings.do_sample and asked.get("temperature", 1) >= GREEDY_BELOW:
        unused = [name for name, same in _DRAWN.items() if name in asked and asked[name] not in same]
        if unused:
            words = ", ".join(f"{name}={asked[name]}" for name in unused)
            notice(f"{words}: not used, for the most likely token is taken; give do_sample=True to draw")
    if settings.num_beams == 1:
        for name, same in (("early_stopping", False), ("length_penalty", 1)):
            if asked.get(name, same) != same:
                notice(f"{name}={asked[name]}: not used without num_beams")
    if settings.max_new_tokens is not None and "max_length" in asked:
        notice(f"max_length={asked['max_length']}: max_new_tokens={settings.max_new_tokens} wins over it")
    if settings.min_new_tokens is not None and asked.get("min_length"):
        notice(f"min_length={asked['min_length']}: min_new_tokens={settings.min_new_tokens} wins over it")
    if not settings.return_dict_in_generate:
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if asked.get(name):
                notice(f"{name}=True: not used without return_dict_in_generate=True")
    if asked.get("use_cache") is False:
        notice("use_cache=False: a cache is used all the same; the answer is the same")
    for name, why in _IDLE.items():
        if asked.get(name, False) is not False:
            notice(f"{name}={asked[name]!r:.80}: does nothing here, for {why}")
