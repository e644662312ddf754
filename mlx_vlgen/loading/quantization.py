"""Quantized weights: as a checkpoint stores them, and made from a float checkpoint as it loads."""

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._mlx_lm import infer_quant_config, mixed_recipe
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
    """How weights are quantized.

    bits: per weight.
    group_size: how many weights share a scale.
    mode: MLX's name of the format.
    """

    bits: int
    group_size: int
    mode: str

    @classmethod
    def parse(cls, value: "int | Mapping[str, Any] | Quantization") -> "Quantization":
        """From bits, or from {"bits", "group_size", "mode"}, each with a default: affine, 4 bits, groups of 64.

        UnsupportedError, with what there is, for anything that MLX has no kernel for.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            settings = dict(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            settings = {"bits": value}
        else:
            raise UnsupportedError(
                f'quantization={value!r}: expected a number of bits, or {{"bits", "group_size", "mode"}}.'
            )
        if unknown := settings.keys() - {"bits", "group_size", "mode"}:
            raise UnsupportedError(
                f"quantization has {', '.join(sorted(map(repr, unknown)))}; it takes bits, group_size and mode."
            )
        mode = settings.get("mode", "affine")
        if not isinstance(mode, str) or mode not in MODES:
            raise UnsupportedError(f"quantization mode {mode!r}: expected one of {', '.join(MODES)}.")
        bits, group_sizes = MODES[mode]
        chosen = cls(settings.get("bits", bits[0]), settings.get("group_size", group_sizes[0]), mode)
        for name, number, known in (("bits", chosen.bits, bits), ("group_size", chosen.group_size, group_sizes)):
            if number not in known:
                raise UnsupportedError(
                    f"quantization {name}={number!r}: {mode} has {', '.join(map(str, sorted(known)))}."
                )
        return chosen

    def settings(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def recipe_of(model: Model) -> dict[str, Any]:
    """The entry in config.json for a model's quantized layers: the most common settings, and by path those of each
    layer with others. Empty without a quantized layer."""
    layers = {
        path: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        | ({"global_scale": True} if "global_scale" in module else {})
        for path, module in model.named_modules()
        if "scales" in module
    }
    if not layers:
        return {}
    common = dict(Counter(tuple(settings.items()) for settings in layers.values()).most_common(1)[0][0])
    return common | {path: settings for path, settings in layers.items() if settings != common}


def stored_settings(path: str, module: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, Any] | None:
    """How the layer `module` of a float model is quantized in `weights`; None where it is not.

    The shapes and types of the tensors decide bits, group size and mode, so that a mixed recipe needs no entries in
    config.json.
    """
    if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
        return None
    settings = _inferred(path, module, weights)
    takes = inspect.signature(module.to_quantized).parameters
    if f"{path}.global_scale" in weights and "global_scale" in takes:
        settings["global_scale"] = True
    return settings


def _inferred(path: str, module: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = infer_quant_config(path, module, dict(weights))
        Quantization.parse(settings)
    except ValueError as error:
        raise LoadError(f"{path} is quantized in a way that cannot be read: {error}") from None
    return settings


def quantize_as_stored(model: Model, weights: Mapping[str, mx.array]) -> None:
    """Quantize the layers of `model` that have scales in `weights`."""
    nn.quantize(model, class_predicate=lambda path, module: stored_settings(path, module, weights) or False)


def dequantize_layers(model: Model, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """`weights` with floats for every quantized layer of the float model `model`. Their type is that of the scales, or
    of the first floating-point tensor where scales are integers."""
    if not any(name.endswith(".scales") for name in weights):
        raise UnsupportedError("dequantize: the checkpoint is not quantized.")
    layers = {
        path: settings for path, module in model.named_modules() if (settings := stored_settings(path, module, weights))
    }
    return _dequantize(weights, layers)


def dequantize_tables(model: Model, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """`weights` with floats for embeddings that MLX cannot quantize: some conversions quantized tables of positions."""
    tables = {
        path: _inferred(path, module, weights)
        for path, module in model.named_modules()
        if f"{path}.scales" in weights and not hasattr(module, "to_quantized") and "weight" in module
    }
    return _dequantize(weights, tables)


def _dequantize(weights: Mapping[str, mx.array], layers: Mapping[str, Mapping[str, Any]]) -> dict[str, mx.array]:
    """`weights` with floats for `layers`, the settings of each by its path."""
    out = dict(weights)
    float_types = (tensor.dtype for tensor in weights.values() if mx.issubdtype(tensor.dtype, mx.floating))
    float_type = next(float_types, mx.bfloat16)
    for path, settings in layers.items():
        if settings.get("global_scale"):
            raise UnsupportedError(f"{path} has one nvfp4 scale over all the others, which cannot be dequantized yet.")
        weight, scales = out.pop(f"{path}.weight"), out.pop(f"{path}.scales")
        dtype = None if settings["mode"] == "affine" else float_type
        out[f"{path}.weight"] = mx.dequantize(weight, scales, out.pop(f"{path}.biases", None), **settings, dtype=dtype)
    return out


def quantize_layers(
    model: Model, quantization: Quantization, mixed: str | None = None, vision: bool = False
) -> dict[str, Any]:
    """Quantize the text decoder's layers and embeddings in place. A layer whose rows do not divide into groups stays.

    mixed: one of mlx-lm's recipes, which chooses the bits of each text layer. The settings that mlx-lm's decoder
        prescribes for a layer, as 8 bits for a router, come before it. Default None.
    vision: quantize the linear layers of the vision tower and projector too. Default False.

    Returns the entry in config.json (see `recipe_of`).
    """
    prefix, decoder = model.text_prefix, model.text_decoder()
    decoder_rule = getattr(decoder, "quant_predicate", None) or (lambda path, module: True)
    try:
        recipe_rule = mixed_recipe(mixed, decoder, quantization.group_size) if mixed else lambda path, module: True
    except ValueError as error:
        raise UnsupportedError(f"The recipe {mixed} does not fit {model.config['model_type']}: {error}") from None
    num_quantized, num_skipped = 0, 0

    def requested(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not path.startswith(prefix):
            return vision and isinstance(module, nn.Linear)
        rule = decoder_rule(path, module)
        return recipe_rule(path.removeprefix(prefix), module) if rule is True else rule

    def settings_of(path: str, module: nn.Module) -> bool | dict[str, Any]:
        nonlocal num_quantized, num_skipped
        if not hasattr(module, "to_quantized") or not (rule := requested(path, module)):
            return False
        settings = rule if isinstance(rule, dict) else quantization.settings()
        if module.weight.shape[-1] % settings["group_size"]:
            num_skipped += 1
            return False
        num_quantized += 1
        return settings

    nn.quantize(model, class_predicate=settings_of)
    if not num_quantized:
        notice(
            f"no layer was quantized: the rows of all {num_skipped} layers do not divide into groups of "
            f"{quantization.group_size}. Try group_size=32."
        )
    return recipe_of(model)


def cast(weights: Mapping[str, mx.array], dtype: mx.Dtype, model: Model) -> dict[str, mx.array]:
    """`weights` with floating-point tensors as `dtype`, scales and biases of affine quantization too. Tensors that a
    decoder needs in float32, by mlx-lm's `cast_predicate`, are not narrowed."""
    may_narrow = getattr(model.text_decoder(), "cast_predicate", None) or (lambda name: True)
    return {
        name: tensor.astype(dtype)
        if mx.issubdtype(tensor.dtype, mx.floating)
        and tensor.dtype != dtype
        and (dtype == mx.float32 or may_narrow(name))
        else tensor
        for name, tensor in weights.items()
    }
