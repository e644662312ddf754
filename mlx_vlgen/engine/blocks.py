"""What a `PrefixCache` holds: blocks of keys and values, and features of pictures."""

from dataclasses import dataclass
from functools import cached_property

from .._runtime import mx
from ..models.base import Features
from .columns import Run
from .prefix import Units


@dataclass(eq=False)
class Block:
    """Neighbouring positions of a prompt or answer, after those of the block `parent`.

    runs: each layer's keys and values; a sliding layer has only what the last tokens of the stored row attended to.
    states: of each recurrent layer (1, …) after the last position, where they are known.
    """

    key: bytes
    parent: bytes
    units: Units
    runs: list[list[Run]]
    states: dict[int, list[mx.array]]

    @property
    def arrays(self) -> list[mx.array]:
        keys_values = [part for layer in self.runs for run in layer for part in run.parts]
        return [*keys_values, *(state for states in self.states.values() for state in states)]

    @cached_property
    def nbytes(self) -> int:
        return int(self.units.nbytes) + sum(array.nbytes for array in self.arrays)


@dataclass(eq=False)
class Picture:
    """What a vision tower gave for a picture or video."""

    features: Features

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.features.embeds, *self.features.deepstack))
