"""`Request`: a prompt with its settings. `Row`: the state of one request."""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .._runtime import mx
from ..inputs.prompt import Media, MediaInputs, Prompt
from ..models.base import Capture, Embedded
from ..results import Beam, FinishReason
from .cache import Cache
from .columns import STEP
from .kv_settings import KVSettings
from .modes import Beams, Drafter, Guidance, Past, Trace
from .params import SamplingParams
from .prefix import Units, token_units, units_of
from .store import Prefix, Prefixes
from .structured import Constraint
from .text import TextStream
from .thinking import Thinking


@dataclass(frozen=True)
class Request:
    """One prompt with its media and settings.

    prompt: a formatted string, in which each placeholder stands for one of `media`, or messages, which the chat
    template formats, or a `Prompt` that is ready. media: `MediaInputs`, one picture, or a list of pictures.
    enable_thinking and template_kwargs go to the chat template.

    end_tokens: these and no others end the row; None is the model's. guidance, beams: other ways of decoding.
    drafter: makes what guesses the row's next tokens. past: the keys and values of the prompt's first positions.
    trace: what to record of each step. reuse: whether it begins with what was computed before, and leaves that, where
    its iterator does.
    """

    prompt: str | Sequence[Mapping[str, Any]] | Prompt
    media: Any = None
    sampling: SamplingParams = SamplingParams()
    kv: KVSettings = KVSettings()
    enable_thinking: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    end_tokens: frozenset[int] | None = None
    guidance: Guidance | None = None
    beams: Beams | None = None
    drafter: Callable[[], Drafter] | None = None
    past: Past | None = None
    trace: Trace | None = None
    reuse: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.media, MediaInputs):
            images = () if self.media is None else self.media
            images = tuple(images) if isinstance(images, list | tuple) else (images,)
            object.__setattr__(self, "media", MediaInputs(images=images))


ROOM = 4096
"""Tokens of an answer for which memory is held free, where it may have more: who sets no end seldom means the whole
context, which no second row could run beside."""

_NO_PROMPT = Prompt(np.zeros(0, dtype=np.int32))


@dataclass(eq=False)
class Row:
    """The state of one request: all that changes, in one place."""

    id: int
    request: Request
    text: TextStream
    seed: int
    prompt: Prompt = _NO_PROMPT  # empty until it is read
    reading_since: float = 0.0  # when a thread began to read it; 0 before
    ready: bool = False  # it is read, or failed to be
    embedded: bool = False  # its media are encoded, and let go
    filled: int = 0  # positions of the prompt that are in its cache
    prefixes: Prefixes | None = None  # where it finds what it begins with, and stores what it computes
    units: Units | None = None  # of its prompt, where it does
    past: Past | Prefix | None = None  # what it begins with
    searched: int = -1  # version of what it was searched for in
    delta: float = 0  # what its rotary positions are ahead of its cache once the prompt is over
    variant: int = 0  # how the model computes it
    reach: int | None = None  # how many positions it may have for that reason, where it asked for more
    carried: int = 0  # of its tokens, those that stand in its prompt since it outgrew that
    end_tokens: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    thinking: Thinking | None = None  # None for a model that does not think
    constraint: Constraint | None = None  # None where any answer will do
    negative: "Row | None" = None  # its negative prompt, a row that decodes beside it
    positive: "Row | None" = None  # of such a row
    drafter: Drafter | None = None
    best_beams: list[Beam] = field(default_factory=list)  # by a beam search that is over
    best_beam_reason: FinishReason = "stop"  # what ended the best of them
    drafted: int = 0
    accepted: int = 0
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    cancelled: bool = False  # set between steps only: all that a step does with the row agrees
    arrived: float = field(default_factory=time.perf_counter)
    unquantized_layers: int = 0
    encode_time: float = 0.0
    prefill_started: float = 0.0
    prefilled: float = 0.0  # when the forward of the whole prompt was through; 0 before

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.tokens)

    @property
    def prompt_tokens(self) -> list[int]:
        """Those of the prompt as it was asked."""
        tokens: list[int] = self.prompt.tokens[: self.length - self.carried].tolist()
        return tokens

    @property
    def text_tokens(self) -> list[int]:
        """Of these, those that stand for no medium's feature."""
        tokens = self.prompt.text_tokens
        return tokens[: len(tokens) - self.carried]

    @property
    def positions(self) -> int:
        """Of its prompt and its tokens."""
        return self.length + len(self.tokens) - self.carried

    @property
    def outgrown(self) -> bool:
        """Whether its next token has to be computed in another way than those before."""
        return self.reach is not None and self.positions > self.reach

    @property
    def can_begin_again(self) -> bool:
        """Whether it can then be computed from the beginning. Others end."""
        request = self.request
        return not (request.beams or request.drafter or request.guidance or request.trace or request.past)

    def begin_again(self, variant: int) -> None:
        """Have it computed in another way, from the beginning, with its tokens after the prompt."""
        tokens = np.array(self.tokens[self.carried :], np.int32)
        self.prompt = replace(self.prompt, tokens=np.concatenate([self.prompt.tokens, tokens]))
        self.carried, self.variant, self.reach = len(self.tokens), variant, None
        self.past, self.searched, self.filled, self.embedded = None, -1, 0, False
        self.prefill_started = self.prefilled = 0.0
        self.units = None if self.units is None else units_of(self.prompt, variant)

    def sequences(self, likely: bool = False) -> list[int]:
        """Cache positions that it may come to need, for each of its sequences: one a beam, and its negative prompt.
        likely: of an answer that may be very long `ROOM` tokens, or twice what it has."""
        max_tokens = self.sampling.max_tokens
        if likely:
            max_tokens = min(max_tokens, max(ROOM, 2 * len(self.tokens)))
        beams = self.request.beams.count if self.request.beams else 1
        max_tokens -= self.carried
        return [self.length + max_tokens] * beams + ([self.negative.length + max_tokens] if self.negative else [])

    @property
    def expected_positions(self) -> int:
        """What its cache has room for from the first on: the prompt, and an answer that is short beside it."""
        return self.length + min(self.sampling.max_tokens, max(STEP, self.length // 4))

    @property
    def computed(self) -> int:
        """Positions of the prompt whose keys and values it begins with."""
        return self.past.length if self.past else 0

    @property
    def media(self) -> tuple[Media, ...]:
        """Those of its prompt that are to be encoded, then those of its negative prompt."""
        later = tuple(media for media in self.prompt.media if media.spans[0][0] >= self.computed)
        return later + (self.negative.prompt.media if self.negative else ())

    @property
    def packs(self) -> bool:
        """Whether its prompt can be computed together with others: not one that is under way, whose past is given, or
        that has a negative prompt beside it."""
        return not (self.filled > self.computed or self.request.past or self.negative)

    @property
    def pack_key(self) -> Hashable:
        """Rows that are equal in this can be prefilled together: they begin with the same."""
        return self.batch_key, self.past.key if isinstance(self.past, Prefix) else None

    @property
    def stops_to_share(self) -> bool:
        """Whether what it computes can be used by others only as it is when they part."""
        return self.prefixes is not None and not self.prefixes.at_any_length(self.request.kv)

    def read_units(self) -> None:
        """Of a prompt that was read, what it is found by; its pictures are hashed."""
        request = self.request
        if self.prefixes and not (request.past or request.guidance or self.runs_alone):
            self.units = units_of(self.prompt, self.variant)
            self.prefixes.read_ahead(self.prompt, self.units, request.kv)

    def search(self) -> None:
        """Begin with the longest prefix that is known by now, where nothing was computed yet."""
        if self.units is None or self.prefixes is None or self.embedded or self.error:
            return
        if self.searched == self.prefixes.cache.version:
            return
        self.searched = self.prefixes.cache.version
        self.past = self.prefixes.find(self.prompt, self.units, self.request.kv)
        self.filled = self.computed

    def share(self, cache: Cache, place: int, count: int) -> None:
        """Store the first `count` positions of its prompt, which a cache holds at `place`, for those that wait."""
        if count and self.units is not None and self.prefixes is not None:
            self.prefixes.store(self.units[:count], self.request.kv, cache, place)

    def store(self, cache: Cache, place: int, tokens: int = 0, states: Any = None) -> None:
        """Store what a cache holds of it at `place`: its prompt, and so many tokens; nothing where only what rows
        inside share is stored. states: see `Prefixes.store`."""
        if self.units is not None and self.prefixes is not None and self.prefixes.all_rows:
            units = np.concatenate([self.units, token_units(self.tokens[self.carried : tokens], self.variant)])
            self.prefixes.store(units, self.request.kv, cache, place, states)

    @property
    def is_plain(self) -> bool:
        """Whether it is read in no time: its prompt is ready, no form has to be compiled and no file searched."""
        files = self.prefixes is not None and self.prefixes.cache.on_disk
        return isinstance(self.request.prompt, Prompt) and self.sampling.form is None and not files

    @property
    def begun(self) -> bool:
        """Whether something was computed for it."""
        return self.encode_time > 0 or self.prefill_started > 0

    def is_slow(self, now: float, patience: float) -> bool:
        """Whether it is still being read after so many seconds."""
        return 0 < self.reading_since <= now - patience

    @property
    def deadline(self) -> float | None:
        """When its time is up."""
        return None if self.sampling.max_time is None else self.arrived + self.sampling.max_time

    @property
    def timed_out(self) -> bool:
        return self.deadline is not None and time.perf_counter() >= self.deadline

    @property
    def over(self) -> bool:
        return (self.positive or self).finish_reason is not None

    @property
    def goes_on(self) -> bool:
        """Whether it decodes on, in its batch."""
        return not (self.over or self.outgrown)

    def record(self, token: int) -> None:
        """A token that was drawn for this row and read."""
        self.tokens.append(token)
        if self.constraint:
            self.constraint.add(token)
        if self.thinking:
            self.thinking.add(token)

    def recent(self, size: int | None) -> list[int]:
        """The last `size` tokens of prompt and text (None: all). Placeholders of media are no tokens that appeared."""
        if size is None:
            return [*self.text_tokens, *self.tokens]
        lacking = max(0, size - len(self.tokens))
        text = self.text_tokens[-lacking:] if lacking else []
        return [*text, *self.tokens[len(self.tokens) - (size - lacking) :]]

    @property
    def needs_token(self) -> bool:
        """Whether the next token of this row can be drawn only when its last one is read: it runs the user's code,
        which must not see a token that is thrown away later, or that token decides what the next one may be."""
        observed = self.sampling.calls_user or self.request.trace is not None
        thinking = self.thinking
        waits = thinking is not None and thinking.undecided and thinking.decider is None
        return observed or self.constraint is not None or waits

    @property
    def runs_alone(self) -> bool:
        return self.request.trace is not None and self.request.trace.alone

    @property
    def batch_key(self) -> Hashable:
        """Rows that are equal in this run together: their caches are alike, they step in the same way, and the model
        computes them alike."""
        alone = self.id if self.runs_alone else None
        request = self.request
        return request.kv, request.beams is not None, request.drafter is not None, self.variant, alone

    def capture(self) -> Capture | None:
        """What the next forward of this row shows, where its request wants to see it: it then runs alone."""
        return self.request.trace.capture() if self.request.trace else None

    @property
    def last_token_due(self) -> bool:
        """Whether the token now being computed is the last one, of the row or in its batch, known in advance."""
        if self.positive:
            return self.positive.last_token_due
        outgrown = self.reach is not None and self.positions + 1 > self.reach
        return self.cancelled or outgrown or len(self.tokens) + 1 >= self.sampling.max_tokens


@dataclass(eq=False)
class Encoded:
    """A row's prompt from encoding to the end of its prefill. inputs: without what `past` holds. cache: of the
    positions that are filled; None before the first. logits: (1, V) at the last of them."""

    row: Row
    inputs: Embedded
    cache: list[Any] | None = None
    logits: mx.array | None = None


def fresh_seed(sampling: SamplingParams) -> int:
    """The row's seed: the requested one, or a random one."""
    return random.getrandbits(63) if sampling.seed is None else sampling.seed
