"""A row's results as deltas of its answer: what is thought, what is said, its tokens' log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..results import GenerationResult
from .call import Delta, FinishReason, TokenLogprob, ToolPiece, Usage
from .errors import ApiError, as_api_error
from .tool_use import CallReader

LEAST = -9999.0
"""What stands for minus infinity, which JSON does not have; OpenAI's."""


@dataclass
class DeltaMaker:
    """Of one row. None of its results may be left out, and each is looked at before the next one comes.

    stop: its stop strings.
    end_tokens: the model's.
    logprobs, raw: as in `Call`.
    calls: finds those to tools.
    """

    tokenizer: Any
    stop: Sequence[str] = ()
    end_tokens: frozenset[int] = frozenset()
    logprobs: int | None = None
    raw: bool = False
    calls: CallReader | None = None
    _pending: str = ""  # text of which nobody knows yet whether it opens a block
    _thinking: int = 0  # characters handed out
    _answer: int = 0
    _tokens: list[TokenLogprob] = field(default_factory=list)  # of all tokens
    _told: int = 0  # tokens of the answer whose log-probabilities were handed out

    def make(self, result: GenerationResult) -> Delta:
        thinking, text = self._split(result)
        reason, error = result.finish_reason, None
        if reason == "error":
            error = as_api_error(result.error) if result.error else None
            error = error or ApiError(500, "the server failed at this request; its log says more", code="internal")
        elif reason == "cancelled":
            error = ApiError(503, "the server ended this request, since it stops", code="cancelled")
        elif reason == "length" and not result.generation_tokens:
            error = ApiError(504, "the time of this request was over before its first token", code="timeout")
        usage = Usage(
            result.prompt_tokens, result.cached_tokens, result.generation_tokens, min(
                result.thinking_tokens, result.generation_tokens
            )
        )  # fmt: skip
        finish: FinishReason | None = reason if reason in ("stop", "length") else None
        tools: list[ToolPiece] = []
        if self.calls is not None:
            text, tools = self.calls.read(text, over=finish is not None)
            if self.calls.full or (finish == "stop" and self.calls.whole):
                finish = "tool_calls"
        logprobs = self._logprobs(result) if self.logprobs is not None else ()
        stopped_by = self._stopped_by(result) if finish == "stop" and self.stop else None
        return Delta(thinking, text, tools, logprobs, finish, stopped_by, usage, error)

    def _split(self, result: GenerationResult) -> tuple[str, str]:
        """What is new of thinking and answer. `result.answer` costs its length: it is asked for only once there is a
        block."""
        if self.raw:
            return "", result.text
        self._pending += result.text
        if result.answer_tokens == result.generation_tokens:
            text, self._pending = self._pending, ""
            return "", text
        if result.thinking is None:
            return "", ""
        self._pending = ""
        thinking, answer = result.thinking, result.answer or ""
        if len(answer) < self._answer:  # another block has begun
            self._answer = 0
        new = thinking[self._thinking :], answer[self._answer :]
        self._thinking, self._answer = max(self._thinking, len(thinking)), len(answer)
        return new

    def _logprobs(self, result: GenerationResult) -> Sequence[TokenLogprob]:
        """Of tokens that have become the answer's. The end token is none."""
        count = result.generation_tokens if self.raw else result.answer_tokens
        begin = result.generation_tokens - count
        if result.token is not None:
            self._tokens.append(self._token_logprob(result))
            if result.finish_reason == "stop" and result.token in self.end_tokens:
                count -= 1
        if count < self._told:
            self._told = 0
        new = self._tokens[begin + self._told : begin + count]
        self._told = max(self._told, count)
        return new

    def _token_logprob(self, result: GenerationResult) -> TokenLogprob:
        assert result.token is not None
        best = result.top_logprobs or []
        logprob = dict(best).get(result.token)
        if logprob is None:
            logprob = float(result.logprobs[result.token]) if result.logprobs is not None else LEAST
        top = [(*self._name(token), max(value, LEAST)) for token, value in best[: self.logprobs]]
        return TokenLogprob(*self._name(result.token), max(logprob, LEAST), top)

    def _name(self, token: int) -> tuple[str, bytes]:
        return token_text(self.tokenizer, token), token_bytes(self.tokenizer, token)

    def _stopped_by(self, result: GenerationResult) -> str | None:
        """The stop string that ended a row; None where something else did."""
        if result.tokens and result.tokens[-1] in self.end_tokens:
            return None
        text = self.tokenizer.decode(result.tokens[-64:], skip_special_tokens=False)
        found = {at: stop for stop in self.stop if (at := text.find(stop)) >= 0}
        return found[min(found)] if found else None


def token_text(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Of a token's text, also of one that is a part of a character: as byte-level vocabularies write it, or as
    SentencePiece's `<0xE2>`."""
    text = token_text(tokenizer, token)
    if "\ufffd" not in text:
        return text.encode("utf-8", "replace")
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if piece.startswith("<0x") and len(piece) == 6:
        return bytes([int(piece[3:5], 16)])
    try:
        return bytes(_byte_of()[character] for character in piece)
    except KeyError:
        return text.encode()


@lru_cache
def _byte_of() -> dict[str, int]:
    """The bytes that GPT-2's characters stand for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
