"""What a row's token does to it, and what is told about it. Whatever fails here ends that row with "error"."""

import time
from collections.abc import Sequence

from .._runtime import mx
from ..errors import emptied
from ..results import FinishReason, GenerationResult, speed
from .request import Row
from .sampling import Scores, log_softmax, top


def record(row: Row, token: int, scores: Scores | None) -> GenerationResult:
    """Record a token that was read, and what is told after it, which is the row's last result where it ends by it.
    scores: what it was drawn from; None for one of a search."""
    text = ""
    try:
        row.record(token)
        is_end = token in row.end_tokens
        text = "" if is_end and not row.sampling.include_eos else row.text.add(token)
        reason = _reason(row, is_end, scores)
        if reason is None:
            return _report(row, text, scores)
    except Exception as error:
        return last(row, "error", error, text)
    return last(row, reason, None, text, scores)


def _reason(row: Row, is_end: bool, scores: Scores | None) -> FinishReason | None:
    """What ends the row with the token that it recorded, if anything does."""
    if row.found:
        return row.found_reason if len(row.tokens) == len(row.found[0].tokens) else None
    if is_end or row.text.stopped or (row.constraint and row.constraint.over):
        return "stop"
    if len(row.tokens) >= row.sampling.max_tokens or row.late:
        return "length"
    return "stop" if scores and criteria_met(row, row.tokens, scores) else None


def criteria_met(row: Row, tokens: Sequence[int], scores: Scores | None) -> bool:
    """Whether one of the user's criteria ends the row after these tokens. scores: see `record`."""
    if not row.sampling.stopping_criteria:
        return False
    assert row.prompt
    so_far, logits = mx.array([*row.prompt.tokens.tolist(), *tokens]), scores.own[None] if scores else None
    return any(bool(criterion(so_far, logits)) for criterion in row.sampling.stopping_criteria)


def last(
    row: Row, reason: FinishReason, error: Exception | None = None, text: str = "", scores: Scores | None = None
) -> GenerationResult:
    """End the row: its last result, with all the text that it still holds back."""
    row.finish_reason, row.error = reason, error and emptied(error)
    try:
        text += row.text.finish()
        if reason == "length" and row.text.stopped:
            row.finish_reason = "stop"
        if row.finish_reason == "stop" and row.constraint and not row.constraint.met(row.text):
            row.finish_reason = "length"  # cut, by a stop string or the user's code: "stop" promises a whole answer
        result = _report(row, text, scores)
        _tell_thinking(row, result)
        return result
    except Exception as fault:
        row.finish_reason, row.error = "error", row.error or emptied(fault)
        return _report(row, text, None)


def _report(row: Row, text: str, scores: Scores | None) -> GenerationResult:
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
    if result.token is not None and scores is not None:
        if row.sampling.top_logprobs:
            result.top_logprobs = top(scores.own, row.sampling.top_logprobs)
        if row.sampling.logprobs:
            whole = scores if row.finish_reason is None else scores.alone()  # a last result may be kept for long
            result.logprobs = lambda: log_softmax(whole.own)
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
