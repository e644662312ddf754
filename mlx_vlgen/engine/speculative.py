"""Speculative decoding: guesses of a row's next tokens, checked by one forward of the model on all of them.

A guess is right when it is the token that the row draws there, with the very random numbers it would have drawn with
alone. So the answer is the same token for token, sampled or greedy, and its distribution is the model's. For
guesses that are no draws themselves (a draft model's likeliest tokens, text that was there before) this accepts as many
as rejection sampling does (Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, 2.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .._runtime import mx
from ..inputs.prompt import Prompt
from ..models.base import Embedded, Model
from . import cache as kv
from .batch import Emit, SampledBatch, draw
from .kv_settings import KVSettings
from .penalties import Penalties
from .request import Row
from .sampling import BatchSampler, Scores
from .scheduling import is_out_of_memory
from .token_ids import check_ids, check_prompt, is_id


@dataclass
class Speculative(SampledBatch):
    """Rows whose next tokens are guessed, each as many as its drafter does. Nothing is under way between steps."""

    def step(self, model: Model, emit: Emit) -> Self | None:
        checked = self._check(model, emit)
        return checked.read(emit) if checked else None

    def _check(self, model: Model, emit: Emit) -> Self | None:
        """One forward on each row's last token and the guesses after it. Tokens are handed out as long as guesses are
        right. Returns the rows that go on, each with one token that is drawn and not handed out."""
        guesses = [_guesses(row, model.vocab_size) for row in self.rows]
        longest = max(map(len, guesses))
        block = np.zeros((len(self.rows), 1 + longest), dtype=np.int32)
        for place, (row, guessed) in enumerate(zip(self.rows, guesses, strict=True)):
            block[place, : 1 + len(guessed)] = [row.tokens[-1], *guessed]
        kv.reserve(self.cache, longest)
        logits = model(Embedded(mx.array(block), delta=self.delta), self.cache)  # (B, 1 + longest, V)
        tokens, scores = [0] * len(self.rows), list(self.scores)
        right = [0] * len(self.rows)
        alive = list(range(len(self.rows)))
        known = self._draw_all(logits) if all(map(_draws_freely, self.rows)) else None
        while alive:
            at = right[alive[0]]
            here = logits[:, at]
            mx.async_eval(here)  # other threads may look at it
            drawn = self._draw(alive, here) if known is None else known[alive, at]
            for place, token in zip(alive, drawn, strict=True):
                tokens[place], scores[place] = int(token), Scores(here, place)
            alive = [place for place in alive if guesses[place][at : at + 1] == tokens[place : place + 1]]
            for place in alive:
                right[place] += 1
                self.rows[place].accepted += 1
                emit(self.rows[place], tokens[place], scores[place])
            alive = [place for place in alive if not self.rows[place].over]
        for row, guessed, accepted in zip(self.rows, guesses, right, strict=True):
            try:
                if row.drafter:
                    row.drafter.update(len(guessed), accepted)
            except Exception as error:
                row.error = error
        self.tokens, self.scores, self.unread = mx.array(tokens, dtype=mx.int32), scores, True
        kv.rollback(self.cache, [longest - accepted for accepted in right])
        self.store_ended([len(row.tokens) - 1 for row in self.rows])
        left = [place for place, row in enumerate(self.rows) if not row.over]
        return self.select(left) if left else None

    def _draw(self, places: Sequence[int], logits: mx.array) -> np.ndarray:
        """The next token of these rows, from logits (B, V) of all."""
        rows = [self.rows[place] for place in places]
        selected = logits if len(rows) == len(self.rows) else logits[mx.array(list(places))]
        penalties = Penalties.of(rows, logits.shape[-1])
        return np.array(draw(rows, BatchSampler(rows), penalties, selected, None))

    def _draw_all(self, logits: mx.array) -> np.ndarray:
        """(B, L): the tokens at all positions at once, from logits (B, L, V)."""
        rows, length, _ = logits.shape
        sampler = BatchSampler([row for row in self.rows for _ in range(length)])
        tokens = sampler(logits.flatten(0, 1), [*range(length)] * rows)
        return np.array(tokens).reshape(rows, length)


def _draws_freely(row: Row) -> bool:
    """Whether a draw depends on earlier tokens through the model only."""
    s = row.sampling
    penalized = s.presence_penalty or s.frequency_penalty or s.repetition_penalty not in (None, 1.0)
    return not (row.needs_token or row.negative or penalized or s.logit_bias or s.thinking_budget is not None)


def _guesses(row: Row, vocab_size: int) -> list[int]:
    """At most as many as the row may still hand out before its last token, which needs no forward. An error of the
    drafter ends the row."""
    max_tokens = row.sampling.max_tokens - len(row.tokens) - 1
    guesses = list[int]()
    if row.drafter and max_tokens > 0:
        try:
            guesses = list(row.drafter.propose(row.tokens, max_tokens))[:max_tokens]
            check_ids("the drafter's guesses", guesses, vocab_size)
        except Exception as error:  # as of a row's processors: it may be the user's code
            if is_out_of_memory(error):
                raise
            row.error, guesses = error, []
    row.drafted += len(guesses)
    return guesses


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
        self._text, self._length = prompt.tokens, len(prompt.tokens)

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        new = np.array(tokens[len(self._text) - self._length :], np.int32)
        self._text = text = np.concatenate([self._text, new])
        for size in range(min(self._ngram, len(text) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)  # what something came after
            matches = np.flatnonzero((windows == text[-size:]).all(axis=1))
            if len(matches):
                start = int(matches[-1]) + size
                return [int(token) for token in text[start : start + min(self._count, max_tokens)]]
        return []

    def update(self, num_proposed: int, num_accepted: int) -> None:
        pass


class DraftModel:
    """Guesses what a smaller model would say: its likeliest tokens, one after another.

    processor: of the draft model; its vocabulary must be that of the model it drafts for. count: guesses at a time;
    schedule "heuristic" takes two more after all were right and one fewer otherwise, "constant" does not. confidence:
    stop guessing below this probability. A text-only draft model reads the prompt without the tokens of pictures.
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
        self._model, self._count, self._schedule, self._confidence = model, count, schedule, confidence
        self._reads_media, self._step = reads_media, prefill_step_size
        self._rolls_back = kv.can_roll_back(model.cache_layout(), KVSettings())
        self._cache: kv.Cache = []
        self._waiting: Embedded | None = None  # the prompt, until the first guess
        self._known = 0  # generated tokens that the cache holds
        self._delta: int | mx.array = 0

    def read(self, prompt: Prompt) -> None:
        if not self._reads_media:
            prompt = Prompt(np.array(prompt.text_tokens, dtype=np.int32))
        check_prompt("the draft model's prompt", prompt, self._model.vocab_size)
        features = [self._model.encode([media])[0] for media in prompt.media]
        self._waiting = self._model.embed(prompt, features)
        self._delta = self._waiting.delta
        mx.eval(self._waiting.embeds if self._waiting.embeds is not None else self._waiting.tokens)

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        if self._waiting is not None:
            self._prefill(self._waiting)
            self._waiting = None
        new = tokens[self._known :]
        if not all(is_id(token, self._model.vocab_size) for token in new):
            return []  # of padded vocabularies one may be larger: after such a token there is nothing to guess from
        logits = self._forward(mx.array([new], dtype=mx.int32))
        self._known = len(tokens)
        certain, count = self._cache, min(self._count, max_tokens)
        if self._rolls_back:
            kv.reserve(certain, count)
        else:
            self._cache = kv.alone(certain, 0)
        guesses, fed = list[mx.array](), 0  # (1, 1) each, of which none is read before the next where any will do
        while len(guesses) < count:
            if guesses:
                logits, fed = self._forward(guesses[-1]), fed + 1
            best = mx.argmax(logits)
            if self._confidence > 0 and float(np.array(mx.softmax(logits)[best])) < self._confidence:
                break
            guesses.append(best.astype(mx.int32).reshape(1, 1))
        drawn = [int(token) for token in np.array(mx.concatenate(guesses)).flat] if guesses else []
        # Guesses are never kept in the cache: what was right is computed again, in one forward.
        if self._rolls_back:
            kv.rollback(certain, [fed])
        self._cache = certain
        return drawn

    def _prefill(self, prompt: Embedded) -> None:
        self._cache = kv.make_cache(self._model.cache_layout())
        for start in range(0, len(prompt), self._step):
            self._model(prompt[start : start + self._step], self._cache, at=mx.array([0]))
            kv.evaluate(self._cache)

    def _forward(self, tokens: mx.array) -> mx.array:
        """(V,) after these tokens (1, L)."""
        inputs = Embedded(tokens, delta=self._delta)
        return self._model(inputs, self._cache, at=mx.array([tokens.shape[1] - 1]))[0]

    def update(self, num_proposed: int, num_accepted: int) -> None:
        if self._schedule != "constant" and num_proposed:
            self._count = max(1, self._count + (2 if num_accepted == num_proposed else -1))


def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether two processors' tokenizers write the same tokens."""
    return one.tokenizer is other.tokenizer or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
