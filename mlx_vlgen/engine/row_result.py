"""A row's result after each of its tokens."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._runtime import mx
from ..results import GenerationResult, speed
from .logits import log_softmax
from .request import Row
from .sampling import Scores, top


@dataclass(frozen=True)
class _Later:
    """A field's value that is computed when it is first read."""

    compute: Callable[[], Any]


class _Lazy:
    """A field that may be set to a `_Later`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, result: "RowResult", owner: type) -> Any:
        value = getattr(result, self._name)
        if isinstance(value, _Later):
            value = value.compute()
            setattr(result, self._name, value)
        return value

    def __set__(self, result: "RowResult", value: Any) -> None:
        setattr(result, self._name, value)


class RowResult(GenerationResult):
    """A row's result. What costs time or memory is computed when it is first read."""

    tokens: Any = _Lazy()
    thinking: Any = _Lazy()
    answer: Any = _Lazy()
    logprobs: Any = _Lazy()
    top_logprobs: Any = _Lazy()

    def __repr__(self) -> str:
        return super().__repr__().replace("RowResult", "GenerationResult", 1)  # the name that a user knows


def make_result(row: Row, text: str, scores: Scores | None) -> RowResult:
    """The result after the token that was drawn from `scores`, which is None when there was none."""
    count = len(row.tokens)
    prompt_time = row.prefilled - row.prefill_started if row.prefilled else 0.0
    generation_time = time.perf_counter() - row.prefilled if count > 1 else 0.0
    result = RowResult(
        text=text,
        token=row.tokens[-1] if count and (scores is not None or row.best_beams) else None,
        prompt_tokens=row.length - row.carried,
        generation_tokens=count,
        total_tokens=row.positions,
        prompt_tps=speed(row.length, prompt_time),
        generation_tps=speed(count - row.carried, generation_time),
        peak_memory=mx.get_peak_memory() / 1e9,
        finish_reason=row.finish_reason,
        prompt_time=prompt_time,
        generation_time=generation_time,
        cached_tokens=row.computed,
        encode_time=row.encode_time,
        unquantized_layers=row.unquantized_layers,
        image_sizes=[media.size for media in row.prompt.media if media.kind == "image"],
        drafted_tokens=row.drafted,
        accepted_tokens=row.accepted,
        beams=row.best_beams,
        error=row.error,
    )
    _set_texts(result, row)
    if scores is not None and result.token is not None:
        _set_logprobs(result, row, scores)
    return result


def _set_texts(result: RowResult, row: Row) -> None:
    """Tokens, thinking and answer as they are now. The result does not hold the row: it may be stored for long."""
    tokens, count, released = row.tokens, len(row.tokens), row.text.released
    blocks, (begin, end) = row.thinking.ranges(row.over) if row.thinking else ([], (0, count))
    thoughts = [(row.text.end_of(start), row.text.end_of(stop)) for start, stop in blocks]
    answer = slice(row.text.end_of(begin), row.text.end_of(end))
    trims = bool(blocks) and row.constraint is None

    def thinking_text() -> str | None:
        text = "".join(released)
        return "".join(text[start:stop] for start, stop in thoughts).strip() if thoughts else None

    def answer_text() -> str:
        text = "".join(released)[answer]
        return text.strip() if trims else text

    result.thinking_tokens, result.answer_tokens = sum(stop - start for start, stop in blocks), end - begin
    result.tokens = _Later(lambda: tokens[:count])
    result.thinking, result.answer = _Later(thinking_text), _Later(answer_text)


def _set_logprobs(result: RowResult, row: Row, scores: Scores) -> None:
    """Those that the row asks for. A last result, which may be stored for long, does without the other rows' scores."""
    if row.sampling.top_logprobs:
        result.top_logprobs = _Later(top(scores.row, row.sampling.top_logprobs))
    if row.sampling.logprobs:
        alone = scores if row.finish_reason is None else scores.alone()
        result.logprobs = _Later(lambda: log_softmax(alone.row))
