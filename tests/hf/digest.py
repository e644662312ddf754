"""What is stored of large outputs, and where references lie; for both sides, so without torch and MLX."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from parity.weights import projection

REFERENCE = Path(__file__).parent / "reference"
STORED_STEPS = 4
"""Of scores and logits."""
BEYOND = 1e30
"""Scores of tokens that are ruled out, or forced, are infinite or the largest float32."""


def lengths(new: Sequence[Sequence[int]], ends: Sequence[int]) -> list[int]:
    """How many tokens each row generated, its end token counted and padding not."""
    return [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in new]


def scores(steps: Sequence[np.ndarray], lengths: Sequence[int] | None = None) -> np.ndarray:
    """Of each step's (rows, V): (steps, rows, 11), eight projections of ordinary values, and how many are minus
    infinity, nearly so, or beyond on the other side.

    lengths: how many tokens each row generated; after that its values are 0
    """
    projected = np.stack([_of_scores(np.asarray(step, np.float64)) for step in steps[:STORED_STEPS]])
    if lengths is not None:
        projected[np.arange(len(projected))[:, None] >= np.asarray(lengths)] = 0
    return projected


def _of_scores(values: np.ndarray) -> np.ndarray:
    beyond = [values == -np.inf, (values < -BEYOND) & np.isfinite(values), values > BEYOND]
    assert not np.isnan(values).any(), "no score is NaN"
    ordinary = np.where(np.any(beyond, axis=0), 0.0, values) @ projection(values.shape[-1])
    return np.concatenate([ordinary, np.sum(beyond, axis=-1).T], axis=-1).astype(np.float32)


def hidden_states(steps: Sequence[Sequence[np.ndarray]], mask: np.ndarray) -> np.ndarray:
    """Of (B, L, d) of each step and layer, one vector: the last position whole, and two projections of every position
    that `mask` (B, width of the prompt) does not hide."""
    parts = []
    for step, layers in enumerate(steps):
        for states in layers:
            states = np.asarray(states, np.float64)
            for row, row_mask in zip(states, _grown(mask, step)[:, -states.shape[1] :], strict=True):
                parts += [row[-1], row[row_mask] @ projection(row.shape[-1])[:, :2]]
    return _flat(parts)


def attentions(steps: Sequence[Sequence[np.ndarray]], mask: np.ndarray) -> np.ndarray:
    """Of (B, heads, queries, keys) of each step and layer, one vector: the last query's whole, and two projections of
    every query's, both over positions that `mask` does not hide; keys are the last ones."""
    parts = []
    for step, layers in enumerate(steps):
        for weights in layers:
            weights = np.asarray(weights, np.float64)
            grown = _grown(mask, step)
            queries, keys = grown[:, -weights.shape[2] :], grown[:, -weights.shape[3] :]
            for row, query, key in zip(weights, queries, keys, strict=True):
                unpadded = row[:, query][:, :, key]  # (heads, queries, keys)
                parts += [unpadded[:, -1], unpadded @ projection(unpadded.shape[-1])[:, :2]]
    return _flat(parts)


def _grown(mask: np.ndarray, step: int) -> np.ndarray:
    """The mask with the tokens of `step` steps, bool."""
    return np.pad(mask.astype(bool), ((0, 0), (0, step)), constant_values=True)


def _flat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)
