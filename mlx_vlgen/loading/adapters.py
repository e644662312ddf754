"""LoRA and DoRA adapters, in mlx-lm's layout and in PEFT's.

An adapter changes a linear layer W to W + scale * B A (LoRA, arXiv 2106.09685), or sets the length of each of its rows
too (DoRA, arXiv 2402.09353). The layers that compute it are mlx-lm's; they wrap float and quantized layers alike.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._mlx_lm import QuantizedSwitchLinear, SwitchLinear, lora_layers
from .._runtime import mx, nn, tree_flatten, tree_unflatten
from ..errors import LoadError
from ..inputs.files import read_json, reading
from ..models.base import Model
from .checkpoint import first_names, read_weights


@dataclass
class _LayerAdapter:
    """The adapter of one layer, in mlx-lm's orientation.

    scale: of the product of both matrices.
    a: (in, r). b: (r, out).
    m: (out,), DoRA's magnitudes; None for LoRA.
    """

    scale: float
    a: mx.array | None = None
    b: mx.array | None = None
    m: mx.array | None = None


Adapters = dict[str, _LayerAdapter]
"""By the layer's path in the model."""


def apply_adapter(model: Model, folder: Path) -> None:
    """Apply the adapter in `folder` to `model`, in place.

    LoadError for an adapter of another kind, and for a tensor without its layer.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise LoadError(f"{folder} holds no adapter_config.json, so it is not an adapter.")
    config = read_json(path)
    with reading(path, "does not describe an adapter, or the tensors beside it are not this one's"):
        _apply(model, config, folder)


def _apply(model: Model, config: Mapping[str, Any], folder: Path) -> None:
    if "peft_type" in config:
        _wrap_layers(model, _peft_adapters(model, config, _read_tensors(folder, "adapter_model.safetensors")), folder)
    elif config.get("fine_tune_type", "lora") == "full":
        _replace_parameters(model, _read_tensors(folder, "adapters.safetensors"), folder)
    elif "lora_parameters" in config:
        _wrap_layers(model, _mlx_adapters(model, config, _read_tensors(folder, "adapters.safetensors")), folder)
    else:
        raise LoadError(
            f"{folder / 'adapter_config.json'} is neither mlx-lm's (lora_parameters) nor PEFT's (peft_type); other "
            "adapters are not read."
        )


def _read_tensors(folder: Path, name: str) -> dict[str, mx.array]:
    if not (folder / name).is_file():
        raise LoadError(f"{folder} holds no {name}. Pickled adapters (.bin) are never opened: save it as safetensors.")
    weights = read_weights([folder / name])
    if mx.default_device().type == mx.DeviceType.cpu:
        weights = {
            key: w.astype(mx.float32) if mx.issubdtype(w.dtype, mx.floating) else w for key, w in weights.items()
        }
    return weights


def _mlx_adapters(model: Model, config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> Adapters:
    """From mlx-lm's layout: `<layer>.lora_a`, `<layer>.lora_b` and, for DoRA, `<layer>.m`."""
    scale = config["lora_parameters"].get("scale")
    if scale is None:
        raise LoadError("adapter_config.json has no lora_parameters.scale (mlx-lm's name; it has no alpha).")
    adapters: Adapters = {}
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b", "m"):
            raise LoadError(f"The adapter has a tensor {name!r}; expected …lora_a, …lora_b or …m.")
        adapter = adapters.setdefault(_layer_path(model, layer), _LayerAdapter(float(scale)))
        setattr(adapter, part.removeprefix("lora_"), value)
    return adapters


# Fields of PEFT's LoraConfig about training, and those that are read below or said by the tensors' names and shapes.
_PEFT_IGNORED = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_pattern", "layers_to_transform", "lora_dropout", "use_dora", "init_lora_weights", "bias", "loftq_config",
    "eva_config", "megatron_core", "runtime_config", "ensure_weight_tying", "qalora_group_size",
}  # fmt: skip
# Initialisations after which the base weights are still the checkpoint's; PiSSA and others change them.
_PEFT_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def _peft_adapters(model: Model, config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> Adapters:
    """From PEFT's layout: `base_model.model.<Hub name>.lora_A.weight` (r, in), `.lora_B.weight` (out, r), and for DoRA
    `.lora_magnitude_vector` (out,). Source: PEFT's LoraConfig and LoraLayer."""
    if config["peft_type"] != "LORA":
        raise LoadError(f"The adapter is of PEFT's type {config['peft_type']!r}; only LORA is supported.")
    unknown = sorted(key for key, value in config.items() if value and key not in _PEFT_IGNORED)
    if config.get("init_lora_weights", True) not in _PEFT_INITS:
        unknown.append(f"init_lora_weights={config['init_lora_weights']!r}")
    if config.get("bias", "none") != "none":
        unknown.append(f"bias={config['bias']!r}")
    if unknown:
        raise LoadError(
            f"The adapter uses {first_names(unknown, 8)}, which is not supported. Merge it into its base model with "
            "PEFT's merge_and_unload and load the result."
        )
    adapters: Adapters = {}
    pattern = re.compile(r"base_model\.model\.(.+)\.lora_(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?")
    for name, value in weights.items():
        if not (match := pattern.fullmatch(name)):
            raise LoadError(
                f"The adapter has a tensor {name!r}, which is not supported: expected LoRA of linear layers, "
                "named base_model.model.….lora_A.weight and .lora_B.weight."
            )
        hub, part = match.groups()
        adapter = adapters.setdefault(_layer_path(model, hub), _LayerAdapter(0.0))
        if part == "A":
            adapter.scale = _peft_scale(config, hub, rank=value.shape[0])
            adapter.a = value.T
        elif part == "B":
            adapter.b = value.T
        else:
            adapter.m = value
    return adapters


def _peft_scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)
    for pattern, pattern_alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = pattern_alpha
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _layer_path(model: Model, name: str) -> str:
    """The path in `model` of a layer with this name in any published layout."""
    return (model.rename(f"{name}.weight") or name).removesuffix(".weight")


def _wrap_layers(model: Model, adapters: Adapters, folder: Path) -> None:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if missing := sorted(path for path in adapters if not hasattr(modules.get(path), "weight")):
        raise LoadError(
            f"{len(missing)} of the {len(adapters)} layers that the adapter in {folder} changes are not in this "
            f"{model.config['model_type']}: {first_names(missing)}. It was made for another model, or for experts one "
            "by one."
        )
    model.update_modules(
        tree_unflatten([(path, _wrap_layer(path, modules[path], adapter)) for path, adapter in adapters.items()])
    )


def _wrap_layer(path: str, layer: nn.Module, adapter: _LayerAdapter) -> nn.Module:
    if adapter.a is None or adapter.b is None:
        raise LoadError(f"The adapter has one of lora_a and lora_b for {path}; expected both.")
    lora, dora, experts, embedding = lora_layers()
    kinds: list[tuple[tuple[type, ...], Any]] = [
        ((nn.Linear, nn.QuantizedLinear), lora if adapter.m is None else dora),
        ((SwitchLinear, QuantizedSwitchLinear), experts),
        ((nn.Embedding, nn.QuantizedEmbedding), embedding),
    ]
    kind = next((wrapper for types, wrapper in kinds if isinstance(layer, types)), None)
    if kind is None or (adapter.m is not None and kind is not dora):
        raise LoadError(f"The adapter changes {path}, a {type(layer).__name__}, in a way that is not supported.")
    rank = adapter.a.shape[1]  # also of a stack of experts, whose lora_a is (experts, r, in)
    wrapped: nn.Module = kind.from_base(layer, r=rank, dropout=0.0, scale=adapter.scale)
    for name, value in (("lora_a", adapter.a), ("lora_b", adapter.b), ("m", adapter.m)):
        if value is None:
            continue
        if value.shape != wrapped[name].shape:
            raise LoadError(f"{path}.{name} of the adapter is {value.shape}; this model wants {wrapped[name].shape}.")
        wrapped[name] = value
    return wrapped


def _replace_parameters(model: Model, weights: Mapping[str, mx.array], folder: Path) -> None:
    """A full fine-tune in mlx-lm's layout: its parameters replace the checkpoint's."""
    renamed = {model.rename(name) or name: value for name, value in weights.items()}
    current = dict(tree_flatten(model.parameters()))
    if missing := sorted(
        name for name, value in renamed.items() if name not in current or current[name].shape != value.shape
    ):
        raise LoadError(
            f"{folder} changes parameters that this model has not, or of other shapes: {first_names(missing)}."
        )
    model.load_weights(list(renamed.items()), strict=False)
