"""Every keyword of the faces, once: what it goes to, and its flag on the command line."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UnsupportedError


@dataclass(frozen=True)
class Option:
    """A keyword and its flag. parse: the flag's value from its words; None for a switch. many: it may be repeated."""

    name: str
    parse: Callable[[str], Any] | None
    help: str
    many: bool = False
    words: int = 1

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def _token(word: str) -> str | int:
    return int(word) if word.lstrip("-").isdigit() else word


SAMPLING = (
    Option("max_tokens", int, "new tokens at most"),
    Option("temperature", float, "0 is greedy"),
    Option("top_p", float, "draw from the most likely tokens whose probability reaches this"),
    Option("top_k", int, "draw from so many most likely tokens; 0 is off"),
    Option("min_p", float, "draw from tokens at least this likely, relative to the most likely one"),
    Option("seed", int, "for the same draw every time"),
    Option("eos_tokens", _token, "more end tokens, as a string or an id", many=True),
    Option("stop", str, "end the answer before this text", many=True),
    Option("max_time", float, "seconds after which to end"),
    Option("skip_special_tokens", None, "leave special tokens out of the text"),
    Option("include_eos", None, "show the end token in the text"),
)
MEDIA = (
    Option("resize_shape", int, "resize pictures to HEIGHT WIDTH before processing", words=2),
    Option("min_pixels", int, "least area of a processed picture, in pixels"),
    Option("max_pixels", int, "largest area of a processed picture, in pixels"),
    Option("video_fps", float, "frames a second to take from a video (default 2)"),
    Option("num_frames", int, "take exactly so many frames of a video"),
    Option("max_frames", int, "take at most so many frames of a video"),
)
TEMPLATE = (Option("enable_thinking", None, "let the model think before it answers"),)
ENGINE = (Option("prefill_step_size", int, "prompt tokens to compute at once"),)

OPTIONS = SAMPLING + MEDIA + TEMPLATE + ENGINE

_CALLABLES = ("logits_processors", "sampler", "stopping_criteria", "logprobs", "top_logprobs")
"""Keywords that have no flag."""

_LATER = frozenset(
    """repetition_penalty repetition_context_size presence_penalty frequency_penalty logit_bias sampling kv_bits
    kv_group_size quantized_kv_start max_kv_size thinking_budget thinking_start_token thinking_end_token draft_model
    num_draft_tokens prompt_lookup json_schema regex grammar choices prompt_cache""".split()
)
"""Keywords of the documented interface that this version does not have yet: refused by name, never dropped."""


def divide(keywords: Mapping[str, Any], *known: str) -> dict[str, dict[str, Any]]:
    """Keywords by what they go to: "sampling", "media", "template", "engine", "other" (those named in `known`).

    TypeError for an unknown one, with the nearest name; UnsupportedError for one that is still to come.
    """
    groups = {
        "sampling": {option.name for option in SAMPLING} | set(_CALLABLES),
        "media": {option.name for option in MEDIA},
        "template": {option.name for option in TEMPLATE},
        "engine": {option.name for option in ENGINE},
        "other": set(known),
    }
    divided: dict[str, dict[str, Any]] = {group: {} for group in groups}
    for name, value in keywords.items():
        group = next((group for group, names in groups.items() if name in names), None)
        if group is None:
            if name in _LATER:
                if value is None:
                    continue
                raise UnsupportedError(f"{name}={value!r}: this version does not have it yet; leave it out")
            names = [known_name for names in groups.values() for known_name in names]
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            raise TypeError(f"unknown keyword {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        divided[group][name] = value
    return divided

