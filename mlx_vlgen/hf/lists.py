"""transformers' lists of functions for `generate`, without torch."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._runtime import mx


class LogitsProcessorList(list[Callable[..., mx.array]]):
    """Logits processors that can be called as one: each on the scores of the one before it."""

    def __call__(self, input_ids: mx.array, scores: mx.array, **kwargs: Any) -> mx.array:
        """input_ids (rows, n), scores (rows, V) -> scores (rows, V)."""
        for processor in self:
            scores = processor(input_ids, scores, **kwargs)
        return scores


class StoppingCriteriaList(list[Callable[..., Any]]):
    """Stopping criteria that can be called as one: a row ends where any of them says so."""

    def __call__(self, input_ids: mx.array, scores: mx.array | None, **kwargs: Any) -> mx.array:
        """input_ids (rows, n) -> (rows,) bool. A criterion may answer for each row, or once for all."""
        is_met = np.zeros(len(input_ids), dtype=bool)
        for criterion in self:
            is_met |= np.asarray(criterion(input_ids, scores, **kwargs), dtype=bool)
        return mx.array(is_met)
