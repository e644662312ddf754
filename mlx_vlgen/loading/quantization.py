"""Quantized weights: as a checkpoint stores them, and made from a float checkpoint as it loads."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._mlx_lm import infer_quant_config
from .._runtime import mx, nn
from ..errors import LoadError, UnsupportedError
from ..models.base import Model
from ..notices import notice

# mode -> (bits, group sizes) that MLX's kernels know, the default first. https://ml-explore.github.io/mlx, mx.quantize
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


@dataclass(frozen=True)
class Quantization:
    """How weights are quantized: `bits` per weight, one scale per `group_size` weights, MLX's `mode`."""

    bits: int
    group_size: int
    mode: str

    @classmethod
    def parse(cls, given: "int | Mapping[str, Any] | Quantization") -> "Quantization":
        """From bits, or from {"bits", "group_size", "mode"}, each with a default: affine, 4 bits, groups of 64.

        UnsupportedError, with what there is, for anything that MLX has no kernel for.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            settings = dict(given)
        elif isinstance(given, int) and not isinstance(given, bool):
            settings = {"bits": given}
        else:
            raise UnsupportedError(
                f'quantization={given!r}: expected a number of bits, or {{"bits", "group_size", "mode"}}.'
            )
        if unknown := settings.keys() - {"bits", "group_size", "mode"}:
            raise UnsupportedError(
                f"quantization has {', '.join(sorted(map(repr, unknown)))}; it takes bits, group_size and mode."
            )
        mode = settings.get("mode", "affine")
        if mode not in MODES:
            raise UnsupportedError(f"quantization mode {mode!r}: expected one of {', '.join(MODES)}.")
        bits, group_sizes = MODES[mode]
        chosen = cls(settings.get("bits", bits[0]), settings.get("group_size", group_sizes[0]), mode)
        for name, value, known in (("bits", chosen.bits, bits), ("group_size", chosen.group_size, group_sizes)):
            if value not in known:
                raise UnsupportedError(
                    f"quantization {name}={value!r}: {mode} has {', '.join(map(str, sorted(known)))}."
                )
        return chosen

    def settings(self) -> dict[str, Any]:
        """What config.json calls it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def is_quantized(weights: Mapping[str, mx.array]) -> bool:
    """Whether these are the weights of a quantized checkpoint."""
    return any(name.endswith(".scales") for name in weights)


def quantize_as_stored(model: Model, weights: Mapping[str, mx.array]) -> None:
    """Give `model` a quantized layer wherever `weights` hold scales for one.

    Bits, group size and mode come from the tensors' shapes and types, which decide them wholly, so that a mixed
    recipe needs no entry for each layer in config.json.
    """

    def stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        try:
            settings = infer_quant_config(path, module, dict(weights))
            Quantization.parse(settings)
        except ValueError as error:
            raise LoadError(f"{path} is quantized in a way that cannot be read: {error}") from None
        takes = inspect.signature(module.to_quantized).parameters
        if f"{path}.global_scale" in weights and "global_scale" in takes:
            settings["global_scale"] = True
        return settings

    nn.quantize(model, class_predicate=stored)


def quantize_text(model: Model, quantization: Quantization) -> dict[str, Any]:
    """Quantize the text decoder's layers and embeddings in place; a vision tower stays whole, and so do layers whose
    rows do not divide into groups.

    Returns what config.json says of it: the settings, and those of each layer that mlx-lm's decoder wants different.
    """
    recipe = quantization.settings()
    own_rule = getattr(model.text_decoder(), "quant_predicate", None) or (lambda path, module: True)
    done, left = 0, 0

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        nonlocal done, left
        if not path.startswith(model.text_prefix) or not hasattr(module, "to_quantized"):
            return False
        own = own_rule(path, module)
        if not own:
            return False
        settings = own if isinstance(own, dict) else quantization.settings()
        if module.weight.shape[-1] % settings["group_size"]:
            left += 1
            return False
        if settings != quantization.settings():
            recipe[path] = settings
        done += 1
        return settings

    nn.quantize(model, class_predicate=chosen)
    if not done:
        notice(
            f"no layer was quantized: the rows of all {left} text layers do not divide into groups of "
            f"{quantization.group_size}. Try group_size=32."
        )
    return recipe


def cast(weights: Mapping[str, mx.array], dtype: mx.Dtype, model: Model) -> dict[str, mx.array]:
    """Floating-point tensors as `dtype`, the scales and biases of affine quantization included; packed ones as they
    are. What a decoder must keep in float32 (mlx-lm's `cast_predicate`) is not narrowed."""
    may_narrow = getattr(model.text_decoder(), "cast_predicate", None) or (lambda name: True)
    return {
        name: tensor.astype(dtype)
        if mx.issubdtype(tensor.dtype, mx.floating) and (dtype == mx.float32 or may_narrow(name))
        else tensor
        for name, tensor in weights.items()
    }
