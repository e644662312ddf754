"""From what was asked to what a forward takes: prompts read and checked, media encoded."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from .._runtime import mx
from ..errors import PromptError
from ..inputs.prompt import Media, MediaInputs
from ..models.base import Features, Model
from . import cache as kv
from . import prefill
from .kv_settings import KVSettings
from .request import Row
from .thinking import Marks, Thinking


class Intake:
    """Fills rows. vision_batch: pixel values that go through the vision tower at once; group: whether pictures of equal
    shape are brought together for it."""

    def __init__(self, model: Model, processor: Any, vision_batch: int, group: bool):
        self._model, self._processor = model, processor
        self._vision_batch, self._group = vision_batch, group
        self._end_tokens = end_tokens(model, processor)
        self._possible = {KVSettings()}  # caches that this model is known to work with

    def read(self, row: Row) -> None:
        """The row's prompt, media and ends. Raises what is wrong with the request."""
        request = row.request
        media = request.media
        assert isinstance(media, MediaInputs)
        row.prompt = self._processor.prepare(
            request.prompt, media, enable_thinking=request.enable_thinking, **request.template_kwargs
        )
        self._check_length(row)
        if request.kv not in self._possible:
            kv.check(self._model, request.kv)
            self._possible.add(request.kv)
        request.kv.check_spans(row.prompt.two_way)
        row.unquantized_layers = len(kv.unquantized(self._model.cache_layout(), request.kv))
        row.end_tokens = self._end_tokens | self._token_ids(request.sampling.eos_tokens)
        row.thinking = self._thinking(row)

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
        assert row.prompt
        return Thinking(marks, row.prompt.tokens.tolist(), sampling.thinking_budget)

    def _token_ids(self, tokens: Sequence[str | int]) -> frozenset[int]:
        """Ids of `eos_tokens`; a string must be one token of the vocabulary."""
        ids = set()
        for token in tokens:
            pieces = (
                [token] if isinstance(token, int) else self._processor.tokenizer.encode(token, add_special_tokens=False)
            )
            if len(pieces) != 1:
                raise PromptError(
                    f"eos_tokens: {token!r} is {len(pieces)} tokens of this model, not one: give it as stop="
                )
            ids |= set(pieces)
        return frozenset(ids)

    def _check_length(self, row: Row) -> None:
        config = self._model.config
        most = config.get("text_config", config).get("max_position_embeddings")
        if row.length == 0:
            raise PromptError("the prompt is empty: give some text or a picture")
        if most and row.length > most:
            raise PromptError(
                f"the prompt has {row.length} tokens and the model has {most} positions: "
                "shorten it, give fewer or smaller pictures (max_pixels), or fewer frames (max_frames)"
            )

    def encode(self, rows: Sequence[Row]) -> None:
        """Features of all media of these rows, equal shapes together; then each row's embeddings, and its pixels are
        let go. A row whose media fail gets an error and keeps them: it may only have lacked memory."""
        owners: list[Row] = []
        media: list[Media] = []
        for row in rows:
            assert row.prompt
            owners += [row] * len(row.prompt.media)
            media += row.prompt.media
        features: dict[int, Features] = {}
        groups = deque(prefill.encoding_groups(media, self._vision_batch, self._group))
        while groups:
            group, begun = groups.popleft(), time.perf_counter()
            try:
                made = self._model.encode([media[i] for i in group])
                mx.eval([[f.embeds, *f.deepstack] for f in made])
            except Exception as error:
                if len(group) > 1:  # one by one, to see whose fault it is
                    groups.extend([i] for i in group)
                else:
                    owners[group[0]].error = error
                continue
            features |= zip(group, made, strict=True)
            for i in group:
                owners[i].encode_time += (time.perf_counter() - begun) / len(group)
        places = iter(range(len(media)))
        for row in rows:
            assert row.prompt
            own = [next(places) for _ in row.prompt.media]
            if row.error:
                continue
            try:
                row.inputs = self._model.embed(row.prompt, [features[i] for i in own])
            except Exception as error:
                row.error = error
                continue
            row.delta = int(row.inputs.delta)
            row.prompt = row.prompt.without_pixels()


def end_tokens(model: Model, processor: Any) -> frozenset[int]:
    """The model's own end tokens: of generation_config.json, else of config.json, and the tokenizer's."""
    ids: set[int] = set()
    for named in (
        model.generation_config.get("eos_token_id", model.config.get("eos_token_id")),
        processor.tokenizer.eos_token_id,
    ):
        ids |= set() if named is None else {named} if isinstance(named, int) else set(named)
    return frozenset(ids)
