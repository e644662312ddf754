"""Watermarks of drawn text, as transformers has them. Their random numbers are what PyTorch draws on a CPU.

Sources: https://arxiv.org/abs/2306.04634 (green list), https://www.nature.com/articles/s41586-024-08025-4 (SynthID).
"""

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine.params import LogitsProcessor
from ..notices import notice
from ..options import did_you_mean
from .values import any_number, as_dict, boolean, ids, integer, number, one_of

_TABLE_SIZE = 1_000_003
"""Of the table that hashes tokens for "selfhash"."""

_CANDIDATES = 40
"""How many most likely tokens "selfhash" considers."""


@dataclass(frozen=True)
class GreenList:
    """Adds `bias` to the logits of a share of the vocabulary that the tokens before decide: the last one ("lefthash"),
    or the last `context_width` and the token itself ("selfhash")."""

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def processor(self, prompt_length: int) -> LogitsProcessor:
        def process(tokens: mx.array, logits: mx.array) -> mx.array:
            if len(tokens) < self.context_width:
                notice(f"watermarking_config: context_width={self.context_width} is more than there are tokens yet")
                return logits
            context = np.array(tokens[-self.context_width :], dtype=np.int64)
            select = self._selfhash if self.seeding_scheme == "selfhash" else self._lefthash
            green = select(context, logits)
            return logits.at[0, mx.array(green)].add(self.bias) if len(green) else logits

        return process

    def _lefthash(self, context: np.ndarray, logits: mx.array) -> list[int]:
        """The list that the last token decides."""
        vocabulary = logits.shape[-1]
        return permuted(self.hashing_key * int(context[-1]), vocabulary, int(vocabulary * self.greenlist_ratio))

    def _selfhash(self, context: np.ndarray, logits: mx.array) -> list[int]:
        """Of the most likely tokens, those on the list that the token itself decides with its context."""
        vocabulary = logits.shape[-1]
        size, count = int(vocabulary * self.greenlist_ratio), min(_CANDIDATES, vocabulary)
        likely = np.argpartition(-np.array(logits[0]), count - 1)[:count]
        table = _hash_table(self.hashing_key)
        green = []
        for token in likely.tolist():
            hashed = table[np.append(context, token)[-self.context_width :] % _TABLE_SIZE]
            seed = int((self.hashing_key * hashed * table[token % _TABLE_SIZE]).min())  # wraps around, as in PyTorch
            if _comes_first(token, _swaps(seed, vocabulary, size)):
                green.append(token)
        return green


@dataclass(frozen=True)
class SynthID:
    """Tournaments between tokens: for each of the `keys` those gain whose bit, hashed from the last ngram_len - 1
    generated tokens and themselves, is set. A context seen among the last `context_history_size` gains nothing."""

    ngram_len: int
    keys: tuple[int, ...]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False

    def processor(self, prompt_length: int) -> LogitsProcessor:
        width = self.ngram_len - 1
        bits = (_numbers(self.sampling_table_seed, self.sampling_table_size) & 1).astype(np.bool_)
        keys = np.array(self.keys, dtype=np.int64)

        def process(tokens: mx.array, logits: mx.array) -> mx.array:
            generated = np.array(tokens[prompt_length:], dtype=np.int64)
            if self.debug_mode:
                logits = mx.ones_like(logits)
            if self.skip_first_ngram_calls and len(generated) < width:
                return logits
            padded = np.concatenate([np.zeros(width, dtype=np.int64), generated])
            contexts = np.lib.stride_tricks.sliding_window_view(padded, width)  # of every step until now
            hashes = np.ones(len(contexts), dtype=np.int64)
            for column in contexts.T:
                hashes = _hashed(hashes, column)
            first = width if self.skip_first_ngram_calls else 0
            if hashes[-1] in hashes[first:-1][-self.context_history_size :]:
                return logits
            of_tokens = _hashed(hashes[-1:], np.arange(logits.shape[-1], dtype=np.int64))
            set_bits = mx.array(bits[_hashed(of_tokens[:, None], keys) % len(bits)])
            likely = mx.softmax(logits, axis=-1)
            for depth in range(len(keys)):
                bit = set_bits[:, depth]
                likely = likely * (1 + bit - (bit * likely).sum(axis=-1, keepdims=True))
            scores = mx.log(likely)
            return mx.where(mx.isfinite(scores), scores, mx.finfo(scores.dtype).min)

        return process


Watermark = GreenList | SynthID

_READERS = {
    "greenlist_ratio": number("more than 0, less than 1", lambda value: 0 < value < 1),
    "bias": any_number,
    "hashing_key": integer(0),
    "seeding_scheme": one_of("lefthash", "selfhash"),
    "context_width": integer(1),
    "ngram_len": integer(2),
    "keys": ids,
    "context_history_size": integer(1),
    "sampling_table_seed": integer(0),
    "sampling_table_size": integer(1),
    "skip_first_ngram_calls": boolean,
    "debug_mode": boolean,
}


def watermark(name: str, value: Any) -> Watermark:
    """From transformers' WatermarkingConfig or SynthIDTextWatermarkingConfig, or a mapping of what they hold."""
    if isinstance(value, GreenList | SynthID):
        return value
    settings = as_dict(name, value)
    kind: type[Watermark] = SynthID if "ngram_len" in settings else GreenList
    fields = {field.name for field in dataclasses.fields(kind)}
    for key in settings:
        if key not in fields:
            raise ValueError(f"{name}: unknown {key!r}{did_you_mean(key, fields)}")
    if kind is SynthID and not settings.get("keys"):
        raise ValueError(f"{name}: ngram_len needs keys, a list of numbers")
    return kind(**{key: _READERS[key](f"{name}[{key!r}]", setting) for key, setting in settings.items()})


def permuted(seed: int, size: int, count: int) -> list[int]:
    """The first `count` of `torch.randperm(size)` after `manual_seed(seed)` on a CPU."""
    places = list(range(size))
    for place, other in enumerate(_swaps(seed, size, count).tolist()):
        places[place], places[other] = places[other], places[place]
    return places[:count]


def _swaps(seed: int, size: int, count: int) -> np.ndarray:
    """(count,): the place, itself or a later one, that each of the first places is swapped with in turn."""
    places = np.arange(min(count, size - 1))
    return places + _numbers(seed % (2**64 - 1), len(places)) % (size - places)


def _numbers(seed: int, count: int) -> np.ndarray:
    """(count,) uint32 from a Mersenne twister; PyTorch takes the low 32 bits of its seed."""
    return np.random.RandomState(seed % 2**32).randint(0, 2**32, count, dtype=np.uint32)


def _comes_first(item: int, swaps: np.ndarray) -> bool:
    """Whether the item is among the first len(swaps) after them. Only this item's place is followed, not the whole
    permutation. A place that has had its turn is never swapped again."""
    place, turn = item, 0
    while not (swaps[turn:] == place).any():
        if place >= len(swaps):
            return False
        place, turn = int(swaps[place]), place + 1
    return True


@cache
def _hash_table(key: int) -> np.ndarray:
    return np.array(permuted(key, _TABLE_SIZE, _TABLE_SIZE), dtype=np.int64) + 1


def _hashed(hashes: np.ndarray, data: np.ndarray) -> np.ndarray:
    """One step of a linear congruential generator; int64, wrapping around."""
    return (hashes + data) * 6364136223846793005 + 1
