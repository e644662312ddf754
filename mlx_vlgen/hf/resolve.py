"""From generation_config.json, a GenerationConfig and keywords to the `GenerationSettings` of a call; what is refused,
and what changes nothing."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ..engine.params import GREEDY_BELOW
from ..errors import UnsupportedError
from ..notices import notice
from ..options import did_you_mean
from .config import FIELDS, NEW_TOKENS, OURS, READERS, GenerationSettings
from .values import Unsupported, as_dict, refuse_unsupported

_ALIASES = {"prefill_chunk_size": "prefill_step_size"}

_MOVED = "transformers moved {} out of its core, to custom_generate, and it is not here; leave it out"
_OTHER_TOKENIZER = "it is for an assistant with another tokenizer, which is not supported; leave it out"
UNSUPPORTED: Unsupported = {
    "penalty_alpha": ((0,), _MOVED.format("contrastive search")),
    "dola_layers": ((), _MOVED.format("DoLa")),
    "num_beam_groups": ((1,), _MOVED.format("group beam search")),
    "diversity_penalty": ((0,), _MOVED.format("group beam search")),
    "constraints": (([],), _MOVED.format("constrained beam search")),
    "force_words_ids": (([],), _MOVED.format("constrained beam search")),
    "use_mtp": ((False,), "a model's extra heads are not loaded; give assistant_model or prompt_lookup_num_tokens"),
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

_WITHOUT_EFFECT: Mapping[str, str] = {
    "decoder_start_token_id": "only encoder-decoder models start with it",
    "low_memory": "beams run together",
    "compile_config": "nothing is compiled",
    "disable_compile": "nothing is compiled",
    "max_cache_len": "the cache grows as it must",
}
"""What changes no answer here, and why."""

_DYNAMIC_CACHES = "dynamic", "dynamic_full"
_STATIC_CACHES = "static", "sliding_window", "hybrid", "hybrid_chunked", "paged"
_OFFLOADED_CACHES = "offloaded", "offloaded_static", "offloaded_hybrid", "offloaded_hybrid_chunked"
_CACHE_CONFIG = {"nbits": "kv_bits", "bits": "kv_bits", "q_group_size": "kv_group_size", "group_size": "kv_group_size"}
_CACHE_CONFIG_WITHOUT_EFFECT = "residual_length", "axis_key", "axis_value"

NAMES = frozenset((*READERS, *_ALIASES, *UNSUPPORTED, *_WITHOUT_EFFECT, "cache_implementation", "cache_config"))
"""Every name that is a setting."""

_FOR_SAMPLING: Mapping[str, tuple[float, ...]] = {
    "temperature": (1, 0),
    "top_k": (50, 0, -1),
    "top_p": (1,),
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
"""What only sampling uses, with the values that change nothing."""


def resolve(
    checkpoint: Mapping[str, Any], generation_config: Any, keywords: Mapping[str, Any]
) -> tuple[GenerationSettings, dict[str, Any]]:
    """The settings of a call, and the keywords that are none.

    checkpoint: its generation_config.json; names that transformers does not know count for nothing
    generation_config: of transformers, `GenerationSettings`, a mapping, or None; wins over the checkpoint
    keywords: win over both; one of None takes the setting back, as in transformers

    ValueError for a value that is none or does not go with another; UnsupportedError for what is known and cannot be
    honoured. A notice for what is known and changes nothing.
    """
    others = {name: value for name, value in keywords.items() if name not in NAMES}
    named = {name: value for name, value in keywords.items() if name in NAMES}
    requested = _without_aliases(_config_values(generation_config) | named)
    values = {
        name: value
        for name, value in _without_aliases(checkpoint).items()
        if value is not None and name in NAMES - OURS
    } | requested
    for name in UNSUPPORTED:
        refuse_unsupported(UNSUPPORTED, name, values.get(name))
    values |= _quantized_cache(values, requested)
    alias_of = {name: alias for alias, name in _ALIASES.items() if alias in keywords}
    read: dict[str, Any] = {}
    for name, field in FIELDS.items():
        if values.get(name) is not None:
            read[name] = READERS[name](alias_of.get(name, name), values[name])
        elif name in values:
            read[name] = field.metadata["when_none"]
    settings = _complete(GenerationSettings(**read))
    _check(settings)
    _notify_unused(settings, {name: value for name, value in requested.items() if value is not None})
    return settings, others


def _without_aliases(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_ALIASES.get(name, name): value for name, value in values.items()}


def _config_values(generation_config: Any) -> dict[str, Any]:
    """The settings in it that are not None. A notice for a name that is no setting: a GenerationConfig carries whatever
    else stood in the file that it was read from."""
    if generation_config is None:
        return {}
    values = as_dict("generation_config", generation_config)
    for name in values:
        if not isinstance(name, str):
            raise ValueError(f"generation_config: {name!r:.80} is no name of a setting")
    values = {name: value for name, value in values.items() if value is not None and not name.startswith("_")}
    values.pop("transformers_version", None)
    for name in sorted(set(values) - NAMES):
        notice(f"generation_config: {name!r} is no setting and does nothing{did_you_mean(name, NAMES)}")
        del values[name]
    return values


def _quantized_cache(values: Mapping[str, Any], requested: Collection[str]) -> dict[str, Any]:
    """What cache_implementation and cache_config say in our settings, where these are not set themselves."""
    kind, config = values.get("cache_implementation"), values.get("cache_config")
    if kind in _OFFLOADED_CACHES:
        raise UnsupportedError(
            f"cache_implementation={kind!r}: memory is shared by all devices, so there is nowhere to move a cache to; "
            "leave it out, or give kv_bits or max_kv_size for a smaller one"
        )
    if kind not in (None, "quantized", *_DYNAMIC_CACHES, *_STATIC_CACHES):
        known = ", ".join(map(repr, (*_DYNAMIC_CACHES, "quantized", *_STATIC_CACHES)))
        raise ValueError(f"cache_implementation={kind!r:.80}: expected one of {known}")
    if kind in _STATIC_CACHES and "cache_implementation" in requested:
        notice(f"cache_implementation={kind!r}: nothing is compiled here, so the cache grows; the answer is the same")
    if kind != "quantized":
        if config and "cache_config" in requested:
            notice('cache_config does nothing without cache_implementation="quantized"')
        return {}
    config = as_dict("cache_config", config or {})
    if unknown := set(config) - {*_CACHE_CONFIG, *_CACHE_CONFIG_WITHOUT_EFFECT, "backend"}:
        raise ValueError(f"cache_config: unknown {min(unknown)!r}{did_you_mean(min(unknown), _CACHE_CONFIG)}")
    if config.get("backend") == "fp8":
        raise UnsupportedError('cache_config: backend "fp8" is not here; leave it out and give nbits')
    if unused := [name for name in _CACHE_CONFIG_WITHOUT_EFFECT if config.get(name) is not None]:
        notice(f"cache_config: {', '.join(unused)} does nothing, for keys and values are quantized as they are written")
    translated = {ours: config[theirs] for theirs, ours in _CACHE_CONFIG.items() if config.get(theirs) is not None}
    return {name: value for name, value in ({"kv_bits": 4} | translated).items() if values.get(name) is None}


def _complete(settings: GenerationSettings) -> GenerationSettings:
    """With what follows from several settings together."""
    length: dict[str, Any] = {}
    if settings.max_new_tokens is not None:
        length["max_length"] = None
    elif settings.max_length is None:
        length["max_new_tokens"] = NEW_TOKENS
    end_tokens = tuple(token for token in settings.eos_token_id if token != -1)  # which is how some say "none"
    pad_token = None if settings.pad_token_id == -1 else settings.pad_token_id
    return dataclasses.replace(
        settings,
        **length,
        do_sample=settings.do_sample and settings.temperature >= GREEDY_BELOW,
        guidance_scale=None if settings.guidance_scale == 1 else settings.guidance_scale,
        eos_token_id=end_tokens,
        pad_token_id=end_tokens[0] if pad_token is None and end_tokens else pad_token,
    )


def _check(settings: GenerationSettings) -> None:
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


def _notify_unused(settings: GenerationSettings, requested: Mapping[str, Any]) -> None:
    """A notice for what the caller, not the checkpoint, requested and changes nothing."""
    if not settings.do_sample and requested.get("temperature", 1) >= GREEDY_BELOW:
        unused = [name for name, idle in _FOR_SAMPLING.items() if name in requested and requested[name] not in idle]
        if unused:
            listed = ", ".join(f"{name}={requested[name]}" for name in unused)
            notice(f"{listed}: not used, for the most likely token is taken; give do_sample=True to draw")
    if settings.num_beams == 1:
        for name, default in (("early_stopping", False), ("length_penalty", 1)):
            if requested.get(name, default) != default:
                notice(f"{name}={requested[name]}: not used without num_beams")
    if settings.max_new_tokens is not None and "max_length" in requested:
        notice(f"max_length={requested['max_length']}: max_new_tokens={settings.max_new_tokens} wins over it")
    if settings.min_new_tokens is not None and requested.get("min_length"):
        notice(f"min_length={requested['min_length']}: min_new_tokens={settings.min_new_tokens} wins over it")
    if not settings.return_dict_in_generate:
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if requested.get(name):
                notice(f"{name}=True: not used without return_dict_in_generate=True")
    if requested.get("use_cache") is False:
        notice("use_cache=False: a cache is used all the same; the answer is the same")
    for name, reason in _WITHOUT_EFFECT.items():
        if requested.get(name, False) is not False:
            notice(f"{name}={requested[name]!r:.80}: does nothing here, for {reason}")
