"""A checkpoint's folder: its configuration, what is refused, and the tensors in its safetensors files."""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._runtime import mx
from ..errors import LoadError, UnsupportedError
from ..inputs.files import check_settings, read_json, reading
from ..models import TEXT, find
from ..models.configuration import text_config
from .headers import read_shapes
from .quantization import Quantization
from .tokens import check_end_tokens

if TYPE_CHECKING:
    from ..inputs.processor import Processor

INDEX = "model.safetensors.index.json"

# Files of a folder, or of a repository on the Hub: never code, and never pickles (*.bin, *.pt).
NEEDED = ("*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken")

# `quant_method`s whose tensors mlx-lm's decoders take; those that MLX has no kernels for are converted while loading.
_QUANTIZED_BY = {"mxfp4", "mxfp8", "fp8", "compressed-tensors", "awq", "gptq"}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, after `check_config`. LoadError when there is none, or it is refused."""
    path = folder / "config.json"
    if not path.is_file():
        raise LoadError(f"{folder} holds no config.json, so it is not a checkpoint. {_describe_contents(folder)}")
    config = read_json(path)
    with reading(path, "is not understood"):
        check_config(config)
        check_end_tokens(path, config)
    return config


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json; empty when there is none."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    check_end_tokens(path, settings)
    return settings


def read_processor(folder: Path, config: Mapping[str, Any], only_reads: bool = False) -> "Processor":
    """The model's processor; only_reads: that of a text decoder. LoadError for a tokenizer, template or settings that
    are damaged or do not fit."""
    family = TEXT if only_reads else find(config)
    if family is not TEXT:
        check_settings(
            folder / "config.json",
            {key: value for key, value in config.items() if key not in ("text_config", "thinker_config")},
        )
    with reading(folder / "config.json", f"and the processor's files beside it are not a {config['model_type']}'s"):
        return family.load_processor(folder, config)


def refuse_remote_code(trust_remote_code: Any) -> None:
    """UnsupportedError for a true trust_remote_code."""
    if trust_remote_code:
        raise UnsupportedError(
            f"trust_remote_code={trust_remote_code!r:.80}: no code of a checkpoint's is ever run here; leave it out: a "
            "checkpoint of a supported model_type needs none"
        )


def check_config(config: Mapping[str, Any]) -> None:
    """LoadError for a checkpoint that this package cannot run, or will not: foreign formats, remote code."""
    if config.get("is_encoder_decoder"):
        raise LoadError(
            "This is an encoder-decoder checkpoint; only decoders (and vision-language models) are supported."
        )
    if code := config.get("model_file"):
        raise LoadError(
            f"config.json asks to run the Python file {code!r} from the checkpoint. Remote code is never run: "
            "choose a checkpoint of a supported model_type."
        )
    if config.get("quantize_activations"):
        raise LoadError("config.json asks for quantized activations, which are not supported.")
    quantization = quantization_config(config) or {}
    method = quantization.get("quant_method")
    if method == "bitsandbytes":
        raise LoadError(
            "The weights are stored in bitsandbytes' format, which needs CUDA and torch. Load the original checkpoint "
            'with quantization={"bits": 4} (on the command line --quantize 4), or one converted for MLX.'
        )
    stored = quantization.get("format", "pack-quantized") if method == "compressed-tensors" else "pack-quantized"
    if method is not None and (method not in _QUANTIZED_BY or stored != "pack-quantized"):
        kind = stored if method == "compressed-tensors" else quantization.get("quant_algo")
        raise LoadError(
            f"The weights are stored in the format of {method!r}{f' ({kind})' if kind else ''}, which cannot be read. "
            "Load the original checkpoint with quantization=…, or one converted for MLX."
        )
    if method is None and quantization:
        _check_quantization(quantization)
    find(config)


def quantization_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the weights were quantized, wherever config.json says it; None when they were not."""
    quantization: dict[str, Any] | None = config.get("quantization") or config.get("quantization_config")
    return quantization or text_config(config).get("quantization_config")


def _check_quantization(quantization: Mapping[str, Any]) -> None:
    """LoadError for bits, groups or a mode that MLX has not, of all layers or of one.

    The tensors decide how they are quantized; a configuration that cannot be true belongs to others.
    """
    for settings in (quantization, *(value for value in quantization.values() if isinstance(value, Mapping))):
        try:
            Quantization.parse({key: settings[key] for key in ("bits", "group_size", "mode") if key in settings})
        except UnsupportedError as error:
            raise LoadError(f"{error} Load the original checkpoint, or another conversion.") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model. LoadError when one is missing or would lie outside the folder, or any
    of the checkpoint's files is a link to nothing, as an interrupted download or a pruned cache leaves.

    model.safetensors alone where it exists, as transformers has it; with an index, the files it names; else
    model*.safetensors; else all others that are not an adapter's or a second copy (consolidated*) of the same weights.
    """
    if broken := broken_links(folder):
        raise LoadError(
            f"{folder / broken[0]} is a link to a file that is not there{_others(broken)}. Finish the download."
        )
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if (index := folder / INDEX).is_file():
        return _indexed(folder, index)
    files = sorted(folder.glob("model*.safetensors")) or [
        path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(("adapter", "consolidated"))
    ]
    if not files:
        raise LoadError(f"{folder} holds no safetensors weights. {_describe_contents(folder)}")
    return files


def broken_links(folder: Path) -> list[str]:
    """The names of the checkpoint's files that are links to a missing file."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_symlink() and not path.exists() and any(fnmatch.fnmatch(path.name, needed) for needed in NEEDED)
    )


def _others(names: Sequence[str]) -> str:
    return f", and so are {first_names(names[1:])}" if len(names) > 1 else ""


def _indexed(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(f"{index} has no weight_map. Download the checkpoint again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors" or "\0" in name:
            raise LoadError(f"{index} names {name!r:.80}; expected a safetensors file inside the folder.")
    with reading(index, "names no files"):
        missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise LoadError(
            f"{folder} lacks {len(missing)} of the {len(names)} weight files that its index names: "
            f"{first_names(missing)}. Finish the download."
        )
    return [folder / name for name in names]


def read_weights(files: Sequence[Path]) -> dict[str, mx.array]:
    """All tensors by the names the files give them, not evaluated yet. LoadError for a damaged file."""
    weights: dict[str, mx.array] = {}
    for path in files:
        read_shapes([path])  # MLX believes what a header says
        with reading(path, "is damaged or cut short; download it again"):
            weights |= mx.load(str(path))  # type: ignore[arg-type]
    return weights


def _describe_contents(folder: Path) -> str:
    """What a folder that cannot be loaded holds in the place of a checkpoint, and what to do."""
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith(".gguf") for name in names):
        return "It holds GGUF files, which are not read: choose the safetensors checkpoint of this model."
    if "adapter_config.json" in names:
        return "It is an adapter: load its base model and give this folder as adapter_path."
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return (
            "It holds pickled weights (.bin, .pt), which could run code and are never opened: "
            "choose a checkpoint with safetensors, or save it again with transformers' save_pretrained."
        )
    return "Give the folder that holds config.json, *.safetensors and the tokenizer's files."


def first_names(names: Sequence[str], count: int = 4) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")
