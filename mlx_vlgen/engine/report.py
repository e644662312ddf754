"""What is told about a row after each of its tokens."""

import time

from .._runtime import mx
from ..results import GenerationResult
from .request import Row
from .sampling import log_softmax, top


def report(row: Row, text: str, logits: mx.array | None, place: int) -> GenerationResult:
    """The result after the token that was drawn from `logits[place]`; logits is None when there was none."""
    now, made = time.perf_counter(), len(row.tokens)
    prompt_time = row.first_token - row.prefill_started if made else 0.0
    generation_time = now - row.first_token if made > 1 else 0.0
    result = GenerationResult(
        text=text,
        token=row.tokens[-1] if made and logits is not None else None,
        prompt_tokens=row.length,
        generation_tokens=made,
        total_tokens=row.length + made,
        prompt_tps=row.length / prompt_time if prompt_time > 0 else 0.0,
        generation_tps=(made - 1) / generation_time if generation_time > 0 else 0.0,
        peak_memory=mx.get_peak_memory() / 1e9,
        finish_reason=row.finish_reason,
        tokens=lambda so_far=row.tokens: so_far[:made],
        encode_time=row.encode_time,
        unquantized_layers=row.unquantized_layers,
        image_sizes=[media.size for media in row.prompt.media if media.kind == "image"] if row.prompt else [],
        error=row.error,
    )
    if row.finish_reason is not None:
        _tell_thinking(row, result)
    if result.token is not None and logits is not None:
        if row.sampling.logprobs:
            result.logprobs = lambda: log_softmax(logits[place])
        if count := row.sampling.top_logprobs:
            result.top_logprobs = lambda: top(logits[place], count)
        if row.latest:  # only the newest result of a stream holds the vocabulary
            row.latest.logprobs = row.latest.top_logprobs = None
        row.latest = result
    return result


def _tell_thinking(row: Row, result: GenerationResult) -> None:
    """What was thought and what was answered, once the row has ended."""
    if row.thinking is None or not row.thinking.happened:
        result.answer, result.answer_tokens = row.text.said, len(row.tokens)
        return
    thought, answer = row.thinking.parts()
    result.thinking_tokens, result.answer_tokens = len(thought), len(answer)
    result.thinking = row.text.decode(thought).strip()
    result.answer = row.text.decode([t for t in answer if t not in row.end_tokens]).strip()
