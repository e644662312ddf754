"""From a request to the inputs of a forward: prompts are read and checked, media encoded."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from .._runtime import mx
from ..errors import PromptError, UnsupportedError
from ..inputs.prompt import Media, Prompt
from ..models.base import Embedded, Features, Model
from . import cache as kv
from .kv_settings import KVSettings
from .modes import Guidance
from .params import SamplingParams
from .request import Encoded, Request, Row
from .scheduling import encoding_groups
from .structured import Constraint, Forms
from .text import TextStream
from .thinking import Marks, Thinking
from .token_ids import check_ids, check_prompt, ids_of_file


class Intake:
    """Reads requests into rows. vision_batch: pixel values that go through the vision tower at once; group: whether
    pictures of equal shape are brought together for it."""

    def __init__(self, model: Model, processor: Any, vision_batch: int, group: bool):
        self._model, self._processor = model, processor
        self._vision_batch, self._group = vision_batch, group
        self._vocab_size = model.vocab_size
        self._end_tokens = end_tokens(model, processor)
        self._possible = {KVSettings()}  # caches that this model is known to work with

    def read(self, row: Row) -> None:
        """The row's prompt, media and ends. Raises what is wrong with the request."""
        request, sampling = row.request, row.sampling
        row.text = TextStream(self._processor.tokenizer, sampling.stop, sampling.skip_special_tokens)
        if isinstance(request.prompt, Prompt):
            row.prompt = request.prompt
        else:
            row.prompt = self._processor.prepare(
                request.prompt, request.media, enable_thinking=request.enable_thinking, **request.template_kwargs
            )
        self._check_tokens(row)
        self._check_length(row)
        if request.kv not in self._possible:
            kv.check(self._model, request.kv)
            self._possible.add(request.kv)
        request.kv.check_spans(row.prompt.two_way)
        row.unquantized_layers = len(kv.unquantized(self._model.cache_layout(), request.kv))
        end_tokens = self._end_tokens if request.end_tokens is None else request.end_tokens
        row.end_tokens = end_tokens | self._token_ids(request.sampling.eos_tokens)
        _check_together(request)
        row.thinking = self._thinking(row)
        row.constraint = self._constraint(row)
        if request.drafter is not None:
            self._check_rollback(request.kv)
            row.drafter = request.drafter()
            row.drafter.read(row.prompt)
        if request.guidance is not None:
            row.negative = self._negative(row, request.guidance)

    def _check_tokens(self, row: Row) -> None:
        """Every id of the request reaches MLX through here."""
        request, size = row.request, self._vocab_size
        check_prompt("prompt", row.prompt, size)
        check_ids("logit_bias", request.sampling.logit_bias, size)
        check_ids("end_tokens", request.end_tokens or (), size)
        if request.guidance is not None:
            check_prompt("negative_prompt_ids", request.guidance.negative, size)
        if request.past is not None and request.past.length >= row.length:
            raise PromptError(
                f"past: it holds {request.past.length} positions and the prompt has {row.length}: the prompt must "
                "begin with what it holds, and go on"
            )

    def _check_rollback(self, settings: KVSettings) -> None:
        if not kv.can_roll_back(self._model.cache_layout(), settings):
            why = "a bounded cache (max_kv_size)" if settings.max_size else "this model's recurrent layers"
            raise UnsupportedError(
                f"speculative decoding: {why} cannot forget a wrong guess; leave the draft model or prompt_lookup out"
            )

    def _negative(self, row: Row, guidance: Guidance) -> Row:
        """The row of its negative prompt."""
        sampling = SamplingParams(max_tokens=row.sampling.max_tokens)
        request = Request(guidance.negative, sampling=sampling, kv=row.request.kv)
        negative = Row(row.id, request, row.text, row.seed, prompt=guidance.negative, positive=row)
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
            raise PromptError(
                f"the prompt has {row.length} tokens and the model has {max_positions} positions: "
                "shorten it, give fewer or smaller pictures (max_pixels), or fewer frames (max_frames)"
            )

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Features of all media of these rows, equal shapes together; then each row's embeddings, and its pixels are
        let go. A row whose media fail is left out, gets an error and keeps them: it may only have lacked memory."""
        features = self._encode_media([*rows, *(row.negative for row in rows if row.negative)])
        encoded = []
        for row in rows:
            parts = [row, row.negative] if row.negative else [row]
            if row.error:
                continue
            try:
                inputs = [self._embed(part, [features[id(medium)] for medium in part.prompt.media]) for part in parts]
                deltas = [int(part.delta) for part in inputs]
            except Exception as error:
                row.error = error
                continue
            for part, delta in zip(parts, deltas, strict=True):
                part.delta, part.prompt = delta, part.prompt.without_pixels()
            encoded.append(Encoded(row, *inputs))
        return encoded

    def _encode_media(self, rows: Sequence[Row]) -> dict[int, Features]:
        """Features by the identity of a medium, which several rows of one prompt share."""
        owners: dict[int, list[Row]] = {}
        known: dict[int, Media] = {}
        for row in rows:
            for medium in row.prompt.media:
                owners.setdefault(id(medium), []).append(row)
                known[id(medium)] = medium
        media, sharing = list(known.values()), list(owners.values())
        features: dict[int, Features] = {}
        groups = deque(encoding_groups(media, self._vision_batch, self._group))
        while groups:
            group, begun = groups.popleft(), time.perf_counter()
            try:
                encoded = self._model.encode([media[i] for i in group])
                mx.eval([[f.embeds, *f.deepstack] for f in encoded])
                features |= zip((id(media[i]) for i in group), encoded, strict=True)
            except Exception as error:
                if len(group) > 1:  # one by one, to find the one at fault
                    groups.extend([i] for i in group)
                else:
                    for row in sharing[group[0]]:
                        (row.positive or row).error = error
                continue
            for i in group:
                for row in sharing[i]:
                    row.encode_time += (time.perf_counter() - begun) / len(group) / len(sharing[i])
        return features

    def _embed(self, row: Row, features: Sequence[Features]) -> Embedded:
        """The prompt's embeddings, or those after its past, whose rotary positions go on from it."""
        past = row.request.past
        if past is None:
            return self._model.embed(row.prompt, features)
        inputs = self._model.embed(row.prompt.after(past.length), features)
        inputs.delta = inputs.delta + past.delta
        if inputs.positions is not None:
            inputs.positions = inputs.positions + (past.length + past.delta)
        return inputs


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
