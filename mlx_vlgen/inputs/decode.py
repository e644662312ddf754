"""Picture files to upright 8-bit RGB.

Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, and HEIC/HEIF with the extra `heic`. No other decoder of Pillow is ever
tried. AVIF is refused by name: its decoder is one more large C library in the way of files from strangers.

The text of a decoder's error never reaches a message (it has leaked addresses and contents): ours names the source and
says what to do.
"""

import io
import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

# Pillow registers a format when its plugin is imported; with these six it never needs to import the others.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import MediaError
from ..notices import notice
from .animation import frame_seconds
from .budget import check_animation, check_image, check_kept_frames, check_memory, check_size
from .fetch import Limits

Box: TypeAlias = tuple[int, int, int, int]
"""left, top, right, bottom"""

_BOX = 1024
_HEIC_BYTES = 16  # a pixel as libheif decodes it, as RGB, as Pillow has it, and upright

_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
)
_FORMATS = tuple(plugin.format for plugin in _PLUGINS)
_READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF (HEIC with the extra `heic`)"

_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4: how to turn the stored picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_FOREIGN_MAGIC = {
    b"%pdf": "a PDF",
    b"%!ps": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"<svg": "an SVG drawing",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML or SVG",
    b"8bps": "a Photoshop file",
    b"\0\0\0\x0cjxl ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjp  ": "JPEG 2000",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1a\x45\xdf\xa3": "a video; give it as video=",
}


def decode_image(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The picture, or the first frame, of an encoded file as RGB, upright; a MediaError with `name` if it has none."""
    if iso_kind(data) == "HEIC":
        return _decode_heic(data, name, limits)
    encoded = EncodedImage(data, name, limits)
    image = encoded.still()
    if encoded.moves:
        notice(f"{name}: an animation, of which a picture is the first frame; give it as video= for all")
    return image


class _Watched(io.BytesIO):
    """Notes a read past the end, the mark of a truncated picture.

    Pillow's decoders let one pass when any other code has set its global LOAD_TRUNCATED_IMAGES, and some (BMP's
    run lengths) always do.
    """

    past_end = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.past_end |= not data and size != 0
        return data


class EncodedImage:
    """A picture file that its header has shown to be of a format we read and within the limits, not yet decoded.

    Raises:
        MediaError: from the constructor and from `frame`, naming the source.
    """

    def __init__(self, data: bytes, name: str, limits: Limits) -> None:
        self.name = name
        self._limits = limits
        self._file = _Watched(data)
        try:
            self._image = Image.open(self._file, formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise MediaError(
                f"{name}: more pixels than Pillow allows (PIL.Image.MAX_IMAGE_PIXELS); make it smaller"
            ) from None
        except Exception:
            raise MediaError(f"{name}: {_why_unreadable(data)}") from None
        check_image(self._image, name, limits, data)
        _scale_transparent_value(self._image)

    @property
    def frames(self) -> range:
        """Indices of the frames that are shown (an APNG may carry a still stand-in before them)."""
        try:
            return range(int(getattr(self._image, "default_image", False)), getattr(self._image, "n_frames", 1))
        except Exception:
            raise self._damaged() from None

    @property
    def moves(self) -> bool:
        """Whether it is an animation; a TIFF's pages are none."""
        try:
            return self._image.format in ("GIF", "WEBP", "PNG") and len(self.frames) > 1
        except MediaError:  # the first frame may be whole all the same
            return False

    def durations(self) -> list[float]:
        """Seconds for which each of `frames` is shown, without decoding them. As in browsers, 0.1 for none given."""
        try:
            seconds = frame_seconds(self._file.getvalue(), str(self._image.format))
        except Exception:
            raise self._damaged() from None
        check_animation(self._image.size, len(seconds), self.name, self._limits)
        if len(seconds) != len(self.frames):
            raise self._damaged()
        return seconds

    def check_kept_frames(self, count: int) -> None:
        """Refuse to keep so many frames when that takes too much memory."""
        check_kept_frames(self._image.size, count, self.name, self._limits)

    def still(self) -> Image.Image:
        """Decode the first frame, once."""
        self._load(0)
        if self._image.format == "WEBP":
            self._image.fp = None  # a copy of the pixels, from which Pillow has copied
        return upright_rgb(self._image, self.name)

    def frame(self, index: int) -> Image.Image:
        """Decode one frame: RGB, upright, a copy."""
        self._load(index)
        return upright_rgb(self._image, self.name)

    def _load(self, index: int) -> None:
        """Frame by frame, since a GIF's may be larger than its canvas, which then grows."""
        canvas = self._image.size
        for at in range(min(self._image.tell() + 1, index), index + 1):
            try:
                self._image.seek(at)
                self._file.past_end = False
                if self._image.size == canvas:
                    self._image.load()
            except MemoryError:
                raise no_memory(self.name) from None
            except Exception:
                raise self._damaged() from None
            if self._image.size != canvas:
                raise MediaError(f"{self.name}: frame {at} does not fit the first; the frames of a video have one size")
            if self._file.past_end:
                raise self._damaged()

    def _damaged(self) -> MediaError:
        return MediaError(f"{self.name}: the {self._image.format} is truncated or damaged; get a whole copy")


def no_memory(name: str) -> MediaError:
    return MediaError(f"{name}: there is not enough memory to decode it; make it smaller")


def _scale_transparent_value(image: Image.Image) -> None:
    """Scale a PNG's transparent grey or colour to 8 bits, as Pillow does with the pixels but not with this value."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or not (tiles := getattr(image, "tile", None)):
        return
    match tiles[0].args:
        case "L;2" | "L;4" as depth:
            image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[depth]
        case "RGB;16B":
            image.info["transparency"] = tuple(part >> 8 for part in value)


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new 8-bit RGB picture without metadata, transparency composed on white, the EXIF orientation applied;
    `load_image` says how values scale.

    Not `ImageOps.exif_transpose`, which also writes the remaining EXIF again and fails on tags that it cannot write.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        orientation = orientation if orientation in _UPRIGHT else 1
    except Exception:  # damaged metadata does not make a damaged picture
        orientation = 1
    try:
        if image.mode == "RGB" and orientation == 1 and not image.has_transparency_data:
            plain = image.copy()
            plain.info = {}
            return plain
        ends = _ends(image, name) if image.mode in ("I", "F") else (0.0, 0.0)
        return in_boxes(image.size, lambda box: to_rgb(image.crop(box), ends), orientation)
    except MediaError:
        raise
    except MemoryError:
        raise no_memory(name) from None
    except Exception:  # a transparent value that does not fit the mode
        raise MediaError(f"{name}: its colours ({image.mode}) cannot be converted; save it as RGB") from None


def in_boxes(size: tuple[int, int], part: Callable[[Box], Image.Image], orientation: int = 1) -> Image.Image:
    """An RGB picture from its parts. Converting it whole would take several times its memory."""
    width, height = size if orientation < 5 else size[::-1]
    image = Image.new("RGB", (width, height), None)  # not filled: the parts cover it
    for box in boxes(size):
        rgb = part(box)
        left, top, right, bottom = box
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        image.paste(
            rgb,
            (
                width - right if orientation in (2, 3, 6, 7) else left,
                height - bottom if orientation in (3, 4, 7, 8) else top,
            ),
        )
    return image


def boxes(size: tuple[int, int]) -> Iterator[Box]:
    """Boxes of a million pixels at most that make up a picture."""
    for top in range(0, size[1], _BOX):
        for left in range(0, size[0], _BOX):
            yield left, top, min(left + _BOX, size[0]), min(top + _BOX, size[1])


def to_rgb(image: Image.Image, ends: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """Transparency composed on white; ends: the values of a 32-bit picture that are black and white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image, ends)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _ends(image: Image.Image, name: str) -> tuple[float, float]:
    """The values of a 32-bit picture that are black and white."""
    extremes = [(values.min(), values.max()) for values in (np.asarray(image.crop(box)) for box in boxes(image.size))]
    low, high = float(np.min(extremes)), float(np.max(extremes))  # not-a-number stays
    if not np.isfinite([low, high]).all():
        raise MediaError(f"{name}: holds values that are not finite")
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))


def _to_8_bits(image: Image.Image, ends: tuple[float, float]) -> Image.Image:
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
        if (hidden := image.info.get("transparency")) is not None:
            grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
        return grey
    black, white = ends
    scaled = (values - black) * 255 / ((white - black) or 1.0)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _decode_heic(data: bytes, name: str, limits: Limits) -> Image.Image:
    """pillow_heif without its Pillow plugin, whose registration would change Pillow for the whole process."""
    try:
        import pillow_heif
    except ImportError:
        raise MediaError(f'{name}: HEIC pictures need an extra: pip install "mlx-vlgen[heic]"') from None
    try:
        file = pillow_heif.open_heif(io.BytesIO(data))
        size = file.size
    except Exception:
        raise MediaError(f"{name}: the HEIC is truncated or damaged; get a whole copy") from None
    check_size(size, name, limits)
    check_memory(math.prod(size) * _HEIC_BYTES + len(data), name, limits)
    try:
        image = file.to_pillow()  # libheif turns it upright, and pillow_heif drops the orientation from its EXIF
    except Exception:
        raise MediaError(f"{name}: the HEIC is truncated or damaged; get a whole copy") from None
    return upright_rgb(image, name)


# What a file is, for messages


def iso_kind(data: bytes) -> str | None:
    """HEIC, AVIF or another kind of ISO media file, by the brands in its first box (ISO/IEC 14496-12, 4.3)."""
    if data[4:8] != b"ftyp":
        return None
    listed = data[16 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {data[8:12], *(listed[at : at + 4] for at in range(0, len(listed), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    heif = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
    return "HEIC" if brands & heif else "a video; give it as video="


def _why_unreadable(data: bytes) -> str:
    if kind := image_kind(data):
        return f"the {kind} is truncated or damaged; get a whole copy"
    return f"not a picture that is read here ({foreign_kind(data)}); expected {_READABLE}"


def image_kind(data: bytes) -> str | None:
    """JPEG, PNG, WebP, GIF, BMP or TIFF, by the first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def foreign_kind(data: bytes) -> str:
    """What a file looks like, as a phrase."""
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = iso_kind(data) or next((kind for magic, kind in _FOREIGN_MAGIC.items() if start.startswith(magic)), None)
    if kind:
        return f"it looks like {kind}"
    return "it looks like text" if start.isascii() and b"\0" not in start else "its format is unknown"
