"""Sound on the command line, answered by a tiny checkpoint that hears."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile.sounds import wav
from invariants.family import Family
from parity import expected, media

from mlx_vlgen import cli

from .conftest import Outcome

CASE = expected.case("qwen2_audio", "audio2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in media.SOUNDS:
        (tmp_path / f"{name}.wav").write_bytes(wav(media.sound(name).tobytes()))
    return tmp_path


@pytest.fixture
def ear(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen2_audio")


def test_clips_are_heard(ear: Family, folder: Path, invoke: Callable[..., Outcome]) -> None:
    case = expected.case("qwen2_audio", "audio")
    told = invoke(
        "--model", ear.folder, "--audio", folder / "sound.wav", "--prompt", "Describe this.",
        "--max-tokens", len(case.tokens), "--dtype", "float32",
    )  # fmt: skip
    assert told[:2] == (0, ear.processor.decode(case.tokens.tolist()) + "\n")
    several = invoke(
        "--model", ear.folder, "--audio", folder / "sound.wav", folder / "short_sound.wav", "--max-tokens", 1
    )
    assert several[0] == 0


def test_several_stand_in_order_and_ask_about_themselves(
    calls: dict[str, Any], folder: Path, invoke: Callable[..., Outcome]
) -> None:
    paths = [str(folder / f"{name}.wav") for name in media.SOUNDS]
    assert invoke("--model", "m", "--audio", *paths[:2], "--audio", paths[2])[0] == 0
    parts = calls["messages"][0]["content"]
    assert parts == [
        *({"type": "audio", "audio": path} for path in paths),
        {"type": "text", "text": "Describe this audio."},
    ]


def test_what_is_wrong_is_told(ear: Family, folder: Path, invoke: Callable[..., Outcome]) -> None:
    assert "gone.wav: no such file" in invoke("--audio", folder / "gone.wav")[2]
    (folder / "torn.wav").write_bytes(b"RIFF")
    assert "torn.wav: the file is truncated" in invoke("--model", ear.folder, "--audio", folder / "torn.wav")[2]


def test_a_job_hears(ear: Family, folder: Path, invoke: Callable[..., Outcome]) -> None:
    out = folder / "out.jsonl"
    code, _, error = invoke(
        str(folder / "*.wav"), "-o", out, "--model", ear.folder, "--max-tokens", "2", command=cli.main_batch
    )
    assert code == 0, error
    lines = out.read_text().splitlines()
    assert len(lines) == 3 and all("sound.wav" in line for line in lines)


def test_a_chat_hears(
    ear: Family, folder: Path, invoke: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip of the first question, one of a command, and one whose path stands in the question."""
    case = expected.case("qwen2_audio", "audio")
    path = folder / "sound.wav"
    lines = f"Describe this.\n/clear\n/audio {path}\nDescribe this.\n/clear\n{path}\nDescribe this.\n/show\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    flags = "--dtype", "float32", "--temperature", "0", "--max-tokens", len(case.tokens), "--json"
    code, out, said = invoke("--model", ear.folder, "--audio", path, *flags, command=cli.main_chat)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["answer"] for answer in answers] == [ear.processor.decode(case.tokens.tolist())] * 3
    assert [answer["media"] for answer in answers] == [[str(path)]] * 3
    assert code == 0 and "pictures and videos: 0, sounds: 1" in " ".join(said.split())
