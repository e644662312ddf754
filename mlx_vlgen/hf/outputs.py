"""What `model.generate` returns where more than the token ids is asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine.modes import Past, Trace
from ..models.base import Capture

Steps = tuple[Any, ...]
"""One entry a generated token."""


@dataclass
class Output:
    """What transformers' outputs are: fields by name, by position, or as keys; those that were not
    asked for are None, and neither iterated nor counted."""

    def keys(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass
class CausalLMOutput(Output):
    """logits: (B, L, V)."""

    logits: mx.array


@dataclass
class GenerateOutput(Output):
    """transformers' GenerateDecoderOnlyOutput and GenerateBeamDecoderOnlyOutput.

    sequences: (rows, prompt + new) int32, where rows = batch * num_return_sequences. scores: for each step what tokens
    were drawn from, (rows, V), or (batch * beams, V). logits: the same as the model gave them. attentions: for each
    step one a layer, (rows, H, length, positions); the first is the prompt's. hidden_states: for each step the
    embeddings, then one a layer, (rows, length, d). What a row that has ended would have is 0, and so is padding.
    past_key_values: to go on from; not of a beam search, nor with an assistant. sequences_scores: (rows,), and
    beam_indices: (rows, new) int32, -1 after a row's end.
    """

    sequences: mx.array
    sequences_scores: mx.array | None = None
    scores: Steps | None = None
    logits: Steps | None = None
    beam_indices: mx.array | None = None
    attentions: Steps | None = None
    hidden_states: Steps | None = None
    past_key_values: "PastKeyValues | None" = None


@dataclass
class PastKeyValues:
    """Keys and values of the rows of one `generate`, for the next one, whose prompts begin with the same tokens.
    tokens: those of each row that they hold. They are not changed by being used."""

    rows: list[Past]
    tokens: list[list[int]]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions of the longest row."""
        return max(past.length for past in self.rows)


def steps_of(rows: Sequence[Sequence[mx.array]]) -> Steps:
    """Of each row one (V,) a step, or (beams, V) -> for each step all rows', (rows, V); 0 after a row's end."""
    longest = max(map(len, rows))
    nothing = mx.zeros_like(rows[0][0])
    made = [[row[step] if step < len(row) else nothing for row in rows] for step in range(longest)]
    join = mx.concatenate if nothing.ndim > 1 else mx.stack
    return tuple(join(step).astype(mx.float32) for step in made)


def hidden_states_of(traces: Sequence[Trace], norm: Any, width: int) -> Steps:
    """width: of the padded prompt."""

    def shown(capture: Capture) -> list[mx.array]:
        return [*capture.hidden_states[:-1], norm(capture.hidden_states[-1])]

    def padded(state: mx.array, step: int) -> mx.array:
        return mx.pad(state, [(0, 0), (width - state.shape[1], 0), (0, 0)]) if step == 0 else state

    return _steps([[shown(capture) for capture in trace.captures] for trace in traces], padded)


def attentions_of(traces: Sequence[Trace], width: int) -> Steps:
    def padded(weights: mx.array, step: int) -> mx.array:
        before = width + step - weights.shape[3]
        return mx.pad(weights, [(0, 0), (0, 0), (before if step == 0 else 0, 0), (before, 0)])

    return _steps([[capture.weights for capture in trace.captures] for trace in traces], padded)


def _steps(rows: Sequence[Sequence[Sequence[mx.array]]], padded: Any) -> Steps:
    """rows[row][step][layer], of one or several beams each -> [step][layer] of all rows."""
    longest = max(map(len, rows))
    beams = [row[-1][0].shape[0] for row in rows]

    def of(row: int, step: int, layer: int) -> mx.array:
        if step >= len(rows[row]):
            like = next(other[step][layer] for other in rows if step < len(other))
            return padded(mx.zeros((beams[row], *like.shape[1:])), step)
        own = padded(rows[row][step][layer], step)
        return mx.repeat(own, beams[row], axis=0) if len(own) != beams[row] else own

    return tuple(
        tuple(mx.concatenate([of(row, step, layer) for row in range(len(rows))]) for layer in range(len(rows[0][0])))
        for step in range(longest)
    )


def compute_transition_scores(
    sequences: mx.array,
    scores: Steps,
    beam_indices: mx.array | None = None,
    normalize_logits: bool = False,
) -> mx.array:
    """The score of each generated token, (rows, new): of `scores` as `generate` returns them, along the beams where it
    searched. normalize_logits: as log-probabilities. After a beam's end 0."""
    stacked = np.stack([np.array(step) for step in scores])  # (steps, rows or batch * beams, V)
    if normalize_logits:
        highest = stacked.max(axis=-1, keepdims=True)
        stacked = stacked - highest - np.log(np.exp(stacked - highest).sum(axis=-1, keepdims=True))
    count = len(sequences)
    if beam_indices is None:
        places = np.broadcast_to(np.arange(count)[:, None], (count, len(stacked)))
    else:
        places = np.array(beam_indices)
    tokens = np.array(sequences)[:, np.shape(sequences)[1] - (places.shape[1]) :]
    steps = np.arange(places.shape[1])
    found = stacked[steps, np.maximum(places, 0), tokens]
    return mx.array(np.where(places < 0, 0.0, found))
