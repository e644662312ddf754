"""Pictures: every kind of source, every pixel format, and files that lie, break off or are something else."""

import base64
import contextlib
import io
import os
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mlx_vlgen.errors import MediaError
from mlx_vlgen.inputs.media import Limits, describe_source, load_image

# A stored picture of 6 x 4 whose four corners differ, and what each EXIF orientation makes of it.
STORED = np.zeros((4, 6, 3), np.uint8)
STORED[:2, :3], STORED[:2, 3:], STORED[2:, :3], STORED[2:, 3:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.swapaxes(0, 1),
    6: np.rot90(STORED, -1),
    7: STORED[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(STORED, 1),
}


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(value: int, kind: str = "PNG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encode(Image.fromarray(STORED), kind, exif=exif, **options)


def photo(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG with any header, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    middle = chunk(b"tRNS", transparent) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pixels(source: object, **options: object) -> list[list[int]]:
    return np.asarray(load_image(source, **options)).reshape(-1, 3).tolist()


# Sources


def as_path_text(data: bytes, folder: Path) -> object:
    (folder / "a picture.bin").write_bytes(data)
    return str(folder / "a picture.bin")


def as_file_in_the_middle(data: bytes, folder: Path) -> object:
    file = io.BytesIO(b"before" + data)
    file.seek(6)
    return file


SOURCES: dict[str, Callable[[bytes, Path], object]] = {
    "path text": as_path_text,
    "Path": lambda data, folder: Path(str(as_path_text(data, folder))),
    "file URL": lambda data, folder: "file://" + quote(str(as_path_text(data, folder))),
    "bytes": lambda data, folder: data,
    "bytearray": lambda data, folder: bytearray(data),
    "file": lambda data, folder: io.BytesIO(data),
    "file in the middle": as_file_in_the_middle,
    "data URI": lambda data, folder: "data:image/png;base64," + base64.b64encode(data).decode(),
    "data URI, percent": lambda data, folder: "data:," + quote(data),
    "PIL, not yet read": lambda data, folder: Image.open(io.BytesIO(data)),
    "PIL, copied": lambda data, folder: Image.open(io.BytesIO(data)).copy(),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", SOURCES)
def test_orientation_is_applied_to_every_source(kind: str, orientation: int, tmp_path: Path) -> None:
    image = load_image(SOURCES[kind](oriented(orientation), tmp_path))
    assert image.mode == "RGB"
    assert np.array_equal(image, UPRIGHT[orientation])
    assert np.array_equal(load_image(image), UPRIGHT[orientation])  # and only once


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_orientation_is_applied_to_every_format(kind: str, orientation: int) -> None:
    data = oriented(orientation, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(load_image(data), UPRIGHT[orientation])
    assert np.array_equal(load_image(Image.open(io.BytesIO(data))), UPRIGHT[orientation])


def test_orientation_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.fromarray(STORED).resize((48, 32), Image.Resampling.NEAREST)
    image = load_image(encode(large, "JPEG", exif=exif, quality=100, subsampling=0))
    assert image.size == (32, 48)
    assert np.abs(np.asarray(image.resize((4, 6), Image.Resampling.NEAREST), int) - UPRIGHT[6]).max() < 8


def test_damaged_exif_is_not_a_damaged_picture() -> None:
    image = Image.fromarray(STORED)
    image.info["exif"] = b"Exif\0\0nonsense"
    assert np.array_equal(load_image(image), STORED)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.png").write_bytes(encode(photo()))
    assert load_image("~/x.png").size == load_image(Path("~/x.png")).size == (64, 48)


def test_base64_wrapped_and_unpadded() -> None:
    text = base64.encodebytes(encode(photo())).decode().rstrip("=\n")
    assert load_image("data:image/png;base64," + text).size == (64, 48)


def test_an_open_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encode(photo()),))
    writer.start()
    with pipe.open("rb") as file:  # by its name it is refused
        assert load_image(file).size == (64, 48)
    writer.join()


def test_a_file_is_left_open_and_a_pil_image_unchanged() -> None:
    file = io.BytesIO(encode(photo()))
    load_image(file)
    assert not file.closed
    given_image = Image.open(io.BytesIO(oriented(6))).convert("RGBA")
    before = given_image.tobytes(), dict(given_image.info), given_image.mode, given_image.size
    load_image(given_image).paste((1, 2, 3), (0, 0, 2, 2))
    assert (given_image.tobytes(), dict(given_image.info), given_image.mode, given_image.size) == before


class Convertible:
    """What an array of another library looks like."""

    shape = (4, 6, 3)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return STORED


@pytest.mark.parametrize(
    "array",
    [
        STORED,
        STORED.astype(np.float32) / 255,
        STORED.astype(np.float16) / 255,
        np.asfortranarray(STORED),
        Convertible(),
    ],
)
def test_arrays(array: object) -> None:
    assert np.array_equal(load_image(array), STORED)


def test_grey_and_transparent_arrays() -> None:
    grey = STORED[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    assert np.array_equal(load_image(grey), expected)
    assert np.array_equal(load_image(grey[..., None]), expected)
    clear = np.concatenate([STORED, np.zeros((4, 6, 1), np.uint8)], axis=-1)
    assert np.array_equal(load_image(clear), np.full_like(STORED, 255))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (STORED.transpose(2, 0, 1), "channels come first"),
        (STORED[None], "one picture"),
        (np.zeros((5, 6, 2), np.uint8), "one picture"),
        (STORED > 0, "bool"),
        (STORED.astype(np.int64), "int64"),
        (STORED.astype(np.float32), "0 to 255"),
        (np.full((2, 2), np.nan), "nan"),
        (np.full((2, 2), -0.5), "-0.5"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        load_image(array)


# Pixel formats


def test_transparency_is_composed_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1))
    rgba.putdata([(200, 0, 0, 0), (200, 0, 0, 128)])
    half_red = [round(200 * 128 / 255 + 255 * 127 / 255), 127, 127]
    for source in (rgba, encode(rgba), encode(rgba, "TIFF"), encode(rgba, "WEBP", lossless=True, exact=True)):
        clear, half = pixels(source)
        assert clear == [255, 255, 255]
        assert np.abs(np.subtract(half, half_red)).max() <= 1
    grey = Image.new("LA", (1, 1), (10, 0))
    assert pixels(grey) == pixels(encode(grey)) == pixels(grey.convert("La")) == [[255] * 3]


def test_palette() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert pixels(image) == pixels(encode(image)) == pixels(encode(image, "GIF")) == [[10, 20, 30], [40, 50, 60]]
    assert pixels(encode(image, transparency=1)) == [[10, 20, 30], [255, 255, 255]]
    assert pixels(encode(image, transparency=b"\x00\xff")) == [[255, 255, 255], [40, 50, 60]]
    assert pixels(encode(image, "GIF", transparency=0)) == [[255, 255, 255], [40, 50, 60]]
    assert pixels(image.convert("PA")) == [[10, 20, 30], [40, 50, 60]]


def test_cmyk() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixels(image)[0] == [255, 0, 0]
    red = np.asarray(pixels(encode(image, "JPEG", quality=100)))  # Pillow writes Adobe's inverted CMYK
    assert np.abs(red - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (Image.new("1", (1, 1), 1), 255),
        (Image.new("L", (1, 1), 77), 77),
        (Image.fromarray(np.array([[32768]], np.uint16)), 128),
        (Image.fromarray(np.array([[200]], np.int32)), 200),
        (Image.fromarray(np.array([[0, 65535]], np.int32)).crop((1, 0, 2, 1)), 255),
        (Image.fromarray(np.array([[0.5]], np.float32)), 128),
        (Image.fromarray(np.array([[99.0]], np.float32)), 99),
    ],
)
def test_depths(image: Image.Image, grey: int) -> None:
    assert pixels(image) == [[grey] * 3]


def test_depths_that_fit_no_range_are_stretched() -> None:
    assert [p[0] for p in pixels(Image.fromarray(np.array([[-100, 0, 100]], np.int32)))] == [0, 128, 255]
    with pytest.raises(MediaError, match="not finite"):
        load_image(Image.fromarray(np.array([[np.inf]], np.float32)))


def test_16_bit_files() -> None:
    ramp = np.array([[0, 127, 129, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert [p[0] for p in pixels(encode(Image.fromarray(ramp), kind))] == [0, 0, 1, 128, 255]
    assert pixels(png(1, 1, 16, 2, b"\0\x80\x00\x40\xff\xff\xff")) == [[128, 64, 255]]


def test_transparent_values_of_every_depth() -> None:
    """Pillow scales the pixels to 8 bits but leaves the transparent value as it is stored."""
    white = [255] * 3
    assert pixels(png(2, 1, 16, 0, b"\0\x12\x34\x80\0", b"\x12\x34")) == [white, [128] * 3]
    assert pixels(png(2, 1, 16, 2, b"\0" + b"\x12\x34" * 3 + b"\x80\0" * 3, b"\x12\x34" * 3)) == [white, [128] * 3]
    assert pixels(png(2, 1, 8, 0, b"\0\x30\x40", b"\0\x30")) == [white, [64] * 3]
    assert pixels(png(2, 1, 4, 0, b"\0\x34", b"\0\x03")) == [white, [68] * 3]
    assert pixels(png(4, 1, 2, 0, b"\0\x1b", b"\0\x01")) == [[0] * 3, white, [170] * 3, white]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0] == [255, 0, 0]


def test_colours_that_cannot_be_converted() -> None:
    image = Image.new("RGB", (2, 2))
    image.info["transparency"] = "nonsense"
    with pytest.raises(MediaError, match=r"colours \(RGB\)"):
        load_image(image)


# Files that lie, break off or are something else


@pytest.mark.parametrize("tolerant", [False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_truncated_picture_is_refused_by_name(
    kind: str, options: dict[str, object], tolerant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)  # as some other library may do
    data = encode(photo(), kind, **options)
    assert load_image(data).size == (64, 48)
    for quarter in (1, 2, 3):
        path = tmp_path / f"cut{quarter}.img"
        path.write_bytes(data[: len(data) * quarter // 4])
        with pytest.raises(MediaError, match="truncated or damaged") as caught:
            load_image(path)
        assert str(path) in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None, "the decoder's words are chained"


@pytest.mark.parametrize("pillow_cap", [Image.MAX_IMAGE_PIXELS, None])
def test_a_huge_header_is_refused_before_decoding(pillow_cap: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_cap)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("nothing may be decoded"))
    data = png(20_000, 20_000, 8, 2, b"\0" * 1000)
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(MediaError, match="pixels"):
        load_image(data)
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 1_000_000


def test_the_pixel_cap() -> None:
    assert load_image(encode(photo(64, 48)), limits=Limits(max_image_pixels=64 * 48)).size == (64, 48)
    for source in (encode(photo(64, 48)), photo(64, 48)):
        with pytest.raises(MediaError, match=r"64 x 48 is more than 3,071 pixels.*max_image_pixels"):
            load_image(source, limits=Limits(max_image_pixels=64 * 48 - 1))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"%PDF-1.7\n...", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"just words", "text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(30), "EPS"),
        (b"P6 1 1 255 abc", "unknown|text"),
        (b"\0\0\x01\0\x01\0" + bytes(40), "unknown"),
        (b"\0\0\0\x14ftypavif\0\0\0\0avif", "AVIF"),
        (b"\0\0\0\x14ftypisom\0\0\0\0mp42", "video"),
        (b"", "empty"),
        (np.random.default_rng(1).bytes(4096), "unknown"),
    ],
)
def test_foreign_files_are_refused_by_name(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "thing.jpg"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=says) as caught:
        load_image(path)
    assert str(path) in str(caught.value)


def test_a_picture_without_pixels() -> None:
    for source in (Image.new("RGB", (0, 4)), png(0, 4, 8, 2, b"")):
        with pytest.raises(MediaError):
            load_image(source)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(MediaError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(MediaError, match="not a valid path"):
        load_image("a\0b")
    with pytest.raises(MediaError, match="ftp: are not read"):
        load_image("ftp://example.com/x.png")
    with pytest.raises(MediaError, match="not a file on this machine"):
        load_image("file://elsewhere/x.png")
    with pytest.raises(MediaError, match="base64 is damaged"):
        load_image("data:image/png;base64,ab*d")
    with pytest.raises(MediaError, match="no comma"):
        load_image("data:image/png")
    with pytest.raises(MediaError, match="binary mode"):
        load_image(io.StringIO("text"))
    with pytest.raises(MediaError, match="type dict"):
        load_image({})
    closed = Image.open(io.BytesIO(encode(photo())))
    closed.close()
    with pytest.raises(MediaError, match="cannot be read"):
        load_image(closed)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.touch(0)
    with pytest.raises(MediaError, match="permission"):
        load_image(path)


def test_a_file_without_end_is_not_read_without_end() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with pytest.raises(MediaError, match="larger than 5,000,000 bytes"):
        load_image(Endless(), limits=Limits(max_file_bytes=5_000_000))


def test_sources_are_named_without_secrets() -> None:
    assert describe_source("https://me:secret@host/a/b.png?token=secret#secret") == "https://host/a/b.png"
    assert "secret" not in describe_source("data:text/plain,secret")
    assert "secret" not in describe_source(b"secret")
    assert "secret" not in describe_source("secret" * 1000)
    assert describe_source("a\x1b[2Jb") == "a\ufffd[2Jb"


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0"])
)
@settings(max_examples=150, deadline=None)
def test_random_bytes_raise_nothing_else(data: bytes, magic: bytes) -> None:
    with contextlib.suppress(MediaError):
        load_image(magic + data)


ENCODED = [encode(photo(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]


@given(st.sampled_from(ENCODED), st.floats(0, 1), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_damaged_pictures_raise_nothing_else(data: bytes, where: float, value: int) -> None:
    at = int(where * (len(data) - 1))
    for damaged in (data[:at], data[:at] + bytes([value]) + data[at + 1 :]):
        with contextlib.suppress(MediaError):
            assert load_image(damaged).mode == "RGB"


# HEIC


def heic(**options: object) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(STORED).resize((96, 64), Image.Resampling.NEAREST)).save(
        out, quality=-1, **options
    )
    return out.getvalue()


def test_heic() -> None:
    image = load_image(heic())
    assert image.size == (96, 64)
    assert np.abs(np.asarray(image.resize((6, 4), Image.Resampling.NEAREST), int) - STORED).max() < 24
    assert "HEIF" not in Image.OPEN, "Pillow must not be changed for the whole process"


def test_heic_orientation_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(heic(exif=exif.tobytes()))
    assert image.size == (64, 96)
    assert np.abs(np.asarray(image.resize((4, 6), Image.Resampling.NEAREST), int) - UPRIGHT[6]).max() < 24


def test_heic_truncated_or_too_large() -> None:
    data = heic()
    with pytest.raises(MediaError, match="more than 100 pixels"):
        load_image(data, limits=Limits(max_image_pixels=100))
    for quarter in (1, 2, 3):
        with pytest.raises(MediaError, match="HEIC is truncated or damaged"):
            load_image(data[: len(data) * quarter // 4])


def test_heic_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r'pip install "mlx-vlgen\[heic\]"'):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
