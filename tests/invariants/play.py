"""Rows that come and go in one TokenIterator, and the comparison of each with its answer alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_vlgen import GenerationResult, Request, SamplingParams, TokenIterator
from mlx_vlgen.engine.kv_settings import KVSettings

from .family import STEPS, Answer, Ask, Family

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """joins: how many results the others have given when it is added. leaves: cancelled after so many tokens.
    media: in the place of the ask's."""

    ask: Ask
    sampling: SamplingParams = SamplingParams(max_tokens=STEPS)
    kv: KVSettings = KVSettings()
    joins: int = 0
    leaves: int | None = None
    media: Any = None

    @property
    def request(self) -> Request:
        return Request(self.ask.text, self.ask.media if self.media is None else self.media, self.sampling, self.kv)

    @property
    def is_plain(self) -> bool:
        """Whether it takes the most likely token over whole caches, as the plain loop does."""
        sampling = self.sampling
        penalties = sampling.repetition_penalty or sampling.presence_penalty or sampling.frequency_penalty
        return not (sampling.temperature or penalties or sampling.logit_bias) and self.kv == KVSettings()


@dataclass
class Heard:
    """All that came out for a row."""

    results: list[GenerationResult] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, result: GenerationResult) -> None:
        if result.token is not None:
            self.tokens.append(result.token)
            self.scores.append(np.array(result.logprobs))
        self.results.append(result)

    @property
    def text(self) -> str:
        return "".join(result.text for result in self.results)

    @property
    def finish_reason(self) -> str | None:
        return self.results[-1].finish_reason if self.results else None


def ask_for(family: Family, name: str = "long", **sampling: Any) -> Row:
    """The row of a named ask."""
    return Row(family.asks[name], SamplingParams(**{"max_tokens": STEPS, **sampling}))


def play(family: Family, rows: Sequence[Row], **settings: Any) -> list[Heard]:
    """Run rows through one iterator. settings: the iterator's."""
    heard = [Heard() for _ in rows]
    waiting = sorted(range(len(rows)), key=lambda index: rows[index].joins)
    index_of: dict[int, int] = {}
    num_results = 0
    with TokenIterator(family.model, family.processor, **settings) as iterator:
        while any(output.finish_reason is None for output in heard):
            while waiting and rows[waiting[0]].joins <= num_results:
                index = waiting.pop(0)
                index_of[iterator.add(rows[index].request)] = index
            step = next(iterator, None)
            if step is None:  # all others are through before it was to join
                num_results = rows[waiting[0]].joins
                continue
            num_results += 1
            id, result = step
            output, row = heard[index_of[id]], rows[index_of[id]]
            output.add(result)
            if len(output.tokens) == row.leaves and result.finish_reason is None:
                iterator.cancel(id)
        assert next(iterator, None) is None
    return heard


def check(family: Family, rows: Sequence[Row], heard: Sequence[Heard]) -> None:
    """Every row's tokens and log-probabilities are those of the plain loop; draws are those of the row alone."""
    for row, output in zip(rows, heard, strict=True):
        assert output.finish_reason in ("stop", "length", "cancelled"), output.results[-1].error
        answer = family.answer(row.ask, output.tokens) if row.is_plain else alone(family, row)
        tokens = answer.tokens[: row.sampling.max_tokens]
        if output.finish_reason == "cancelled":
            assert row.leaves == len(output.tokens)
            tokens = tokens[: row.leaves]
        assert output.tokens == tokens, row.ask.name
        difference = np.abs(np.stack(output.scores) - answer.scores[: len(tokens)]).max()
        assert difference < tolerance(family, row), (row.ask.name, difference)


def tolerance(family: Family, row: Row) -> float:
    """gemma3_text is equal to 3e-6 and not to the bit (its sliding layers add up in another order), so that now and
    then a key lies on the other side of a rounding border: one step of the quantized cache."""
    if family.name == "gemma3_text" and row.kv.bits:
        return 0.2 / 2**row.kv.bits
    return TOLERANCE


def alone(family: Family, row: Row) -> Answer:
    """What the row draws by itself, with the log-probabilities that the plain loop gives for those tokens."""
    key = row.ask, row.sampling, row.kv
    if key not in family.drawn:
        [output] = play(family, [Row(*key)])
        family.drawn[key] = Answer(output.tokens, family.scores(row.ask, output.tokens, row.kv))
    return family.drawn[key]


def play_and_check(family: Family, rows: Sequence[Row], **settings: Any) -> None:
    """All of them together, each as alone."""
    check(family, rows, play(family, rows, **settings))


def collect(iterator: TokenIterator) -> dict[int, Heard]:
    """All that an iterator still gives, by row."""
    heard: dict[int, Heard] = {}
    for id, result in iterator:
        heard.setdefault(id, Heard()).add(result)
    return heard


class Wrapped:
    """A model with other functions in the place of some methods; `forward` is its call."""

    def __init__(self, model: Any, **methods: Callable[..., Any]):
        self._model = model
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._model, name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._methods.get("forward", self._model)(*args, **keywords)
