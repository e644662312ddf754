"""What transformers' users hold between a processor and `generate`: named arrays, and a tokenizer that takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import BatchEncoding

from .._runtime import mx
from ..errors import UnsupportedError


class Array(mx.array):
    """An array with torch's `.to`, `.cpu` and `.numpy`, and so are its parts: MLX's arrays are in no device's own
    memory, so that there is nothing to move."""

    def to(self, *args: Any, **kwargs: Any) -> "Array":
        return self

    def cpu(self) -> "Array":
        return self

    def numpy(self) -> np.ndarray:
        return np.array(self)

    def __getitem__(self, index: Any) -> "Array":
        return Array(super().__getitem__(index))


class Encoding(BatchEncoding):
    """Named arrays: a mapping for `generate(**inputs)`, with names as attributes. `.to(model.device)` does nothing, for
    the same reason; transformers' own needs torch for it."""

    def to(self, *args: Any, **kwargs: Any) -> "Encoding":
        return self


def check_return_tensors(kind: Any) -> None:
    """UnsupportedError for arrays that are not made here. kind: "mlx", "np" or None, for lists."""
    kind = getattr(kind, "value", kind)  # transformers' TensorType
    if kind not in (None, "mlx", "np"):
        raise UnsupportedError(
            f'return_tensors={kind!r}: expected "mlx", or "np" for numpy\'s arrays, or None for lists'
        )


def encoding(tensors: Mapping[str, np.ndarray], kind: Any) -> Encoding:
    """Arrays as `return_tensors` asks for them, numpy's where it is None. Whole numbers of MLX's have 32 bits, as those
    that it makes of lists."""
    if getattr(kind, "value", kind) != "mlx":
        return Encoding(dict(tensors))
    return Encoding({name: _mlx(value) for name, value in tensors.items()})


def _mlx(value: np.ndarray) -> Array:
    return Array(value.astype({"i": np.int32, "f": np.float32}[value.dtype.kind], copy=False))


def plain(ids: Any) -> Any:
    """Token ids of any kind as Python's numbers: one, a list, or a list of lists."""
    if isinstance(ids, list | tuple):
        return list(ids) if ids and isinstance(ids[0], int) else [plain(item) for item in ids]
    return ids.tolist() if hasattr(ids, "tolist") else ids


class _TakesArrays:
    """Goes before a class of transformers' tokenizers: MLX's arrays in and out, with what code written for torch calls
    on them."""

    def __call__(self, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        check_return_tensors(return_tensors)
        made = super().__call__(*args, return_tensors=return_tensors, **kwargs)  # type: ignore[misc]
        arrays = {name: Array(value) if isinstance(value, mx.array) else value for name, value in made.items()}
        return Encoding(arrays, made.encodings, n_sequences=made.n_sequences)

    def encode(self, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        check_return_tensors(return_tensors)
        made = super().encode(*args, return_tensors=return_tensors, **kwargs)  # type: ignore[misc]
        return Array(made) if isinstance(made, mx.array) else made

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return super().decode(plain(token_ids), *args, **kwargs)  # type: ignore[misc]

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        return super().batch_decode(plain(sequences), *args, **kwargs)  # type: ignore[misc]

    def __reduce__(self) -> Any:
        own: Any = type(self).__mro__[2]
        bare = object.__new__(own)
        bare.__dict__.update(self.__dict__)
        return taking_arrays, (bare,)


def taking_arrays(tokenizer: Any) -> Any:
    """The tokenizer itself, of a class that also takes and gives MLX's arrays; transformers 5.23's cannot decode them.

    Its class keeps its name, under which `save_pretrained` writes it down."""
    own = type(tokenizer)
    tokenizer.__class__ = type(own.__name__, (_TakesArrays, own), {})
    return tokenizer
