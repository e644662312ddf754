"""Damaged and hostile checkpoints: one loads, or a LoadError names its folder."""

import random
import shutil
from pathlib import Path

from parity.layouts import write_checkpoint

from mlx_vlgen.errors import LoadError, VlgenError
from mlx_vlgen.loading import load

from . import checkpoints
from .checkpoints import Mutation
from .trial import Try

FAMILIES = ["llama", "llama", "llama", "qwen3_vl", "smolvlm"]


class Attack:
    def __init__(self, folder: Path):
        self._bases = {name: write_checkpoint(name, "v5", folder / name) for name in dict.fromkeys(FAMILIES)}
        self._known = {name: list(checkpoints.known_mutations(base)) for name, base in self._bases.items()}
        self._changed = folder / "changed"

    def draw(self, seed: int) -> Try:
        draw = random.Random(seed)
        family = draw.choice(FAMILIES)
        base = self._bases[family]
        known, random_field = draw.choice(self._known[family]), checkpoints.changed_field(base, draw)
        mutation = known if draw.random() < 0.7 else random_field
        return Try(f"{family} {mutation.name}", lambda: self._load(base, mutation))

    def _load(self, base: Path, mutation: Mutation) -> None:
        shutil.rmtree(self._changed, ignore_errors=True)
        mutation.write(base, self._changed)
        try:
            load(self._changed)
        except VlgenError as error:
            assert isinstance(error, LoadError) and str(self._changed) in str(error), f"names no file: {error!r}"
            raise
