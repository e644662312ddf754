"""Draw the pictures of the documentation and the tests again: `python -m mlx_vlgen.demo.pictures`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .drawing import Thing, draw_thing

PICTURES = Path(__file__).parent / "pictures"
RGB = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (20, 150, 50), "yellow": (245, 215, 20),
       "black": (15, 15, 15)}  # fmt: skip


def draw(things: list[Thing], text: str = "", size: int = 110, width: int = 640, height: int = 480) -> Image.Image:
    """A white picture of `things`, with `text` in its middle."""
    image = Image.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for thing in things:
        draw_thing(pen, thing, RGB[thing.colour], None, 0.0, 1)
    if text:
        pen.text((width / 2, height / 2), text, fill=RGB["black"], font=ImageFont.load_default(size), anchor="mm")
    return image


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    shapes = [Thing("circle", "red", 130, 240, 80), Thing("square", "blue", 510, 240, 80)]
    trio = [
        Thing("triangle", "yellow", 120, 120, 80),
        Thing("circle", "red", 320, 240, 80),
        Thing("square", "blue", 520, 370, 80),
    ]
    crowd = [Thing("circle", "red", x, y, 55) for x, y in ((100, 110), (330, 150), (540, 100), (160, 360), (470, 350))]
    drawn = {"shapes": draw(shapes), "trio": draw(trio), "crowd": draw(crowd), "hello": draw([], "HELLO")}
    for name, image in drawn.items():
        image.quantize(16).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
