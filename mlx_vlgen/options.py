"""Every keyword of `generate`, `stream_generate` and `batch_generate`, once: its group, its values and its flag."""

import argparse
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from .inputs import kinds


@dataclass(frozen=True)
class Option:
    """A keyword and its flag.

    name: of the keyword; the flag is the same with dashes.
    parse: makes the value from the flag's argument; None for a switch.
    help: what --help says of it.
    many: whether the flag may be repeated, and the keyword may be a list.
    nargs: how many arguments make one value.
    positive: whether a number must be more than 0.
    nullable: whether None is a value and not the default; on the command line it is "all".
    """

    name: str
    parse: Callable[[str], Any] | None
    help: str
    many: bool = False
    nargs: int = 1
    positive: bool = False
    nullable: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def read(self, value: Any, per_row: bool = False) -> Any:
        """The checked value, with Python's numbers for NumPy's; None stands for the default.

        per_row: whether it may be a list, of one value for each row.
        TypeError or ValueError for what the keyword cannot have.
        """
        if self.nargs > 1:
            if not isinstance(value, list | tuple) or len(value) != self.nargs:
                raise ValueError(f"{self.name}={value!r:.80}: expected {self.nargs} numbers")
            return tuple(map(self._read_one, value))
        if isinstance(value, list | tuple) and (per_row or self.many):
            return [self.read(item, per_row) for item in value]
        return None if value is None else self._read_one(value)

    def _read_one(self, value: Any) -> Any:
        if value is None and self.nullable:
            return None
        kind = KINDS[self.parse]
        if not isinstance(value, kind.types) or (isinstance(value, bool) and kind.types is not bool):
            raise TypeError(f"{self.name}={value!r:.80}: expected {kind.expected}")
        if not isinstance(value, Real) or isinstance(value, bool):
            return value
        if not math.isfinite(value):
            raise ValueError(f"{self.name}={value}: expected a finite number")
        if self.positive and value <= 0:
            raise ValueError(f"{self.name}={value}: expected more than 0")
        return int(value) if isinstance(value, Integral) else float(value)


def token(text: str) -> str | int:
    """A token by its id or its text."""
    return int(text) if text.isascii() and text.isdigit() else text


def size(text: str) -> int | None:
    """A number of tokens, or all. argparse has this function's name in its message for anything else."""
    return None if text == "all" else int(text)


def file_text(text: str) -> str:
    """The text of a file."""
    try:
        return Path(text).read_text(encoding="utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text}: not text in UTF-8") from error


def schema_text(text: str) -> str:
    """JSON: an object's text, or what is in a file."""
    return text if text.lstrip().startswith("{") else file_text(text)


def model_name(text: str) -> str:
    """A folder or an id on the Hub; in Python a model, too."""
    return text


class Kind(NamedTuple):
    """What a keyword takes: its types, their description in messages, and its flag's metavar."""

    types: Any
    expected: str
    metavar: str


KINDS: dict[Any, Kind] = {
    None: Kind(bool, "True or False", ""),
    int: Kind(Integral, "a whole number", "N"),
    size: Kind(Integral, "a whole number, or None for all", "N"),
    float: Kind(Real, "a number", "X"),
    str: Kind(str, "text", "TEXT"),
    token: Kind((str, Integral), "a token's text or id", "TOKEN"),
    file_text: Kind(str, "text", "FILE"),
    model_name: Kind(object, "a model", "MODEL"),
    schema_text: Kind((Mapping, str), "a schema, or its text", "JSON"),
}
"""By `Option.parse`."""


DRAWING = (
    Option("sampling", str, 'preset: "instruct" or "thinking" (Qwen3-VL\'s), or "model" (the checkpoint\'s own)'),
    Option("temperature", float, "of the softmax; 0, the default, always takes the most likely token"),
    Option("top_p", float, "draw from the most likely tokens whose probabilities add up to this (default 1: all)"),
    Option("top_k", int, "draw from this many most likely tokens (default 0: all)"),
    Option("min_p", float, "draw from tokens at least this times as likely as the most likely one (default 0)"),
    Option("typical_p", float, "draw from the tokens of most typical surprise that add up to this (default 1)"),
    Option("top_n_sigma", float, "draw from logits within this many standard deviations of the best (default 0: off)"),
    Option("xtc_probability", float, "probability of leaving out the most likely tokens (default 0)"),
    Option("xtc_threshold", float, "how likely a token must be to be left out (default 0.1)"),
    Option("repetition_penalty", float, "divide the logits of recent tokens by this (default: off)", positive=True),
    Option("repetition_context_size", size, "how many tokens count as recent, or all (default 20)", nullable=True),
    Option("presence_penalty", float, "subtract this from the logit of each generated token (default: off)"),
    Option("frequency_penalty", float, "subtract this for each time a token was generated (default: off)"),
    Option("seed", int, "draw the same answer every time (default: random)"),
)
ENDS = (
    Option("max_tokens", int, "new tokens at most (default 256)"),
    Option("max_time", float, "seconds after which to end", positive=True),
    Option("stop", str, "end the answer before this text", many=True),
    Option("eos_tokens", token, "more end tokens, as text or id", many=True),
    Option("include_eos", None, "show the end token in the text"),
    Option("skip_special_tokens", None, "leave special tokens out of the text"),
)
FORMS = (
    Option("json_schema", schema_text, "the answer is JSON that fits this schema: its text, or a file"),
    Option("regex", str, "the answer matches this regular expression"),
    Option("grammar", file_text, "the answer is a sentence of the Lark grammar in this file"),
    Option("choices", str, "the answer is one of these", many=True),
)
BUDGET = (
    Option("thinking_budget", int, "tokens inside a thinking block at most"),
    Option("thinking_start_token", str, "what opens a thinking block (default <think>)"),
    Option("thinking_end_token", str, "what closes it (default </think>)"),
)
SAMPLING = DRAWING + ENDS + FORMS + BUDGET
MEDIA = (
    Option("resize_shape", int, "resize pictures to this before they are processed", nargs=2, positive=True),
    Option("min_pixels", int, "least area of a processed picture (default: the model's)", positive=True),
    Option("max_pixels", int, "largest area of a processed picture (default: the model's)", positive=True),
    Option("video_fps", float, "frames a second to take of a video, or of a folder (default 2)", positive=True),
    Option("num_frames", int, "take exactly this many frames of a video", positive=True),
    Option("max_frames", int, "take at most this many frames of a video (default 768)", positive=True),
    Option("use_audio_in_video", None, "hear videos, too: their files' sound, or the clips of sound beside them"),
)
DRAFTS = (
    Option("draft_model", model_name, "a smaller model with the same vocabulary guesses tokens: faster, same answer"),
    Option("num_draft_tokens", int, "how many tokens it guesses at a time (default 3)", positive=True),
    Option("prompt_lookup", int, "guess this many tokens at a time from the text before them", positive=True),
)
KV_CACHE = (
    Option("kv_bits", int, "quantize the KV cache to 2, 3, 4, 6 or 8 bits"),
    Option("kv_group_size", int, "values that share a scale: 32, 64 (default) or 128"),
    Option("quantized_kv_start", int, "do not quantize positions below this (default 0)"),
    Option("max_kv_size", int, "attend to the first 4 tokens and the last ones only, this many in all"),
)
TEMPLATE = (Option("enable_thinking", None, "let the model think before it answers"),)
ENGINE = (Option("prefill_step_size", int, "prompt tokens to compute at once (default 2048)", positive=True),)

OPTIONS = SAMPLING + MEDIA + DRAFTS + KV_CACHE + TEMPLATE + ENGINE
GROUPS: Mapping[str, tuple[Option, ...]] = {
    "how tokens are drawn": DRAWING,
    "where the answer ends": ENDS,
    "the answer's form": FORMS,
    "thinking": TEMPLATE + BUDGET,
    "pictures and video": MEDIA,
    "speed and memory": DRAFTS + KV_CACHE + ENGINE,
}
"""The groups of --help."""

NULLABLE = frozenset(option.name for option in OPTIONS if option.nullable)
_BY_NAME = {option.name: option for option in OPTIONS}

_CALLABLES = ("logits_processors", "sampler", "stopping_criteria", "logprobs", "top_logprobs", "logit_bias")
"""Keywords that have no flag."""

_FACE_PARAMETERS = (*kinds.KINDS, *(kind.plural for kind in kinds.KINDS.values()), "prompt", "prompts", "verbose")
"""Parameters that have no `Option`; they are suggested for misspelled ones."""

PER_ROW_GROUPS = ("sampling", "kv", "template")
"""Groups whose keywords may be lists in a batch, of one value for each row."""

Keywords = dict[str, dict[str, Any]]
"""Keywords and their values, by group."""


def group_keywords(keywords: Mapping[str, Any], *other: str, per_row: bool = False) -> Keywords:
    """The keywords whose value is not the default, by what they go to.

    keywords: as a caller gave them; None stands for the default.
    other: more names, which go to the group "other".
    per_row: whether a keyword of `PER_ROW_GROUPS` may be a list of one value for each row.

    Groups: "sampling", "media", "draft", "kv", "template", "engine" and "other".
    TypeError for an unknown keyword, with the nearest name, and for a value of another type; ValueError for one out of
    range.
    """
    groups = {
        "sampling": {option.name for option in SAMPLING} | set(_CALLABLES),
        "media": {option.name for option in MEDIA},
        "draft": {option.name for option in DRAFTS},
        "kv": {option.name for option in KV_CACHE},
        "template": {option.name for option in TEMPLATE},
        "engine": {option.name for option in ENGINE},
        "other": set(other),
    }
    grouped: Keywords = {group: {} for group in groups}
    for name, value in keywords.items():
        group = next((group for group, names in groups.items() if name in names), None)
        if group is None:
            known: set[str] = set().union(*groups.values(), _FACE_PARAMETERS)
            raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, known - {name})}")
        if value is None and name not in NULLABLE:
            continue
        if name in _BY_NAME:
            value = _BY_NAME[name].read(value, per_row and group in PER_ROW_GROUPS)
        grouped[group][name] = value
    return grouped


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that is not known."""
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
