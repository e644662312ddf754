"""Inputs that do what must never happen."""

import ctypes
import time
from pathlib import Path

from mlx_vlgen.errors import PromptError

from .trial import MB, Try


def _refuse() -> None:
    raise PromptError("no")


TRIES = [
    Try("fine", lambda: None),
    Try("refused", _refuse),
    Try("crash", lambda: ctypes.string_at(0)),
    Try("hang", lambda: time.sleep(60)),
    Try("memory", lambda: b"x" * (200 * MB), peak=100 * MB),
    Try("raw", lambda: {}["nothing"]),
]


class Attack:
    def __init__(self, folder: Path):
        pass

    def draw(self, seed: int) -> Try:
        return TRIES[seed]
