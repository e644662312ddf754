"""Seeded pictures and clips: one to four shapes, crowds, print, shapes with print, pages of glyphs, motion."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image

from .drawing import (
    CHARACTERS,
    COLOURS,
    RGB,
    SHAPES,
    Box,
    BoxLabel,
    Scene,
    Thing,
    colour_rgb,
    draw_things,
    finish,
    light_rgb,
    picture_size,
    print_text,
    scale_of,
    thing_label,
)  # fmt: skip

# Random codes leave out characters that look like others, since no word tells them apart.
CODE_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
WORDS = tuple(
    """able acid also apple april arm art autumn away baby back bag bake ball bank bath beach bear bed bell big bird
    blue boat body bold bone book born boy brain bread brick bridge bright brown bus busy cake call calm camp car card
    care cat chair chalk cheese city clock cloud coat cold cook cool corn cow cream crisp cup dance dark date day deep
    desk dog door down dream drink drum duck earth east easy egg eight enter exit eye face fall farm fast father fire
    fish five flag floor flower fly food foot forest fork four fox free fresh friday friend frog fruit full game garden
    gate ghost gift girl glass go goat gold good grape grass great green grey guitar hair half hand happy hat heart
    heavy hello help hi high hill home honey hope horse hot hotel house ice idea ink island jam job joke july jump june
    just key kind king kitchen kite knee lake lamp land large last late leaf left lemon letter life light lime lion
    list little live lock long love lucky lunch magic mail map march mask may meat menu metal milk mind moon morning
    mother mountain mouse music nail name near new news nice night nine north note now ocean old olive one onion open
    orange out over owl page paint paper park party peace pear pen pencil piano picture pig pink pizza plan plant play
    please plum pool post press price pull push queen quick quiet quiz rabbit rain ready red rest rice right ring river
    road robot rock room rose round sale salt sand school sea seven ship shoe shop short silver six skin sky sleep slow
    small snow soap soft song soup south spoon sport spring square star start stone stop storm street strong sugar
    summer sun sweet swim table tall tea ten tent thank three tiger time today tower town toy train tree true tulip
    two uncle under up vase very video violet voice wait walk wall warm watch water wave week welcome west wet wheel
    white wide wild wind window winter wish wolf wood word work world write yellow yes young zebra zero zoo""".split()
)
# Thirds of a side as fractions, with gaps between them, so that the name of a place is never in doubt.
THIRDS = ((0.0, 0.37), (0.42, 0.58), (0.63, 1.0))


def random_text(rng: random.Random, longest: int = 8) -> str:
    """1 to `longest` characters: a word in one of three cases (55%), a number (20%), or a code."""
    chance = rng.random()
    if chance < 0.55:
        word = rng.choice(WORDS)
        while not 2 <= len(word) <= longest:
            word = rng.choice(WORDS) if longest >= 3 else rng.choice(["go", "hi", "up"])
        return rng.choices([word.upper(), word.capitalize(), word], [0.5, 0.25, 0.25])[0]
    length = min(longest, rng.choices(range(1, 9), [2, 3, 4, 4, 3, 2, 1.5, 1.5])[0])
    if chance < 0.75:
        digits = "".join(rng.choice("0123456789") for _ in range(length))
        return digits if digits != "0" else "7"  # a lone 0 could be the letter
    if chance < 0.79:  # lower-case nonsense keeps the model reading letters, not guessing words
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(max(3, length)))
    return "".join(rng.choice(CODE_CHARACTERS) for _ in range(length))


def random_kind(rng: random.Random) -> tuple[str, str]:
    return rng.choice(SHAPES), rng.choice(list(COLOURS))


def _free(x: float, y: float, r: float, things: list[Thing], taken: list[Box]) -> bool:
    gap = 1.08
    for thing in things:
        if max(abs(x - thing.x), abs(y - thing.y)) < (r + thing.r) * gap:
            return False
    return all(x + r * gap < a or x - r * gap > c or y + r * gap < b or y - r * gap > d for a, b, c, d in taken)


def placed_things(
    rng: random.Random, width: int, height: int, count: int, taken: list[Box] | None = None
) -> list[Thing]:
    """Up to `count` shapes in different cells of the nine, in reading order."""
    smallest = 5.5 / scale_of(width, height)
    cells = [(row, column) for row in range(3) for column in range(3)]
    if count == 2 and rng.random() < 0.3:
        cells = rng.choice([[(1, 0), (1, 2)], [(0, 1), (2, 1)]])
    elif count == 1 and rng.random() < 0.25:
        cells = [(1, 1)]
    rng.shuffle(cells)
    things: list[Thing] = []
    roomy = rng.random() < 0.5
    for cell in cells:
        if len(things) == count:
            break
        for _ in range(8):
            x = rng.uniform(*THIRDS[cell[1]]) * width
            y = rng.uniform(*THIRDS[cell[0]]) * height
            if cell[0] == 1 and cell[1] == 1 and rng.random() < 0.5:
                x, y = width / 2, height / 2
            room = min(x, y, width - x, height - y) * 0.97
            max_r = min(room, min(width, height) * (0.45 if count == 1 else 0.24))
            if max_r < smallest:
                continue
            r = rng.uniform(smallest if not roomy else max(smallest, max_r * 0.6), max_r)
            if _free(x, y, r, things, taken or []):
                shape, colour = random_kind(rng)
                things.append(Thing(shape, colour, x, y, r, cell))
                break
    return sorted(things, key=lambda thing: thing.cell or (0, 0))


def scattered_things(rng: random.Random, width: int, height: int, count: int) -> list[Thing]:
    """`count` shapes anywhere, of one to three kinds, for counting."""
    smallest = 5.0 / scale_of(width, height)
    kinds = [random_kind(rng) for _ in range(rng.choice([1, 2, 2, 3, 6]))]
    largest = max(smallest * 1.3, min(width, height) * rng.uniform(0.08, 0.2))
    alike = rng.random() < 0.4
    common = rng.uniform(smallest, largest)
    things: list[Thing] = []
    for _ in range(60):
        if len(things) == count:
            break
        r = common if alike else rng.uniform(smallest, largest)
        x, y = rng.uniform(r, width - r), rng.uniform(r, height - r)
        if _free(x, y, r, things, []):
            shape, colour = rng.choice(kinds)
            things.append(Thing(shape, colour, x, y, r))
    if rng.random() < 0.15 and things:  # a tidy row
        r = min(common, width / (2.3 * len(things)), height * 0.45)
        if r >= smallest:
            y = rng.uniform(r, height - r)
            step = width / len(things)
            things = [Thing(t.shape, t.colour, (i + 0.5) * step, y, r) for i, t in enumerate(things)]
    return things


def shapes_scene(rng: random.Random, count: int | None = None) -> Scene:
    """One to four shapes, each in a place that has a name."""
    width, height = picture_size(rng)
    things: list[Thing] = []
    while not things:
        things = placed_things(rng, width, height, count or rng.choices([1, 2, 3, 4], [3, 3, 3, 3])[0])
    image = Image.new("RGB", (width, height), light_rgb(rng))
    draw_things(rng, image, things)
    box_labels = [BoxLabel(t.box, thing_label(t.shape, t.colour), i) for i, t in enumerate(things)]
    return Scene(finish(rng, image), things, box_labels=box_labels)


def crowd_scene(rng: random.Random) -> Scene:
    """None to six shapes, anywhere."""
    width, height = picture_size(rng)
    things = scattered_things(rng, width, height, rng.choices(range(7), [0.6, 1, 1, 1.2, 1.2, 1.2, 1.2])[0])
    image = Image.new("RGB", (width, height), light_rgb(rng))
    draw_things(rng, image, things)
    box_labels = [BoxLabel(t.box, thing_label(t.shape, t.colour)) for t in things]
    return Scene(finish(rng, image), things, box_labels=box_labels)


def _print_rgb(rng: random.Random) -> RGB:
    if rng.random() < 0.5:
        shade = rng.randint(0, 50)
        return shade, shade, shade
    return colour_rgb(rng, rng.choice([name for name in COLOURS if name not in ("yellow", "orange")]))


def print_scene(rng: random.Random) -> Scene:
    """Short print alone."""
    while True:
        width, height = picture_size(rng)
        ground, rgb = light_rgb(rng), _print_rgb(rng)
        if rng.random() < 0.1:
            ground, rgb = colour_rgb(rng, rng.choice(["black", "blue", "green", "purple", "red"])), (255, 255, 255)
        image = Image.new("RGB", (width, height), ground)
        text = random_text(rng)
        scale = scale_of(width, height)
        room = width * scale * 0.92 / (0.62 * len(text))  # the largest height that fits, in processed pixels
        lowest = 14.0
        if room < lowest:
            continue
        height_after = math.exp(rng.uniform(math.log(lowest), math.log(max(lowest, min(room, 64)))))
        box_labels = print_text(rng, image, text, rgb, max(8, round(height_after / scale)))
        if box_labels is not None:
            return Scene(finish(rng, image), text=text, box_labels=box_labels)


def mixed_scene(rng: random.Random) -> Scene:
    """One to three shapes, and print in a band above, below or between them."""
    while True:
        width, height = picture_size(rng)
        image = Image.new("RGB", (width, height), light_rgb(rng))
        text = random_text(rng)
        scale = scale_of(width, height)
        room = width * scale * 0.92 / (0.62 * len(text))
        size = rng.uniform(14, 27)
        if room < size:
            continue
        box_labels = print_text(rng, image, text, _print_rgb(rng), max(8, round(size / scale)), (0, 0, width, height))
        if box_labels is None:
            continue
        box = (
            min(box.box[0] for box in box_labels),
            min(box.box[1] for box in box_labels),
            max(box.box[2] for box in box_labels),
            max(box.box[3] for box in box_labels),
        )
        things = placed_things(rng, width, height, rng.choice([1, 1, 2, 3]), [box])
        if not things:
            continue
        draw_things(rng, image, things)
        box_labels += [BoxLabel(t.box, thing_label(t.shape, t.colour), i) for i, t in enumerate(things)]
        return Scene(finish(rng, image), things, text, box_labels=box_labels)


def glyph_scene(rng: random.Random) -> Scene:
    """A page of random characters, only for the dense labels: many glyphs in one picture."""
    width, height = picture_size(rng, high=500)
    image = Image.new("RGB", (width, height), light_rgb(rng))
    scale = scale_of(width, height)
    box_labels: list[BoxLabel] = []
    y = 0.0
    while True:
        size = max(8, round(rng.uniform(14, 28) / scale))
        if y + size * 1.4 > height:
            break
        alphabet = rng.choice([CHARACTERS[:26], CHARACTERS[:26], CHARACTERS[26:52], CHARACTERS[52:], CODE_CHARACTERS])
        length = max(1, int(width / (0.75 * size) * rng.uniform(0.5, 0.95)))
        text = "".join(rng.choice(alphabet) for _ in range(length))
        line = print_text(rng, image, text, _print_rgb(rng), size, (0, y, width, y + size * 1.6))
        box_labels += [BoxLabel(box.box, box.label) for box in line or []]
        y += size * rng.uniform(1.3, 1.7)
    return Scene(finish(rng, image), box_labels=box_labels)


# ---- clips

DIRECTIONS = {"to the right": (1, 0), "to the left": (-1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}


@dataclass
class Clip:
    """Frames in which `thing` moves in `direction` (a key of DIRECTIONS) and nothing else does."""

    frames: list[Image.Image]
    thing: Thing
    direction: str
    box_labels: list[list[BoxLabel]]  # one list a pair of frames


def clip(rng: random.Random) -> Clip:
    """Four to eight frames: one shape crosses a good part of the picture; sometimes another one rests."""
    width, height = picture_size(rng, low=96, high=480)
    count = rng.choice([4, 5, 6, 6, 7, 8, 8])
    direction = rng.choices(list(DIRECTIONS), [2, 2, 2, 2, 1])[0]
    step_x, step_y = DIRECTIONS[direction]
    shape, colour = random_kind(rng)
    side = min(width, height)
    r = side * rng.uniform(0.09, 0.2)
    travel_x = step_x * rng.uniform(0.45, 0.95) * (width - 2.1 * r)
    travel_y = step_y * rng.uniform(0.45, 0.95) * (height - 2.1 * r)
    x = rng.uniform(r + max(0.0, -travel_x), width - r - max(0.0, travel_x))
    y = rng.uniform(r + max(0.0, -travel_y), height - r - max(0.0, travel_y))
    ground = light_rgb(rng)
    path = (min(x, x + travel_x) - r, min(y, y + travel_y) - r, max(x, x + travel_x) + r, max(y, y + travel_y) + r)
    others: list[Thing] = []
    if rng.random() < 0.3 and direction != "still":
        other = rng.uniform(0.07, 0.15) * side
        other_x, other_y = rng.uniform(other, width - other), rng.uniform(other, height - other)
        other_shape, other_colour = random_kind(rng)
        if (other_shape, other_colour) != (shape, colour) and _free(other_x, other_y, other, [], [path]):
            others = [Thing(other_shape, other_colour, other_x, other_y, other)]
    style_seed = rng.getrandbits(32)
    frames, places = [], []
    for i in range(count):
        done = i / (count - 1)
        moved = Thing(shape, colour, x + travel_x * done, y + travel_y * done, r)
        places.append(moved)
        image = Image.new("RGB", (width, height), ground)
        draw_things(random.Random(style_seed), image, [moved, *others])
        frames.append(image)
    resting = [BoxLabel(other.box, thing_label(other.shape, other.colour)) for other in others]
    box_labels = []
    for first, second in zip(places[::2], [*places[1::2], places[-1]], strict=False):
        both = (min(first.x, second.x) - r, min(first.y, second.y) - r, max(first.x, second.x) + r,
                max(first.y, second.y) + r)  # fmt: skip
        box_labels.append([BoxLabel(both, thing_label(shape, colour)), *resting])
    return Clip(frames, Thing(shape, colour, x, y, r), direction, box_labels)
