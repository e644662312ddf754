"""What transformers made of each case, read from reference/."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .layouts import REFERENCE, read_json
from .recipe import holds_audio
from .weights import projection


@dataclass(frozen=True, eq=False)
class Pixels:
    """One picture or clip: levels uint8 in the shape of transformers' pixels, its grid, and (2, 3) mean and standard
    deviation per channel; channels lie as `ProcessorKit` says."""

    levels: np.ndarray
    grid: tuple[int, ...]
    normal: np.ndarray
    channels_last: bool

    @property
    def normalised(self) -> np.ndarray:
        """What the vision tower takes, float32."""
        flat = _by_channel(self.levels, self.channels_last)
        mean, std = _normal(self.normal, self.channels_last)
        return ((flat / 255 - mean) / std).reshape(self.levels.shape).astype(np.float32)

    def levels_of(self, normalised: np.ndarray) -> np.ndarray:
        """The inverse, not rounded."""
        return levels_of(normalised, self.normal, self.channels_last)


def levels_of(pixels: np.ndarray, normal: np.ndarray, channels_last: bool) -> np.ndarray:
    """Normalised pixels as 8-bit levels, not rounded."""
    mean, std = _normal(normal, channels_last)
    flat = _by_channel(pixels.astype(np.float64), channels_last)
    return ((flat * std + mean) * 255).reshape(pixels.shape)


def _by_channel(pixels: np.ndarray, channels_last: bool) -> np.ndarray:
    """(N, 3, rest) or (N, rest, 3)."""
    return pixels.reshape(len(pixels), -1, 3) if channels_last else pixels.reshape(len(pixels), 3, -1)


def _normal(normal: np.ndarray, channels_last: bool) -> np.ndarray:
    return normal[:, None, None, :] if channels_last else normal[:, None, :, None]


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
    audios: Sequence[str] = ()

    @property
    def hears_videos(self) -> bool:
        return bool(self.audios) and not holds_audio(self.messages)

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


SEVERAL = " of several"
"""After the name of a picture, for families that read one differently where a prompt has more."""


def projected(features: np.ndarray) -> np.ndarray:
    """(frames, bands) -> (frames, 8): what is kept of a sound's features."""
    return (features.astype(np.float64) @ projection(features.shape[-1])).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Sound:
    """What transformers' processor makes of a sound, projected, and its grid."""

    features: np.ndarray
    grid: tuple[int, ...]


@cache
def sound(family: str, name: str) -> Sound:
    with np.load(REFERENCE / "processors" / record(family)["processor"] / "pixels.npz") as file:
        return Sound(file[f"{name}.features"], tuple(file[f"{name}.grid"].tolist()))


@cache
def pixels(family: str, name: str, several: bool = False) -> Pixels:
    """A picture or clip as the family's processor reads it. several: whether it is a picture beside others."""
    known = record(family)
    with np.load(REFERENCE / "processors" / known["processor"] / "pixels.npz") as file:
        if several and f"{name}{SEVERAL}.levels" in file:
            name += SEVERAL
        levels, grid, normal = (file[f"{name}.{key}"] for key in ("levels", "grid", "normal"))
    return Pixels(levels, tuple(grid.tolist()), normal, known["channels_last"])


def media_pixels(family: str, case: Expected, kinds: Iterable[str]) -> list[Pixels | Sound]:
    """Those of each medium of a case's prompt, which is of these kinds, in the prompt's order."""
    names = {"image": iter(case.images), "video": iter(case.videos), "audio": iter(case.audios)}
    several = len(case.images) > 1
    return [
        sound(family, next(names[kind])) if kind == "audio" else pixels(family, next(names[kind]), several)
        for kind in kinds
    ]


def families() -> list[str]:
    """All families that have references."""
    return sorted(path.parent.name for path in REFERENCE.glob("*/cases.json"))
