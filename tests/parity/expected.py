"""What transformers made of each case, read from reference/."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .layouts import REFERENCE, read_json


@dataclass(frozen=True, eq=False)
class Pixels:
    """One picture or clip: levels (patches, channels, frames, size, size) uint8, mean and std per channel."""

    levels: np.ndarray
    grid: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray

    @property
    def normalised(self) -> np.ndarray:
        """What the vision tower takes: (patches, channels * frames * size * size) float32."""
        values = (self.levels / 255 - self.mean) / self.std
        return values.reshape(len(values), -1).astype(np.float32)

    def levels_of(self, normalised: np.ndarray) -> np.ndarray:
        """The inverse, in the shape of `levels`, not rounded."""
        return (normalised.astype(np.float64).reshape(self.levels.shape) * self.std + self.mean) * 255


@dataclass(frozen=True, eq=False)
class Expected:
    """One case. text: the formatted prompt; messages: what it was formatted from, or None.

    ids: (L,). last: (V,) logits of the last position. projected: (L, 8) logits of all, times weights.projection.
    std: the logits' spread. tokens: (steps,) greedy. steps: (steps, 8) their log-probabilities, projected.
    """

    name: str
    text: str
    messages: list[dict[str, Any]] | None
    images: Sequence[str]
    videos: Sequence[str]
    ids: np.ndarray
    last: np.ndarray
    projected: np.ndarray
    std: float
    tokens: np.ndarray
    steps: np.ndarray

    @property
    def tolerance(self) -> float:
        """How far logits may be from the reference's."""
        return 1e-4 * max(1.0, float(self.std))

    @property
    def prompt(self) -> list[dict[str, Any]] | str:
        """What a person gave."""
        return self.messages or self.text


@cache
def record(family: str) -> dict[str, Any]:
    """reference/<family>/cases.json."""
    return read_json(REFERENCE / family / "cases.json")


@cache
def case(family: str, name: str) -> Expected:
    """A case of a family."""
    with np.load(REFERENCE / family / "cases.npz") as file:
        arrays = {key: file[f"{name}.{key}"] for key in ("ids", "last", "projected", "std", "tokens", "steps")}
    return Expected(name=name, **record(family)["cases"][name], **arrays)


@cache
def pixels(family: str, name: str) -> Pixels:
    """A picture or clip as the family's processor reads it."""
    with np.load(REFERENCE / "processors" / record(family)["processor"] / "pixels.npz") as file:
        levels, grid, normal = (file[f"{name}.{key}"] for key in ("levels", "grid", "normal"))
    if levels.shape[2] == 1:  # a picture is a clip of one frame twice
        levels = np.repeat(levels, 2, axis=2)
    mean, std = normal[:, :, None, None, None]
    return Pixels(levels, tuple(grid.tolist()), mean, std)


def families() -> list[str]:
    """All families that have references."""
    return sorted(path.parent.name for path in REFERENCE.glob("*/cases.json"))
