"""A chat through a pipe, answered by the built-in model, and the command's usage."""

import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from invariants.family import Family
from PIL import Image

import mlx_vlgen
from mlx_vlgen import cli, generate
from mlx_vlgen.demo import MODEL as DEMO
from mlx_vlgen.engine import disk
from mlx_vlgen.engine.blocks import Block

from .conftest import Completed, Outcome

pytestmark = pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the built-in model is not there")

SHAPES = DEMO.parent / "pictures" / "shapes.png"
TRIO = DEMO.parent / "pictures" / "trio.png"

Chat = Callable[..., Outcome]


@pytest.fixture
def chat(
    invoke: Callable[..., Outcome],
    load_family: Callable[[str], Family],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Chat:
    """A chat in this process, whose questions are lines: its exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    families = {name: load_family(name) for name in ("demo", "qwen3")}

    def load(name: str, **options: Any) -> tuple[Any, Any]:
        return families[name].model, families[name].processor

    def chat(lines: str | bytes, *arguments: str | Path) -> Outcome:
        data = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        return invoke("--model", "demo", *arguments, command=cli.main_chat)

    monkeypatch.setattr(mlx_vlgen, "load", load, raising=False)
    return chat


def user(text: str, *images: Path) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}],
    }


def test_each_line_is_a_question_of_one_talk(chat: Chat, load_family: Callable[[str], Family]) -> None:
    demo = load_family("demo")
    first = generate(demo.model, demo.processor, user("How many shapes?", SHAPES)).answer
    messages = [
        user("How many shapes?", SHAPES),
        {"role": "assistant", "content": first},
        user("What colour is the circle?"),
    ]
    second = generate(demo.model, demo.processor, messages).answer
    code, out, error = chat(f"{SHAPES} How many shapes?\n\nWhat colour is the circle?\n")
    assert (code, out, error) == (0, f"{first}\n{second}\n", "")
    assert (first, second) == ("There are 2 shapes.", "The circle is red.")


def test_pictures_flags_and_commands(chat: Chat) -> None:
    code, out, error = chat(
        f"How many shapes?\n/clear\n/image {TRIO}\n/show\nHow many shapes?\n",
        "--image",
        SHAPES,
        "--system",
        "Be brief.",
    )
    assert (code, out) == (0, "There are 2 shapes.\nThere are 3 shapes.\n")
    assert "Be brief." in error and "all that was said is forgotten" in error


def test_a_line_that_fails_is_empty_and_told(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    lines = f"/nope\n{tmp_path}/gone.png What?\ntext.png What?\n\xff\n{SHAPES} How many shapes?\n"
    code, out, error = chat(lines.encode("latin-1"))
    assert (code, out) == (1, "\n\n\n\nThere are 2 shapes.\n")
    assert [line.split(": ")[2] for line in error.splitlines() if "error" in line] == [
        f"line {n}" for n in (1, 2, 3, 4)
    ]
    assert "gone.png: no such file" in error


def test_json_has_an_object_a_line(chat: Chat) -> None:
    code, out, _ = chat(f"/set enable_thinking on\n{SHAPES} How many circles?\n/edit\n", "--json", "--hide-thinking")
    answer, failed = map(json.loads, out.splitlines())
    assert code == 1 and failed == {"question": "/edit", "error": "/edit needs a terminal"}
    assert answer["question"] == "How many circles?" and answer["media"] == [str(SHAPES)]
    assert (answer["answer"], answer["finish_reason"]) == ("There is 1 circle.", "stop")
    assert answer["thinking"].endswith("circles: 1")


def test_answers_of_several_lines_take_one(chat: Chat) -> None:
    schema = '/set regex "a\\nb"\nHello\n'
    assert chat(schema.replace('"', ""))[1] == "a\\nb\n"


def test_a_pipe_goes_on_with_a_talk_and_asks_nobody(chat: Chat, tmp_path: Path) -> None:
    picture, talk = tmp_path / "a.png", tmp_path / "talk.jsonl"
    Image.open(SHAPES).save(picture)
    assert chat(f"{picture} How many shapes?\n/save {talk}\n")[0] == 0
    assert not list((tmp_path / "state" / "mlx-vlgen").glob("chats/*"))  # a pipe keeps nothing unless it is told to
    assert chat("What colour is the circle?\n", "--resume", talk)[:2] == (0, "The circle is red.\n")
    assert len(talk.read_text().splitlines()) == 4
    Image.open(TRIO).save(picture)
    code, out, error = chat("What colour is the circle?\n", "--resume", talk)
    assert (code, out) == (1, "") and "a.png: has changed since; a chat on a terminal asks" in error
    picture.unlink()
    assert "a.png: no such file" in chat("Hi\n", "--resume", talk)[2]


def test_a_talk_leaves_on_disk_what_it_computed(
    chat: Chat, invoke: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on from it; `cache` lists and deletes it."""
    monkeypatch.setattr(disk, "LEAST_FREE", 0)
    loaded: list[int] = []
    load = disk.Disk.load

    def counting(self: disk.Disk, blocks: Sequence[Block]) -> bool:
        loaded.append(sum(len(block.units) for block in blocks))
        return load(self, blocks)

    monkeypatch.setattr(disk.Disk, "load", counting)
    assert chat("What can you do?\n/save talk.jsonl\n")[0] == 0
    assert "nothing there" in invoke("cache", command=cli.main)[1]
    asked = "How many shapes are there?\n"
    answers = []
    for flags in ((), (), ("--no-reuse",)):
        talk = shutil.copy("talk.jsonl", "again.jsonl")
        answers.append(chat(asked, "--resume", talk, *flags)[1])
    assert len({*answers}) == 1 and len(loaded) == 1 and loaded[0] > 40
    files = [*(tmp_path / "cache" / "mlx-vlgen" / "prefixes").iterdir()]
    assert f"{len(files)} files" in invoke("cache", command=cli.main)[1]
    assert f"{len(files)} files" in invoke("cache", "--clear", command=cli.main)[1]
    assert not any(path.exists() for path in files)


def test_videos_are_files_and_folders(chat: Chat, tmp_path: Path) -> None:
    frames = [Image.open(SHAPES).resize((64, 64)), Image.open(TRIO).resize((64, 64))]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{number}.png")
    code, out, _ = chat("/video frames clip.gif\nWhat moves?\nWho are you?\n")
    assert code == 0 and len(out.splitlines()) == 2


def test_text_models_refuse_pictures_by_name(chat: Chat) -> None:
    code, out, error = chat(f"{SHAPES} What?\n/clear\nHi\n", "--model", "qwen3", "--max-tokens", "3")
    assert code == 1 and out.startswith("\n") and len(out.splitlines()) == 2
    assert error.startswith("mlx_vlgen: error: line 1: a picture was given, and this model takes only text\n")


def test_a_prompt_that_is_too_long_is_told_with_what_to_do(chat: Chat) -> None:
    code, out, error = chat("word " * 5000 + "\nWho are you?\n")
    assert code == 1 and out.startswith("\nI am the small built-in demo model")
    assert "tokens and the model has 4096 positions" in error and "/clear begins anew" in error


def test_the_pages_pipes(chat: Chat, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "chat.md"
    shutil.copytree(DEMO.parent / "pictures", tmp_path, dirs_exist_ok=True)
    outcomes = []
    for command in re.findall(r"^printf .*", page.read_text(encoding="utf-8"), re.MULTILINE):
        questions, _, arguments = command.partition(" | python -m mlx_vlgen.chat ")
        outcomes.append(chat("\n".join(shlex.split(questions)[2:]) + "\n", *shlex.split(arguments)))
    assert [code for code, _, _ in outcomes] == [0, 0, 0]
    assert outcomes[0][1] == "There are 2 shapes.\nThe circle is red.\n"
    assert json.loads(outcomes[1][1])["answer"] == "There are 2 shapes."
    assert outcomes[2][1] == "There are 2 shapes.\nThere are 3 shapes.\n"


def test_usage(chat: Chat, invoke: Callable[..., Outcome]) -> None:
    assert chat("", "--top-q", "1")[0] == 2
    assert "--top-p: expected 0 to 1" in chat("", "--top-p", "7")[2].replace("=7.0", "")
    assert "a.wav: no such file" in chat("Hi\n", "--audio", "a.wav")[2]
    deaf = chat("Hi\n", "--audio", __file__)
    assert deaf[0] == 1 and "audio was given, and this model takes only text, pictures and videos" in deaf[2]
    assert "gone.png: no such file" in chat("Hi\n", "--image", "gone.png")[2]
    assert "there is no talk to go on with yet" in chat("Hi\n", "--resume")[2]
    assert chat("")[:2] == (0, "")
    assert "usage: mlx-vlgen chat " in invoke("chat", "--help", command=cli.main)[1]


def test_help_is_instant(run: Callable[..., Completed]) -> None:
    result = run(sys.executable, "-W", "error", "-X", "importtime", "-m", "mlx_vlgen.chat", "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: python -m mlx_vlgen.chat ")
    assert not any(
        line.endswith(("| mlx", "| transformers", "| prompt_toolkit")) for line in result.stderr.splitlines()
    )


@pytest.mark.usefixtures("heeds_interrupts")
def test_answers_come_as_the_questions_do(environment: dict[str, str], tmp_path: Path) -> None:
    """So that a program may talk, too; Ctrl-C ends it. The model is a stand-in, which repeats what it was asked."""
    command = [sys.executable, str(Path(__file__).with_name("stand_in_chat.py")), "--model", "stand-in"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=environment | {"XDG_STATE_HOME": str(tmp_path / "state")},
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    for question, answer in [("One", "u0: One t=None"), ("think", "uau0: think t=None")]:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == answer + "\n"
    process.stdin.write("wait\n")
    process.stdin.flush()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read().startswith("thought 0\nthought 1\n")
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
