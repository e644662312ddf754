"""Images from any source, as upright 8-bit RGB, within limits (formats: see decode.py)."""

import base64
import binascii
import contextlib
import io
import os
import re
import stat
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from ..errors import MediaError, printable
from .budget import RGB_BYTES, check_image, check_memory, check_size
from .decode import Box, decode_image, in_boxes, no_memory, to_rgb, upright_rgb
from .fetch import Limits, fetch, show_url

__all__ = ["ImageSource", "Limits", "describe_source", "load_image", "read_source"]

# Without waiting for whoever might write into a pipe; a regular file reads as ever.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray
"""Path, file:, http(s): or data: URL, encoded bytes, open binary file, PIL image, or array (or what numpy converts)."""


@dataclass(frozen=True)
class SourceBytes:
    """What a source held when it was read. name: as `describe_source` gives the source's."""

    name: str
    data: bytes = field(repr=False)


def load_image(source: ImageSource, *, limits: Limits = Limits()) -> Image.Image:
    """Read one picture as RGB, upright, without metadata (loading the result again changes nothing).

    EXIF orientation is applied to every kind of source that carries one. Transparency is composed on white. 16-bit
    values are divided by 257 and rounded. 32-bit ones (Pillow's modes I and F) are taken as the narrowest usual range
    that holds them, 0..1 (F only), 0..255 or 0..65535, or else stretched from their smallest to their largest value.
    Colour profiles are not applied (nor are they in transformers).

    Args:
        source: a path (`~` is the home folder) of a regular file, an http(s) URL (see `fetch`), a `file:` or `data:`
            URL, encoded bytes, a binary file (read from where it stands to its end, left open), a PIL image (left as it
            is), or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or float in [0, 1].
        limits: caps on pixels, memory, bytes, time and addresses.

    Raises:
        MediaError: anything that keeps the picture from being read, with the source's name as `describe_source` gives
            it.
    """
    name = describe_source(source)
    if isinstance(source, Image.Image):
        check_image(source, name, limits)
        try:
            source.load()
        except MemoryError:
            raise no_memory(name) from None
        except Exception:
            raise MediaError(f"{name}: its pixels cannot be read; is its file closed or truncated?") from None
        return upright_rgb(source, name)
    if has_attribute(source, "__array__"):
        return _from_array(source, name, limits)
    return decode_image(read_source(source, limits), name, limits)


def describe_source(source: object) -> str:
    """Name a source in a message: paths as given, URLs without secrets, everything else by kind and size."""
    try:
        return printable(_describe(source))
    except Exception:  # an object whose attributes cannot be read
        return printable(f"object of type {type(source).__name__}")


def _describe(source: object) -> str:
    if isinstance(source, SourceBytes):
        return source.name
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
        if isinstance(source, bytes):
            source = os.fsdecode(source)
    if isinstance(source, str):
        scheme = _scheme(source)
        if scheme == "data":
            return f"data: URI of {len(source):,} characters"
        if scheme in ("http", "https"):
            return show_url(source)
        if len(source) > 1024:
            return f"text of {len(source):,} characters"
        return source or "an empty path"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{memoryview(source).nbytes:,} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image ({source.mode}, {source.width} x {source.height})"
    if hasattr(source, "__array__"):
        shape = getattr(source, "shape", ())
        return f"array of shape {shape}"[:200] if isinstance(shape, tuple) else f"{type(source).__name__} object"
    if hasattr(source, "read"):
        file_name = getattr(source, "name", None)
        if isinstance(file_name, bytes):
            file_name = os.fsdecode(file_name)
        return file_name[:1024] if isinstance(file_name, str) and file_name else f"{type(source).__name__} object"
    return f"object of type {type(source).__name__}"


def has_attribute(source: object, attribute: str) -> bool:
    """`hasattr`, also of objects whose attributes raise what they like."""
    try:
        return hasattr(source, attribute)
    except Exception:
        return False


def read_source(source: object, limits: Limits) -> bytes:
    """The encoded bytes that a path, URL, bytes or binary file holds; a MediaError that names it if there are none."""
    name = describe_source(source)
    if isinstance(source, SourceBytes):
        data = source.data
    elif isinstance(source, bytes | bytearray | memoryview):
        data = _checked_bytes(source, name, limits)
    elif isinstance(source, str) and _scheme(source) in ("http", "https"):
        data = fetch(source.strip(), limits)
    elif isinstance(source, str) and _scheme(source) == "data":
        data = _from_data_uri(source, name, limits)
    elif isinstance(source, str | os.PathLike):
        with open_path(source) as file:
            _check_file_bytes(os.fstat(file.fileno()).st_size, name, limits)
            data = read_to_end(file, name, limits)
    elif has_attribute(source, "read"):
        data = read_to_end(source, name, limits)
    else:
        raise MediaError(f"{name}: not a source of media; expected a path, URL, bytes, binary file or array")
    if not data:
        raise MediaError(f"{name}: is empty")
    return data


def is_local(source: object) -> bool:
    """Whether `source` names something on this machine's disks."""
    return isinstance(source, os.PathLike) or (
        isinstance(source, str) and _scheme(source) not in ("http", "https", "data")
    )


def file_key(file: str | int) -> Hashable:
    """Tells the content of a file, a path or a descriptor, without reading it: whatever writes to it changes a time.
    None where there is no such file."""
    try:
        status = os.stat(file)  # noqa: PTH116  Path takes no descriptor
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def open_path(source: str | os.PathLike[Any]) -> BinaryIO:
    """Open the regular file that a path or `file:` URL names. A pipe or device might never end, or never begin."""
    name = describe_source(source)
    path = local_path(source)
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            reason = "is a folder; expected a file"
        else:
            reason = (
                "is not a regular file but a pipe or device; give its bytes or an open file (on the command line, "
                "--image - reads stdin)"
            )
    except FileNotFoundError:
        reason = "no such file"
    except IsADirectoryError:
        reason = "is a folder; expected a file"
    except PermissionError:
        reason = "may not be read (permission denied)"
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
    except ValueError:
        reason = "not a valid path"
    raise MediaError(f"{name}: {reason}")


@contextlib.contextmanager
def open_media(source: Any, name: str, limits: Limits) -> Iterator[BinaryIO]:
    """A seekable file that starts with the medium, in memory only where it must be."""
    if is_local(source):
        with open_path(source) as file:
            yield file
    elif (descriptor := _regular_file_at_start(source)) is not None:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            try:
                file.seek(0)
                yield file
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)  # which both share
    else:
        yield io.BytesIO(read_source(source, limits))


def file_on_disk(source: Any) -> str | int | None:
    """The path or descriptor of a source that `open_media` reads from the disk."""
    return local_path(source) if is_local(source) else _regular_file_at_start(source)


def _regular_file_at_start(source: Any) -> int | None:
    """The descriptor of an open file on disk; None for everything else, which `read_source` reads or refuses.

    libav reads by the descriptor and not through the object, whose `read` and `seek` may do what they like.
    """
    if not isinstance(source, io.FileIO | io.BufferedReader | io.BufferedRandom):  # a GzipFile too has a descriptor
        return None
    try:
        descriptor = source.fileno()
        return descriptor if source.tell() == 0 and stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError, AttributeError):  # closed, or no file on disk; read_source says what is wrong
        return None


def local_path(source: str | os.PathLike[Any]) -> str:
    """The path that a path or a `file:` URL means."""
    name = describe_source(source)
    scheme = _scheme(source) if isinstance(source, str) else None
    if scheme not in (None, "file"):
        raise MediaError(f"{name}: URLs of kind {scheme}: are not read; expected http, https, file or data")
    try:
        if scheme is None:
            return os.path.expanduser(os.fsdecode(source))  # noqa: PTH111  Path's raises where a user is not known
        url = str(source).strip()
        parts = re.fullmatch(r"file:(?://(?:localhost)?)?(/(?!/).*)", url, re.IGNORECASE | re.DOTALL)
        if parts is not None:
            return os.fsdecode(unquote_to_bytes(parts[1]))
    except Exception:  # zero bytes and half characters, objects that are no paths
        raise MediaError(f"{name}: not a valid path") from None
    raise MediaError(f"{name}: not a file on this machine; expected file:///path")


def read_to_end(file: Any, name: str, limits: Limits) -> bytes:
    """What an open binary file holds from where it stands, if that is not more than `limits.max_file_bytes`."""
    data = io.BytesIO()
    while True:
        try:
            block = file.read(1 << 20)
        except Exception:
            raise MediaError(f"{name}: reading it failed") from None
        if block is None:
            raise MediaError(f"{name}: has nothing to read without waiting")
        if not isinstance(block, bytes | bytearray):
            raise MediaError(f"{name}: does not give bytes; open it in binary mode")
        if not block:
            return data.getvalue()  # shares what was written
        _check_file_bytes(data.tell() + len(block), name, limits)
        data.write(block)


def _check_file_bytes(size: int, name: str, limits: Limits) -> None:
    if size > limits.max_file_bytes:
        raise MediaError(f"{name}: larger than {limits.max_file_bytes:,} bytes (Limits.max_file_bytes)")


def _checked_bytes(source: bytes | bytearray | memoryview, name: str, limits: Limits) -> bytes:
    try:
        size = memoryview(source).nbytes
    except ValueError:
        raise MediaError(f"{name}: has been released") from None
    _check_file_bytes(size, name, limits)
    return bytes(source)


def _scheme(text: str) -> str | None:
    """The scheme of a URL, in small letters; None for a path."""
    match = re.match(r"\s*(?:(data|file):|([a-z][a-z0-9+.-]+)://)", text[:64], re.IGNORECASE)
    return (match[1] or match[2]).lower() if match else None


def _from_data_uri(uri: str, name: str, limits: Limits) -> bytes:
    """RFC 2397; base64 is also taken percent-encoded, wrapped and without its padding."""
    _check_file_bytes(len(uri) // 4, name, limits)  # base64 has 4 characters for 3 bytes, each perhaps written as 3
    head, comma, body = uri.strip().partition(",")
    if not comma:
        raise MediaError(f"{name}: has no comma; expected data:image/png;base64,...")
    try:
        data = _unquoted(body.encode())
        if not head.lower().endswith(";base64"):
            _check_file_bytes(len(data), name, limits)
            return data
        packed = b"".join(data.split()).rstrip(b"=")
        _check_file_bytes(len(packed) * 3 // 4, name, limits)
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise MediaError(f"{name}: its base64 is damaged") from None
    except UnicodeEncodeError:
        raise MediaError(f"{name}: holds half characters, which no URL has") from None


def _unquoted(text: bytes) -> bytes:
    """`unquote_to_bytes`, a piece at a time: at once it takes a hundred times the text."""
    data, at = bytearray(), 0
    while at < len(text):
        end = at + (1 << 16)
        cut = text.find(b"%", max(end - 2, at + 1), end)
        end = end if cut < 0 else cut
        data += unquote_to_bytes(text[at:end])
        at = end
    return bytes(data)


def _from_array(source: Any, name: str, limits: Limits) -> Image.Image:
    array = _checked_array(source, name, limits)

    def part(box: Box) -> Image.Image:
        left, top, right, bottom = box
        values = array[top:bottom, left:right]
        if values.dtype != np.uint8:
            values = (values.astype(np.float32) * 255).round().astype(np.uint8)
        return to_rgb(Image.fromarray(np.ascontiguousarray(values)))

    return in_boxes((array.shape[1], array.shape[0]), part)


def _checked_array(source: Any, name: str, limits: Limits) -> np.ndarray:
    """uint8, or float from 0 to 1, of shape (H, W), (H, W, 3) or (H, W, 4); a view where possible."""
    if isinstance(source, np.ma.MaskedArray):
        raise MediaError(f"{name}: parts of it are masked; give array.filled(255)")
    try:
        array = np.asarray(source)
    except Exception:
        raise MediaError(f"{name}: numpy cannot convert it; give uint8 or float32") from None
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise MediaError(f"{name}: channels come first; expected (H, W, 3): np.moveaxis(array, 0, -1)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise MediaError(f"{name}: expected one picture of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.size == 0:
        raise MediaError(f"{name}: has no pixels")
    check_size((array.shape[1], array.shape[0]), name, limits)
    check_memory(array.shape[1] * array.shape[0] * RGB_BYTES, name, limits)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise MediaError(f"{name}: values of type {array.dtype}; expected uint8, or float from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # not-a-number fails this too
        raise MediaError(f"{name}: float values from {low:g} to {high:g}; expected 0 to 1, or uint8")
    return array
