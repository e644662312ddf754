"""Weights drawn from a rule, so that references need no checkpoint in the tree.

The same names and shapes give the same bits wherever this runs: raw PCG64 output is fixed by numpy's stream guarantee,
and what follows is integer sums, IEEE division, multiplication and square root.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, np.ndarray]
Rule = tuple[str, float, float]
"""(pattern searched in the name, mean, standard deviation)."""

COMMON_RULES: tuple[Rule, ...] = (
    (r"\.bias$", 0.0, 0.1),
    (r"norm\d?\.weight$", 1.0, 0.2),
    (r"pos_embed\.weight$", 0.0, 0.5),
)
# The last hidden state of a tied model resembles its token's row: a large table would copy the last token for ever.
TIED_EMBEDDING: Rule = (r"embed_tokens\.weight$", 0.0, 0.12)
EMBEDDING: Rule = (r"embed_tokens\.weight$", 0.0, 0.5)


def draw(shapes: Shapes, seed: int = 0, rules: Iterable[Rule] = ()) -> Tensors:
    """One float32 array per name of `shapes`, which are the names transformers 5 saves.

    The first matching rule decides, a family's `rules` before the common ones; without a match the tensor is a
    matrix, drawn with a standard deviation of 1 / sqrt(fan in). No `lm_head.weight` among the names: tied embeddings.
    """
    tied = "lm_head.weight" not in shapes
    table = (*rules, *COMMON_RULES, TIED_EMBEDDING if tied else EMBEDDING)
    return {name: _draw(name, tuple(shape), seed, table) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int, table: Iterable[Rule]) -> np.ndarray:
    matching = ((mean, std) for pattern, mean, std in table if re.search(pattern, name))
    # Fused experts are (experts, out, in); convolutions (out, in, *kernel).
    fan_in = shape[-1] if "experts" in name else int(np.prod(shape[1:]))
    mean, std = next(matching, (0.0, 1.0 / np.sqrt(fan_in)))
    return np.asarray(mean + std * bell(f"{seed}:{name}", shape), np.float32)  # an array where the shape is ()


def bell(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 values of mean 0 and variance 1, nearly normal: each is a sum of four uniform 16-bit integers."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    total = raw.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
    return ((total - 2 * 65535) / np.sqrt((2.0**32 - 1) / 3)).reshape(shape)


def projection(vocabulary: int) -> np.ndarray:
    """(V, 8) float32: logits times this keep, at eight numbers a position, the size of an error anywhere in them."""
    return (bell("projection", (vocabulary, 8)) / np.sqrt(vocabulary)).astype(np.float32)


def fingerprint(tensors: Tensors) -> str:
    """Hash of names, shapes and bits; equal where the same weights were drawn."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        digest.update(tensors[name].astype("<f4").tobytes())
    return digest.hexdigest()
