"""Ways of decoding that a request may ask for, and what it wants recorded of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .._runtime import mx
from ..inputs.prompt import Prompt
from ..models.base import Capture
from .cache import Cache, alone
from .kv_settings import KVSettings


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance. scale: how far to go from what the negative prompt makes likely; 1 changes nothing.
    negative: that prompt, with pictures or without."""

    scale: float
    negative: Prompt


@dataclass(frozen=True)
class Beams:
    """Beam search: transformers' `num_beams`, `length_penalty`, `early_stopping` and `num_return_sequences`, with its
    defaults. sample: draw the candidates instead of taking the best."""

    count: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    returned: int = 1
    sample: bool = False


class Drafter(Protocol):
    """Guesses the next tokens of one row. It gets only tokens that are certain."""

    def read(self, prompt: Prompt) -> None:
        """The row's prompt, with its pixels."""

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        """At most max_tokens guesses of what follows the prompt and these tokens."""

    def update(self, num_proposed: int, num_accepted: int) -> None:
        """Called after each check with the number of guesses, and of those that were right."""


@dataclass
class Past:
    """Keys and values of a row's first `length` positions, one cache a layer, of the kind `kv`. delta: how far its
    rotary positions are ahead of them. variant: which of the model's it is."""

    cache: list[Any]
    length: int
    delta: float
    kv: KVSettings
    variant: int = 0

    def begin(self, cache: Cache) -> Cache:
        """A row's cache, where `cache` is an empty one."""
        return alone(self.cache, 0)


@dataclass
class Trace:
    """What a request wants to be recorded, and the records. With it the next step waits until the last token is read.

    logits: (V,) as the model gave them, scores: (V,) as the token was drawn from, one a step; of a beam search
    (beams, V). captures: one a forward, the prompt's first, where `states` or `attentions` are wanted; such a row runs
    alone. past: what its cache holds at the end, with keep_cache; not of a beam search, nor with a drafter.
    """

    states: bool = False
    attentions: bool = False
    keep_cache: bool = False
    logits: list[mx.array] = field(default_factory=list)
    scores: list[mx.array] = field(default_factory=list)
    captures: list[Capture] = field(default_factory=list)
    past: Past | None = None

    @property
    def alone(self) -> bool:
        """Whether a row with it decodes alone, and its prompt in one piece."""
        return self.states or self.attentions

    def capture(self) -> Capture | None:
        """What the next forward fills."""
        if not self.alone:
            return None
        self.captures.append(Capture(self.attentions))
        return self.captures[-1]
