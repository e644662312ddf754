"""The command line as a process: streams, exit codes, signals, pipes, locales, and which model answers.

Tests that need no separate process run the command in this one, which saves a second of imports.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invariants.family import Family
from parity import media
from PIL import Image

from mlx_vlgen import cli, generate
from mlx_vlgen.demo import MODEL as DEMO
from mlx_vlgen.demo import NOTICE
from mlx_vlgen.flags import DEFAULT_MODEL

from .conftest import COMMANDS, GENERATE, Completed

Run = Callable[..., Completed]

needs_demo = pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the built-in model is not there")
ENDLESS = ("--prompt", "Hi", "--max-tokens", "1000000")


def answer(family: Family, *parts: dict[str, Any], text: str, system: str | None = None, **keywords: Any) -> str:
    """What `generate` answers to the same."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    content = [*parts, {"type": "text", "text": text}] if parts else text
    messages.append({"role": "user", "content": content})
    return generate(family.model, family.processor, messages, **keywords).text


@pytest.fixture
def clip(tmp_path: Path) -> dict[str, Path]:
    """The same frames as an animation of four a second, and as a folder."""
    frames = [Image.fromarray(frame) for frame in media.clip("clip")]
    animation, folder = tmp_path / "clip.gif", tmp_path / "frames"
    frames[0].save(animation, save_all=True, append_images=frames[1:], duration=250)
    folder.mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / f"{number}.png")
    return {"animation": animation, "folder": folder}


@pytest.fixture
def run_here(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """`python -m mlx_vlgen.generate` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Completed:
        with monkeypatch.context() as changed:
            for name, value in (env or {}).items():
                changed.setenv(name, value)
            code = cli.main_generate(list(map(str, arguments)))
        return Completed(arguments, code, *capsys.readouterr())

    return run


# Answers


def test_the_answer_alone_is_on_stdout_and_the_statistics_on_stderr(
    run: Run, qwen: Family, pictures: Path, tmp_path: Path
) -> None:
    images = [pictures / "plain.png", pictures / "large.png", pictures / "small.png"]
    with open(tmp_path / "out.txt", "wb") as out:
        result = subprocess.run(
            [*GENERATE, "--model", qwen.folder, "--image", *images[:2], "--image", images[2], "--prompt", "What?",
             "--system", "Be brief.", "--max-tokens", "9", "--stop", "\1", "--verbose"],
            stdout=out, stderr=subprocess.PIPE, encoding="utf-8", check=True,
        )  # fmt: skip
    parts = [{"type": "image", "image": image} for image in images]
    expected = answer(qwen, *parts, text="What?", system="Be brief.", max_tokens=9)
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == expected + "\n"
    number = r"\d+\.\d{3}"
    assert re.fullmatch(
        r"==========\nPrompt: What\?\n\n==========\n"
        rf"Prompt: \d+ tokens, {number} tokens-per-sec\n"
        rf"Generation: 9 tokens, {number} tokens-per-sec\n"
        rf"Peak memory: {number} GB\nPictures and video: encoded in {number} s\n",
        result.stderr,
    )


def test_guesses_change_no_answer_and_are_counted(run_here: Run) -> None:
    arguments = ["--model", "demo", "--prompt", "Who are you?", "--verbose"]
    plain, guessed = (
        run_here(*arguments, *more) for more in ([], ["--draft-model", "demo", "--num-draft-tokens", "4"])
    )
    assert guessed.stdout == plain.stdout
    assert "Drafts" not in plain.stderr
    assert (match := re.search(r"\nDrafts: (\d+) tokens, (\d+) right\n", guessed.stderr))
    assert 0 < int(match[2]) <= int(match[1])


@pytest.mark.parametrize("kind", ["animation", "folder"])
def test_a_video_is_an_animation_or_a_folder(run_here: Run, qwen: Family, clip: dict[str, Path], kind: str) -> None:
    result = run_here("--model", qwen.folder, "--video", clip[kind], "--video-fps", "2", "--max-tokens", "6")
    part = {"type": "video", "video": clip[kind]}
    assert result.stdout == answer(qwen, part, text="Describe this video.", video_fps=2, max_tokens=6) + "\n"
    assert (result.returncode, result.stderr) == (0, "")


def test_no_tokens_wanted_is_an_empty_line(run: Run, qwen: Family) -> None:
    result = run(*COMMANDS, "generate", "--model", qwen.folder, "--prompt", "Hi", "--max-tokens", "0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


def test_the_prompt_may_come_from_stdin(run: Run, qwen: Family) -> None:
    command = (*GENERATE, "--model", qwen.folder, "--prompt", "-", "--max-tokens", "6")
    result = run(*command, stdin="  two\n\nlines ü\n\n".encode())
    assert result.stdout == answer(qwen, text="  two\n\nlines ü", max_tokens=6) + "\n"


def test_empty_closed_and_binary_stdin_are_told(run: Run, qwen: Family) -> None:
    command = (*GENERATE, "--model", qwen.folder, "--prompt", "-")
    assert run(*command, stdin=b"\n").stderr == "mlx_vlgen: error: --prompt -: nothing came from stdin\n"
    closed = run("sh", "-c", '"$@" <&-', "sh", *command)
    assert (closed.returncode, closed.stderr) == (1, "mlx_vlgen: error: --prompt -: stdin is closed\n")
    binary = run(*command, stdin=b"\xff\xfe")
    assert binary.returncode == 1 and "bytes that are not text in UTF-8" in binary.stderr


# Usage


def test_help_is_instant_and_without_a_warning(run: Run) -> None:
    result = run(sys.executable, "-W", "error", "-X", "importtime", "-m", "mlx_vlgen.generate", "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: python -m mlx_vlgen.generate ")
    assert "Warning" not in result.stderr
    assert not re.search(r"\| +(mlx|numpy|transformers|PIL)$", result.stderr, re.MULTILINE)


def test_wrong_usage_exits_2(run: Run) -> None:
    result = run(*GENERATE, "--prompt", "Hi", "--top-q", "1")
    assert (result.returncode, result.stdout) == (2, "")
    assert "unknown flag --top-q; did you mean '--top-p'?" in result.stderr


# Leaving early


def stopped(process: "subprocess.Popen[bytes]") -> tuple[int, bytes]:
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_while_it_answers(environment: dict[str, str], qwen: Family) -> None:
    process = subprocess.Popen(
        [*GENERATE, "--model", qwen.folder, *ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout and process.stdout.read(20)
    assert stopped(process) == (130, b"\n")


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_while_it_loads(environment: dict[str, str], qwen: Family, tmp_path: Path) -> None:
    # A module in the place of the real one, which says that it is being imported and never ends.
    (tmp_path / "transformers.py").write_text("import time; print('here', flush=True); time.sleep(600)")
    process = subprocess.Popen(
        [*GENERATE, "--model", qwen.folder, *ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])},
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == b"here\n"
    assert stopped(process) == (130, b"\n")


def test_a_reader_that_leaves_ends_it_quietly(environment: dict[str, str], qwen: Family) -> None:
    process = subprocess.Popen(
        [*GENERATE, "--model", qwen.folder, *ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout and process.stderr and process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(environment: dict[str, str], qwen: Family) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*GENERATE, "--model", qwen.folder, "--prompt", "Hi", "--max-tokens", "3"],
            stdout=full, stderr=subprocess.PIPE, encoding="utf-8", env=environment, check=False,
        )  # fmt: skip
    assert (
        result.returncode == 1
        and result.stderr.startswith("mlx_vlgen: error: OSError: ")
        and result.stderr.count("\n") == 1
    )


# Locales


def test_a_terminal_without_unicode_gets_question_marks(run: Run, qwen: Family) -> None:
    prompt = "naïve 日本"
    command = (*GENERATE, "--model", qwen.folder, "--max-tokens", "20", "--prompt")
    expected = answer(qwen, text=prompt, max_tokens=20)
    assert not expected.isascii()
    result = run(*command, prompt, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert (result.stdout, result.stderr) == (expected.encode("ascii", "replace").decode() + "\n", "")
    result = run(
        *command, "-", env={"PYTHONIOENCODING": "latin-1"}, stdin="naïve".encode("latin-1"), encoding="latin-1"
    )
    expected = answer(qwen, text="naïve", max_tokens=20)
    assert result.stdout == expected.encode("latin-1", "replace").decode("latin-1") + "\n"


# Which model answers


def test_the_variable_names_the_model(run_here: Run, qwen: Family) -> None:
    result = run_here("--prompt", "Hi", "--max-tokens", "3", env={"MLX_VLGEN_MODEL": str(qwen.folder)})
    assert (result.returncode, result.stdout) == (0, answer(qwen, text="Hi", max_tokens=3) + "\n")


@needs_demo
def test_the_default_that_cannot_be_had_is_replaced_with_a_notice(
    run: Run, run_here: Run, pictures: Path, tmp_path: Path
) -> None:
    result = run(*GENERATE, "--image", pictures / "plain.png", "--max-tokens", "3")
    cache = tmp_path / "cache" / "hub"
    why = (
        f"mlx_vlgen: the default model cannot be had: {DEFAULT_MODEL} has no whole copy in the cache ({cache}), and "
        "HF_HUB_OFFLINE forbids a download. Unset it, or give a folder.\n"
    )
    assert (result.returncode, result.stderr) == (0, f"{why}mlx_vlgen: {NOTICE}\n")
    assert len(result.stdout) > 1
    for refused in (["--no-fallback"], ["--model", DEFAULT_MODEL]):
        failed = run_here("--prompt", "Hi", *refused)
        assert (failed.returncode, failed.stdout) == (1, "") and "forbids a download" in failed.stderr
        assert "built-in" not in failed.stderr
    assert not (tmp_path / "cache" / "hub").exists()
    named = run_here("--image", pictures / "plain.png", "--max-tokens", "3", "--model", "demo")
    assert (named.returncode, named.stdout, named.stderr) == (0, result.stdout, "")
    adapted = run_here("--image", pictures / "plain.png", "--revision", "main")
    assert (adapted.returncode, adapted.stdout) == (1, "") and "HF_HUB_OFFLINE forbids a download" in adapted.stderr


def test_a_folder_named_demo_wins_with_a_notice(run_here: Run, qwen: Family, tmp_path: Path) -> None:
    shutil.copytree(qwen.folder, tmp_path / "demo")
    result = run_here("--model", "demo", "--prompt", "Hi", "--max-tokens", "3")
    assert (result.returncode, result.stdout) == (0, answer(qwen, text="Hi", max_tokens=3) + "\n")
    assert result.stderr == 'mlx_vlgen: loading the folder ./demo, not the built-in model "demo".\n'


def test_a_named_model_that_is_not_there_exits_1(run_here: Run) -> None:
    result = run_here("--prompt", "Hi", env={"MLX_VLGEN_MODEL": "owner/nowhere"})
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("mlx_vlgen: error: owner/nowhere has no whole copy in the cache")
