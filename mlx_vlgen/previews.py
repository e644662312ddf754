"""Small pictures in a terminal: kitty's, iTerm2's and sixel graphics, and half-blocks where there are none of these."""

# textual-image 0.12 does less: its import asks each terminal and eats what was typed ("hello" became "lo", and
# sixel was not seen), it needs a terminal on stdout, and has no iTerm2 graphics.

import base64
import io
import os
import re
import select
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Literal

from PIL import Image

Graphics = Literal["kitty", "iterm2", "sixel", "blocks"]

COLUMNS, ROWS = 32, 10
"""Cells that a preview takes at most."""

CELL = (10, 20)
"""Pixels of a cell, about."""


def preview(picture: Image.Image, graphics: Graphics, columns: int, truecolor: bool = True) -> str:
    """What shows a picture when it is written to a terminal of so many columns; it ends with a line break."""
    width, height = cells(picture.size, min(columns, COLUMNS))
    picture = picture.convert("RGB")
    if graphics == "blocks":
        return _blocks(picture.resize((width, 2 * height)), truecolor)
    small = picture.resize((width * CELL[0], height * CELL[1]))
    if graphics == "sixel":
        return _sixel(small) + "\n"
    data = base64.b64encode(_png(small)).decode()
    if graphics == "iterm2":
        return f"\033]1337;File=inline=1;width={width};height={height};preserveAspectRatio=0:{data}\a\n"
    chunks = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    more = [int(i < len(chunks) - 1) for i in range(len(chunks))]
    first = f"a=T,f=100,q=2,c={width},r={height},"
    return "".join(f"\033_G{first * (i == 0)}m={more[i]};{chunk}\033\\" for i, chunk in enumerate(chunks)) + "\n"


def cells(size: tuple[int, int], columns: int) -> tuple[int, int]:
    """Columns and rows of a picture of `size`, its (width, height) in pixels, at twice as many rows a pixel."""
    scale = min(columns / size[0], 2 * ROWS / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale / 2))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _blocks(picture: Image.Image, truecolor: bool) -> str:
    """Two pixels a cell: the upper half block's colour, and that behind it."""
    colour = _truecolor if truecolor else _colour_of_256
    pixels = picture.load()
    assert pixels is not None
    lines = []
    for y in range(0, picture.height, 2):
        row = (
            f"\033[38;{colour(pixels[x, y])};48;{colour(pixels[x, y + 1])}m▀"  # type: ignore[arg-type]
            for x in range(picture.width)
        )
        lines.append("".join(row) + "\033[0m\n")
    return "".join(lines)


def _truecolor(rgb: tuple[int, int, int]) -> str:
    return "2;{};{};{}".format(*rgb)


def _colour_of_256(rgb: tuple[int, int, int]) -> str:
    """The nearest colour of xterm's cube (levels 0, 95, 135 ... 255) or of its greys."""
    if max(rgb) - min(rgb) < 12:
        grey = (sum(rgb) // 3 - 3) // 10
        return f"5;{16 if grey < 0 else 231 if grey > 23 else 232 + grey}"
    red, green, blue = (0 if v < 48 else 1 if v < 115 else (v - 35) // 40 for v in rgb)
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _sixel(picture: Image.Image) -> str:
    """Bands of six rows, each a colour at a time; runs of equal columns are counted (DEC STD 070)."""
    picture = picture.quantize(64, dither=Image.Dither.NONE)
    palette = picture.getpalette() or []
    width, height = picture.size
    data = picture.tobytes()
    pieces = [f'\033Pq"1;1;{width};{height}']
    for i in range(len(palette) // 3):
        red, green, blue = (round(v * 100 / 255) for v in palette[3 * i : 3 * i + 3])
        pieces.append(f"#{i};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        rows = [data[y * width : (y + 1) * width] for y in range(top, min(top + 6, height))]
        lines = []
        for i in sorted(set().union(*rows)):
            columns = "".join(chr(63 + sum((row[x] == i) << bit for bit, row in enumerate(rows))) for x in range(width))
            lines.append(f"#{i}" + re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", columns))
        pieces.append("$".join(lines) + "-")
    return "".join(pieces) + "\033\\"


# What a terminal can show


def graphics_of(environment: Mapping[str, str], reply: str | None = None) -> Graphics | None:
    """What a terminal shows by its environment and, where it was asked, its reply to `\\033[c`; None for no pictures.

    None where NO_COLOR is set and the terminal has no graphics, since half-blocks are made of colours.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term in ("", "dumb"):
        return None
    if "TMUX" in environment or term.startswith(("tmux", "screen")):
        reply = None  # tmux says sixel, and shows plus signs where the terminal around it has none
    elif "kitty" in term or "ghostty" in term or program in ("ghostty", "kitty"):
        return "kitty"
    elif program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if reply and "4" in reply.removeprefix("\033[?").removesuffix("c").split(";")[1:]:
        return "sixel"
    return None if environment.get("NO_COLOR") else "blocks"


def has_truecolor(environment: Mapping[str, str]) -> bool:
    return environment.get("COLORTERM") in ("truecolor", "24bit") or "direct" in environment.get("TERM", "")


@cache
def terminal_graphics() -> Graphics | None:
    """What the terminal on stdin and stderr shows. It is asked once, where its environment does not say."""
    known = graphics_of(os.environ)
    if known not in ("blocks", None) or os.environ.get("TERM") in (None, "", "dumb"):
        return known
    if os.environ.get("TERM_PROGRAM") in ("Apple_Terminal", "tmux"):  # have none, or none to rely on
        return known
    return graphics_of(os.environ, _ask_terminal())


def _ask_terminal(seconds: float = 2.0) -> str | None:
    """What a terminal says it is (DA1); None where it says nothing. A reply after `seconds` would stand in the line, so
    they are many: hardly a terminal says nothing."""
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    try:
        tty.setcbreak(stdin, termios.TCSANOW)
        if select.select([stdin], [], [], 0)[0]:  # what was typed meanwhile is for the line
            return None
        os.write(sys.stderr.fileno(), b"\033[c")
        reply, until = "", time.monotonic() + seconds
        while not (match := re.search(r"\033\[\?[\d;]*c", reply)):  # keys may come before it
            if not select.select([stdin], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            reply += os.read(stdin, 1).decode("latin-1")
        return match[0]
    finally:
        termios.tcsetattr(stdin, termios.TCSANOW, before)
