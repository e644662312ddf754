"""Shapes and print on pictures, with a labelled box for each one.

Everything here is numpy and Pillow, and seeded. The boxes become dense labels for the vision tower (`lessons.py`), and
`tasks.py` writes sentences about the `Scene`.
"""

from __future__ import annotations

import colorsys
import functools
import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
SHAPES = ("circle", "square", "triangle")
# Ranges of hue in degrees, saturation and value, with gaps between neighbours so that every colour has one name.
COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-10, 8), (0.78, 1.0), (0.75, 1.0)),
    "orange": ((24, 39), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((50, 61), (0.75, 1.0), (0.9, 1.0)),
    "green": ((100, 145), (0.6, 1.0), (0.45, 1.0)),
    "blue": ((208, 242), (0.7, 1.0), (0.6, 1.0)),
    "purple": ((270, 300), (0.6, 1.0), (0.45, 0.85)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.12)),
}
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)

COMMON_SIZES = (
    (640, 480), (320, 240), (256, 256), (512, 512), (224, 224), (400, 300), (800, 600),
    (480, 640), (300, 200), (128, 128), (96, 96), (640, 360), (500, 500), (400, 400),
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One shape: its centre and half its side, in pixels; `cell` is its (row, column) of PLACES, or None."""

    shape: str
    colour: str
    x: float
    y: float
    r: float
    cell: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        assert self.cell is not None
        return PLACES[self.cell[0]][self.cell[1]]

    @property
    def box(self) -> Box:
        return (self.x - self.r, self.y - self.r, self.x + self.r, self.y + self.r)


@dataclass(frozen=True)
class BoxLabel:
    """The class of the pixels in `box` (left, top, right, bottom); rank: in reading order, or -1."""

    box: Box
    label: int
    rank: int = -1


@dataclass
class Scene:
    """A picture and the truth about it. text: "" without print; photo: it has neither things nor text."""

    image: Image.Image
    things: list[Thing] = field(default_factory=list)
    text: str = ""
    photo: bool = False
    box_labels: list[BoxLabel] = field(default_factory=list)


def thing_label(shape: str, colour: str) -> int:
    """Class index of a shape; 0 is the background."""
    return 1 + SHAPES.index(shape) * len(COLOURS) + list(COLOURS).index(colour)


def is_thing(label: int) -> bool:
    return 1 <= label <= len(SHAPES) * len(COLOURS)


def form_of(label: int) -> int:
    """Index in SHAPES of a shape's class."""
    return (label - 1) // len(COLOURS)


def character_label(character: str) -> int:
    """Class index of a printed character, after those of the shapes."""
    return 1 + len(SHAPES) * len(COLOURS) + CHARACTERS.index(character)


LABELS = 1 + len(SHAPES) * len(COLOURS) + len(CHARACTERS)


# ---- colours and grounds


def colour_rgb(rng: random.Random, name: str) -> RGB:
    hue, saturation, value = (rng.uniform(*bounds) for bounds in COLOURS[name])
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def light_rgb(rng: random.Random) -> RGB:
    """White half the time, else a light grey or tint."""
    if rng.random() < 0.5:
        return 255, 255, 255
    base = rng.randint(222, 255)
    red, green, blue = (min(255, base + rng.randint(-8, 8)) for _ in range(3))
    return red, green, blue


def picture_size(rng: random.Random, low: int = 96, high: int = 900) -> tuple[int, int]:
    """(width, height): sizes even in the logarithm, aspect at most 2.4; common screen shapes one time in three."""
    if rng.random() < 0.33:
        return rng.choice(COMMON_SIZES)
    side = math.exp(rng.uniform(math.log(low * 1.2), math.log(high / 1.5)))
    aspect = math.exp(rng.uniform(-0.8, 0.8)) if rng.random() < 0.7 else 1.0
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    return int(min(high, max(low, width))), int(min(high, max(low, height)))


def scale_of(width: int, height: int) -> float:
    """About the factor by which the processor will resize the picture; scenes choose sizes in the pixels after it."""
    return math.sqrt(12544 / (width * height))


# ---- drawing


def draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, rgb: RGB, outline: RGB | None, tilt: float, line: int) -> None:
    x, y, r = thing.x, thing.y, thing.r
    if thing.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=rgb, outline=outline, width=line)
        return
    if thing.shape == "square":
        corners = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    else:
        corners = [(0.0, -1.0), (0.95, 0.85), (-0.95, 0.85)]
    cos, sin = math.cos(tilt), math.sin(tilt)
    points = [(x + r * (cx * cos - cy * sin), y + r * (cx * sin + cy * cos)) for cx, cy in corners]
    draw.polygon(points, fill=rgb, outline=outline, width=line)


def draw_things(rng: random.Random, image: Image.Image, things: list[Thing]) -> None:
    draw = ImageDraw.Draw(image)
    style = rng.random()
    for thing in things:
        rgb = colour_rgb(rng, thing.colour)
        outline: RGB | None = None
        if style < 0.15:
            outline = (0, 0, 0) if rng.random() < 0.6 else (rgb[0] // 2, rgb[1] // 2, rgb[2] // 2)
        tilt = 0.0
        if rng.random() < 0.35:
            tilt = rng.uniform(-0.12, 0.12)
        if thing.shape == "triangle" and rng.random() < 0.15:
            tilt += math.pi
        draw_thing(draw, thing, rgb, outline, tilt, max(1, round(thing.r * rng.uniform(0.03, 0.1))))


@functools.lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


_BITMAP = ImageFont.load_default_imagefont()


def print_mask(rng: random.Random, text: str, size: int) -> tuple[Image.Image, list[float]]:
    """The print as an "L" picture cut to its line, and the left edges of its characters plus the right edge."""
    if rng.random() < 0.08 and size >= 12:
        edges = [float(_BITMAP.getlength(text[:i])) for i in range(len(text) + 1)]
        mask = Image.new("L", (max(1, int(edges[-1])), 11), 0)
        ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=_BITMAP)
        zoom = size / 11 * 1.1
    else:
        font = _font(size)
        stroke = max(1, round(size * rng.uniform(0.02, 0.05))) if rng.random() < 0.35 and size >= 16 else 0
        edges = [float(font.getlength(text[:i])) + stroke for i in range(len(text) + 1)]
        edges[-1] += stroke
        mask = Image.new("L", (math.ceil(edges[-1]) + 2, math.ceil(size * 1.25)), 0)
        ImageDraw.Draw(mask).text((stroke, 0), text, fill=255, font=font, stroke_width=stroke)
        zoom = 1.0
    stretch = zoom * (rng.uniform(0.85, 1.2) if rng.random() < 0.4 else 1.0)
    if stretch != 1.0 or zoom != 1.0:
        mask = mask.resize(
            (max(1, round(mask.width * stretch)), max(1, round(mask.height * zoom))),
            Image.Resampling.NEAREST if zoom != 1.0 else Image.Resampling.BILINEAR,
        )
        edges = [edge * stretch for edge in edges]
    top, bottom = _ink_rows(mask)
    return mask.crop((0, top, mask.width, bottom)), edges


def _ink_rows(mask: Image.Image) -> tuple[int, int]:
    box = mask.getbbox()
    return (box[1], box[3]) if box else (0, mask.height)


def print_text(
    rng: random.Random, image: Image.Image, text: str, rgb: RGB, size: int, area: Box | None = None
) -> list[BoxLabel] | None:
    """Print `text` somewhere in `area` (default: all). Returns a box for each character, or None if it does not fit."""
    mask, edges = print_mask(rng, text, size)
    left, top, right, bottom = area or (0, 0, image.width, image.height)
    pad = 0.15 * size
    if mask.width + 2 * pad > right - left or mask.height + 2 * pad > bottom - top:
        return None
    x = rng.uniform(left + pad, right - pad - mask.width)
    y = rng.uniform(top + pad, bottom - pad - mask.height)
    if area is None and rng.random() < 0.25:  # the common place
        x, y = (image.width - mask.width) / 2, (image.height - mask.height) / 2
    x, y = int(x), int(y)
    box_labels = [
        BoxLabel((x + edges[i], y, x + edges[i + 1], y + mask.height), character_label(c), i)
        for i, c in enumerate(text)
        if c in CHARACTERS
    ]
    if area is None and rng.random() < 0.12:
        angle = rng.uniform(-5, 5)
        layer = Image.new("L", image.size, 0)
        layer.paste(mask, (x, y))
        centre = (x + mask.width / 2, y + mask.height / 2)
        layer = layer.rotate(angle, Image.Resampling.BILINEAR, center=centre)
        image.paste(rgb, (0, 0), layer)
        rise = math.tan(math.radians(angle))
        box_labels = [_shifted(label, centre[0], rise) for label in box_labels]
    else:
        image.paste(rgb, (x, y), mask)
    return box_labels


def _shifted(label: BoxLabel, centre_x: float, rise: float) -> BoxLabel:
    """Moved up or down with its text, which was rotated around `centre_x`. rise: pixels up for one to the right."""
    left, top, right, bottom = label.box
    shift = ((left + right) / 2 - centre_x) * rise
    return BoxLabel((left, top - shift, right, bottom - shift), label.label, label.rank)


def finish(rng: random.Random, image: Image.Image) -> Image.Image:
    """Sometimes noise or blur, as in saved and scanned drawings."""
    chance = rng.random()
    if chance < 0.06 and image.width * image.height < 300_000:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 7), (image.height, image.width, 3))
        return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if chance < 0.10 and image.width * image.height < 300_000:
        return image.filter(ImageFilter.GaussianBlur(0.4 / scale_of(*image.size) ** 0.5))
    return image
