"""The media of a chat: what was read once stays what it was, and what has changed is noticed."""

import hashlib
import io
import os
from typing import Any

from PIL import Image

from .errors import MediaError
from .inputs.media import Limits, describe_source, is_local, load_image, local_path, open_path, read_source
from .session import Message


class MediaStore:
    """Reads media into parts of messages. Bytes of pictures, and of what comes from the network, are held until the
    process ends, so that a file may go in the middle of a talk: a screenshot's does when it is dragged."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytes] = {}  # by their SHA-256
        self._known: dict[tuple[str, int, int], str] = {}  # (path, size, time) of a video or sound -> SHA-256

    def read(self, kind: str, source: str) -> tuple[Message, Image.Image | None]:
        """The part that stands for a medium, and the picture. MediaError says why it cannot be read."""
        digest = self._digest(kind, source)
        place = os.path.abspath(local_path(source)) if is_local(source) else source  # noqa: PTH100  Path leaves ".." in
        part = {"type": kind, kind: place, "sha256": digest}
        if kind != "image":
            return part, None
        file = io.BytesIO(self._bytes[digest])
        file.name = source  # for messages
        return part, load_image(file)

    def source(self, part: Message) -> Any:
        """What `stream_generate` reads: the bytes that were read, or the path of a video or sound."""
        return self._bytes.get(part["sha256"], part[part["type"]])

    def problem(self, part: Message) -> str | None:
        """What keeps a part from being what it was: it is gone, or has changed; None where nothing does."""
        kind, source = part["type"], part[part["type"]]
        if part["sha256"] in self._bytes:
            return None
        try:
            digest = self._digest(kind, source)
        except MediaError as error:
            return str(error)
        return None if digest == part["sha256"] else f"{describe_source(source)}: has changed since"

    def _digest(self, kind: str, source: str) -> str:
        if kind == "image" or not is_local(source):
            data = read_source(source, Limits())
            digest = hashlib.sha256(data).hexdigest()
            self._bytes[digest] = data
            return digest
        if os.path.isdir(folder := local_path(source)):  # noqa: PTH112
            return _digest_of_folder(folder)
        with open_path(source) as file:
            status = os.fstat(file.fileno())
            key = source, status.st_size, status.st_mtime_ns
            if key not in self._known:
                self._known[key] = _hash_file(file)
        return self._known[key]


def _hash_file(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_folder(folder: str) -> str:
    """Of the names and contents of the files in it."""
    digest = hashlib.sha256()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            with open_path(entry.path) as file:
                digest.update(f"{entry.name}\0{_hash_file(file)}\0".encode())
    return digest.hexdigest()
