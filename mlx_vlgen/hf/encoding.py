"""What stands between a processor and `generate`: arrays by name, and a tokenizer that takes and gives them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import BatchEncoding

from .._runtime import mx
from ..errors import UnsupportedError


class Array(mx.array):
    """An array with torch's `.to`, `.cpu` and `.numpy`, which its parts have too. The first two do nothing: all devices
    share MLX's memory."""

    def to(self, *args: Any, **kwargs: Any) -> "Array":
        return self

    def cpu(self) -> "Array":
        return self

    def numpy(self) -> np.ndarray:
        return np.array(self)

    def __getitem__(self, index: Any) -> "Array":
        return Array(super().__getitem__(index))


class Encoding(BatchEncoding):
    """Arrays by name: a mapping for `generate(**inputs)`, with names as attributes. `.to(model.device)` does nothing
    either; transformers' needs torch for it."""

    def to(self, *args: Any, **kwargs: Any) -> "Encoding":
        return self


def check_return_tensors(kind: Any) -> None:
    """UnsupportedError for arrays that are not made here.

    kind: "mlx", "np", or None for lists
    """
    kind = getattr(kind, "value", kind)  # transformers' TensorType
    if kind not in (None, "mlx", "np"):
        raise UnsupportedError(
            f'return_tensors={kind!r}: expected "mlx", or "np" for numpy\'s arrays, or None for lists'
        )


def make_encoding(tensors: Mapping[str, np.ndarray], kind: Any) -> Encoding:
    """Arrays of the kind that return_tensors says, numpy's where it is None. Integers of MLX's have 32 bits, as those
    that it makes of lists."""
    if getattr(kind, "value", kind) != "mlx":
        return Encoding(dict(tensors))
    dtypes = {"i": np.int32, "f": np.float32}
    narrow = {name: value.astype(dtypes[value.dtype.kind], copy=False) for name, value in tensors.items()}
    return Encoding({name: Array(value) for name, value in narrow.items()})


def _to_lists(ids: Any) -> Any:
    """Token ids of any kind as Python's integers: one, a list, or a list of lists."""
    if isinstance(ids, list | tuple):
        return list(ids) if ids and isinstance(ids[0], int) else [_to_lists(item) for item in ids]
    return ids.tolist() if hasattr(ids, "tolist") else ids


class _ArrayTokenizer:
    """Base that goes before a class of transformers' tokenizers, so that MLX's arrays go in and out."""

    def __call__(self, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        check_return_tensors(return_tensors)
        encoding = super().__call__(*args, return_tensors=return_tensors, **kwargs)  # type: ignore[misc]
        arrays = {name: Array(value) if isinstance(value, mx.array) else value for name, value in encoding.items()}
        return Encoding(arrays, encoding.encodings, n_sequences=encoding.n_sequences)

    def encode(self, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        check_return_tensors(return_tensors)
        ids = super().encode(*args, return_tensors=return_tensors, **kwargs)  # type: ignore[misc]
        return Array(ids) if isinstance(ids, mx.array) else ids

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return super().decode(_to_lists(token_ids), *args, **kwargs)  # type: ignore[misc]

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        return super().batch_decode(_to_lists(sequences), *args, **kwargs)  # type: ignore[misc]

    def __reduce__(self) -> Any:
        original: Any = type(self).__mro__[2]
        tokenizer = object.__new__(original)
        tokenizer.__dict__.update(self.__dict__)
        return taking_arrays, (tokenizer,)


def taking_arrays(tokenizer: Any) -> Any:
    """The tokenizer itself, of a class that also takes and gives MLX's arrays; transformers 5.23's cannot decode them.

    The class keeps its name, under which `save_pretrained` writes it down."""
    original = type(tokenizer)
    tokenizer.__class__ = type(original.__name__, (_ArrayTokenizer, original), {})
    return tokenizer
