"""What `generate`, `stream_generate` and `batch_generate` return.

Times are in seconds, memory in GB (1e9 bytes), speeds in tokens a second.
"""

import copy
import math
import pickle
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


class _WithDict:
    """A dataclass with `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: tuples as lists, an error as text, infinity and NaN as None.

        `logprobs`, a number for each token of the vocabulary, are left out.
        """
        return {f.name: _as_json(getattr(self, f.name)) for f in fields(self) if f.name != "logprobs"}  # type: ignore[arg-type]


def _as_json(value: Any) -> Any:
    if isinstance(value, _WithDict):
        return value.to_dict()
    if is_dataclass(value):
        return {f.name: _as_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Beam:
    """One answer of a beam search.

    tokens: ids.
    score: the sum of the tokens' log-probabilities after the logits processors, over length ** length_penalty.
    origins: for each token the index, one step before, of the hypothesis that it was added to.
    """

    tokens: list[int]
    score: float
    origins: list[int]


@dataclass
class GenerationResult(_WithDict):
    """One step of a stream, or a whole answer.

    text: the new segment in a stream; the whole answer from `generate`.
    token: the last token's id; None when no token was generated.
    logprobs: (V,) float32, log-softmax of the raw logits for `token`, computed at the first use. A stream keeps it on
        its newest result only, and a pickled result has None.
    prompt_tokens, generation_tokens, total_tokens: counts so far.
    prompt_tps, generation_tps: prompt_tokens / prompt_time, generation_tokens / generation_time.
    peak_memory: of MLX in this process.
    finish_reason: "stop", "length", "cancelled" or "error"; None while it runs.
    tokens: all generated ids so far.
    thinking: the text inside thinking blocks so far, without the marks and the white space around; None without one.
    answer: the text after the last thinking block so far, likewise.
    thinking_tokens, answer_tokens: how many tokens each has.
    cached_tokens: prompt tokens that were not computed again.
    prompt_time: wall clock of the prompt's forward, which draws the first token too.
    generation_time: from the end of that forward to this token; 0 for the first.
    encode_time: of this request's pictures and video, which no other time includes.
    unquantized_layers: layers with a float cache in spite of kv_bits: sliding and recurrent ones cannot be quantized.
    image_sizes: the pictures' original (height, width).
    top_logprobs: the k best as (id, value), best first, on every result.
    drafted_tokens, accepted_tokens: guesses of speculative decoding, and how many were right.
    beams: the best answers of a beam search, at its end.
    error: what ended the row with "error".

    Rows that run together share their times.
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
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return GenerationResult, tuple((values | {"logprobs": None, "error": _picklable(self.error)}).values())

    def __copy__(self) -> "GenerationResult":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GenerationResult":
        return replace(self, **{f.name: copy.deepcopy(getattr(self, f.name), memo) for f in fields(self)})


def _picklable(error: Exception | None) -> Exception | None:
    """The error itself, or a RuntimeError that says the same where it cannot be pickled: user code may raise such."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(_as_json(error))
    return error


@dataclass
class BatchStats(_WithDict):
    """Sums over the rows of a batch. The fields are those of `GenerationResult`; prompt_time and generation_time are
    wall clock of the whole batch, so that tps = tokens / time."""

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
    """Tokens a second; 0 for no time."""
    return tokens / seconds if seconds > 0 else 0.0


@dataclass
class BatchResponse(_WithDict):
    """The answers to a batch, in the order of the prompts.

    texts: the whole answers.
    stats: sums over the rows.
    image_sizes: the pictures' original (height, width): one of each prompt when each has one picture, else a list of
        each prompt's; None when they are not tracked.
    results: one `GenerationResult` for each prompt.
    """

    texts: list[str]
    stats: BatchStats = field(default_factory=BatchStats)
    image_sizes: list[Any] | None = None
    results: list[GenerationResult] = field(default_factory=list, repr=False)
