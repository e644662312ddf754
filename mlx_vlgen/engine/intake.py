"""From a request to a row: prompts, media, forms and settings are read and checked."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import PromptError, UnsupportedError
from ..inputs.prompt import Prompt
from ..models.base import CrossAttention, Model
from . import cache as kv
from .kv_settings import KVSettings
from .modes import Guidance
from .params import SamplingParams
from .request import Request, Row
from .structured import Constraint, Forms
from .text import TextStream
from .thinking import Marks, Thinking
from .token_ids import check_ids, check_prompt, ids_of_file


class Intake:
    """Reads requests into rows: `read` in any thread, then `check`, which uses MLX, in the one that iterates."""

    def __init__(self, model: Model, processor: Any):
        self._model, self._processor = model, processor
        self._layout = model.cache_layout()
        safe = getattr(processor, "thread_safe", False)
        self._one_by_one: AbstractContextManager[Any] = nullcontext() if safe else threading.Lock()
        self._vocab_size, self._rows = model.vocab_size, model.embedding_rows
        self._end_tokens = end_tokens(model, processor)
        self._possible = {KVSettings()}  # caches that this model is known to work with

    def read(self, row: Row) -> None:
        """The row's prompt, media, form and ends. Raises what is wrong with the request."""
        with self._one_by_one:
            self._read(row)

    def _read(self, row: Row) -> None:
        request, sampling = row.request, row.sampling
        row.text = TextStream(self._processor.tokenizer, sampling.stop, sampling.skip_special_tokens)
        if isinstance(request.prompt, Prompt):
            row.prompt = request.prompt
        else:
            cached = {"expansions": row.prefixes.cache.expansions} if row.prefixes else {}
            template = {"enable_thinking": request.enable_thinking, **request.template_kwargs}
            row.prompt = self._processor.prepare(request.prompt, request.media, **cached, **template)
        self._check_tokens(row)
        self._check_length(row)
        self._read_variant(row)
        if not any(isinstance(kind, CrossAttention) for kind in self._layout):  # whose spans only wait for pictures
            request.kv.check_spans(row.prompt.two_way)
        row.unquantized_layers = len(kv.unquantized(self._layout, request.kv))
        row.past = request.past
        row.filled = row.computed
        end_tokens = self._end_tokens if request.end_tokens is None else request.end_tokens
        row.end_tokens = end_tokens | self._token_ids(request.sampling.eos_tokens)
        _check_together(request)
        row.thinking = self._thinking(row)
        row.constraint = self._constraint(row)
        if request.drafter is not None:
            self._check_rollback(request.kv)
        if request.guidance is not None:
            row.negative = self._negative(row, request.guidance)
        row.read_units()

    def check(self, row: Row) -> None:
        """What of a row that was read concerns MLX: its cache, and the drafter. Raises what is wrong with it."""
        request = row.request
        if request.kv not in self._possible:
            kv.check(self._model, request.kv)
            self._possible.add(request.kv)
        if request.drafter is not None:
            row.drafter = request.drafter()
            row.drafter.read(row.prompt)

    def begin_again(self, rows: Sequence[Row]) -> list[Row]:
        """Rows that outgrew the way in which they were computed, and go on."""
        rows = [row for row in rows if not row.over]
        for row in rows:
            row.begin_again(self._model.variant(replace(row.prompt, tokens=np.zeros(row.positions, np.int32))))
        return rows

    def _check_tokens(self, row: Row) -> None:
        """Every id of the request reaches MLX through here."""
        request, size = row.request, self._vocab_size
        check_prompt("prompt", row.prompt, size, self._rows)
        check_ids("logit_bias", request.sampling.logit_bias, size)
        check_ids("end_tokens", request.end_tokens or (), size)
        if request.guidance is not None:
            check_prompt("negative_prompt_ids", request.guidance.negative, size, self._rows)
        if request.past is not None and request.past.length >= row.length:
            raise PromptError(
                f"past: it holds {request.past.length} positions and the prompt has {row.length}: the prompt must "
                "begin with what it holds, and go on"
            )

    def _read_variant(self, row: Row) -> None:
        """How the row is computed, and where it ends for that reason."""
        request, row.variant = row.request, self._model.variant(row.prompt)
        if request.past and not row.prompt.media:
            row.variant = request.past.variant
        reach = self._model.reach(row.variant)
        if request.past and (request.past.variant != row.variant or (reach is not None and row.length > reach)):
            raise PromptError(
                "past: this model computes what it holds in another way than this prompt, which is longer or has media "
                "of another kind: leave the past out and give the whole prompt"
            )
        if reach is not None and row.length + row.sampling.max_tokens > reach + 1:
            row.reach, room = reach, reach + 1 - row.length  # the last token is never read
            if not row.can_begin_again:
                row.request = replace(request, sampling=replace(row.sampling, max_tokens=room))

    def _check_rollback(self, settings: KVSettings) -> None:
        if not kv.can_roll_back(self._layout, settings):
            why = "a bounded cache (max_kv_size)" if settings.max_size else "this model's recurrent layers"
            raise UnsupportedError(
                f"speculative decoding: {why} cannot forget a wrong guess; leave the draft model or prompt_lookup out"
            )

    def _negative(self, row: Row, guidance: Guidance) -> Row:
        """The row of its negative prompt."""
        sampling = SamplingParams(max_tokens=row.sampling.max_tokens)
        request = Request(guidance.negative, sampling=sampling, kv=row.request.kv)
        negative = Row(row.id, request, row.text, row.seed, prompt=guidance.negative, positive=row, variant=row.variant)
        self._check_length(negative)
        return negative

    def _thinking(self, row: Row) -> Thinking | None:
        sampling = row.sampling
        tokenizer, start, end = self._processor.tokenizer, sampling.thinking_start_token, sampling.thinking_end_token
        marks = Marks.of(tokenizer, start, end)
        if marks is None:
            if sampling.thinking_budget is not None:
                raise PromptError(
                    "thinking_budget: this model has no <think> and </think>; leave it out, or give the strings that "
                    "it thinks between as thinking_start_token and thinking_end_token"
                )
            return None
        check_ids("thinking_start_token", marks.start, self._vocab_size)
        check_ids("thinking_end_token", marks.end, self._vocab_size)
        opening = row.prompt.tokens.tolist() if row.prompt.tail is None else row.prompt.tail
        return Thinking(marks, opening, sampling.thinking_budget)

    def _constraint(self, row: Row) -> Constraint | None:
        form = row.sampling.form
        if form is None:
            return None
        opening = row.thinking.marks.start if row.thinking and row.request.enable_thinking else ()
        return Constraint(Forms.of(self._processor.tokenizer).get(*form), row.end_tokens, row.thinking, opening)

    def _token_ids(self, tokens: Sequence[str | int]) -> frozenset[int]:
        """Ids of `eos_tokens`; a string must be one token of the vocabulary."""
        ids: list[Any] = []
        for token in tokens:
            pieces: list[Any] = [token]
            if isinstance(token, str):
                pieces = self._processor.tokenizer.encode(token, add_special_tokens=False)
            if len(pieces) != 1:
                raise PromptError(
                    f"eos_tokens: {token!r} is {len(pieces)} tokens of this model, not one: give it as stop="
                )
            ids += pieces
        check_ids("eos_tokens", ids, self._vocab_size)
        return frozenset(map(int, ids))

    def _check_length(self, row: Row) -> None:
        max_positions = self._model.max_positions
        if row.length == 0:
            raise PromptError("the prompt is empty: give some text or a picture")
        if max_positions and row.length > max_positions:
            shorter = " shorter audio clips," * any(medium.kind == "audio" for medium in row.media)
            raise PromptError(
                f"the prompt has {row.length} tokens and the model has {max_positions} positions: "
                f"shorten it, give fewer or smaller pictures (max_pixels),{shorter} or fewer frames (max_frames)"
            )


def _check_together(request: Request) -> None:
    """UnsupportedError for ways of decoding of which one cannot follow the other."""
    if request.past and request.past.kv != request.kv:
        raise UnsupportedError(
            "past_key_values: its cache is of another kind than kv_bits, kv_group_size, quantized_kv_start and "
            "max_kv_size ask for; give what the call that made it had"
        )
    sampling, drafts = request.sampling, "speculative decoding (an assistant, a draft model, prompt lookup)"
    guided = "guidance by a negative prompt"
    for one, requested, others in (
        ("beam search", request.beams, {
            drafts: request.drafter,
            guided: request.guidance,
            "thinking_budget": sampling.thinking_budget is not None,
            sampling.form[0] if sampling.form else "": sampling.form,
        }),
        (drafts, request.drafter, {guided: request.guidance}),
        ("attention weights", request.trace and request.trace.attentions, {
            "kv_bits or max_kv_size": request.kv != KVSettings(),
        }),
    ):  # fmt: skip
        for other, also in others.items():
            if requested and also:
                raise UnsupportedError(f"{one} does not go with {other}: leave one of them out")


def end_tokens(model: Model, processor: Any) -> frozenset[int]:
    """The model's end tokens: of generation_config.json, else of config.json, and the tokenizer's."""
    file = model.generation_config.get("eos_token_id", model.config.get("eos_token_id"))
    values = (file, processor.tokenizer.eos_token_id)
    return frozenset(token for ids in values for token in ids_of_file("eos_token_id", ids, model.vocab_size))
