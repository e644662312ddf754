"""A chat on a real terminal: keys in, screen out. After everything that can happen the next answer is right.

The model is a stand-in that repeats what it was given: the first letters of all roles, how many pictures there are,
and the question. So "uau1: Hi" is an answer to the second question of a talk with one picture.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from PIL import Image, ImageDraw

from mlx_vlgen.demo import MODEL as DEMO
from mlx_vlgen.session import read_talk

from .terminal import ALT_ENTER, CTRL_C, CTRL_D, CTRL_U, ENTER, TAB, Terminal

pytest.importorskip("prompt_toolkit")
pytestmark = pytest.mark.usefixtures("heeds_interrupts")

HERE = Path(__file__).parent
Start = Callable[..., Terminal]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    terminals = []

    def start(*arguments: str | Path, columns: int = 80, wait: bool = True, **variables: str) -> Terminal:
        command = [sys.executable, str(HERE / "stand_in_chat.py"), "--model", "stand-in", *map(str, arguments)]
        state = {"XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": ""}
        terminals.append(Terminal(command, environment | state | variables, tmp_path, columns))
        if wait:
            terminals[-1].wait(">", 30)
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    Image.new("RGB", (40, 20), "red").save(path)
    return path


def test_questions_and_commands(start: Start, photo: Path, tmp_path: Path) -> None:
    terminal = start()
    assert "stand-in, 1,000 tokens of context\n" in terminal.show
    terminal.ask("Hello", "u0: Hello t=None\n3 tokens · 50.0 tokens/s · context 13 of 1,000 (1%)")
    terminal.ask("/set temperature 0.5", "temperature 0.5")
    terminal.ask("Again", "uau0: Again t=0.5")
    terminal.ask("/undo", "taken back: Again")
    terminal.ask("/set temperature default", "sampling model")
    terminal.ask("/retry", "u0: Hello t=None")
    terminal.ask("/system Be brief.", "system message: Be brief.")
    terminal.press(f'/image "{photo}"{ENTER}')
    terminal.wait("\nmy photo.png >")
    terminal.ask("What?", "suau1: What? t=None")
    terminal.press("/edit" + ENTER)
    terminal.wait("\nedit my photo.png > What?")
    terminal.ask(" Which?", "suau1: What? Which? t=None")
    terminal.ask("/show", "questions: 2, pictures and videos: 1")
    terminal.ask("/sytem", "unknown command /sytem; did you mean '/system'?")
    terminal.ask("/set temprature 1", "did you mean 'temperature'?")
    terminal.ask("/set top_p 7", "top_p=7.0: expected 0 to 1")
    terminal.ask("/image nowhere.png", "nowhere.png: no such file")
    terminal.ask("/video nowhere.mp4", "nowhere.mp4: no such file")
    terminal.ask("/save talk.jsonl", "--resume talk.jsonl goes on from here")
    terminal.ask("/save talk.jsonl", "is there already")
    terminal.ask("/clear", "forgotten")
    terminal.ask("New", "su0: New")
    terminal.ask("/load talk.jsonl", "suau1: What? Which?")
    terminal.ask("On", "suauau1: On")
    terminal.ask("/load", "1 ")
    terminal.ask("/model missing", "missing: no such model")
    terminal.ask("Still", "suauauau1: Still")
    terminal.ask("/model text", "this model takes only text")
    terminal.ask(f"/image '{photo}'", "an image was given, and this model takes only text")
    terminal.ask("/help", "/thoughts")
    terminal.press("/quit" + ENTER)
    assert terminal.end() == 0


def test_ctrl_c_everywhere(start: Start, photo: Path) -> None:
    terminal = start()
    terminal.press("half a question" + CTRL_C)
    terminal.wait(lambda show: "Ctrl-D or /quit leaves" in show and show.endswith("\n>"))
    terminal.ask("One", "u0: One")
    terminal.press(f"'{photo}' wait" + ENTER)
    terminal.wait("reading the prompt, 1 of 30 tokens")
    terminal.press(CTRL_C)
    terminal.wait("\nmy photo.png > wait")
    assert "the question is in the line again" in terminal.show and "reading the prompt" not in terminal.show
    terminal.press(CTRL_U)
    terminal.ask("Two", "uau1: Two")
    terminal.press("count" + ENTER)
    terminal.wait(lambda show: " 9 10 11" in show)
    terminal.press(CTRL_C)
    show = terminal.wait("\n>")
    assert "stopped · " in show
    terminal.ask("Three", "uauauau1: Three")
    terminal.press("ponder" + ENTER)
    terminal.wait(lambda show: "thought 20" in show)
    terminal.press(CTRL_C + CTRL_C + CTRL_C)
    terminal.wait("\n> ponder")
    terminal.press(CTRL_U)
    terminal.ask("Four", "uauauauau1: Four")
    terminal.press("/retry" + ENTER)
    terminal.wait(lambda show: show.count("uauauauau1: Four") == 2 and show.endswith("\n>"))
    terminal.press("typed" + CTRL_D)  # deletes nothing
    terminal.press(CTRL_U + CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.show


def test_thinking_is_folded_into_a_line(start: Start) -> None:
    terminal = start()
    terminal.ask("think", "\nthought for 20 tokens; /thoughts shows them\nu0: think")
    assert "thought 5" not in terminal.show and b"\033[2mthinking, 5 tokens: " in terminal.written
    terminal.ask("/thoughts", "thought 5\nthought 6\n")
    terminal.press("/thoughts open" + ENTER)
    terminal.ask("think", "thought 19\nthought for 20 tokens\nuau0: think")


def test_pasted_files_become_pictures(start: Start, photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    Image.new("RGB", (3, 3)).save(other)
    terminal = start(columns=200)
    terminal.paste(str(photo).replace(" ", "\\ ") + " ")
    terminal.press(ENTER)
    terminal.wait("\nmy photo.png >")
    assert "my photo.png, 40 x 20" in terminal.show
    terminal.ask("One", "u1: One")
    terminal.paste(f"{photo.as_uri()} '{other}' compare")
    terminal.ask("", "uau3: compare")
    terminal.paste(f"{tmp_path}/gone.png")
    terminal.press(" What?" + ENTER)
    terminal.wait("gone.png What?")
    terminal.wait(lambda show: "gone.png: no such file" in show and show.endswith("gone.png What?"))
    terminal.press(CTRL_U)
    terminal.ask("gone.png?", "gone.png is no file here: the model reads the name only. /image takes paths and URLs")
    terminal.ask("Two", "uauauau3: Two")


def test_what_is_typed_early_is_for_the_line(start: Start, photo: Path) -> None:
    """Also where the terminal is asked what graphics it has."""
    terminal = start("--image", photo, wait=False)
    terminal.press("early")
    terminal.wait("\nmy photo.png > early")


def test_several_lines(start: Start) -> None:
    terminal = start()
    terminal.press(f"a{ALT_ENTER}b{ENTER}")
    terminal.wait(lambda show: "u0: a\nb t=None" in show and show.endswith("\n>"))
    terminal.press(f'"""{ENTER}/undo{ENTER}c"""{ENTER}')
    terminal.wait(lambda show: "uau0: /undo\nc t=None" in show and show.endswith("\n>"))
    terminal.paste("d\ne")
    terminal.ask("", "uauau0: d\ne")


def test_completion_and_history(start: Start, photo: Path) -> None:
    terminal = start()
    terminal.press("/ret")
    terminal.wait("/retry  answer the last question again")
    terminal.press(TAB)
    terminal.wait(lambda show: "\n> /retry" in show)
    terminal.press(ENTER)
    terminal.wait(lambda show: "nothing has been asked yet" in show and show.endswith("\n>"))
    terminal.press("/image my")
    terminal.wait("my\\ photo.png")
    terminal.press(TAB)
    terminal.wait(lambda show: "> /image my\\ photo.png" in show)
    terminal.press(ENTER)
    terminal.wait("\nmy photo.png >")
    terminal.press("/set temperat")
    terminal.wait(lambda show: "temperature  of the softmax" in show)
    terminal.press(TAB)
    terminal.wait(lambda show: "> /set temperature" in show)
    terminal.press(CTRL_U + "Hello" + ENTER)
    terminal.wait("\n>")
    terminal.press(CTRL_D)
    assert terminal.end() == 0
    again = start()
    again.press("\033[A")
    again.wait("\n> Hello")


def test_a_talk_outlives_kill_9(start: Start, photo: Path, tmp_path: Path) -> None:
    terminal = start("--image", photo)
    terminal.ask("One", "u1: One")
    terminal.press("count" + ENTER)
    terminal.wait(lambda show: " 9 10" in show)
    terminal.process.send_signal(signal.SIGKILL)
    terminal.end()
    (talk,) = (tmp_path / "state" / "mlx-vlgen" / "chats").iterdir()
    assert (talk.stat().st_mode & 0o777, talk.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with open(talk, "a") as file:
        file.write('{"event": "tur')
    again = start("--resume")
    assert again.shows("going on after 1 question") and again.shows("the last line was not whole")
    again.ask("Two", "uau1: Two")
    second = start("--resume", talk, wait=False)
    assert second.end() == 1 and second.shows("another chat goes on with this talk")
    assert all(json.loads(line) for line in talk.read_text().splitlines())


def test_a_changed_picture_is_asked_about(start: Start, photo: Path, tmp_path: Path) -> None:
    terminal = start("--image", photo)
    terminal.ask("One", "u1: One")
    photo.unlink()
    terminal.ask("Two", "uau1: Two")  # what was shown is held
    terminal.press(CTRL_D)
    assert terminal.end() == 0
    gone = start("--resume", wait=False)
    gone.wait("or the path of another:")
    assert gone.shows("my photo.png: no such file. It belongs to")
    gone.press("s" + ENTER)
    assert gone.end() == 1
    Image.new("RGB", (40, 20), "blue").save(photo)
    changed = start("--resume", wait=False)
    changed.wait("or the path of another:")
    assert changed.shows("has changed since")
    changed.press("u" + ENTER)
    changed.wait("\n>")
    changed.ask("Three", "uauau1: Three")
    changed.press(CTRL_D)
    changed.end()
    start("--resume").ask("Four", "uauauau1: Four")


def test_a_full_context_is_told_before_and_never_forgets(start: Start) -> None:
    terminal = start()
    terminal.ask("long 940", "the context is 95% full, with room for 50 tokens: /clear begins anew")
    terminal.press("long 990" + ENTER)
    terminal.wait(lambda show: "/undo takes turns back" in show.rpartition("1020")[2] and show.endswith("\n> long 990"))
    assert "error: the prompt has 1020 tokens" in terminal.show
    terminal.press(CTRL_U)
    terminal.ask("count 950", "the context is full: ")
    terminal.ask("/undo", "taken back: count 950")
    terminal.ask("Two", "uau0: Two")


@pytest.mark.parametrize("columns", [80, 200])
def test_resizing_while_it_answers(start: Start, columns: int) -> None:
    terminal = start(columns=columns)
    terminal.press("ponder" + ENTER)
    terminal.wait(lambda show: "thought 9" in show)
    terminal.resize(40)
    terminal.wait(lambda show: "thought 60" in show)
    terminal.press(CTRL_C)
    terminal.wait("\n> ponder")
    terminal.resize(120)
    terminal.press(CTRL_U)
    terminal.ask("One", "u0: One")


def test_no_color(start: Start, photo: Path) -> None:
    terminal = start(NO_COLOR="1")
    terminal.ask(f"'{photo}' think", "u1: think")
    colours = re.findall(rb"\033\[(?:[\d;]*;)?(?:2|[349]\d)m", terminal.written)
    assert "▀" not in terminal.show and not colours


@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
def test_the_plain_line_does_the_same(start: Start, photo: Path, term: str, environment: dict[str, str]) -> None:
    (photo.parent / "sitecustomize.py").write_text("import sys; sys.modules['prompt_toolkit'] = None")
    terminal = start(TERM=term, PYTHONPATH=os.pathsep.join([str(photo.parent), environment["PYTHONPATH"]]))
    terminal.ask(f"'{photo}' think", "u1: think")
    terminal.press("half" + CTRL_C)
    terminal.wait(lambda show: "Ctrl-D or /quit leaves" in show and show.endswith("\n>"))
    terminal.press("wait" + ENTER)
    time.sleep(0.5)
    terminal.press(CTRL_C)
    terminal.wait("in the line again\n> wait")
    terminal.press(CTRL_U)
    terminal.ask("Two", "uau1: Two")
    terminal.press("/image my" + TAB)
    terminal.wait("> /image my\\ photo.png")
    terminal.press(CTRL_U + "\033[A")
    terminal.wait("\n> Two")
    terminal.press(CTRL_U)
    terminal.press(f'"""{ENTER}c{ENTER}d"""{ENTER}')
    terminal.wait(lambda show: "uauau1: c\nd t=None" in show and show.endswith("\n>"))
    terminal.press(CTRL_D)
    assert terminal.end() == 0


@pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the built-in model is not there")
def test_the_built_in_model(environment: dict[str, str], tmp_path: Path) -> None:
    """A talk as a person has it, with a model that looks at the pictures."""
    environment |= {"XDG_STATE_HOME": str(tmp_path / "state")}
    picture = tmp_path / "drawn here.png"
    drawing = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(drawing).ellipse((20, 40, 120, 140), fill="green")
    ImageDraw.Draw(drawing).rectangle((180, 50, 270, 140), fill="red")
    drawing.save(picture)
    terminal = Terminal([sys.executable, "-m", "mlx_vlgen.chat", "--model", "demo"], environment, tmp_path)
    try:
        terminal.wait("\n>", 60)
        terminal.paste(str(picture).replace(" ", "\\ "))
        terminal.ask(" How many shapes are there?", "There are 2 shapes.")
        terminal.press("What" + CTRL_C)
        terminal.wait(lambda show: "leaves, /help lists the commands" in show and show.endswith("\n>"))
        terminal.ask("What colour is the circle?", "The circle is green.")
        terminal.ask("/set enable_thinking on", "enable_thinking on")
        terminal.press("How many circles are there?" + ENTER)
        terminal.wait(lambda show: "; /thoughts shows them\nThere is 1 circle." in show and show.endswith("\n>"))
        terminal.press(CTRL_D)
        assert terminal.end() == 0
    finally:
        terminal.close()


@pytest.mark.slow
def test_ctrl_c_and_kill_9_at_any_moment(environment: dict[str, str], tmp_path: Path) -> None:
    """Whenever they come: the talk holds whole turns, and the next answer is right."""
    environment |= {"XDG_STATE_HOME": str(tmp_path / "state")}
    shapes, random = DEMO.parent / "pictures" / "shapes.png", Random(0)
    command = [sys.executable, "-m", "mlx_vlgen.chat", "--model", "demo"]
    for start in range(4):
        terminal = Terminal([*command, *(["--resume"] if start else ["--image", str(shapes)])], environment, tmp_path)
        try:
            terminal.wait(">", 60)
            terminal.ask("What colour is the circle?", "The circle is red.")
            for _ in range(12):
                terminal.press("Describe this image.")
                terminal.wait("\n> Describe this image.")
                terminal.press(ENTER)
                time.sleep(random.uniform(0, 0.4))
                terminal.press(CTRL_C)
                # before the answer, in it, or after it, when nobody may have seen the prompt without the hint
                ends = ("again\n> Describe this image.", ")\n\n>", "lists the commands\n>")
                terminal.wait(lambda show: show.endswith(ends))  # noqa: B023
                terminal.press(CTRL_U)
                terminal.ask("/clear", "all that was said is forgotten")
                terminal.ask(f"{shapes} What colour is the circle?", "The circle is red.")
            terminal.press("Describe this image." + ENTER)
            time.sleep(random.uniform(0, 0.4))
        finally:
            terminal.close()
        for talk in (tmp_path / "state" / "mlx-vlgen" / "chats").iterdir():
            assert all(turn.text and turn.answer["content"] for turn in read_talk(talk)[0].turns)


def test_ctrl_c_while_the_model_loads_ends_it(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("print('here', flush=True)\nimport time; time.sleep(600)")
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "mlx_vlgen.chat", "--model", "demo"]
    terminal = Terminal(command, environment | {"PYTHONPATH": path, "XDG_STATE_HOME": str(tmp_path)}, tmp_path)
    try:
        terminal.wait(lambda show: "here" in show)
        terminal.press(CTRL_C)
        assert terminal.end() == 130
    finally:
        terminal.close()
