"""For all suites. MLX keeps its built-in BLAS, on which equal requests give equal bits: runs are deterministic."""

import os

os.environ.setdefault("MLX_VLGEN_BLAS", "off")  # before the first import of mlx_vlgen

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from invariants.family import Family, encode_once
from parity import media
from parity.layouts import write_checkpoint
from PIL import Image

from mlx_vlgen.engine import batch

# HYPOTHESIS_PROFILE=thorough draws other examples at every run, and many more of them.
_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=_slow_is_fine)
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=_slow_is_fine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure() -> None:
    """A core for each of several workers: where MLX's thread and Python's are on two, they wake each other up at each
    operation, which costs a third more."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True)
def lookahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all tests, always the same ones, run as on a GPU: each step starts before the last one is read. With
    LOOKAHEAD_HALF=1 it is the other half."""
    half = int(os.environ.get("LOOKAHEAD_HALF", "0"))
    monkeypatch.setattr(batch, "LOOKAHEAD", zlib.crc32(request.node.nodeid.encode()) % 2 == half)


LoadFamily = Callable[[str], Family]


@pytest.fixture(scope="session")
def load_family(tmp_path_factory: pytest.TempPathFactory) -> LoadFamily:
    """From a family's name to its tiny checkpoint, loaded once; "demo" is the built-in model, which encodes no picture
    twice."""

    @cache
    def load(name: str) -> Family:
        if name == "demo":
            demo = Family.load(name, media.DEMO / "model")
            encode_once(demo.model)
            return demo
        return Family.load(name, write_checkpoint(name, "v5", tmp_path_factory.mktemp(name)))

    return load


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every picture of parity.media as a PNG file."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in media.PICTURES:
        Image.fromarray(media.picture(name)).save(folder / f"{name}.png")
    return folder
