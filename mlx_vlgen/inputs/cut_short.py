"""Video files that are shorter than the sizes in them say."""

import os
import struct
from typing import BinaryIO

BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"moof", b"wide", b"free", b"skip", b"uuid", b"sidx", b"styp", b"mfra"))
"""Boxes that may be first in an MP4 or MOV file."""


def is_cut_short(file: BinaryIO) -> bool:
    """Whether an MP4, MOV, AVI, WebM or MKV file is shorter than the sizes in it say.

    libav plays the rest of such a file without an error. Other formats have no size, or are not judged.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return size != 0xFFFFFFFF and 8 + size > end
    if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML header, then one segment (RFC 8794, 9596)
        size, length = _ebml_size(head[4:12])
        at = 4 + length + size
        file.seek(at)
        segment = file.read(12)
        if segment[:4] != b"\x18\x53\x80\x67":
            return False
        size, length = _ebml_size(segment[4:12])
        unknown = size == (1 << 7 * length) - 1  # a live recording
        return not unknown and at + 4 + length + size > end
    at = 0
    while at + 8 <= end:  # boxes, one after the other (ISO/IEC 14496-12, 4.2)
        file.seek(at)
        size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        size = large if size == 1 else size
        if kind not in BOXES or size < 8:  # size 0: to the end of the file
            return False
        at += size
    return at > end


def _ebml_size(data: bytes) -> tuple[int, int]:
    """Value and length of an EBML size: as many leading zero bits as there are bytes after the first."""
    length = 9 - data[0].bit_length() if data else 1
    return int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1), length
