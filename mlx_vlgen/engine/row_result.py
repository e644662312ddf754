"""A row's result after each of its tokens."""

import time
from functools import cached_property
from typing import Any

from .._runtime import mx
from ..results import GenerationResult, speed
from .logits import log_softmax
from .request import Row
from .sampling import Scores, top


class RowResult(GenerationResult):
    """A row's result, of which what costs time or memory is made when it is first read."""

    __qualname__ = GenerationResult.__qualname__  # what a person is shown

    def follow(self, row: Row, scores: Scores | None) -> None:
        """Stand for the row as it is now, whose last token was drawn from `scores`."""
        over, end_of = row.finish_reason is not None, row.text.end_of
        blocks, (begin, end) = row.thinking.ranges(over) if row.thinking else ([], (0, len(row.tokens)))
        self.thinking_tokens, self.answer_tokens = sum(stop - start for start, stop in blocks), end - begin
        self._blocks = [(end_of(start), end_of(stop)) for start, stop in blocks]
        self._answer, self._trimmed = (end_of(begin), end_of(end)), bool(blocks) and row.constraint is None
        self._released, self._tokens = row.text.released, row.tokens  # and not the row: a result may be kept for long
        self._scores = scores if row.sampling.logprobs else None
        self._top = top(scores.row, row.sampling.top_logprobs) if scores and row.sampling.top_logprobs else None
        for name in ("tokens", "thinking", "answer", "logprobs", "top_logprobs"):
            self.__dict__.pop(name)

    def let_go(self) -> None:
        """Forget what only the newest result of a row holds."""
        self._scores = self.logprobs = None

    # Read-only properties in the place of fields, says mypy; these are stored in the place of the field.

    @cached_property
    def tokens(self) -> list[int]:  # type: ignore[override]
        return self._tokens[: self.generation_tokens]

    @cached_property
    def thinking(self) -> str | None:  # type: ignore[override]
        text = "".join(self._released)
        return "".join(text[start:stop] for start, stop in self._blocks).strip() if self._blocks else None

    @cached_property
    def answer(self) -> str | None:  # type: ignore[override]
        text = "".join(self._released)[slice(*self._answer)]
        return text.strip() if self._trimmed else text

    @cached_property
    def logprobs(self) -> Any:
        return log_softmax(self._scores.row) if self._scores else None

    @cached_property
    def top_logprobs(self) -> list[tuple[int, float]] | None:  # type: ignore[override]
        return self._top() if self._top else None


def make_result(row: Row, text: str, scores: Scores | None) -> RowResult:
    """The result after the token that was drawn from `scores`, which is None when there was none."""
    count, sampling = len(row.tokens), row.sampling
    prompt_time = row.prefilled - row.prefill_started if row.prefilled else 0.0
    generation_time = time.perf_counter() - row.prefilled if count > 1 else 0.0
    result = RowResult(
        text=text,
        token=row.tokens[-1] if count and (scores is not None or row.best_beams) else None,
        prompt_tokens=row.length,
        generation_tokens=count,
        total_tokens=row.length + count,
        prompt_tps=speed(row.length, prompt_time),
        generation_tps=speed(count, generation_time),
        peak_memory=mx.get_peak_memory() / 1e9,
        finish_reason=row.finish_reason,
        prompt_time=prompt_time,
        generation_time=generation_time,
        cached_tokens=row.computed,
        encode_time=row.encode_time,
        unquantized_layers=row.unquantized_layers,
        image_sizes=[media.size for media in row.prompt.media if media.kind == "image"] if row.prompt else [],
        drafted_tokens=row.drafted,
        accepted_tokens=row.accepted,
        beams=row.best_beams,
        error=row.error,
    )
    shown = scores if result.token is not None and (sampling.logprobs or sampling.top_logprobs) else None
    if shown and row.finish_reason is not None and sampling.logprobs:
        shown = shown.alone()  # of the other rows in its step: a last result may be kept for long
    result.follow(row, shown)
    return result
