"""Rows of a job through the token iterator."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..engine.iterator import TokenIterator
from ..generate import make_drafter, make_request
from ..inputs.kinds import KINDS, Kind
from ..models.base import Model
from ..options import group_keywords
from ..results import GenerationResult
from .rows import Row


class ModelEngine:
    """A model behind one token iterator. keywords: of the job, by name. reuse: whether what rows begin alike with is
    computed once."""

    def __init__(self, model: Model, processor: Any, keywords: dict[str, Any], max_batch_size: int, reuse: bool):
        groups = group_keywords(keywords)
        self._model = model
        self._drafter = make_drafter(processor, **groups["draft"])
        settings: dict[str, Any] = {"max_batch_size": max_batch_size, "reuse": reuse}
        self._iterator = TokenIterator(model, processor, **settings, **groups["engine"])

    def add(self, row: Row, keywords: dict[str, Any]) -> int:
        """Queue a row. Raises what is wrong with its keywords."""
        groups = group_keywords(keywords)
        # TypeError, ValueError and UnsupportedError are the row's, as those of `generate`.
        media: dict[Kind, Any] = {kind: list(getattr(row, record.plural)) for kind, record in KINDS.items()}
        request = make_request(self._model, row.messages, media, groups)
        return self._iterator.add(replace(request, drafter=self._drafter))

    def __iter__(self) -> Iterator[tuple[int, GenerationResult]]:
        return self._iterator

    def close(self) -> None:
        self._iterator.close()


def config_digest(model: Model) -> str:
    """What tells a model from another, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(model.config, sort_keys=True, default=str).encode()).hexdigest()[:32]
