"""A model without weights: from a checkpoint here, or from a configuration alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._runtime import mx
from ..errors import LoadError, UnreachableError, UnsupportedError
from ..inputs.files import read_json, reading
from ..loading.checkpoint import check_config, quantization_config, read_config, weight_files
from ..loading.hub import locate, locate_config
from ..loading.loader import build, fill, known_dtype, refuse_quantized
from ..loading.quantization import Quantization, quantize_layers
from ..models import find
from ..models.base import Model
from ..models.configuration import text_config
from ..models.text import unwrapped


def find_source(name: str) -> Path:
    """A folder with weights, or a configuration file: given, in the cache, or else config.json of the Hub."""
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        return path
    if path.is_dir() and not _has_weights(path):
        read_config(path)  # which says what is wrong with it
        return path / "config.json"
    try:
        return locate(name, local_files_only=True)
    except UnreachableError:
        return locate_config(name)


def read_model(source: Path, bits: int | None = None) -> Model:
    """As `load` would build it on a GPU, without weights. bits: of its text layers, to be quantized."""
    if source.is_dir():
        model = build(source, read_config(source))
        fill(model, source, None)
        if bits is not None:
            refuse_quantized(model, source)
            quantize_layers(model, Quantization.parse(bits))
        return model
    config = read_json(source)
    with reading(source, "is not understood"):
        check_config(config)
    with reading(source, f"does not describe a {config['model_type']}"):
        return model_of(config, bits)


def model_of(config: dict[str, Any], bits: int | None = None) -> Model:
    """Of a configuration alone."""
    stored = quantization_config(config)
    if stored and bits is None and "bits" not in stored:
        raise UnsupportedError(
            f"config.json says that the weights are quantized ({stored.get('quant_method', 'in some form')}), and only "
            "the files tell to how many bits: give the folder with the weights, or --quantize BITS for the text layers"
        )
    model = find(config).model_class()(config)
    decoder = unwrapped(model.text_decoder())
    if config["model_type"] == "gemma3" and "lm_head" in decoder:
        del decoder.lm_head  # as loading does where there is none in the files, as in all published ones
    text = text_config(config)
    names = (part.get(key) for part in (text, config) for key in ("dtype", "torch_dtype"))
    model.set_dtype(next((dtype for name in names if (dtype := known_dtype(name)) is not None), mx.bfloat16))
    if bits is not None:
        quantize_layers(model, Quantization.parse(bits))
    elif stored:
        quantize_layers(model, Quantization.parse(_settings(stored)))
    return model


def _settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {key: stored[key] for key in ("bits", "group_size", "mode") if key in stored}


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except LoadError:
        return False
