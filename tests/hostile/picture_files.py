"""Files of pictures and videos: large ones that are whole, hostile ones, and any number of damaged ones.

Each seed is of the next kind in `KINDS`. One past the end of its kind is a small picture damaged at random.
"""

import functools
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from mlx_vlgen.inputs.media import load_image
from mlx_vlgen.inputs.video import load_video

from . import pictures, videos
from .trial import SPARE, Try

SIDE = 3000
"""Of a whole picture, in pixels."""
SLOW = ("gif bomb", "tiff bomb, deflate")
"""Bombs within the limits, each of which takes seconds to read."""


def whole() -> Iterator[pictures.Named]:
    turned = Image.Exif()
    turned[0x0112] = 6
    flat, tiff, png = pictures.flat, pictures.tiff, pictures.png

    def large(kind: str, mode: str = "RGB", **options: object) -> bytes:
        return pictures.encoded(Image.new(mode, (SIDE, SIDE)), kind, **options)

    yield "JPEG", large("JPEG", exif=turned)
    yield "JPEG, progressive CMYK", large("JPEG", "CMYK", progressive=True)
    yield "PNG, 16 bits RGBA", png(SIDE, SIDE, flat(SIDE * (SIDE * 8 + 1)), depth=16, colour=6)
    yield "GIF", pictures.gif(SIDE, SIDE, [pictures.lzw(SIDE * SIDE)])
    yield "TIFF, turned", large("TIFF", compression="tiff_adobe_deflate", exif=turned)
    yield "TIFF, I", tiff(SIDE, SIDE, {259: 8, 258: 32, 339: 2}, flat(SIDE * SIDE * 4))
    yield "WebP", pictures.webp_lossless(SIDE, SIDE)


KINDS: dict[str, Callable[[], Iterable[pictures.Named]]] = {
    "damaged": lambda: (),
    "whole": whole,
    "headers": pictures.headers,
    "bombs": lambda: (case for case in pictures.bombs() if case[0] not in SLOW),
    "animations": lambda: (case for case in pictures.animations() if "5000" not in case[0]),
    "truncated": pictures.truncated,
    "videos": lambda: videos.lying_headers() if importlib.util.find_spec("av") else (),
}


def seeds(kind: str, count: int) -> range:
    """The first seeds of a kind."""
    return range(list(KINDS).index(kind), count * len(KINDS), len(KINDS))


@functools.cache
def cases(kind: str) -> list[pictures.Named]:
    return list(KINDS[kind]())


class Attack:
    def __init__(self, folder: Path):
        warnings.simplefilter("ignore")  # Pillow's, of damaged tags

    def draw(self, seed: int) -> Try:
        index, number = divmod(seed, len(KINDS))
        kind = list(KINDS)[number]
        if index >= len(cases(kind)):
            name, data = next(pictures.mutated(seed, 1))
            return Try(f"damaged: {name}", lambda: load_image(data), peak=_peak(data))
        name, data = cases(kind)[index]
        if kind in ("animations", "videos"):
            return Try(f"{kind}: {name}", lambda: _load_video(data), peak=SPARE)
        return Try(f"{kind}: {name}", lambda: load_image(data), peak=_peak(data))


def _peak(data: bytes) -> int:
    """Three and a half times the picture's RGB; WebP six, which is what Pillow takes for it. Of a refusal only the
    rest."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            times = 6 if image.format == "WEBP" else 3.5
            return int(times * 3 * image.width * image.height) + SPARE
    except Exception:
        return SPARE


def _load_video(data: bytes) -> None:
    frames = load_video(data).frames
    assert len(frames) <= videos.FRAMES, f"{len(frames)} frames"
