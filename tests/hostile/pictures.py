"""Hostile pictures, made by code: (name, bytes). Same seed, same bytes. Nothing here decodes or needs much memory."""

import functools
import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

Named = tuple[str, bytes]

PICTURE_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def headers() -> Iterator[Named]:
    """Headers that claim more than the file holds."""
    for width, height in ((65535, 65535), (13377, 13377), (60000, 1), (1, 60000), (0, 5)):
        size = f"{width} x {height}"
        yield f"png {size}", png(width, height, b"")
        yield f"gif {size}", gif(width, height, [b"\x01"])
        yield f"bmp {size}", bmp(width, height, 24, 0, b"")
        yield f"jpeg {size}", jpeg(width, height)
        yield f"tiff {size}", tiff(width, height)
    yield "png 2^31", png(2**31 - 1, 2**31 - 1, b"")
    yield "bmp negative", bmp(-5, -(2**31), 24, 0, b"")
    yield "webp canvas 2^24", webp([(b"VP8X", bytes(4) + b"\xff" * 6)])
    yield "tiff tile 40000", tiff(64, 64, {322: 40000, 323: 40000})
    yield "tiff tile 40000, lzw", tiff(64, 64, {259: 5, 322: 40000, 323: 40000})
    yield "tiff tile 2^31", tiff(64, 64, {259: 8, 322: 2**31, 323: 16})
    yield "tiff tile 0", tiff(64, 64, {259: 8, 322: 0, 323: 0})
    yield "tiff strip 2^32", tiff(64, 64, {259: 5, 278: 2**32 - 1})
    yield "tiff 255 samples", tiff(64, 64, {277: 255})
    for compression in (2, 3, 4, 5, 6, 7, 8, 32773, 32809, 34676, 34925, 50000, 50001, 9999):
        yield f"tiff compression {compression}", tiff(5000, 5000, {259: compression})
    yield "tiff tags upon each other", tiff(64, 64, dict.fromkeys(range(40000, 44000), (2, 4000, 8)))
    yield "tiff directory in itself", b"II*\0\x08\0\0\0" + b"\xff\xff" + bytes(range(256)) * 4
    yield "bigtiff", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 200
    yield "jpeg exif tags upon each other", jpeg(64, 64, exif(4000))
    yield "png, text that unfolds", png(64, 64, b"", b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24)))
    yield "png, profile that unfolds", png(64, 64, b"", b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 24)))


def bombs(side: int = 13000) -> Iterator[Named]:
    """Whole pictures of one colour, tiny as files."""
    yield "png bomb", png(side, side, flat(side * (side * 3 + 1)))
    yield "png bomb, 16 bits", png(side, side, flat(side * (side * 8 + 1)), depth=16, colour=6)
    yield "webp bomb", webp_lossless(side, side)
    yield "webp largest", webp_lossless(16383, 16383)
    yield "gif bomb", gif(side, side, [lzw(side * side)])
    yield "tiff bomb, deflate", tiff(side, side, {259: 8}, flat(side * side))
    for bits, kind, mode in ((16, 1, "I;16"), (32, 2, "I"), (32, 3, "F")):
        yield f"tiff bomb, {mode}", tiff(side, side, {259: 8, 258: bits, 339: kind}, flat(side * side * bits // 8))
    yield "bmp run lengths, no data", bmp(side, side, 8, 1, b"\0\1")
    yield "bmp run lengths, line ends", bmp(side, side, 8, 1, b"\1\0\0\0" * 250)
    yield "bmp run lengths, skips", bmp(side, side, 8, 1, b"\0\2\xff\xff" * 250)
    yield "bmp run lengths, 4 bits", bmp(side, side, 4, 2, b"\1\0\0\0" * 250)
    yield "jpeg of a thousand scans", many_scans(1000)


def animations() -> Iterator[Named]:
    yield "gif animation, huge canvas", gif(13377, 13377, [(1, 1, lzw(1))] * 12)
    yield "gif animation, growing", gif(8, 8, [lzw(64), (12000, 12000, lzw(100))])
    yield "gif animation, 5000 frames", gif(100, 100, [lzw(10000)] * 5000)
    yield "gif animation, 200000 frames", gif(1000, 1000, [(1, 1, lzw(1))] * 200_000)
    yield "png animation, 2^31 frames", png(8, 8, flat(200), b"acTL", struct.pack(">II", 2**31, 0))


def truncated(seed: int = 0) -> Iterator[Named]:
    for kind, data in small().items():
        for at in random.Random(seed).sample(range(len(data)), 8):
            yield f"{kind} cut at {at}", data[:at]


def mutated(seed: int = 0, count: int = 200) -> Iterator[Named]:
    """Small valid files with some bytes changed, most of them in their headers."""
    rng = random.Random(seed)
    kinds = list(small().items())
    for number in range(count):
        kind, data = rng.choice(kinds)
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data) if rng.random() < 0.4 else min(len(data), 128))
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        yield f"{kind} mutation {number}", bytes(changed)


@functools.cache
def small() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
    frames = [Image.fromarray(frame) for frame in pixels]
    files = {}
    for kind in PICTURE_KINDS:
        files[kind] = encoded(frames[0], kind)
    files["progressive JPEG"] = encoded(frames[0], "JPEG", progressive=True)
    for mode in ("1", "L", "P", "LA", "RGBA", "I;16"):
        files[f"{mode} PNG"] = encoded(frames[0].convert(mode if mode != "I;16" else "I").convert(mode), "PNG")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"{compression} TIFF"] = encoded(frames[0], "TIFF", compression=compression)
    for kind in ("GIF", "WEBP", "PNG"):
        files[f"animated {kind}"] = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    return files


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# Files by hand


def flat(size: int) -> bytes:
    """`size` zero bytes as a zlib stream, made of one megabyte's block again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = last.compress(bytes(size & (1 << 20) - 1)) + last.flush()
    return b"\x78\x01" + block * (size >> 20) + end + struct.pack(">I", size % 65521 << 16 | 1)


def png(
    width: int, height: int, data: bytes, extra: bytes = b"", body: bytes = b"", *, depth: int = 8, colour: int = 2
) -> bytes:
    """data: compressed rows; extra, body: one more chunk before them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    more = chunk(extra, body) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width: int, height: int, frames: list[bytes | tuple[int, int, bytes]]) -> bytes:
    """frames: image data, or a width, a height and image data."""
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x80, 0, 0), b"\0\0\0\xff\xff\xff"]
    for frame in frames:
        w, h, data = frame if isinstance(frame, tuple) else (width, height, frame)
        parts += [b"!\xf9\x04\0\x05\0\0\0", b",", struct.pack("<HHHHB", 0, 0, w, h, 0), b"\x02"]
        parts += [bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255)]
        parts.append(b"\0")
    return b"".join([*parts, b";"])


def lzw(pixels: int) -> bytes:
    """So many zeros as GIF's LZW with 2 bits: each code is one longer than the last."""
    bits, count, width, next_code, length = 4, 3, 3, 6, 1  # a clear code (4) of 3 bits first
    done = 0
    codes: list[tuple[int, int]] = []
    first = True
    while done < pixels:
        if first:
            codes.append((0, width))
            done, first = done + 1, False
            continue
        length += 1
        codes.append((next_code, width))
        done += length
        next_code += 1
        if next_code == 1 << width and width < 12:
            width += 1
        if next_code == 4095:
            codes.append((4, 12))
            width, next_code, length, first = 3, 6, 1, True
    codes.append((5, width))
    for code, size in codes:
        bits |= code << count
        count += size
    return bits.to_bytes(-(-count // 8), "little")


def bmp(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    palette = b"" if bits > 8 else bytes(4 << bits)
    start = 54 + len(palette)

    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return head + palette + data


def tiff(
    width: int, height: int, tags: dict[int, int | tuple[int, int, int]] | None = None, data: bytes = b"\0" * 64
) -> bytes:
    """One strip or tile of `data`. tags: value by number, or (type, count, offset)."""
    given = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height, 279: len(data)} | (tags or {})
    if 322 in given:
        given |= {324: 0, 325: given.pop(279)}
        given.pop(278)
    else:
        given[273] = 0
    start = 8 + 2 + 12 * len(given) + 4
    given[324 if 322 in given else 273] = start
    entries = [
        struct.pack("<HHII", tag, *value) if isinstance(value, tuple) else struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in sorted(given.items())
    ]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + data


def exif(entries: int) -> bytes:
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", entries)
    return head + b"".join(struct.pack("<HHII", 40000 + at, 2, 12 * entries, 8) for at in range(entries)) + bytes(4)


def jpeg(width: int, height: int, exif: bytes = b"") -> bytes:
    """A small progressive JPEG that says it is larger."""
    data = encoded(Image.new("RGB", (8, 8)), "JPEG", progressive=True, **({"exif": b"Exif\0\0" + exif} if exif else {}))
    at = data.index(b"\xff\xc2") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def many_scans(count: int, side: int = 3000) -> bytes:
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xc4")  # the last scan with its tables
    return data[:at] + data[at:-2] * count + b"\xff\xd9"


def webp(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_lossless(width: int, height: int) -> bytes:
    """One colour, whose codes take no bits at all: 28 bytes of any size."""
    bits, count = 0, 0
    fields = [(width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    fields += [(1, 1), (0, 1), (0, 1), (0, 1)] * 5  # a simple code of one symbol, 0, five times
    for value, size in fields:
        bits |= value << count
        count += size
    return webp([(b"VP8L", b"\x2f" + bits.to_bytes(12, "little"))])
