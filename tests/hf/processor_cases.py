"""What make_processors.py asks of transformers, and test_processors.py of this package: settings, tokens, scores."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

VOCABULARY = 48
ENDS = [1, 2]
NEW_TOKENS = 6

ROWS = np.array([[9, 5, 6, 7, 5, 6, 5, 17, 7, 5, 9], [0, 0, 4, 8, 3, 4, 11, 0, 11, 12, 3]])
"""Two rows: a prompt of 6 tokens, of which the second one's first two are padding, and 5 tokens after it."""

PADDING = [0, 2]
PROMPT = 6
LAST = ROWS.shape[1] - PROMPT
SHOWN = [0, 3, LAST]
"""After how many new tokens single processors are looked at. Pairs: after the first and the last of them."""


def scores(seed: int = 0) -> np.ndarray:
    """(steps, rows, V) float32, without ties."""
    return (np.random.default_rng(seed).normal(size=(LAST + 1, len(ROWS), VOCABULARY)) * 2.5).astype(np.float32)


def invalid_scores() -> np.ndarray:
    planted = scores(1)
    planted[..., 5], planted[..., 6], planted[..., 7] = np.nan, np.inf, -np.inf
    return planted


def allowed(row: int, tokens: Any) -> list[int]:
    """A prefix_allowed_tokens_fn: other tokens for each row, and the last one."""
    return [3 * row + 1, 5, 6, 20, int(tokens[-1])]


def few_allowed(row: int, tokens: Any) -> list[int]:
    return [5, 6]


GREEN = {"greenlist_ratio": 0.25, "bias": 2.5}
SYNTH_ID = {"ngram_len": 2, "keys": [654, 400, 836, 123], "context_history_size": 8, "sampling_table_size": 1024}

PROCESSORS: dict[str, dict[str, Any]] = {
    "sequence_bias": {"sequence_bias": {(7,): 1.5, (5, 6): -3.0, (7, 5, 9, 13): 4.0, (3, 20): float("-inf")}},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.3},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [9, 7], [11, 0, 11, 4], [1]]},
    "min_length": {"min_length": PROMPT + 4},
    "min_new_tokens": {"min_new_tokens": LAST + 1},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": allowed},
    "forced_eos_token_id": {"forced_eos_token_id": [2, 14]},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 1.3)},
    "suppress_tokens": {"suppress_tokens": [3, 4, 14, 1]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [8, 9, 10]},
}
WARPERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_h": {"top_h": 0.5},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.1},
}
LAST_ONES: dict[str, dict[str, Any]] = {
    "watermarking_config": {"watermarking_config": GREEN},
    "renormalize_logits": {"renormalize_logits": True},
}
ALL = PROCESSORS | WARPERS | LAST_ONES


def _merged(names: Sequence[str]) -> dict[str, Any]:
    drawn = {"do_sample": True, "top_k": 0} if any(name in WARPERS for name in names) else {}
    return drawn | {key: value for name in names for key, value in ALL[name].items()}


SINGLE: dict[str, dict[str, Any]] = {
    **{name: _merged([name]) for name in ALL},
    "favoured": {"repetition_penalty": 0.8},
    "no single token twice": {"no_repeat_ngram_size": 1},
    "longer than the text": {"no_repeat_ngram_size": 20, "encoder_no_repeat_ngram_size": 7},
    "encoder unigrams": {"encoder_no_repeat_ngram_size": 1},
    "nothing allowed left": {"prefix_allowed_tokens_fn": few_allowed, "bad_words_ids": [[5], [6]]},
    "planted": {"remove_invalid_values": True},
    "suppressed twice": {"suppress_tokens": [1, 2, 3], "remove_invalid_values": True, "renormalize_logits": True},
    "total length": {"forced_eos_token_id": 2, "max_length": PROMPT + 4, "max_new_tokens": None},
    "all warpers": {"do_sample": True}
    | {key: value for settings in WARPERS.values() for key, value in settings.items()},
    "warpers that do nothing": {"do_sample": True, "top_k": None, "top_p": 1.0, "min_p": 0.0, "epsilon_cutoff": 0.0},
    "defaults of drawing": {"do_sample": True},
    "instruct": {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    "warpers unused": {"temperature": 0.7, "top_k": 3, "top_p": 0.5, "min_p": 0.5},
    "top_h of all": {"do_sample": True, "top_h": 0.999, "top_k": 0},
    "top_h of one": {"do_sample": True, "top_h": 0.001, "top_k": 0},
    "sharp": {"do_sample": True, "top_p": 0.0001, "typical_p": 0.0001, "min_p": 1.0},
    "selfhash": {"watermarking_config": GREEN | {"seeding_scheme": "selfhash"}},
    "selfhash of three": {"watermarking_config": GREEN | {"seeding_scheme": "selfhash", "context_width": 3}},
    "lefthash of other key": {"watermarking_config": GREEN | {"hashing_key": 2**61 + 7, "greenlist_ratio": 0.6}},
    "longer context than text": {"watermarking_config": GREEN | {"context_width": 9}},
    **{
        f"beams, {name}": {"do_sample": True, "num_beams": 2, "top_k": 0} | settings
        for name, settings in {
            "top_k": {"top_k": 1},
            "top_p": {"top_p": 0.01},
            "min_p": {"min_p": 1.0},
            "typical_p": {"typical_p": 0.01},
            "epsilon_cutoff": {"epsilon_cutoff": 0.9},
            "eta_cutoff": {"eta_cutoff": 0.9},
            "no ends": {"top_k": 1, "eos_token_id": None},
        }.items()
    },
    "SynthID": {"watermarking_config": SYNTH_ID},
    "SynthID later": {"watermarking_config": SYNTH_ID | {"ngram_len": 3, "skip_first_ngram_calls": True}},
    "SynthID that forgets": {"watermarking_config": SYNTH_ID | {"context_history_size": 1}},
    "SynthID, flat": {"watermarking_config": SYNTH_ID | {"debug_mode": True, "sampling_table_seed": 5}},
}
PAIRS: dict[tuple[str, str], dict[str, Any]] = {pair: _merged(pair) for pair in combinations(ALL, 2)}

ONE_TOKEN: dict[str, dict[str, Any]] = {
    "forced_bos_token_id": {"forced_bos_token_id": 4},
    "forced, then suppressed": {"forced_bos_token_id": 4, "begin_suppress_tokens": [5, 6]},
    "suppressed": {"begin_suppress_tokens": [5, 6]},
}
"""Settings that mean something special where the prompt is one token: the last prompt token and what follows."""

PADDING_COUNTS = {"encoder_repetition_penalty", "encoder unigrams", "no single token twice", "longer context than text"}
"""Where transformers takes a row's padding for tokens of its prompt. Here a row's scores do not depend on it."""


def scores_of(name: str) -> np.ndarray:
    return invalid_scores() if name == "planted" else scores()
