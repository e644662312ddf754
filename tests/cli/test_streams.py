"""What comes in by stdin and what goes where: the answer, what was thought, notices, and how a terminal has them."""

import io
import json
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invariants.family import Family
from PIL import Image

from mlx_vlgen import GenerationResult, batch_generate
from mlx_vlgen.flags import keywords_to_flags
from mlx_vlgen.notices import PromptBar, notice, progress_bar

from .conftest import GENERATE, Completed, Outcome

Invoke = Callable[..., Outcome]
DIM, PLAIN = "\033[2m", "\033[0m"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The streams are one, of 40 columns."""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)


# Thinking


@pytest.fixture
def thinker(calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that thinks, answers, and thinks better of it."""
    parts: list[tuple[str | None, str]] = [
        ("", ""), ("so", ""), ("so be", ""), ("so be", "y"), ("so be", "yes"), ("so be it", ""), ("so be it", "no"),
    ]  # fmt: skip
    stream = [GenerationResult("?", thinking=thinking, answer=answer) for thinking, answer in parts]
    monkeypatch.setattr(sys.modules["mlx_vlgen.generate"], "stream_generate", lambda *_, **__: stream)


@pytest.mark.usefixtures("thinker")
def test_thinking_goes_to_stderr(invoke: Invoke) -> None:
    assert invoke("-m", "m", "-p", "Hi") == (0, "yesno\n", "so be\n it\n")
    assert invoke("-m", "m", "-p", "Hi", "--hide-thinking") == (0, "yesno\n", "")


@pytest.mark.usefixtures("thinker", "terminal")
def test_thinking_is_dim_on_a_terminal(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"{DIM}so{PLAIN}{DIM} be{PLAIN}\n{DIM} it{PLAIN}\n"
    assert invoke("-m", "m", "-p", "Hi") == (0, "yesno\n", expected)
    monkeypatch.setenv("NO_COLOR", "1")
    assert invoke("-m", "m", "-p", "Hi")[2] == "so be\n it\n"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert invoke("-m", "m", "-p", "Hi")[2] == "so be\n it\n"


def test_a_thinkers_json_is_json(run: Callable[..., Completed]) -> None:
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
    )
    image = Path(__file__).parents[2] / "mlx_vlgen" / "demo" / "pictures" / "shapes.png"
    result = run(*GENERATE, "--model", "demo", "--image", image, "--enable-thinking", "--json-schema", schema)
    assert result.returncode == 0 and json.loads(result.stdout)["n"] in (1, 2)
    assert len(result.stderr) > 5 and "<" not in result.stderr and "think" not in result.stdout


# stdin


class Stdin(io.TextIOWrapper):
    """Bytes that come in; or a person at a terminal."""

    def __init__(self, data: bytes, person: bool = False):
        super().__init__(io.BytesIO(data))
        self.isatty = lambda: person  # type: ignore[method-assign]


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    return out.getvalue()


def test_a_picture_may_come_from_stdin(
    invoke: Invoke, qwen: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def describe(data: bytes, person: bool = False, image: Any = "-") -> Outcome:
        monkeypatch.setattr(sys, "stdin", Stdin(data, person))
        return invoke("-m", qwen.folder, "--image", image, "--max-tokens", "4")

    (tmp_path / "red.png").write_bytes(png())
    assert describe(png()) == describe(b"", image=tmp_path / "red.png")
    assert describe(b"no picture")[::2] == (
        1, "mlx_vlgen: error: stdin: not a picture that is read here (it looks like text); expected JPEG, PNG, WebP, "
        "GIF, BMP, TIFF (HEIC with the extra `heic`)\n",
    )  # fmt: skip
    assert describe(b"")[2].endswith("is empty\n")
    assert "--image -: stdin is the terminal" in describe(png(), person=True)[2]
    monkeypatch.setattr(sys, "stdin", None)
    assert invoke("-m", "m", "--image", "-")[::2] == (1, "mlx_vlgen: error: --image -: stdin is closed\n")


@pytest.mark.parametrize("arguments", ["--image - --prompt -", "--image - -"])
def test_stdin_is_read_once(invoke: Invoke, arguments: str) -> None:
    code, _, error = invoke(*arguments.split())
    assert code == 2 and "error: stdin can be read once: give only one - for --prompt and --image\n" in error


@pytest.mark.usefixtures("calls")
def test_a_person_is_told_that_it_waits(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    for person in (True, False):
        monkeypatch.setattr(sys, "stdin", Stdin(b"Hi\n", person))
        expected = "mlx_vlgen: reading the prompt from the terminal; end with Ctrl-D\n" * person
        assert invoke("-m", "m", "-p", "-") == (0, "answer\n", expected)


# Notices and errors


@pytest.mark.usefixtures("terminal")
def test_notices_are_broken_between_words_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    notice("some words and then " + "x" * 50 + " and last words that follow")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["mlx_vlgen: some words and then", "x" * 50, "and last words that follow"]


def test_notices_are_one_line_elsewhere_and_nothing_where_stderr_is_closed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    notice("word " * 50)
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(sys, "stderr", None)
    notice("argument")
    assert capsys.readouterr() == ("", "")


def test_an_animation_given_as_a_picture_is_told(invoke: Invoke, qwen: Family, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]
    for name in ("moves.gif", "moves.webp", "moves.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        expected = f"{tmp_path / name}: an animation, of which a picture is the first frame; give it as --video for all"
        outcome = invoke("-m", qwen.folder, "--image", tmp_path / name, "--max-tokens", "1")
        assert outcome[::2] == (0, f"mlx_vlgen: {expected}\n")
        frames[0].save(tmp_path / name)
        assert invoke("-m", qwen.folder, "--image", tmp_path / name, "--max-tokens", "1")[2] == ""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a.gif: a still picture; give it as image=, or in a list for a video of one frame",
         "a.gif: a still picture; give it as --image"),
        ("kv_bits=5: expected 2, 3 or 8, or None for a whole cache", "--kv-bits=5: expected 2, 3 or 8"),
        ("set SOME_VARIABLE=1 or pass Limits(allow_private=True)", "set SOME_VARIABLE=1"),
        ("more pixels than Pillow allows (PIL.Image.MAX_IMAGE_PIXELS); make it smaller",
         "more pixels than Pillow allows; make it smaller"),
        ("max_pixels (--max-pixels) makes it smaller: 4194304", "--max-pixels makes it smaller: 4194304"),
        ('give quantization={"bits": 4}.', "give --quantize=4."),
        ("with quantization=…, or", "with --quantize, or"),
        ("give resize_shape=(height, width)", "give --resize-shape HEIGHT WIDTH"),
        ("fewer frames (num_frames, a lower fps) or raise Limits.max_video_pixels",
         "fewer frames (--num-frames, a lower fps)"),
        ("stop: an empty string", "--stop: an empty string"),
        ("q_group_size: no layer's rows divide", "--q-group-size: no layer's rows divide"),
        # and no more than that
        ("a/max_pixels/b: no such file", "a/max_pixels/b: no such file"),
        ("video: no such file", "video: no such file"),
        ("https://example.org/?image=3 and 'stop='", "https://example.org/?image=3 and 'stop='"),
        ("the picture stops the video", "the picture stops the video"),
    ],
)  # fmt: skip
def test_messages_speak_of_flags(message: str, expected: str) -> None:
    assert keywords_to_flags(message) == expected


def test_a_closed_stdout_is_told_before_a_model_is_loaded(run: Callable[..., Completed]) -> None:
    result = run("sh", "-c", '"$@" >&-', "sh", *GENERATE, "--prompt", "Hi", "--model", "none")
    assert (result.returncode, result.stderr) == (
        1, "mlx_vlgen: error: stdout is closed: there is nowhere to write the answer\n",
    )  # fmt: skip


def test_a_closed_stderr_leaves_stdout_to_the_answer(run: Callable[..., Completed], qwen: Family) -> None:
    result = run(
        "sh", "-c", '"$@" 2>&-', "sh", *GENERATE, "--prompt", "Hi", "--model", qwen.folder, "--max-tokens", "0"
    )
    assert (result.returncode, result.stdout) == (0, "\n")
    failed = run("sh", "-c", '"$@" 2>&-', "sh", *GENERATE, "--prompt", "Hi", "--model", "./none")
    assert (failed.returncode, failed.stdout) == (1, "")


def test_a_closed_stdin_is_no_hindrance(run: Callable[..., Completed], qwen: Family) -> None:
    """Whatever is opened next would get its number."""
    result = run("sh", "-c", '"$@" <&-', "sh", *GENERATE, "--prompt", "Hi", "--model", qwen.folder, "--max-tokens", "0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


@pytest.mark.usefixtures("terminal")
def test_usage_errors_are_broken_between_words_on_a_terminal(invoke: Invoke) -> None:
    code, _, error = invoke("-p", "Hi", "--kv-bits", "5")
    assert code == 2 and error.splitlines() == [
        "python -m mlx_vlgen.generate: error:",
        "--kv-bits=5: expected 2, 3, 4, 6 or 8",
        "Try: python -m mlx_vlgen.generate --help",
    ]


def test_errors_of_the_model_speak_of_flags(invoke: Invoke, qwen: Family) -> None:
    outcome = invoke("-m", qwen.folder, "-p", "Hi", "--regex", "(", "--max-tokens", "1")
    assert outcome == (1, "", "mlx_vlgen: error: --regex: unclosed group, at character 1 of '('\n")


# Help


def test_help_has_groups_and_five_examples_that_parse(invoke: Invoke, calls: dict[str, Any], tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out = invoke("--help")[1]
    groups = re.findall(r"^([a-z][a-z' ]+):$", out, re.MULTILINE)
    assert {"thinking", "pictures and video", "the answer's form", "examples"} <= set(groups) and len(groups) >= 9
    assert all(flag in out for flag in ("--no-fallback", "--hide-thinking"))
    examples = re.findall(r"python -m mlx_vlgen.generate (--.*|- .*)$", out.partition("examples:")[2], re.MULTILINE)
    assert len(examples) == 5
    monkeypatch.chdir(tmp_path)
    for example in examples:
        arguments = shlex.split(example)
        for argument in arguments:
            if argument.endswith((".jpg", ".png", ".mp4")):
                (tmp_path / argument).touch()
        monkeypatch.setattr(sys, "stdin", Stdin(b"Hi\n"))
        assert invoke(*arguments) == (0, "answer\n", "")


# Batches


def test_progress_is_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert progress_bar("answering", "prompt", 3) is None
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    monkeypatch.setenv("COLUMNS", "80")
    bar = progress_bar("answering", "prompt", 3)
    assert bar is not None
    bar.delay = 0
    bar.update()
    bar.refresh()
    assert re.search(r"answering: +33%.* 1/3 .*prompts", capsys.readouterr().err)
    bar.close()
    monkeypatch.setattr(sys, "stderr", None)
    assert progress_bar("answering", "prompt", 3) is None


def test_a_slow_prompt_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is a single step; the line is empty again before the answer."""

    class Screen(io.StringIO):  # what pytest captures may lose what a thread writes while it is read
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Screen())
    monkeypatch.setenv("COLUMNS", "80")
    bar = PromptBar(seconds=0.01)
    while "reading the prompt: " not in screen.getvalue():
        time.sleep(0.001)
    bar.update(7, 7)
    assert re.search(r"\r {20,}\r$", screen.getvalue().rstrip("\r") + "\r")
    shown = screen.getvalue()
    quick = PromptBar(seconds=60)
    quick.update(7, 7)
    assert screen.getvalue()[len(shown) :].strip() == ""


def test_a_batchs_rows_are_counted(
    qwen: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, doing: str, unit: str, total: int):
            self.total, self.done, self.closed = total, 0, False
            bars.append(self)

        def update(self) -> None:
            self.done += 1

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            self.closed = True

    prompts = [[{"role": "user", "content": "Hi"}]] * 3
    batch_generate(qwen.model, qwen.processor, prompts=prompts, max_tokens=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.modules["mlx_vlgen.generate"], "progress_bar", Bar)
    batch_generate(qwen.model, qwen.processor, prompts=prompts, max_tokens=1)
    batch_generate(qwen.model, qwen.processor, prompts=prompts[:1], max_tokens=1)
    assert [(bar.total, bar.done, bar.closed) for bar in bars] == [(3, 3, True)]
