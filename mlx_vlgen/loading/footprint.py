"""How much memory a model takes, by the shapes of its parameters and caches: no weights are read."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._runtime import tree_flatten
from ..engine.budget import Layers, LayerSize, bytes_needed
from ..engine.cache import make_cache
from ..engine.kv_settings import KVSettings
from ..inputs.prompt import Prompt
from ..models.base import Model, Opaque
from ..models.building import building_only
from .checkpoint import read_config
from .loader import build, fill, float_dtype

MARGIN = 1 << 30
"""Bytes for what a forward needs beside weights and caches: the tower's states of a picture, a chunk's, the process."""


@dataclass(frozen=True)
class Footprint:
    """weights: bytes. layers: of the caches; None where they are known to the model only."""

    weights: int
    layers: Layers | None

    @classmethod
    def of(cls, model: Model) -> "Footprint":
        """Read off shapes: a forward of one token is built and never computed."""
        weights = sum(parameter.nbytes for _, parameter in tree_flatten(model.parameters()))
        layout = model.cache_layout()
        if any(isinstance(kind, Opaque) for kind in layout):
            return cls(weights, None)
        cache = make_cache(layout)
        with building_only():
            model(model.embed(Prompt(np.zeros(1, np.int32)), ()), cache)
        return cls(weights, Counter(zip(layout, map(LayerSize.of, cache), strict=True)))

    def cache(self, positions: int, settings: KVSettings = KVSettings()) -> int:
        """Bytes of the caches of one row of so many positions."""
        return bytes_needed(self.layers or {}, settings, positions)

    def needed(self, positions: int) -> int:
        """Bytes that a talk of so many positions takes in all."""
        return self.weights + self.cache(positions) + MARGIN

    def positions(self, memory: int, most: int) -> int | None:
        """How many positions fit into `memory` bytes, at most `most`; None where the weights alone do not."""
        if self.needed(0) > memory:
            return None
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.needed(middle) <= memory else (low, middle - 1)
        return low


def without_weights(folder: Path) -> Model:
    """The model of the checkpoint in `folder` with the shapes and types that `load` would give it, and no weights read;
    it has no processor. LoadError for one that cannot be loaded."""
    model = build(folder, read_config(folder))
    fill(model, folder, float_dtype(None))
    return model
