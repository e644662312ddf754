"""What guesses a row's next tokens: text that was there before, or a smaller model."""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._runtime import mx
from ..inputs.prompt import Prompt
from ..models.base import Embedded, Model
from . import cache as kv
from .kv_settings import KVSettings
from .request import Row
from .scheduling import is_out_of_memory
from .token_ids import check_ids, check_prompt, is_id


def propose(rows: Sequence[Row], vocab_size: int) -> list[list[int]]:
    """Guesses of each row's next tokens, at most as many as it may still hand out before its last token, which needs no
    forward. Rows with one draft model are guessed for together. An error of a drafter ends its row."""
    guesses: list[list[int]] = [[] for _ in rows]
    drafting: dict[Hashable, dict[DraftModel, int]] = {}  # places of rows, by what they draft with
    limits = [row.sampling.max_tokens - len(row.tokens) - 1 for row in rows]
    for place, row in enumerate(rows):
        if row.drafter and limits[place] > 0:
            with _errors_of([row]):
                if isinstance(row.drafter, DraftModel):
                    row.drafter.prefill()
                    drafting.setdefault(row.drafter.group, {})[row.drafter] = place
                else:
                    guesses[place] = list(row.drafter.propose(row.tokens, limits[place]))[: limits[place]]
    for places in drafting.values():
        with _errors_of([rows[place] for place in places.values()]):
            wanted = {drafter: (rows[place].tokens, limits[place]) for drafter, place in places.items()}
            for drafter, guessed in propose_together(wanted).items():
                guesses[places[drafter]] = guessed
    for place, row in enumerate(rows):
        with _errors_of([row]):
            check_ids("the drafter's guesses", guesses[place], vocab_size)
        if row.error:
            guesses[place] = []
        row.drafted += len(guesses[place])
    return guesses


@contextmanager
def _errors_of(rows: Sequence[Row]) -> Iterator[None]:
    """What is raised inside ends these rows, as an error of their processors does: it may be the user's code."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for row in rows:
            row.error = error


class PromptLookup:
    """Guesses that text goes on as it did the last time the same tokens came (Saxena 2023, Prompt Lookup Decoding).

    count: guesses at a time. ngram: how many last tokens must have come before, at most; fewer are tried after that.
    """

    def __init__(self, count: int = 10, ngram: int = 2):
        for name, value in (("prompt_lookup", count), ("max_matching_ngram_size", ngram)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self._count, self._ngram = count, ngram
        self._text = np.zeros(0, np.int32)  # the prompt and the tokens it has got
        self._length = 0  # of the prompt

    def read(self, prompt: Prompt) -> None:
        """Tokens of media are none that an answer could have."""
        text = prompt.tokens.copy()
        for medium in prompt.media:
            for start, end in medium.spans:
                text[start:end] = -1
        self._text, self._length = text, len(text)

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        new = np.array(tokens[len(self._text) - self._length :], np.int32)
        self._text = text = np.concatenate([self._text, new])
        for size in range(min(self._ngram, len(text) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)  # what something came after
            matches = np.flatnonzero((windows == text[-size:]).all(axis=1))
            if len(matches):
                start = int(matches[-1]) + size
                following = text[start : start + min(self._count, max_tokens)].tolist()
                return list(itertools.takewhile(lambda token: token >= 0, following))
        return []

    def update(self, num_proposed: int, num_accepted: int) -> None:
        pass


class DraftModel:
    """Guesses what a smaller model would say: its likeliest tokens, one after another.

    model: with the vocabulary of the one it drafts for. count: guesses at a time; schedule "heuristic" takes two more
    after all were right and one fewer otherwise, "constant" does not. confidence: stop guessing below this probability.
    A text-only draft model reads the prompt without the tokens of pictures.
    PromptError where its layers do not have a token of the prompt.
    """

    def __init__(
        self,
        model: Model,
        count: int = 5,
        schedule: str = "constant",
        confidence: float = 0.0,
        reads_media: bool = False,
        prefill_step_size: int = 2048,
    ):
        if count < 1:
            raise ValueError(f"num_draft_tokens={count}: expected at least 1")
        self.model, self.count, self.confidence = model, count, confidence
        self._schedule, self._reads_media, self._step = schedule, reads_media, prefill_step_size
        self.rolls_back = kv.can_roll_back(model.cache_layout(), KVSettings())
        self._waiting: Embedded | None = None  # the prompt, until the first guess
        self.slots: Slots | None = None
        self.delta: float = 0
        self.variant = 0
        self.computed = 0  # generated tokens that the cache holds

    @property
    def group(self) -> Hashable:
        """The same for drafters that guess together: recurrent layers cannot take rows of unlike length."""
        return id(self.model if self.rolls_back else self), self.variant

    def read(self, prompt: Prompt) -> None:
        if not self._reads_media:
            prompt = Prompt(np.array(prompt.text_tokens, dtype=np.int32))
        check_prompt("the draft model's prompt", prompt, self.model.vocab_size, self.model.embedding_rows)
        features = [self.model.encode([media])[0] for media in prompt.media]
        self._waiting = self.model.embed(prompt, features)
        self.delta, self.variant = self._waiting.row_delta, self._waiting.variant
        mx.eval(self._waiting.embeds if self._waiting.embeds is not None else self._waiting.tokens)

    def prefill(self) -> None:
        """Compute the prompt, once."""
        if (prompt := self._waiting) is None:
            return
        cache = kv.make_cache(self.model.cache_layout(), prompts=[len(prompt)])
        for start in range(0, len(prompt), self._step):
            self.model(prompt[start : start + self._step], cache, at=mx.array([0]))
            kv.evaluate(cache)
        self.slots, self._waiting = Slots([self], cache), None

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        self.prefill()
        return propose_together({self: (tokens, max_tokens)})[self]

    def update(self, num_proposed: int, num_accepted: int) -> None:
        if self._schedule != "constant" and num_proposed:
            self.count = max(1, self.count + (2 if num_accepted == num_proposed else -1))


class Slots:
    """Drafters of one model that guess together, and the cache of their rows, in the same order."""

    def __init__(self, drafters: list[DraftModel], cache: kv.Cache):
        self.drafters, self.cache = drafters, cache

    def select(self, drafters: Mapping[DraftModel, Any]) -> None:
        """Only these, of those that are here: the others' rows are over."""
        left = [place for place, drafter in enumerate(self.drafters) if drafter in drafters]
        if len(left) < len(self.drafters):
            places = kv.compacted(left)
            kv.select(self.cache, places)
            self.drafters = [self.drafters[place] for place in places]

    def join(self, other: "Slots") -> None:
        kv.join(self.cache, other.cache, len(self.drafters))
        self.drafters = self.drafters + other.drafters
        for drafter in other.drafters:
            drafter.slots = self

    def propose(self, wanted: Mapping[DraftModel, tuple[Sequence[int], int]]) -> dict[DraftModel, list[int]]:
        """One forward on what is new to the draft model, then one a guess, for all rows. No guess is read before the
        next is made, but where a probability must be known. None stays in the cache: what was right is computed again,
        in one forward."""
        first, cache = self.drafters[0], self.cache
        new = [wanted[drafter][0][drafter.computed :] for drafter in self.drafters]
        counts = [min(drafter.count, wanted[drafter][1]) for drafter in self.drafters]
        longest = max(map(len, new))
        block = np.zeros((len(new), longest), dtype=np.int32)
        for row, tokens in zip(block, new, strict=True):
            row[: len(tokens)] = tokens
        if first.rolls_back:
            kv.reserve(cache, max(longest - 1, *counts))
        logits = self._forward(mx.array(block), cache, mx.array([len(tokens) - 1 for tokens in new]))
        if first.rolls_back:
            kv.rollback(cache, [longest - len(tokens) for tokens in new])
        else:
            cache = kv.alone(cache, 0)
        for drafter, tokens in zip(self.drafters, new, strict=True):
            drafter.computed += len(tokens)
        guesses = list[mx.array]()  # (B, 1) each
        while len(guesses) < max(counts):
            if guesses:
                logits = self._forward(guesses[-1], cache, mx.zeros(len(new), dtype=mx.int32))
            best = mx.argmax(logits, axis=-1, keepdims=True).astype(mx.int32)
            if any(drafter.confidence > 0 for drafter in self.drafters):
                likely = np.array(mx.take_along_axis(mx.softmax(logits.astype(mx.float32), axis=-1), best, axis=-1))
                for place, drafter in enumerate(self.drafters):
                    if likely[place] < drafter.confidence:
                        counts[place] = min(counts[place], len(guesses))
            guesses.append(best)
        if first.rolls_back:
            kv.rollback(cache, [len(guesses) - 1] * len(new))
        drawn = np.array(mx.concatenate(guesses, axis=1)).tolist()
        return {drafter: drawn[place][: counts[place]] for place, drafter in enumerate(self.drafters)}

    def _forward(self, tokens: mx.array, cache: kv.Cache, at: mx.array) -> mx.array:
        """Logits (B, V) at positions `at` (B,) of tokens (B, L)."""
        deltas = [drafter.delta for drafter in self.drafters]
        first, delta = self.drafters[0], deltas[0] if len(deltas) == 1 else mx.array(deltas)
        return first.model(Embedded(tokens, delta=delta, variant=first.variant), cache, at=at)


def propose_together(wanted: Mapping[DraftModel, tuple[Sequence[int], int]]) -> dict[DraftModel, list[int]]:
    """Guesses of drafters of one `group`, whose prompts are computed, for each row's generated tokens, and of how many
    at most."""
    # Of padded vocabularies one may be larger: after a token that the draft model lacks there is nothing to guess from.
    known = {
        drafter: (tokens, limit)
        for drafter, (tokens, limit) in wanted.items()
        if all(is_id(token, drafter.model.vocab_size) for token in tokens[drafter.computed :])
    }
    guesses: dict[DraftModel, list[int]] = {drafter: [] for drafter in wanted}
    together = list(dict.fromkeys(drafter.slots for drafter in known if drafter.slots))
    for slots in together:
        slots.select(known)
    for other in together[1:]:
        together[0].join(other)
    return guesses | together[0].propose(known) if together else guesses


def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether two processors' tokenizers write the same tokens."""
    return one.tokenizer is other.tokenizer or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
