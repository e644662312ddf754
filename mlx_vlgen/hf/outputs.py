"""What `model.generate` returns with return_dict_in_generate, and `model(**inputs)`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine.modes import Past, Trace
from ..models.base import Capture

Steps = tuple[Any, ...]
"""One item a generated token."""


@dataclass
class Output:
    """Fields by name, by position, or as keys, as transformers' ModelOutput has them; those that are None are not
    iterated or counted."""

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
    """What `model(**inputs)` returns."""

    logits: mx.array  # (B, L, V)


@dataclass
class GenerateOutput(Output):
    """transformers' GenerateDecoderOnlyOutput and GenerateBeamDecoderOnlyOutput.

    rows = batch * num_return_sequences; batch * beams in scores, logits and the layers of a beam search. Values are 0
    for padding, and for a row after its end.
    """

    sequences: mx.array  # (rows, prompt + new) int32
    sequences_scores: mx.array | None = None  # (rows,), of a beam search
    scores: Steps | None = None  # (rows, V) a step: what tokens were drawn from
    logits: Steps | None = None  # (rows, V) a step: the model's
    beam_indices: mx.array | None = None  # (rows, new) int32, of a beam search; -1 after a row's end
    attentions: Steps | None = None  # a step, then a layer: (rows, H, queries, keys); the first step is the prompt's
    hidden_states: Steps | None = None  # a step, then embeddings and a layer: (rows, queries, d)
    past_key_values: "PastKeyValues | None" = None  # to go on from; not of a beam search, nor with an assistant


@dataclass
class PastKeyValues:
    """Keys and values of the rows of one `generate`, for the next one, whose prompts begin with the same tokens. Using
    them changes nothing in them."""

    rows: list[Past]
    tokens: list[list[int]]  # of each row, those whose keys and values it has

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions of the longest row."""
        return max(past.length for past in self.rows)


def steps_of(rows: Sequence[Sequence[mx.array]]) -> Steps:
    """rows[row][step], (V,) or (beams, V) -> [step] of all rows, (rows, V); 0 after a row's end."""
    num_steps = max(map(len, rows))
    ended = mx.zeros_like(rows[0][0])
    steps = [[row[step] if step < len(row) else ended for row in rows] for step in range(num_steps)]
    join = mx.concatenate if ended.ndim > 1 else mx.stack
    return tuple(join(step).astype(mx.float32) for step in steps)


def hidden_states_of(traces: Sequence[Trace], norm: Any, width: int) -> Steps:
    """For each step the embeddings, then one a layer, (rows, queries, d); the last one after `norm`.

    width: of the padded prompt
    """

    def layers(capture: Capture) -> list[mx.array]:
        return [*capture.hidden_states[:-1], norm(capture.hidden_states[-1])]

    def pad(state: mx.array, step: int) -> mx.array:
        return mx.pad(state, [(0, 0), (width - state.shape[1], 0), (0, 0)]) if step == 0 else state

    return _layers_of([[layers(capture) for capture in trace.captures] for trace in traces], pad)


def attentions_of(traces: Sequence[Trace], width: int) -> Steps:
    """For each step one a layer, (rows, H, queries, keys).

    width: of the padded prompt
    """

    def pad(weights: mx.array, step: int) -> mx.array:
        padding = width + step - weights.shape[3]
        return mx.pad(weights, [(0, 0), (0, 0), (padding if step == 0 else 0, 0), (padding, 0)])

    return _layers_of([[capture.weights for capture in trace.captures] for trace in traces], pad)


def _layers_of(rows: Sequence[Sequence[Sequence[mx.array]]], pad: Callable[[mx.array, int], mx.array]) -> Steps:
    """rows[row][step][layer], (1 or beams, …) -> [step][layer] of all rows; 0 after a row's end.

    pad: pads a layer of a step on the left
    """
    num_steps = max(map(len, rows))
    num_beams = [row[-1][0].shape[0] for row in rows]

    def layer_of(row: int, step: int, layer: int) -> mx.array:
        if step >= len(rows[row]):
            running = next(other[step][layer] for other in rows if step < len(other))
            return pad(mx.zeros((num_beams[row], *running.shape[1:])), step)
        padded = pad(rows[row][step][layer], step)  # of the prompt once for all beams
        return mx.repeat(padded, num_beams[row], axis=0) if len(padded) != num_beams[row] else padded

    return tuple(
        tuple(
            mx.concatenate([layer_of(row, step, layer) for row in range(len(rows))]) for layer in range(len(rows[0][0]))
        )
        for step in range(num_steps)
    )


def compute_transition_scores(
    sequences: mx.array,
    scores: Steps,
    beam_indices: mx.array | None = None,
    normalize_logits: bool = False,
) -> mx.array:
    """The score of each generated token, (rows, new); 0 after a beam's end.

    sequences, scores, beam_indices: of a `GenerateOutput`; with beam_indices scores are those along the beams
    normalize_logits: give log-probabilities
    """
    stacked = np.stack([np.array(step) for step in scores])  # (steps, rows or batch * beams, V)
    if normalize_logits:
        highest = stacked.max(axis=-1, keepdims=True)
        stacked = stacked - highest - np.log(np.exp(stacked - highest).sum(axis=-1, keepdims=True))
    if beam_indices is None:
        rows = np.broadcast_to(np.arange(len(sequences))[:, None], (len(sequences), len(stacked)))
    else:
        rows = np.array(beam_indices)
    steps = np.arange(rows.shape[1])
    tokens = np.array(sequences)[:, np.shape(sequences)[1] - len(steps) :]
    return mx.array(np.where(rows < 0, 0.0, stacked[steps, np.maximum(rows, 0), tokens]))
