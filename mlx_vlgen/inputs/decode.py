"""Picture files to upright 8-bit RGB.

Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, and HEIC/HEIF with the extra `heic`. No other decoder of Pillow is ever
tried. AVIF is refused by name: its decoder is one more large C library in the way of files from strangers.

A decoder's own words never reach a message (they have leaked addresses and contents): what a person reads names the
source and says what to do.
"""

import io

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
from .fetch import Limits

_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
)
_FORMATS = tuple(plugin.format for plugin in _PLUGINS)
_READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF (HEIC with an extra)"

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

_OURS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_FOREIGN = {
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


def decode_picture(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The picture, or the first frame, of an encoded file as RGB, upright; a MediaError with `name` if it has none."""
    if iso_kind(data) == "HEIC":
        return _decode_heic(data, name, limits)
    encoded = EncodedPicture(data, name, limits)
    picture = encoded.frame()
    if encoded.moves:
        notice(f"{name}: an animation, of which a picture is the first frame; give it as video= for all")
    return picture


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


class EncodedPicture:
    """A picture file that its header has shown to be of a format we read and within the limits, not yet decoded.

    Raises:
        MediaError: from the constructor and from `frame`, naming the source.
    """

    def __init__(self, data: bytes, name: str, limits: Limits) -> None:
        self.name = name
        self._file = _Watched(data)
        try:
            self._image = Image.open(self._file, formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise MediaError(
                f"{name}: more pixels than Pillow allows (PIL.Image.MAX_IMAGE_PIXELS); make it smaller"
            ) from None
        except Exception:
            raise MediaError(f"{name}: {_why_unreadable(data)}") from None
        check_size(self._image.size, name, limits)
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
        """Seconds for which each of `frames` is shown (all are decoded for it). As in browsers, 0.1 for none given."""
        seconds = []
        for index in self.frames:
            self._load(index)
            seconds.append(float(self._image.info.get("duration") or 100) / 1000)
        return seconds

    def frame(self, index: int = 0) -> Image.Image:
        """Decode one frame: RGB, upright, of its own."""
        self._load(index)
        return upright_rgb(self._image, self.name)

    def _load(self, index: int) -> None:
        try:
            self._image.seek(index)
            self._file.past_end = False
            self._image.load()
        except Exception:
            raise self._damaged() from None
        if self._file.past_end:
            raise self._damaged()

    def _damaged(self) -> MediaError:
        return MediaError(f"{self.name}: the {self._image.format} is truncated or damaged; get a whole copy")


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
    """A new RGB picture with the EXIF orientation applied.

    Not `ImageOps.exif_transpose`, which also writes the remaining EXIF again and fails on tags that it cannot write.
    """
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata does not make a damaged picture
        turn = None
    rgb = to_rgb(image, name)
    return rgb if turn is None else rgb.transpose(turn)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new 8-bit RGB picture without metadata, transparency composed on white; `load_image` says how values scale."""
    try:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _to_8_bits(image, name)
        if image.has_transparency_data:
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            rgb = Image.new("RGB", image.size, "white")
            rgb.paste(rgba, mask=rgba.getchannel("A"))
        else:
            rgb = image.convert("RGB")
    except MediaError:
        raise
    except Exception:  # a transparent value that does not fit the mode
        raise MediaError(f"{name}: its colours ({image.mode}) cannot be converted; save it as RGB") from None
    rgb.info.clear()
    return rgb


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
        if (hidden := image.info.get("transparency")) is not None:
            grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
        return grey
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise MediaError(f"{name}: holds values that are not finite")
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    black, white = next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    scaled = (values - black) * 255 / ((white - black) or 1.0)
    return Image.fromarray(scaled.round().astype(np.uint8))


def check_size(size: tuple[int, int], name: str, limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name}: has no pixels ({width} x {height})")
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name}: {width:,} x {height:,} is more than {limits.max_image_pixels:,} pixels; make it smaller, or "
            "raise Limits.max_image_pixels if you trust it"
        )


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
    if kind := picture_kind(data):
        return f"the {kind} is truncated or damaged; get a whole copy"
    return f"not a picture that is read here ({foreign_kind(data)}); expected {_READABLE}"


def picture_kind(data: bytes) -> str | None:
    """JPEG, PNG, WebP, GIF, BMP or TIFF, by the first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for magic, kind in _OURS.items() if data.startswith(magic)), None)


def foreign_kind(data: bytes) -> str:
    """What a file looks like, as a phrase."""
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = iso_kind(data) or next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None)
    if kind:
        return f"it looks like {kind}"
    return "it looks like text" if start.isascii() and b"\0" not in start else "its format is unknown"
