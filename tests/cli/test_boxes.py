"""`generate --boxes`: the picture with what the answer names on it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_vlgen import GenerationResult

from .conftest import Outcome

Invoke = Callable[..., Outcome]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 100), "white").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make every model answer this."""
    import mlx_vlgen.generate

    def answer(text: str) -> None:
        def stream(*_: Any, **__: Any) -> list[GenerationResult]:
            return [GenerationResult(text, answer=text, finish_reason="stop")]

        model = SimpleNamespace(config={"model_type": "qwen3_vl"})
        processor = SimpleNamespace(min_pixels=None, max_pixels=None)
        monkeypatch.setattr(mlx_vlgen, "load", lambda *_, **__: (model, processor), raising=False)
        monkeypatch.setattr(sys.modules["mlx_vlgen.generate"], "stream_generate", stream)

    return answer


def test_boxes_are_drawn(invoke: Invoke, answer: Callable[[str], None], photo: Path, tmp_path: Path) -> None:
    text, out = '[{"bbox_2d": [100, 100, 900, 900]}, {"point_2d": [500, 500]}]', tmp_path / "out.png"
    answer(text)
    assert invoke("--model", "m", "--image", photo, "--boxes", out) == (
        0,
        f"{text}\n",
        f"mlx_vlgen: {out}: 1 box, 1 point drawn\n",
    )
    drawn = np.asarray(Image.open(out))
    assert drawn.shape == (100, 200, 3) and not np.all(drawn[50, 15:26] == 255) and np.all(drawn[30, 60:80] == 255)


def test_an_answer_without_boxes(invoke: Invoke, answer: Callable[[str], None], photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    out.write_bytes(b"of an earlier run")
    answer("A cat.")
    code, _, error = invoke("--model", "m", "--image", photo, "--boxes", out)
    assert code == 0 and "the answer names no box or point; this is the picture as it is" in " ".join(error.split())
    assert np.all(np.asarray(Image.open(out)) == 255)


def test_what_boxes_cannot_do(invoke: Invoke, photo: Path, tmp_path: Path) -> None:
    for arguments, message in [
        (["-p", "Hi", "--boxes", "a.png"], "--boxes draws on a picture: give --image"),
        (["--image", photo, "--boxes", photo], "that is the picture itself; give a new file"),
        (["--image", photo, "--boxes", tmp_path / "a.txt"], "expected a file in .png, .jpg or .webp"),
        (["--image", photo, "--boxes", tmp_path / "no" / "a.png"], "in a folder that is there"),
    ]:
        code, out, error = invoke("--model", "m", *arguments)
        assert (code, out) == (2, "") and message in " ".join(error.split())
