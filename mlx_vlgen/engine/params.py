"""How one row draws its tokens and when it stops."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from .._runtime import mx
from ..errors import UnsupportedError

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
"""(the row's tokens so far (n,), prompt included; logits (1, V)) -> logits (1, V)."""

Sampler = Callable[[mx.array], mx.array]
"""log-probabilities (1, V) -> token (1,)."""

StoppingCriterion = Callable[[mx.array, mx.array | None], Any]
"""(the row's tokens so far (n,), prompt included; raw logits (1, V), or None in a beam search) -> true to stop after
this token."""

GREEDY_BELOW = 1e-30
"""Temperatures under this are greedy: what differs in float32 lies farther apart than they could blur, and logits
divided by them may not be numbers any more."""

_LARGEST = 3e38
"""What float32 holds."""

_LISTS = ("eos_tokens", "stop", "logits_processors", "stopping_criteria")
_FORMS = ("json_schema", "regex", "grammar", "choices")
_WHOLE = ("max_tokens", "top_k", "top_logprobs", "seed", "repetition_context_size", "thinking_budget")
_AT_LEAST_0 = ("max_tokens", "temperature", "top_n_sigma", "top_logprobs")
_SHARES = ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold")


@dataclass(frozen=True)
class SamplingParams:
    """How one row draws its tokens and when it stops.

    Applied in this order, which is transformers': repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
    logits_processors, the answer's form, then (when drawing) temperature, top_n_sigma, top_k, top_p, min_p, typical_p,
    xtc.

    temperature: 0 is greedy, and so is anything below 1e-30. top_k: keep so many most likely tokens; 0 and -1 are off.
    top_p: keep the smallest set of most likely tokens whose probability reaches it. min_p: keep tokens at least this
    likely relative to the most likely one. typical_p: keep the tokens of most typical surprise whose probability
    reaches it (arXiv 2202.00666).
    top_n_sigma: keep logits within so many standard deviations of the highest; 0 is off (arXiv 2411.07641).
    xtc_probability: how often to drop all tokens at least xtc_threshold likely but the least likely of them.
    seed: None is random. sampler: used in the place of all drawing.
    repetition_penalty: of the last repetition_context_size tokens of prompt and text (None: all); placeholders of media
    do not count. presence_penalty, frequency_penalty: of generated tokens, once and per occurrence. logit_bias: what to
    add to the logit of an id; -inf forbids it.
    max_tokens: new tokens at most. eos_tokens: strings or ids added to the model's end tokens. stop: strings; the
    text before one is the answer. max_time: seconds from the row's arrival after which no forward but its first begins.
    thinking_budget: tokens inside a thinking block at most; None is no bound. thinking_start_token, thinking_end_token:
    strings; None: `<think>` and `</think>` where the model has them.
    json_schema, regex, grammar, choices: what the answer must be, of which only one can be given: JSON by a schema (a
    dict, or its text; `{}` for any JSON), on one line; a match of a regular expression (Rust's syntax); a sentence of a
    Lark grammar as llguidance takes it; or one of these strings. What is thought before is free. An answer that ended
    with "stop" is of that form; one that was cut, by max_tokens or by a stop string, ends with "length".
    logprobs: whether results carry them; top_logprobs: how many best ones. skip_special_tokens, include_eos: what of
    special tokens the text shows.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int | None = 20
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    eos_tokens: Sequence[str | int] = ()
    stop: Sequence[str] = ()
    max_time: float | None = None
    thinking_budget: int | None = None
    thinking_start_token: str | None = None
    thinking_end_token: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    choices: Sequence[str] | None = None
    skip_special_tokens: bool = False
    include_eos: bool = False
    logits_processors: Sequence[LogitsProcessor] = ()
    sampler: Sampler | None = None
    stopping_criteria: Sequence[StoppingCriterion] = ()
    logprobs: bool = True
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        for name in ("logits_processors", "stopping_criteria"):
            for function in getattr(self, name):
                check_callable(name, function)
        if self.sampler is not None:
            check_callable("sampler", self.sampler)
        optional = ("thinking_budget", "repetition_context_size", "max_time")
        self._check("at least 0", lambda value: value >= 0, _AT_LEAST_0, *optional)
        for name in ("logprobs", "skip_special_tokens", "include_eos"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r:.80}: expected True or False")
        numbers = ("temperature", "top_n_sigma")
        self._check("a finite number", finite, numbers, "presence_penalty", "frequency_penalty")
        self._check("0 to 1", lambda value: 0 <= value <= 1, _SHARES)
        self._check("more than 0", lambda value: value > 0 and finite(value), (), "repetition_penalty")
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias={self.logit_bias!r:.80}: expected {{id: what to add to its logit}}")
        for token, bias in self.logit_bias.items():
            if isinstance(bias, bool) or not isinstance(bias, Real) or not (finite(bias) or bias == -math.inf):
                raise ValueError(f"logit_bias: {bias!r} for {token!r}: expected a finite number, or -inf")
        for name in _WHOLE:  # a step draws for all its rows at once: what is none would end them all
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise ValueError(f"{name}={value!r:.80}: expected a whole number")
        if self.top_k < -1:
            raise ValueError(f"top_k={self.top_k}: expected a number of tokens, or 0 or -1 for off")
        self._check_form()
        for text in self.stop:
            if not isinstance(text, str):
                raise ValueError(f"stop={text!r:.80}: expected text, or a list of texts")
            if not text:
                raise ValueError("stop: an empty string would stop at once; remove it")

    def _check(self, expected: str, right: Callable[[Any], bool], names: Sequence[str], *optional: str) -> None:
        for name in (*names, *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not right(value):
                raise ValueError(f"{name}={value!r}: expected {expected}")

    def _check_form(self) -> None:
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise ValueError(f"{forms[1]}: only one of {', '.join(_FORMS)} can be given, and {forms[0]} is")
        for name in ("regex", "grammar"):
            text = getattr(self, name)
            if not isinstance(text, str | None) or re.search("[\ud800-\udfff]", text or ""):
                raise ValueError(f"{name}={text!r:.80}: expected text in UTF-8")
        if self.json_schema is not None:
            try:
                schema = self.json_schema
                text = json.dumps(json.loads(schema) if isinstance(schema, str) else schema, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"json_schema: not JSON: {error}") from None
            object.__setattr__(self, "json_schema", text)
        if self.choices is not None:
            choices = () if isinstance(self.choices, str) else _as_tuple("choices", self.choices)
            if not choices or any(not isinstance(choice, str) for choice in choices):
                raise ValueError(f"choices={self.choices!r:.80}: expected a list of strings, at least one")
            object.__setattr__(self, "choices", choices)

    @property
    def form(self) -> tuple[str, str] | None:
        """What the answer must be: the name of its keyword, and the value as text (choices as JSON)."""
        for name in _FORMS:
            if (value := getattr(self, name)) is not None:
                return name, value if isinstance(value, str) else json.dumps(value)
        return None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def calls_user(self) -> bool:
        """Whether a step runs the user's code, which must not see a token that is thrown away later."""
        return bool(self.logits_processors) or self.sampler is not None


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """Of one value, several or none (None)."""
    if value is None:
        return ()
    if isinstance(value, str | int) or callable(value):
        return (value,)
    if not isinstance(value, Iterable) or isinstance(value, Mapping) or getattr(value, "ndim", 1) == 0:
        raise ValueError(f"{name}={value!r:.80}: expected a list")
    return tuple(value)


def check_callable(name: str, value: Any) -> None:
    """TypeError for what is no function."""
    if not callable(value):
        raise TypeError(f"{name}: {value!r:.80} cannot be called; expected a function")


def finite(value: Any) -> bool:
    """Also in float32."""
    return bool(-_LARGEST <= value <= _LARGEST)


# Qwen3-VL's settings for its two kinds of model (https://github.com/QwenLM/Qwen3-VL).
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "instruct": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0, "presence_penalty": 1.5},
    "thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.0, "presence_penalty": 0.0},
}


def preset(name: str, generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `sampling=name` stands for. "model": what the checkpoint's generation_config.json says, with
    transformers' meaning and defaults."""
    if name in PRESETS:
        return dict(PRESETS[name])
    if name != "model":
        raise UnsupportedError(f"sampling={name!r}: expected one of {', '.join(map(repr, (*PRESETS, 'model')))}")
    config = generation_config
    values = {key: config[key] for key in ("repetition_penalty",) if config.get(key) is not None}
    if values:
        values["repetition_context_size"] = None
    if not config.get("do_sample"):
        return values
    defaults = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    return values | {key: default if config.get(key) is None else config[key] for key, default in defaults.items()}


def sampling_params(settings: Mapping[str, Any], generation_config: Mapping[str, Any]) -> SamplingParams:
    """From keywords, of which `sampling` names a preset; the others win over it."""
    keywords = dict(settings)
    name = keywords.pop("sampling", None)
    return SamplingParams(**(preset(name, generation_config) if name is not None else {}) | keywords)
