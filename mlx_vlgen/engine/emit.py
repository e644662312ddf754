"""Recording a token, ending a row, and the result of each. Whatever fails here ends that row with "error"."""

from collections.abc import Sequence

from .._runtime import mx
from ..errors import without_traceback
from ..notices import notice
from ..results import FinishReason
from .request import Row
from .row_result import RowResult, make_result
from .sampling import Scores


def record_token(row: Row, token: int, scores: Scores | None) -> RowResult:
    """Record a token that was read. Returns its result, the last one where the row ends by it.
    scores: what it was drawn from; None in a beam search."""
    text = ""
    try:
        row.record(token)
        is_end = token in row.end_tokens
        text = "" if is_end and not row.sampling.include_eos else row.text.add(token)
        reason = _reason(row, is_end, scores)
        if reason is None:
            return make_result(row, text, scores)
    except Exception as error:
        return end_row(row, "error", error, text)
    return end_row(row, reason, None, text, scores)


def _reason(row: Row, is_end: bool, scores: Scores | None) -> FinishReason | None:
    """What ends the row with the token that it recorded, if anything does."""
    if row.best_beams:
        return row.best_beam_reason if len(row.tokens) == len(row.best_beams[0].tokens) else None
    if is_end or row.text.stopped or (row.constraint and row.constraint.over):
        return "stop"
    if len(row.tokens) >= row.sampling.max_tokens or row.timed_out:
        if row.outgrown and not row.can_begin_again:
            notice(
                f"an answer ends at {row.reach:,} positions: this model computes longer texts in another way, from "
                "their beginning, which does not go with beams, drafts, guidance, a past, or records of each step"
            )
        return "length"
    return "stop" if scores and criteria_met(row, row.tokens, scores) else None


def criteria_met(row: Row, tokens: Sequence[int], scores: Scores | None) -> bool:
    """Whether one of the user's criteria ends the row after these tokens. scores: see `record_token`."""
    if not row.sampling.stopping_criteria:
        return False
    so_far, logits = mx.array([*row.prompt_tokens, *tokens]), scores.row[None] if scores else None
    return any(bool(criterion(so_far, logits)) for criterion in row.sampling.stopping_criteria)


def end_row(
    row: Row, reason: FinishReason, error: Exception | None = None, text: str = "", scores: Scores | None = None
) -> RowResult:
    """End the row: its last result, with all the text that it still holds back."""
    row.finish_reason, row.error = reason, error and without_traceback(error)
    try:
        text += row.text.finish()
        if reason == "length" and row.text.stopped:
            row.finish_reason = "stop"
        if row.finish_reason == "stop" and row.constraint and not row.constraint.met(row.text):
            row.finish_reason = "length"  # cut, by a stop string or the user's code: "stop" promises a whole answer
        return make_result(row, text, scores)
    except Exception as fault:
        row.finish_reason, row.error = "error", row.error or without_traceback(fault)
        return make_result(row, text, None)
