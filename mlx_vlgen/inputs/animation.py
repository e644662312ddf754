"""How long each frame of an animated GIF, PNG or WebP is shown, read from its blocks: nothing is decoded."""

from collections.abc import Iterator

_MISSING = 0.1  # seconds; as in browsers, for a frame that has none or zero


def frame_seconds(data: bytes, kind: str) -> list[float]:
    """Seconds for which each frame is shown, of as many frames as there are.

    kind: Pillow's name of the format.

    Raises:
        IndexError, StopIteration: a file that breaks off inside a block.
    """
    read = {"GIF": _gif, "PNG": _png, "WEBP": _webp}[kind]
    return [seconds or _MISSING for seconds in read(data)] or [_MISSING]  # a still picture is one frame


def _gif(data: bytes) -> Iterator[float]:
    """GIF89a: a screen, then extensions and images, each in sub-blocks of which the last one is empty."""
    at = 13 + _palette(data[10])
    seconds = 0.0
    while at < len(data):
        kind = data[at]
        at += 1
        if kind == 0x21:
            if data[at] == 0xF9 and data[at + 1] >= 3:  # graphic control: flags, hundredths of a second
                seconds = int.from_bytes(data[at + 3 : at + 5], "little") / 100
            at = _after_blocks(data, at + 1)
        elif kind == 0x2C:
            yield seconds
            seconds = 0.0
            at = _after_blocks(data, at + 9 + _palette(data[at + 8]) + 1)
        elif kind == 0x3B:
            return


def _palette(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while size := data[at]:
        at += size + 1
    return at + 1


def _png(data: bytes) -> Iterator[float]:
    """APNG: a control chunk before each frame, with its time as a fraction; 0 below the line is 100."""
    at = 8
    while at + 8 <= len(data):
        if data[at + 4 : at + 8] == b"fcTL":
            above, below = (int.from_bytes(data[start : start + 2], "big") for start in (at + 28, at + 30))
            yield above / (below or 100)
        at += int.from_bytes(data[at : at + 4], "big") + 12


def _webp(data: bytes) -> Iterator[float]:
    """WebP container: ANMF chunks, whose header has the time in milliseconds."""
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] == b"ANMF":
            yield int.from_bytes(data[at + 20 : at + 23], "little") / 1000
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
