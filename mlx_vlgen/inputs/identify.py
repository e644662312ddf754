"""What tells the content of a medium, found before it is decoded."""

import hashlib
from collections.abc import Hashable
from typing import Any

from PIL import Image

from .fetch import Limits
from .kinds import KINDS, Kind
from .media import SourceBytes, describe_source, file_key, file_on_disk, has_attribute, read_source
from .video import has_raw_frames


def identified(kind: Kind, source: Any) -> tuple[Any, Hashable]:
    """What can be read in the place of `source`, and a key of its content: a hash of its bytes, which are read for
    that; of kinds that are told `by_file`, where they are on disk, and of objects that have a `content_key`, what tells
    it without reading.

    None is the key of what is not encoded (frames, samples, arrays, PIL pictures): hashing its pixels takes about as
    long as resizing them. MediaError as from the kind's loader.
    """
    if has_attribute(source, "content_key"):
        return source, source.content_key
    if isinstance(source, Image.Image) or has_raw_frames(source):
        return source, None
    if KINDS[kind].by_file and (file := file_on_disk(source)) is not None:
        return source, file_key(file)
    data = read_source(source, Limits())
    return SourceBytes(describe_source(source), data), hashlib.sha256(data).digest()
