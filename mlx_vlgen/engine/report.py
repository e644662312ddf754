"""What is told about a row after each of its tokens."""

import time

from .._runtime import mx
from ..results import GenerationResult, speed
from .request import Row
from .sampling import Scores, log_softmax, top


def report(row: Row, text: str, scores: Scores | None) -> GenerationResult:
    """The result after the token that was drawn from `scores`, which is None when there was none."""
    made = len(row.tokens)
    prompt_time = row.prefilled - row.prefill_started if row.prefilled else 0.0
    generation_time = time.perf_counter() - row.prefilled if made > 1 else 0.0
    result = GenerationResult(
        text=text,
        token=row.tokens[-1] if made and (scores is not None or row.found) else None,
        prompt_tokens=row.length,
        generation_tokens=made,
        total_tokens=row.length + made,
        prompt_tps=speed(row.length, prompt_time),
        generation_tps=speed(made, generation_time),
        peak_memory=mx.get_peak_memory() / 1e9,
        finish_reason=row.finish_reason,
        tokens=lambda so_far=row.tokens: so_far[:made],
        prompt_time=prompt_time,
        generation_time=generation_time,
        cached_tokens=row.computed,
        encode_time=row.encode_time,
        unquantized_layers=row.unquantized_layers,
        image_sizes=[media.size for media in row.prompt.media if media.kind == "image"] if row.prompt else [],
        drafted_tokens=row.drafted,
        accepted_tokens=row.accepted,
        beams=row.found,
        error=row.error,
    )
    if row.finish_reason is not None:
        _tell_thinking(row, result)
    if result.token is not None and scores is not None:
        count = row.sampling.top_logprobs
        if row.finish_reason is not None and (row.sampling.logprobs or count):
            scores = scores.alone()  # a last result may be kept for long
        if row.sampling.logprobs:
            result.logprobs = lambda: log_softmax(scores.own)
        if count:
            result.top_logprobs = lambda: top(scores.own, count)
    return result


def _tell_thinking(row: Row, result: GenerationResult) -> None:
    """What was thought and what was answered, once the row has ended."""
    if row.thinking is None or not row.thinking.happened:
        result.answer, result.answer_tokens = row.text.said, len(row.tokens)
        return
    thought, answer = row.thinking.parts()
    result.thinking_tokens, result.answer_tokens = len(thought), len(answer)
    result.thinking = row.text.decode(thought).strip()
    text = row.text.decode([t for t in answer if t not in row.end_tokens])
    result.answer = text if row.constraint else text.strip()
