"""Previews, what a terminal can show, and history, without a terminal."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_vlgen.previews import Graphics, cells, graphics_of, has_truecolor, preview
from mlx_vlgen.screens import last_columns, safe
from mlx_vlgen.terminal import add_to_history, read_history

PICTURE = Image.new("RGB", (60, 40), (200, 30, 40))


@pytest.mark.parametrize(
    ("environment", "reply", "graphics"),
    [
        ({"TERM": "xterm-kitty"}, None, "kitty"),
        ({"TERM": "xterm-ghostty", "NO_COLOR": "1"}, None, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, None, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, None, "iterm2"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, None, "blocks"),
        ({"TERM": "tmux-256color"}, "\033[?1;2;4c", "blocks"),
        ({"TERM": "foot"}, "\033[?62;4;22c", "sixel"),
        ({"TERM": "xterm"}, "\033[?64;1;2;22c", "blocks"),
        ({"TERM": "xterm"}, "\033[?4c", "blocks"),  # that is the terminal's class
        ({"TERM": "xterm", "NO_COLOR": "1"}, None, None),
        ({"TERM": "dumb"}, None, None),
        ({}, None, None),
    ],
)
def test_what_a_terminal_shows(environment: dict[str, str], reply: str | None, graphics: Graphics | None) -> None:
    assert graphics_of(environment, reply) == graphics


def test_sizes() -> None:
    assert cells((1000, 1000), 32) == (20, 10)
    assert cells((4000, 100), 80) == (80, 1)
    assert cells((1, 5000), 80) == (1, 10)


@pytest.mark.parametrize("truecolor", [True, False])
def test_half_blocks(truecolor: bool) -> None:
    text = preview(PICTURE, "blocks", 80, truecolor)
    lines = text.splitlines()
    assert len(lines) == 10 and all(line.count("▀") == 30 and line.endswith("\033[0m") for line in lines)
    assert ("38;2;200;30;40" if truecolor else "38;5;160") in text


def test_kitty_and_iterm2_hold_the_picture() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    text = preview(noise, "kitty", 80)
    chunks = re.findall("\033_G([^;]*);([^\033]*)\033\\\\", text)
    assert chunks[0][0] == "a=T,f=100,q=2,c=27,r=10,m=1" and chunks[-1][0] == "m=0"
    assert all(len(data) <= 4096 for _, data in chunks)
    inside = base64.b64decode("".join(data for _, data in chunks))
    assert Image.open(io.BytesIO(inside)).size == (270, 200)
    match = re.fullmatch(
        "\033]1337;File=inline=1;width=27;height=10;preserveAspectRatio=0:(.*)\a\n", preview(noise, "iterm2", 80)
    )
    assert match and base64.b64decode(match[1]) == inside


def test_sixels_draw_the_picture() -> None:
    text = preview(PICTURE, "sixel", 8)
    body = re.fullmatch('\033Pq"1;1;80;60(.*)\033\\\\\n', text)
    assert body
    assert decode_sixel(body[1], 80, 60) == {(78, 12, 16): 80 * 60}


def decode_sixel(body: str, width: int, height: int) -> dict[tuple[int, ...], int]:
    """How many pixels of the picture have each colour, in percent."""
    colours: dict[str, tuple[int, ...]] = {}
    pixels: dict[tuple[int, int], tuple[int, ...]] = {}
    x, y, now = 0, 0, (0, 0, 0)
    for define, select, run, one, control in re.findall(r"#(\d+;2;\d+;\d+;\d+)|#(\d+)|!(\d+.)|([?-~])|([$-])", body):
        if define:
            name, _, *levels = define.split(";")
            colours[name] = tuple(map(int, levels))
        elif select:
            now = colours[select]
        elif control:
            x, y = 0, y + 6 * (control == "-")
        else:
            count, mask = (int(run[:-1]), run[-1]) if run else (1, one)
            for column in range(x, x + count):
                for bit in range(6):
                    if ord(mask) - 63 >> bit & 1:
                        pixels[column, y + bit] = now
            x += count
    assert all(x < width and y < height for x, y in pixels)
    return {colour: list(pixels.values()).count(colour) for colour in set(pixels.values())}


def test_truecolor_is_known_by_the_environment() -> None:
    assert has_truecolor({"COLORTERM": "truecolor"}) and not has_truecolor({"TERM": "xterm-256color"})


def test_text_of_a_model_does_not_steer_the_terminal() -> None:
    assert safe("a\033[2Jb\a\nc\t\x9b1m") == "a\ufffd[2Jb\ufffd\nc\t\ufffd1m"


def test_the_end_of_a_text_in_columns() -> None:
    assert last_columns("one two\nthree", 9) == "two three"
    assert last_columns("a界界", 4) == "界界" and last_columns("a界界", 3) == "界"
    assert last_columns("", 3) == "" and last_columns("abc", 0) == ""


def test_history_holds_lines_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "history"
    assert read_history(path) == []
    for line in ("one", "two\nlines", "ü"):
        add_to_history(path, line)
    with open(path, "a") as file:
        file.write('"torn')
    assert read_history(path) == ["one", "two\nlines", "ü"]
    assert path.stat().st_mode & 0o777 == 0o600
