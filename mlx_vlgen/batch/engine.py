"""Rows of a job through the token iterator."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..engine.iterator import TokenIterator
from ..generate import make_drafter, make_request
from ..inputs.media import load_image
from ..inputs.prompt import Media, MediaInputs, Prompt
from ..models.base import Model
from ..options import group_keywords
from ..results import GenerationResult
from .rows import MediaGroup, Row


@dataclass
class _Shared:
    """The media of rows that ask several prompts about them. images: decoded; media: processed, by the first row."""

    group: MediaGroup | None = None
    images: tuple[Any, ...] = ()
    media: tuple[Media, ...] = ()


class ModelEngine:
    """A model behind one token iterator. keywords: of the job, by name. reuse: whether what rows begin alike with is
    computed once."""

    def __init__(self, model: Model, processor: Any, keywords: dict[str, Any], max_batch_size: int, reuse: bool):
        groups = group_keywords(keywords)
        self._model, self._processor, self._shared = model, processor, _Shared()
        self._drafter = make_drafter(processor, **groups["draft"])
        settings: dict[str, Any] = {"max_batch_size": max_batch_size, "reuse": reuse}
        self._iterator = TokenIterator(model, processor, **settings, **groups["engine"])

    def add(self, row: Row, keywords: dict[str, Any]) -> int:
        """Queue a row. Raises what is wrong with its keywords."""
        groups = group_keywords(keywords)
        # TypeError, ValueError and UnsupportedError are the row's, as those of `generate`.
        request = make_request(self._model, row.messages, list(row.images), list(row.videos), groups)
        request = replace(request, drafter=self._drafter)
        if row.media_group is not None:
            media: MediaInputs = request.media
            prompt = self._prepare(row, media, groups["template"])
            request = replace(request, prompt=prompt, media=None)
        return self._iterator.add(request)

    def _prepare(self, row: Row, media: MediaInputs, template: dict[str, Any]) -> Prompt:
        """The row's prompt. Its pictures are decoded once for all rows of its group, and rows whose processed media are
        equal share them, so that they are encoded once."""
        if self._shared.group is not row.media_group:
            self._shared = _Shared(row.media_group, tuple(map(load_image, row.images)))
        prompt: Prompt = self._processor.prepare(row.messages, replace(media, images=self._shared.images), **template)
        if all(map(_equal, prompt.media, self._shared.media)) and len(prompt.media) == len(self._shared.media):
            return replace(prompt, media=self._shared.media)
        self._shared.media = prompt.media
        return prompt

    def __iter__(self) -> Iterator[tuple[int, GenerationResult]]:
        return self._iterator

    def close(self) -> None:
        self._iterator.close()


def _equal(one: Media, other: Media) -> bool:
    facts = [(media.kind, media.grid, media.spans, media.size, media.seconds) for media in (one, other)]
    return facts[0] == facts[1] and np.array_equal(one.pixels, other.pixels)
