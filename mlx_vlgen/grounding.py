"""Boxes and points that a model names in its answer: read in each family's format, and drawn on the picture."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .inputs.processor import Processor
    from .inputs.prompt import MediaInputs

Size = tuple[int, int]
"""(width, height) in pixels, as Pillow has it."""


@dataclass(frozen=True)
class Box:
    """x1 < x2, y1 < y2: pixels of the original picture, from its upper left corner. label: "" where there is none.
    picture: the one of the request, from 0, that the answer names; None: it names none."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    picture: int | None = None


@dataclass(frozen=True)
class Point:
    """x, y: pixels of the original picture. label, picture: as of a `Box`."""

    x: float
    y: float
    label: str = ""
    picture: int | None = None


@dataclass(frozen=True)
class Polygon:
    """points: (x, y) of each corner in pixels of the original picture. label, picture: as of a `Box`."""

    points: tuple[tuple[float, float], ...]
    label: str = ""
    picture: int | None = None


Mark = Box | Point | Polygon


@dataclass(frozen=True)
class _Found:
    """A mark as it was written. at: where in the text. coordinates: x, y, x, y, … scale: what the picture's width and
    height are in them; None where the family tells. picture: as of a `Box`."""

    at: int
    kind: type[Mark]
    coordinates: Sequence[float]
    label: str = ""
    scale: float | None = None
    picture: int | None = None


# model_type -> what a picture's sides are in the coordinates that the family answers with. Sources: the model cards and
# cookbooks of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4.1V and LFM2.5-VL. A family that is not here is told by its text.
_SCALES: dict[str, float | str] = {
    "qwen2_vl": 1000,
    "qwen2_5_vl": "pixels",
    "qwen3_vl": 1000,
    "qwen3_vl_moe": 1000,
    "qwen3_5": 1000,
    "qwen3_5_moe": 1000,
    "glm4v": 1000,
    "glm4v_moe": 1000,
    "lfm2_vl": 1,
    "lfm2-vl": 1,
}
_LARGEST = 1e6  # of a coordinate; also what infinity and NaN are not below


def parse(
    text: str, size: Size, *, format: str | None = None, input_size: Size | None = None, index: int = 0
) -> list[Mark]:  # fmt: skip
    """The boxes, points and polygons that an answer names, in their order, in pixels of the picture.

    size: the (width, height) of the original picture, upright. format: the checkpoint's `model_type`; it tells what
    coordinates mean that several families write alike. Default None: the numbers tell. input_size: the (width, height)
    that the picture was resized to, which Qwen2.5-VL's coordinates are pixels of; see `for_model`. index: which of the
    request's pictures it is, from 0: marks that the answer puts onto another one are left out.

    Coordinates outside the picture are moved to its edge. What is malformed or empty is left out.
    ValueError without an input_size for a family that needs it.
    """
    scale = _SCALES.get(format or "")
    if scale == "pixels" and input_size is None:
        raise ValueError(
            f"{format} answers in pixels of the resized picture: give input_size=(width, height) of that, or use "
            "for_model(model, processor)"
        )
    read = [*_read_spans(text), *_read_locations(text), *_read_points(text, format), *_read_json(text)]
    found = [one for one in read if one.picture in (None, index)]
    scales = _scales(scale, [one for one in found if one.scale is None], size, input_size)
    found.sort(key=lambda one: one.at)
    marks = (_mark(one, size, scales if one.scale is None else (one.scale, one.scale)) for one in found)
    return [mark for mark in marks if mark]


def for_model(model: Any, processor: "Processor", media: "MediaInputs | None" = None) -> Callable[..., list[Mark]]:
    """`parse` for the answers of a model: a function of a text, the original picture's (width, height) and its index.

    media: resize_shape, min_pixels and max_pixels of the request, where it had any.
    """
    from .inputs.prompt import MediaInputs

    kind, given = model.config.get("model_type"), media or MediaInputs()
    given = replace(
        given,
        min_pixels=processor.min_pixels if given.min_pixels is None else given.min_pixels,
        max_pixels=processor.max_pixels if given.max_pixels is None else given.max_pixels,
    )

    def find(text: str, size: Size, index: int = 0) -> list[Mark]:
        input_size = None
        if _SCALES.get(kind) == "pixels":
            height, width = given.resize_shape or (size[1], size[0])
            input_height, input_width = processor.image_size(height, width, given)  # type: ignore[attr-defined]
            input_size = input_width, input_height
        return parse(text, size, format=kind, input_size=input_size, index=index)

    return find


def _scales(
    scale: float | str | None, found: Sequence[_Found], size: Size, input_size: Size | None
) -> tuple[float, float]:  # fmt: skip
    """What the picture's width and height are in coordinates of which only the family, or else their size, tells."""
    if isinstance(scale, int | float):
        return scale, scale
    if input_size is not None:
        return input_size
    numbers = [number for one in found for number in one.coordinates]
    if numbers and max(numbers) <= 1:
        return 1, 1
    return size if numbers and max(numbers) > 1000 else (1000, 1000)


def _mark(found: _Found, size: Size, scales: tuple[float, float]) -> Mark | None:
    """None for a box without an area, as one outside the picture is."""
    numbers = [
        min(max(number / scales[axis % 2] * size[axis % 2], 0.0), float(size[axis % 2]))
        for axis, number in enumerate(found.coordinates)
    ]
    label = " ".join(found.label.split())
    if found.kind is Point:
        return Point(numbers[0], numbers[1], label, found.picture)
    if found.kind is Polygon:
        return Polygon(tuple(zip(numbers[::2], numbers[1::2], strict=True)), label, found.picture)
    (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
    return Box(x1, y1, x2, y2, label, found.picture) if x1 < x2 and y1 < y2 else None


# Marks as tokens: Qwen2-VL's <|object_ref_start|>a cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>, InternVL's
# <ref>a cat</ref><box>[[1, 2, 3, 4]]</box>, GLM's <|begin_of_box|>[[1,2,3,4]]<|end_of_box|>.
_SPAN = re.compile(
    r"<(?:\|object_ref_start\||ref)>(?P<label>[^<]*)<"
    r"|<(?:\|(?P<qwen>box|quad|point)_start\||\|begin_of_(?P<glm>box)\||(?P<internvl>box|quad|point))>"
    r"(?P<numbers>[\s\d.,+()\[\]-]*)<"
)
_GROUP = re.compile(r"[\[(]([^\[\]()]*)[\])]")


def _read_spans(text: str) -> Iterator[_Found]:
    label = ""
    for match in _SPAN.finditer(text):
        if match["numbers"] is None:
            label = match["label"]
            continue
        groups = [_numbers(group[1].split(",")) for group in _GROUP.finditer(match["numbers"])]
        if not groups or not all(groups) or re.search(r"\d", _GROUP.sub("", match["numbers"])):
            continue
        flat = [number for group in groups for number in group]
        kind = match["qwen"] or match["glm"] or match["internvl"]
        if kind == "quad" and len(flat) >= 6 and len(flat) % 2 == 0:
            yield _Found(match.start(), Polygon, flat, label)
        elif (kind == "point" or match["glm"]) and all(len(group) == 2 for group in groups):
            for group in groups:
                yield _Found(match.start(), Point, group, label)
        elif kind == "box" and len(flat) % 4 == 0:
            for start in range(0, len(flat), 4):
                yield _Found(match.start(), Box, flat[start : start + 4], label)


# PaliGemma's <loc0010><loc0020><loc0500><loc0600> a cat ; … with y before x, in 1024 steps.
_LOCATION = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>(?:<seg\d{3}>)*([^;<\n]*)")


def _read_locations(text: str) -> Iterator[_Found]:
    for match in _LOCATION.finditer(text):
        y1, x1, y2, x2 = map(int, match.groups()[:4])
        yield _Found(match.start(), Box, (x1, y1, x2, y2), match[5], scale=1024)


# Molmo's <point x="10.5" y="20" alt="a cat">a cat</point>, <points x1="10" y1="20" x2="30" y2="40" alt="cats">, in
# percent; Qwen3-VL writes the same of 1000. Molmo2's <points coords="1 1 105 200 2 300 400;2 1 500 500" alt="cats"> has
# groups with the picture's number, and then each point's number, x and y of 1000.
_POINT = re.compile(r"<points?\s([^<>]*)>([^<]*)")
_ATTRIBUTE = re.compile(r"""\b(\w+)\s*=\s*(["'])(.*?)\2""")


def _read_points(text: str, format: str | None) -> Iterator[_Found]:
    scale = 1000 if (format or "").startswith("qwen") else 100
    for match in _POINT.finditer(text):
        values = {name: value for name, _, value in _ATTRIBUTE.findall(match[1])}
        for name in values:
            if name[0] == "x" and (point := _numbers([values[name], values.get("y" + name[1:], "")])):
                yield _Found(match.start(), Point, point, values.get("alt") or match[2], scale)
        for picture, point in _numbered(values.get("coords", "")):
            yield _Found(match.start(), Point, point, values.get("alt") or match[2], 1000, picture)


def _numbered(coords: str) -> Iterator[tuple[int, list[float]]]:
    """The index of a picture and a point on it, of Molmo2's coordinates."""
    for group in re.split(r"[\t:,;]", coords):
        picture, *numbers = group.split() or [""]
        if not re.fullmatch(r"[1-9]\d{0,3}", picture) or len(numbers) % 3:
            continue
        for start in range(0, len(numbers), 3):
            if point := _numbers(numbers[start + 1 : start + 3]):
                yield int(picture) - 1, point


# JSON objects with a box or a point, wherever they stand. Gemma's, as Gemini's, have y before x and are of 1000.
_KEYS: dict[str, tuple[type[Mark], float | None]] = {
    "bbox_2d": (Box, None),
    "bbox": (Box, None),
    "point_2d": (Point, None),
    "box_2d": (Box, 1000),
    "point": (Point, 1000),
}
_LABELS = ("label", "name", "text_content", "text", "description", "caption", "category")


def _read_json(text: str) -> Iterator[_Found]:
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        end = at + 1  # an array that was cut still has whole objects
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            value = None
        yield from _read_value(value, at)
        at = text.find("{", end)


def _read_value(value: Any, at: int) -> Iterator[_Found]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            label = next((value[name] for name in _LABELS if isinstance(value.get(name), str)), "")
            for name, (kind, scale) in _KEYS.items():
                for numbers in _nested(value.get(name), 4 if kind is Box else 2):
                    ordered = [number for i in range(0, len(numbers), 2) for number in (numbers[i + 1], numbers[i])]
                    yield _Found(at, kind, ordered if scale else numbers, label, scale)
            waiting += reversed(value.values())


def _nested(value: Any, count: int) -> list[list[float]]:
    """One list of so many numbers, or a list of such."""
    if not isinstance(value, list):
        return []
    parts = value if value and all(isinstance(part, list) for part in value) else [value]
    return [numbers for part in parts if len(part) == count and (numbers := _numbers(part))]


def _numbers(values: Sequence[Any]) -> list[float]:
    """All of them as numbers, or none where one is not."""
    try:
        numbers = [float(value) for value in values if not isinstance(value, bool)]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if len(numbers) == len(values) and all(abs(number) < _LARGEST for number in numbers) else []


# Drawing

_COLORS = ("#ff5a5f", "#4cc9f0", "#ffd166", "#06d6a0", "#c77dff", "#f78c6b", "#a7c957", "#ff8fab")
_MAX_LABEL = 40  # characters


def draw(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """A copy of the picture in RGB with the marks and their labels on it. Marks with one label have one colour.

    Lines are bright between dark edges, so that they show on light and on dark; their width grows with the picture.
    """
    picture = image.convert("RGB")
    brush = _Brush(ImageDraw.Draw(picture), picture.size)
    labels = list(dict.fromkeys(mark.label for mark in marks))
    colors = [_COLORS[labels.index(mark.label) % len(_COLORS)] for mark in marks]
    for mark, color in zip(marks, colors, strict=True):
        brush.outline(mark, color)
    for mark, color in zip(marks, colors, strict=True):  # above all lines
        brush.write(mark, color)
    return picture


@dataclass
class _Brush:
    canvas: ImageDraw.ImageDraw
    size: Size
    width: int = field(init=False)
    edge: int = field(init=False)

    def __post_init__(self) -> None:
        self.width = max(2, round(min(self.size) / 160))
        self.edge = max(1, self.width // 3)

    @functools.cached_property
    def font(self) -> Any:
        return ImageFont.load_default(max(11, round(min(self.size) / 36)))

    def outline(self, mark: Mark, color: str) -> None:
        if isinstance(mark, Point):
            for radius, fill in ((3 * self.width + self.edge, "black"), (3 * self.width, color)):
                self.canvas.ellipse((mark.x - radius, mark.y - radius, mark.x + radius, mark.y + radius), fill=fill)
            return
        if isinstance(mark, Box):
            for beside, width, fill in ((self.edge, self.width + 2 * self.edge, "black"), (0, self.width, color)):
                out = self.width / 2 + beside
                corners = mark.x1 - out, mark.y1 - out, mark.x2 + out, mark.y2 + out
                self.canvas.rectangle(corners, outline=fill, width=width)
            return
        path = [*mark.points, *mark.points[:2]]  # the first side again: else its corner stays open
        self.canvas.line(path, "black", self.width + 2 * self.edge, joint="curve")
        self.canvas.line(path, color, self.width, joint="curve")

    def write(self, mark: Mark, color: str) -> None:
        if not mark.label:
            return
        text = mark.label if len(mark.label) <= _MAX_LABEL else mark.label[: _MAX_LABEL - 1] + "…"
        left, top, right, bottom = self.canvas.textbbox((0, 0), text, self.font)
        pad = self.width + self.edge
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        x, y = _label_place(mark, self.width)
        x = max(0, min(x, self.size[0] - width - 1))
        y = y - height if y - height >= 0 else min(y, self.size[1] - height - 1)
        self.canvas.rectangle((x, y, x + width, y + height), color, "black", self.edge)
        self.canvas.text((x + pad - left, y + pad - top), text, "black", self.font)


def _label_place(mark: Mark, width: int) -> tuple[float, float]:
    """The upper left corner of a mark, above which its label stands."""
    if isinstance(mark, Point):
        return mark.x + 3 * width, mark.y - 3 * width
    if isinstance(mark, Box):
        return mark.x1, mark.y1
    return min(x for x, _ in mark.points), min(y for _, y in mark.points)
