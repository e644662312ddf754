"""What was asked (`SamplingParams`, `Request`) and where it stands (`Row`)."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._runtime import mx
from ..inputs.prompt import MediaInputs, Prompt
from ..models.base import Embedded
from ..results import FinishReason, GenerationResult
from .text import TextStream

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
"""(the row's tokens so far (n,), prompt included; logits (1, V)) -> logits (1, V)."""

Sampler = Callable[[mx.array], mx.array]
"""log-probabilities (1, V) -> token (1,)."""

StoppingCriterion = Callable[[mx.array, mx.array], Any]
"""(the row's tokens so far (n,), prompt included; raw logits (1, V)) -> true to stop after this token."""


@dataclass(frozen=True)
class SamplingParams:
    """How one row draws its tokens and when it stops.

    max_tokens: new tokens at most. temperature: 0 is greedy. top_k: 0 and -1 are off. top_p: the smallest set of
    most likely tokens whose probability reaches it. min_p: relative to the most likely token. Order: logits
    processors, temperature, top_k, top_p, min_p, as in transformers. seed: None is random. sampler: used in the
    place of all of these.
    eos_tokens: strings or ids added to the model's own end tokens. stop: strings; the text before one is the answer.
    max_time: seconds from admission. logprobs: whether results carry them; top_logprobs: how many best ones.
    skip_special_tokens, include_eos: what of special tokens the text shows.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    eos_tokens: Sequence[str | int] = ()
    stop: Sequence[str] = ()
    max_time: float | None = None
    skip_special_tokens: bool = False
    include_eos: bool = False
    logits_processors: Sequence[LogitsProcessor] = ()
    sampler: Sampler | None = None
    stopping_criteria: Sequence[StoppingCriterion] = ()
    logprobs: bool = True
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name, most in (
            ("max_tokens", None),
            ("temperature", None),
            ("top_p", 1),
            ("min_p", 1),
            ("top_logprobs", None),
        ):
            value = getattr(self, name)
            if value < 0 or (most is not None and value > most):
                raise ValueError(f"{name}={value}: expected {'at least 0' if most is None else f'0 to {most}'}")
        if self.top_k < -1:
            raise ValueError(f"top_k={self.top_k}: expected a number of tokens, or 0 or -1 for off")
        for name in ("eos_tokens", "stop", "logits_processors", "stopping_criteria"):
            value = getattr(self, name)
            if value is None or isinstance(value, str | int) or callable(value):  # one of them, or none
                object.__setattr__(self, name, () if value is None else (value,))
        if any(not text for text in self.stop):
            raise ValueError("stop: an empty string would stop at once; remove it")

    @property
    def calls_user(self) -> bool:
        """Whether a step runs the user's code, which must not see a token that is thrown away later."""
        return bool(self.logits_processors) or self.sampler is not None


@dataclass(frozen=True)
class Request:
    """One prompt with its media and settings.

    prompt: a formatted string, in which each placeholder stands for one of `media`, or messages, which the chat
    template formats. media: `MediaInputs`, one picture, or a list of pictures. enable_thinking and
    template_kwargs go to the chat template.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    media: Any = None
    sampling: SamplingParams = SamplingParams()
    enable_thinking: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.media, MediaInputs):
            pictures = (
                self.media if isinstance(self.media, list | tuple) else () if self.media is None else (self.media,)
            )
            object.__setattr__(self, "media", MediaInputs(images=tuple(pictures)))


@dataclass(eq=False)
class Row:
    """One request on its way: all that changes, in one place."""

    id: int
    request: Request
    text: TextStream
    seed: int
    prompt: Prompt | None = None
    inputs: Embedded | None = None  # held from encoding to the end of prefill
    delta: int = 0  # what its rotary positions are ahead of its cache once the prompt is over
    end_tokens: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    cancelled: bool = False
    started: float = field(default_factory=time.perf_counter)
    encode_time: float = 0.0
    prefill_started: float = 0.0
    first_token: float = 0.0
    latest: GenerationResult | None = None

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return 0 if self.prompt is None else len(self.prompt.tokens)

    @property
    def reserve(self) -> int:
        """Cache positions this row may come to need."""
        return self.length + self.sampling.max_tokens

    @property
    def last_token_due(self) -> bool:
        """Whether the token now being computed is the last one, known in advance."""
        return self.cancelled or len(self.tokens) + 1 >= self.sampling.max_tokens


def fresh_seed(sampling: SamplingParams) -> int:
    """The row's own seed: what was asked, or a random one."""
    return random.getrandbits(63) if sampling.seed is None else sampling.seed
