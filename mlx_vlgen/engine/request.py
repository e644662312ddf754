"""What was asked (`Request`) and where it stands (`Row`)."""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..inputs.prompt import MediaInputs, Prompt
from ..models.base import Embedded
from ..results import FinishReason, GenerationResult
from .kv_settings import KVSettings
from .params import SamplingParams
from .text import TextStream
from .thinking import Thinking


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
    kv: KVSettings = KVSettings()
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
    counts: Counter[int] = field(default_factory=Counter)  # of the same tokens
    thinking: Thinking | None = None  # None for a model that does not think
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    cancelled: bool = False
    started: float = field(default_factory=time.perf_counter)
    unquantized_layers: int = 0
    encode_time: float = 0.0
    prefill_started: float = 0.0
    prefilled: float = 0.0  # when the forward of the whole prompt was through; 0 before
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

    def record(self, token: int) -> None:
        """A token that was drawn for this row and read."""
        self.tokens.append(token)
        self.counts[token] += 1
        if self.thinking:
            self.thinking.add(token)

    def recent(self, size: int | None, ahead: int) -> list[int]:
        """The last `size` tokens of prompt and text (None: all), of which `ahead` are still to be recorded.
        Placeholders of media are no tokens that appeared."""
        if size is not None and size <= ahead:
            return []
        tail = self.tokens if size is None else self.tokens[-(size - ahead) :]
        lacking = None if size is None else size - ahead - len(tail)
        if lacking == 0 or self.prompt is None:
            return tail
        words = self.prompt.words
        return [*(words if lacking is None else words[-lacking:]), *tail]

    @property
    def waits(self) -> bool:
        """Whether the next step of this row must wait until its last token is read: it runs the user's code, which
        must not see a token that is thrown away later, or that token decides whether the next one is forced."""
        return self.sampling.calls_user or (self.thinking is not None and self.thinking.undecided)

    @property
    def last_token_due(self) -> bool:
        """Whether the token now being computed is the last one, known in advance."""
        return self.cancelled or len(self.tokens) + 1 >= self.sampling.max_tokens


def fresh_seed(sampling: SamplingParams) -> int:
    """The row's own seed: what was asked, or a random one."""
    return random.getrandbits(63) if sampling.seed is None else sampling.seed
