"""What all suites share. MLX keeps its own BLAS, on which equal requests give equal bits: runs are deterministic."""

import os

os.environ.setdefault("MLX_VLGEN_BLAS", "off")  # before the first import of mlx_vlgen

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from invariants.family import Family
from parity import media
from parity.layouts import write_checkpoint
from PIL import Image

# HYPOTHESIS_PROFILE=thorough draws other examples at every run, and many more of them.
_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=_slow_is_fine)
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=_slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

LoadFamily = Callable[[str], Family]


@pytest.fixture(scope="session")
def load_family(tmp_path_factory: pytest.TempPathFactory) -> LoadFamily:
    """From a family's name to its tiny checkpoint, loaded once; "demo" is the built-in model."""

    @cache
    def load(name: str) -> Family:
        if name == "demo":
            return Family.load(name, media.DEMO / "model")
        return Family.load(name, write_checkpoint(name, "v5", tmp_path_factory.mktemp(name)))

    return load


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every picture of parity.media as a PNG file."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in media.PICTURES:
        Image.fromarray(media.picture(name)).save(folder / f"{name}.png")
    return folder
