"""What the faces return. Times in seconds, memory in GB (1e9 bytes), speeds in tokens a second."""

import copy
import math
import pickle
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


class _Told:
    """What has fields that can be told as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: tuples as lists, an error as text, what is no number as None. `logprobs`, which
        are as many as the vocabulary, are left out."""
        return {own.name: _as_json(getattr(self, own.name)) for own in fields(self) if own.name != "logprobs"}  # type: ignore[arg-type]


def _as_json(value: Any) -> Any:
    if isinstance(value, _Told):
        return value.to_dict()
    if is_dataclass(value):
        return {own.name: _as_json(getattr(value, own.name)) for own in fields(value)}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Beam:
    """One answer of a beam search. score: the sum of its tokens' log-probabilities after the logits processors, over
    length ** length_penalty. origins: for each token the place, one step before, of the hypothesis it was added to."""

    tokens: list[int]
    score: float
    origins: list[int]


@dataclass
class GenerationResult(_Told):
    """One step of a stream, or a whole answer.

    text: the new segment in a stream, the whole answer from `generate`. token: the last token's id.
    logprobs: the float32 log-softmax of the raw logits over the whole vocabulary for `token`, (V,), computed when
    looked at; a stream keeps it on its newest result only, and a pickled result has none. top_logprobs: the k best as
    (id, value), best first; every result keeps them. finish_reason: None while it runs. tokens: all generated ids so
    far, a list. thinking, answer: so far, the text inside thinking blocks (None where there was none) and after the
    last one, without the marks and the white space around, and how many tokens each has.
    cached_tokens: prompt tokens that were not computed again.
    prompt_time: wall clock of the prompt's forward, evaluated, which gives the first token too. encode_time: what this
    request's pictures and video took before it; the other times do not include it. generation_time: from the end of
    the prompt's to this token; 0 while there is only the first. prompt_tps, generation_tps: tokens / time. Rows that
    run together share their time.
    unquantized_layers: layers whose cache stayed whole although kv_bits was given (sliding and recurrent ones cannot be
    quantized). image_sizes: the pictures' original (height, width). error: what ended a row with "error".
    drafted_tokens, accepted_tokens: of speculative decoding, guesses made, and how many were right. beams: of a beam
    search, at the end, the best answers.
    """

    text: str = ""
    token: int | None = None
    logprobs: Any = field(default=None, repr=False)
    prompt_tokens: int = 0
    generation_tokens: int = 0
    total_tokens: int = 0
    prompt_tps: float = 0.0
    generation_tps: float = 0.0
    peak_memory: float = 0.0
    finish_reason: FinishReason | None = None
    tokens: list[int] = field(default_factory=list)
    thinking: str | None = None
    answer: str | None = None
    thinking_tokens: int = 0
    answer_tokens: int = 0
    cached_tokens: int = 0
    prompt_time: float = 0.0
    generation_time: float = 0.0
    encode_time: float = 0.0
    unquantized_layers: int = 0
    image_sizes: list[tuple[int, int]] = field(default_factory=list, repr=False)
    top_logprobs: list[tuple[int, float]] | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    beams: list[Beam] = field(default_factory=list, repr=False)
    error: Exception | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationResult) and self.to_dict() == other.to_dict()

    def __reduce__(self) -> tuple[Any, ...]:
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        return GenerationResult, tuple((values | {"logprobs": None, "error": _picklable(self.error)}).values())

    def __copy__(self) -> "GenerationResult":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GenerationResult":
        return replace(self, **{own.name: copy.deepcopy(getattr(self, own.name), memo) for own in fields(self)})


def _picklable(error: Exception | None) -> Exception | None:
    """The error, or where it cannot be pickled, as those of a user's code may, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(_as_json(error))
    return error


@dataclass
class BatchStats(_Told):
    """Sums over the rows of a batch; times are wall clock, so that tps = tokens / time. encode_time, which pictures and
    video took, is in neither of the others."""

    prompt_tokens: int = 0
    prompt_tps: float = 0.0
    prompt_time: float = 0.0
    generation_tokens: int = 0
    generation_tps: float = 0.0
    generation_time: float = 0.0
    peak_memory: float = 0.0
    cached_tokens: int = 0
    encode_time: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


def speed(tokens: int, seconds: float) -> float:
    """Tokens a second; 0 where no time was taken."""
    return tokens / seconds if seconds > 0 else 0.0


@dataclass
class BatchResponse(_Told):
    """texts and results in the order of the prompts.

    image_sizes: the original (height, width) of each picture in order; flat when each prompt has one picture, a
    list of lists otherwise; None when not tracked.
    """

    texts: list[str]
    stats: BatchStats = field(default_factory=BatchStats)
    image_sizes: list[Any] | None = None
    results: list[GenerationResult] = field(default_factory=list, repr=False)
