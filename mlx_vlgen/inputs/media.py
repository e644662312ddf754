"""Pictures from wherever a person has them, as upright 8-bit RGB, within limits (formats: see decode.py)."""

import base64
import binascii
import os
import re
import stat
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from ..errors import MediaError
from .decode import check_size, decode_picture, to_rgb, upright_rgb
from .fetch import Limits, fetch, show_url

__all__ = ["Limits", "Picture", "describe_source", "load_image", "read_source"]

Picture: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray
"""Path, file:, http(s): or data: URL, encoded bytes, open binary file, PIL image, or array (or what numpy converts)."""


def load_image(source: Picture, *, limits: Limits = Limits()) -> Image.Image:
    """Read one picture as RGB, upright, without metadata (loading the result again changes nothing).

    EXIF orientation is applied to every kind of source that carries one. Transparency is composed on white. 16-bit
    values are divided by 257 and rounded. 32-bit ones (Pillow's modes I and F) are taken as the narrowest usual range
    that holds them, 0..1 (F only), 0..255 or 0..65535, or else stretched from their least to their greatest value.
    Colour profiles are not applied (nor are they in transformers).

    Args:
        source: a path (`~` is the home folder), an http(s) URL (see `fetch`), a `file:` or `data:` URL, encoded bytes,
            a binary file (read from where it stands to its end, left open), a PIL image (left as it is), or an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or float in [0, 1].
        limits: caps on pixels, bytes, time and addresses.

    Raises:
        MediaError: anything that keeps the picture from being read, with the source's name as `describe_source` gives
            it.
    """
    name = describe_source(source)
    if isinstance(source, Image.Image):
        check_size(source.size, name, limits)
        try:
            picture = source.copy()
        except Exception:
            raise MediaError(f"{name}: its pixels cannot be read; is its file closed or truncated?") from None
        return upright_rgb(picture, name)
    if hasattr(source, "__array__"):
        return to_rgb(Image.fromarray(_checked_array(source, name)), name)
    return decode_picture(read_source(source, limits), name, limits)


def describe_source(source: object) -> str:
    """Name a source in a message: paths as given, URLs without secrets, everything else by kind and size."""
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
        return "".join(c if c.isprintable() else "\ufffd" for c in source) or "an empty path"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source):,} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image ({source.mode}, {source.width} x {source.height})"
    if hasattr(source, "__array__"):
        return f"array of shape {tuple(getattr(source, 'shape', ()))}"
    if hasattr(source, "read"):
        file_name = getattr(source, "name", None)
        return file_name if isinstance(file_name, str) and file_name else f"{type(source).__name__} object"
    return f"object of type {type(source).__name__}"


def read_source(source: object, limits: Limits) -> bytes:
    """The encoded bytes that a path, URL, bytes or binary file holds; a MediaError that names it if there are none."""
    name = describe_source(source)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str) and _scheme(source) in ("http", "https"):
        data = fetch(source.strip(), limits)
    elif isinstance(source, str) and _scheme(source) == "data":
        data = _from_data_uri(source)
    elif isinstance(source, str | os.PathLike):
        with open_path(source) as file:
            data = read_to_end(file, name, limits)
    elif hasattr(source, "read"):
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


def open_path(source: str | os.PathLike[Any]) -> BinaryIO:
    """Open a path or `file:` URL for reading."""
    name = describe_source(source)
    path = local_path(source)
    try:
        return open(path, "rb")
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


def local_path(source: str | os.PathLike[Any]) -> str:
    """The path that a path or a `file:` URL means."""
    text = os.fsdecode(source)
    if isinstance(source, str):
        scheme = _scheme(source)
        if scheme == "file":
            parts = re.fullmatch(r"file:(?://(?:localhost)?)?(/(?!/).*)", source.strip(), re.IGNORECASE | re.DOTALL)
            if parts is None:
                raise MediaError(f"{describe_source(source)}: not a file on this machine; expected file:///path")
            return os.fsdecode(unquote_to_bytes(parts[1]))
        if scheme is not None:
            raise MediaError(
                f"{describe_source(source)}: URLs of kind {scheme}: are not read; expected http, https, file or data"
            )
    return os.path.expanduser(text)  # noqa: PTH111  Path's raises where a user is not known


def is_regular(file: BinaryIO) -> bool:
    """Whether an open file has a size and can be read twice (a pipe cannot)."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def read_to_end(file: Any, name: str, limits: Limits) -> bytes:
    """What an open binary file holds from where it stands, if that is not more than `limits.max_file_bytes`."""
    data = bytearray()
    try:
        while block := file.read(1 << 20):
            data += block
            if len(data) > limits.max_file_bytes:
                break
    except TypeError:
        raise MediaError(f"{name}: does not give bytes; open it in binary mode") from None
    except Exception:
        raise MediaError(f"{name}: reading it failed") from None
    if len(data) > limits.max_file_bytes:
        raise MediaError(f"{name}: larger than {limits.max_file_bytes:,} bytes (Limits.max_file_bytes)")
    return bytes(data)


def _scheme(text: str) -> str | None:
    """The scheme of what is meant as a URL, in small letters; None for a path."""
    found = re.match(r"\s*(?:(data|file):|([a-z][a-z0-9+.-]+)://)", text[:64], re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else None


def _from_data_uri(uri: str) -> bytes:
    """RFC 2397; base64 is also taken percent-encoded, wrapped and without its padding."""
    head, comma, body = uri.strip().partition(",")
    data = unquote_to_bytes(body)
    if not comma:
        raise MediaError(f"{describe_source(uri)}: has no comma; expected data:image/png;base64,...")
    if not head.lower().endswith(";base64"):
        return data
    try:
        packed = b"".join(data.split()).rstrip(b"=")
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise MediaError(f"{describe_source(uri)}: its base64 is damaged") from None


def _checked_array(source: Any, name: str) -> np.ndarray:
    """uint8 of shape (H, W), (H, W, 3) or (H, W, 4)."""
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
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise MediaError(f"{name}: values of type {array.dtype}; expected uint8, or float from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # not-a-number fails this too
        raise MediaError(f"{name}: float values from {low:g} to {high:g}; expected 0 to 1, or uint8")
    return (array.astype(np.float32) * 255).round().astype(np.uint8)
