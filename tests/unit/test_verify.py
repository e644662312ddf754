"""`python -m mlx_vlgen.verify`: a checkpoint beside itself, and what the report says of two sides that differ."""

import wave
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity.layouts import write_checkpoint

from mlx_vlgen import cli, verify
from mlx_vlgen.verify import STEPS, Answer, Case, compare, make_cases

VOCABULARY = 50


@pytest.fixture
def qwen(load_family: Callable[[str], Family]) -> str:
    """A tiny checkpoint; test_docs.py has the built-in one."""
    return str(load_family("qwen3_vl").folder)


def test_a_checkpoint_is_one_answer(qwen: str, few_steps: None, capsys: Any) -> None:
    assert cli.main_verify([qwen, "--no-torch"]) == 0
    report = capsys.readouterr().out
    assert report.count("| equal |") == 9 and "9 of 9 as they should be" in report
    assert "--no-torch was given" in report


def test_a_model_that_hears_is_one_answer(few_steps: None, capsys: Any, tmp_path: Any) -> None:
    clip = np.linspace(-1, 1, 9000, dtype=np.float32)
    with wave.open(str(tmp_path / "clip.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((clip * 3e4).astype(np.int16).tobytes())
    folder = write_checkpoint("qwen2_audio", "v5", tmp_path / "model")
    assert cli.main_verify([str(folder), "--no-torch", "--audio", str(tmp_path / "clip.wav")]) == 0
    report = capsys.readouterr().out
    assert report.count("| equal |") == 9 and "| one clip, in one batch |" in report
    assert "| a longer clip, over a reused prefix |" in report and "picture" not in report


def test_the_cases_follow_what_the_model_takes() -> None:
    pictures, clips = ["a", "b"], [np.zeros(1), np.zeros(2)]
    cases = {
        case.name: (*case.pictures, *map(len, case.clips)) for case in make_cases(pictures, clips, ("image", "audio"))
    }
    assert cases == {
        "text": (), "one picture": ("a",), "two pictures": ("a", "b"), "one clip": (1,), "a longer clip": (2,),
        "a picture and a clip": ("a", 1),
    }  # fmt: skip
    assert list(cases)[:3] == [case.name for case in make_cases(pictures, clips, ("image", "video"))]
    assert [case.name for case in make_cases(pictures, clips, ())] == ["text"]


@pytest.fixture
def few_steps(monkeypatch: Any) -> None:
    monkeypatch.setattr(verify, "STEPS", 4)


def test_an_answer_that_depends_on_its_chunks_is_told(
    qwen: str, few_steps: None, capsys: Any, monkeypatch: Any
) -> None:
    load = verify.load

    def changed(*arguments: Any, **keywords: Any) -> Any:
        model, processor = load(*arguments, **keywords)
        forward = type(model).forward

        def wrong(self: Any, inputs: Any, *rest: Any) -> Any:
            """What an embedding that depends on the length of its chunk would do."""
            embeds = inputs.embeds if inputs.embeds is None or len(inputs) != 7 else inputs.embeds * 1.1
            return forward(self, replace(inputs, embeds=embeds), *rest)

        model.__class__ = type("Wrong", (type(model),), {"forward": wrong})
        return model, processor

    monkeypatch.setattr(verify, "load", changed)
    assert cli.main_verify([qwen, "--no-torch"]) == 1
    report = capsys.readouterr().out
    assert "| differs |" in report and "**9 of 9" not in report


def side(**changes: Any) -> Any:
    logits = np.random.default_rng(3).normal(size=(STEPS, VOCABULARY)).astype(np.float32)
    tensors = {
        "input_ids": np.arange(9)[None],
        "pixel_values": np.zeros((4, 12), np.float32),
        "input_features": np.zeros((1, 4, 8), np.float32),
    }
    logits = logits + changes.get("logits", 0)
    tensors |= changes.get("tensors", {})
    answer = Answer(logits, changes.get("tokens", logits.argmax(-1).tolist()))
    return SimpleNamespace(
        prepare=lambda case: tensors,
        answer=lambda tensors: answer,
        tensors={"c": tensors},
        answers={"c": answer},
        level=0.01,
        sounds=("input_features",),
    )


one_logit = np.zeros((STEPS, VOCABULARY))
one_logit[5, 7] = 2e-4
swapped = np.zeros((STEPS, VOCABULARY))
swapped[4, (side().answers["c"].tokens[4] + 1) % VOCABULARY] = 9
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "equal"),
    "ids": ({"tensors": {"input_ids": np.arange(1, 10)[None]}}, "other token ids"),
    "one level": ({"tensors": {"pixel_values": np.full((4, 12), 0.01, np.float32)}}, "equal"),
    "two levels": ({"tensors": {"pixel_values": np.full((4, 12), 0.02, np.float32)}}, "other pixels"),
    "fewer pixels": ({"tensors": {"pixel_values": np.zeros((4, 6), np.float32)}}, "other pixels"),
    "features": ({"tensors": {"input_features": np.full((1, 4, 8), 0.01, np.float32)}}, "other features of sound"),
    "near features": ({"tensors": {"input_features": np.full((1, 4, 8), 5e-4, np.float32)}}, "equal"),
    "one logit": ({"logits": one_logit}, "other logits"),
    "a token": ({"logits": swapped}, "other logits"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named(change: str) -> None:
    changes, verdict = CHANGES[change]
    line = compare(Case("c", [], [None]), side(**changes), side(), exact=True)
    assert (line.verdict, line.good) == (verdict, verdict == "equal")
    assert (line.measured["first other token"] != "none") == (change == "a token")


def test_in_bfloat16_a_near_tie_may_part_and_no_more() -> None:
    near = np.zeros((STEPS, VOCABULARY))
    tokens = side().answers["c"].tokens
    near[3, tokens[3]] = -20.0
    line = compare(Case("c", [], []), side(logits=near), side(), exact=False)
    assert line.verdict == "told" and line.measured["first other token"].startswith("4, margin")
    parted = [*tokens[:3], (tokens[3] + 1) % VOCABULARY, *tokens[4:]]
    line = compare(Case("c", [], []), side(tokens=parted), side(), exact=False)
    assert line.verdict == "other tokens"


def test_an_unreadable_picture_is_told_before_anything_is_loaded(capsys: Any, tmp_path: Any) -> None:
    assert cli.main_verify(["demo", "--image", str(tmp_path / "none.png")]) == 1
    assert "none.png" in capsys.readouterr().err
