"""A checkpoint's small files. A fault in one is a LoadError that names it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import LoadError, VlgenError

MAX_BYTES = 256 << 20
"""No file but weights may be larger: the largest that are published, tokenizers and indexes, have 40 MB."""


@contextmanager
def reading(path: Path, trouble: str) -> Iterator[None]:
    """Turns whatever is raised while a file is read, or while what it describes is built, into a LoadError.

    trouble: what the message says after the path. A LoadError that names no file of that folder gets
    the path before it. The error raised is the cause of the new one, so that a fault of this package's can be traced.
    Other VlgenErrors, interrupts and MemoryError pass as they are.
    """
    try:
        yield
    except LoadError as error:
        if str(path.parent) in str(error):
            raise
        raise LoadError(f"{path}: {error}") from error.__cause__
    except (VlgenError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, of tokenizers
            raise
        raise LoadError(f"{path} {trouble}: {type(error).__name__}: {error!s:.300}") from error


def check_bytes(path: Path) -> None:
    """LoadError for a file that is too large to be what its name says."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise LoadError(f"{path} has {size:,} bytes; expected at most {MAX_BYTES:,}. Download it again.")


def read_text(path: Path) -> str:
    """A text file in UTF-8. LoadError when it is not, or is too large."""
    with reading(path, "cannot be read"):
        check_bytes(path)
        return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. LoadError when it holds anything else, NaN, or a key twice."""
    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} cannot be read as JSON ({error}). Download the checkpoint again.") from None
    if not isinstance(value, dict):
        raise LoadError(f"{path} holds a JSON {type(value).__name__}; expected an object.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    # How transformers marks a number that JSON cannot hold.
    return _constant(value["__float__"]) if value.keys() == {"__float__"} else value


def _constant(name: Any) -> float:
    if name not in ("Infinity", "-Infinity"):
        raise ValueError(f"{name!r} is not a number")
    return float(name)


MAX_SIDE = 1 << 13
"""Pixels of a side of an image after resizing: three floats a pixel are 0.8 GB then."""
_SIDE, _AREA, _TOKENS, _TILES = (1, MAX_SIDE), (1, 1 << 28), (1, 1 << 16), (0, 256)
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("patch_size", "encoder_patch_size", "image_patch_size"), (1, 256)),
    **dict.fromkeys(
        ("merge_size", "spatial_merge_size", "temporal_patch_size", "pooling_kernel_size", "merge_kernel_size"), (1, 16)
    ),
    **dict.fromkeys(("downsample_factor", "scale_factor", "hidden_stride", "pooling_size"), (1, 16)),
    **dict.fromkeys(("image_size", "tile_size", "height", "width", "image_grid_pinpoints"), _SIDE),
    **dict.fromkeys(("size", "crop_size", "max_height", "max_width", "patch_limit_on_one_side"), _SIDE),
    "image_default_input_size": _SIDE,
    **dict.fromkeys(("max_pixels", "longest_edge"), _AREA),
    **dict.fromkeys(("min_pixels", "shortest_edge"), (1, 1 << 26)),
    **dict.fromkeys(("min_patches", "max_patches", "min_tiles", "max_tiles", "max_crops"), _TILES),
    **dict.fromkeys(("min_dynamic_patch", "max_dynamic_patch"), _TILES),
    **dict.fromkeys(("min_image_tokens", "max_image_tokens"), (1, 1 << 20)),  # of a video's frames together, too
    **dict.fromkeys(("max_soft_tokens", "mm_tokens_per_image"), _TOKENS),
    "resampler_n_latents": _TOKENS,
    "overlap_margins": (0, 256),
    **dict.fromkeys(("in_patch_limit", "in_patch_limit_each_frame"), (1, 1 << 20)),
    **dict.fromkeys(("num_frames", "min_frames", "max_frames", "max_video_tokens"), (1, 1 << 20)),
    **dict.fromkeys(("fps", "max_fps"), (1e-3, 1e6)),
    "max_duration": (0, 1e6),  # 0: any
    **dict.fromkeys(("sampling_rate", "n_samples"), (1000, 1 << 26)),
    **dict.fromkeys(("hop_length", "n_fft"), (1, 1 << 14)),
    **dict.fromkeys(("feature_size", "chunk_length"), (1, 1024)),
    "downsample_ratio": (0.01, 16.0),
    "max_pixels_tolerance": (0.0, 1e6),
    "image_mean": (-1e3, 1e3),
    "image_std": (1e-6, 1e3),
}
"""What the numbers of a processor may be: far beyond what is published, and far from a division by zero and from a
picture of gigabytes. Those between whole numbers are whole."""


def check_settings(path: Path, settings: Any, key: str = "") -> None:
    """LoadError for a number in a processor's `settings`, read from `path`, that is out of bounds or no number.

    key: what the settings are called there. A size may be a number, a list, or a dictionary that names its sides.
    """
    if isinstance(settings, Mapping):
        size = settings.get("size")
        of_patches = isinstance(size, Mapping) and "max_height" in size  # MoonViT's: not of tiles
        for name, value in settings.items():
            check_settings(path, value, "in_patch_limit" if of_patches and name == "max_patches" else name)
    elif isinstance(settings, list):
        if key in ("image_mean", "image_std") and len(settings) not in (0, 3):
            raise LoadError(f"{path} says {key} = {settings!r:.80}; expected three numbers, of red, green and blue.")
        for value in settings:
            check_settings(path, value, key)
    elif key in _BOUNDS and settings is not None:
        minimum, maximum = _BOUNDS[key]
        whole = isinstance(minimum, int)
        number = isinstance(settings, int if whole else int | float) and not isinstance(settings, bool)
        if not number or not minimum <= settings <= maximum:
            kind = "a whole number" if whole else "a number"
            raise LoadError(f"{path} says {key} = {settings!r:.80}; expected {kind} from {minimum} to {maximum}.")
