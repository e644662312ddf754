"""Pages of PDF files as pictures, rendered when they are read."""

import io
import re
import threading
from collections.abc import Hashable
from typing import Any

from ..errors import MediaError, UnsupportedError
from ..inputs.media import file_key

DPI = 200
LONGEST_SIDE = 4096  # pixels; a page may be as large as its author likes

_SOURCE = re.compile(r"(?P<path>.+\.pdf)(?:#(?P<pages>[\d,-]+))?", re.IGNORECASE | re.DOTALL)
_lock = threading.Lock()  # PDFium is not for several threads at once


class Page:
    """One page, as a binary file that is rendered at the first read: a row that waits holds no pixels."""

    def __init__(self, path: str, number: int):
        self.path, self.number = path, number
        self.name = f"{path}#{number}"
        self._file: io.BytesIO | None = None

    @property
    def content_key(self) -> Hashable:
        """Tells what it will hold: nothing has to be rendered for it."""
        file = file_key(self.path)
        return file and (file, self.number)

    def read(self, size: int = -1) -> bytes:
        if self._file is None:
            self._file = io.BytesIO(_render(self.path, self.number))
        block = self._file.read(size)
        if not block:
            self._file = None
        return block


def split_source(source: object) -> tuple[str, str | None] | None:
    """The path of a PDF file and the pages that are wanted of it, as text; None for what is no PDF file."""
    match = _SOURCE.fullmatch(source) if isinstance(source, str) and "://" not in source else None
    return (match["path"], match["pages"]) if match else None


def page_numbers(path: str, wanted: str | None) -> list[int]:
    """The pages of "2-5", "3" or "1,4-", counted from 1; None is all. MediaError for what the file does not have."""
    with _lock, _Document(path) as document:
        count = len(document)
    if wanted is None:
        return list(range(1, count + 1))
    numbers: list[int] = []
    for part in wanted.split(","):
        match = re.fullmatch(r"(\d{1,9})(-(\d{1,9})?)?", part)
        first = int(match[1]) if match else 0
        last = (int(match[3]) if match[3] else count if match[2] else first) if match else 0
        if not 1 <= first <= last <= count:
            raise MediaError(f"{path}#{wanted}: {path} has {count} pages; expected pages like #2, #2-5 or #1,3-")
        numbers += range(first, last + 1)
    return numbers


def _render(path: str, number: int) -> bytes:
    """The page as a picture file."""
    with _lock, _Document(path) as document:
        page = document[number - 1]
        scale = min(DPI / 72, LONGEST_SIDE / max(1.0, *page.get_size()))
        file = io.BytesIO()
        page.render(scale=scale).to_pil().convert("RGB").save(file, "BMP")  # which costs no compression
        return file.getvalue()


class _Document:
    """An open PDF file; MediaError for what is none."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> Any:
        try:
            import pypdfium2
        except ImportError:
            raise UnsupportedError(f'{self._path}: PDF files need an extra: pip install "mlx-vlgen[pdf]"') from None
        try:
            self._document = pypdfium2.PdfDocument(self._path)
        except FileNotFoundError:
            raise MediaError(f"{self._path}: no such file") from None
        except Exception as error:
            raise MediaError(f"{self._path}: not a PDF file that can be read ({error})") from None
        return self._document

    def __exit__(self, *_: object) -> None:
        self._document.close()
