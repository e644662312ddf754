"""`from_pretrained`, as code written for transformers calls it.

Ids and folders are found as `load` finds them ("demo" is the built-in model); `revision` and `local_files_only` hold.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._runtime import mx
from ..errors import LoadError, UnsupportedError
from ..inputs.processor_files import load_tokenizer
from ..loading import load
from ..loading.checkpoint import read_config, read_processor
from ..loading.hub import locate
from ..models import TEXT, find
from ..models.base import Model
from ..options import did_you_mean
from .values import Unsupported, refuse_unsupported

_LOCATION = ("revision", "local_files_only")
_UNSUPPORTED: Unsupported = {
    "trust_remote_code": ((False,), "no code of a checkpoint's is ever run; leave it out"),
    "cache_dir": ((), "the cache is where HF_HOME says; set that"),
    "token": ((), "log in with `hf auth login`, or set HF_TOKEN"),
    "force_download": ((False,), "a whole copy in the cache is used; remove it with `hf cache`"),
    "subfolder": (("",), "give the folder itself"),
    "proxies": ((), "set HTTPS_PROXY"),
}
_UNSUPPORTED_OF_MODELS: Unsupported = {
    **_UNSUPPORTED,
    "use_safetensors": ((True,), "pickled weights are not read; choose a checkpoint with safetensors"),
    "config": ((), "the checkpoint's config.json is read; change a copy of it"),
    "max_memory": ((), "the memory is the machine's own; leave it out"),
    "offload_folder": ((), 'weights stay in memory; quantization_config={"bits": 4} makes them small'),
    "tp_plan": ((), "this package does not divide a model; leave it out"),
}
_WITHOUT_EFFECT = ("low_cpu_mem_usage", "attn_implementation", "use_cache", "_attn_implementation")
"""Of a model: weights are read one at a time, and MLX has one attention, fused where it can be."""

_TOKENIZER = (
    "padding_side", "truncation_side", "model_max_length", "pad_token", "bos_token", "eos_token", "unk_token",
    "add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "chat_template",
    "additional_special_tokens", "extra_special_tokens",
)  # fmt: skip
"""Keywords of transformers' tokenizers."""


class AutoModelForImageTextToText:
    """Loads vision-language models."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Model:
        """The model, as `load` gives it.

        Honoured: `dtype`, or `torch_dtype`, by name ("auto", the default, is the checkpoint's, float32 on a CPU) or as
        torch's; `quantization_config={"bits": 4, …}`, as in `load(quantization=…)`; `revision`; `local_files_only`.

        Without effect: `device_map`, where it names MLX's device or leaves the choice ("auto");
        `low_cpu_mem_usage`, since weights are always read one at a time; `attn_implementation`, since MLX has one
        attention, fused where it can be; `use_cache`, which `generate` takes.

        Everything else is refused with its reason: remote code, bitsandbytes, other devices, offloading.
        """
        folder, rest = _locate(pretrained_model_name_or_path, kwargs)
        if find(read_config(folder)) is TEXT:
            raise LoadError(f"{folder} is a model of text only: load it with AutoModelForCausalLM.")
        return _model(folder, rest)


class AutoModelForMultimodalLM(AutoModelForImageTextToText):
    """Loads models that see or hear, as transformers calls them."""


class AutoModelForCausalLM:
    """Loads models of text only too."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Model:
        """As `AutoModelForImageTextToText.from_pretrained`."""
        return _model(*_locate(pretrained_model_name_or_path, kwargs))


class AutoProcessor:
    """Loads what makes a model's inputs."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The processor, as `load` gives it; of a model of text only its tokenizer, as in transformers.

        Honoured: `min_pixels` and `max_pixels`, bounds for calls that give none; `padding_side`; `chat_template`;
        `revision`; `local_files_only`. Without effect: `use_fast`, since there is one implementation.
        """
        folder, rest = _locate(pretrained_model_name_or_path, kwargs)
        config = read_config(folder)
        if find(config) is TEXT:
            return _tokenizer(folder, rest)
        _check(rest, ("min_pixels", "max_pixels", "padding_side", "chat_template", "use_fast"), _UNSUPPORTED)
        processor = read_processor(folder, config)
        processor.min_pixels, processor.max_pixels = rest.get("min_pixels"), rest.get("max_pixels")
        processor.chat_template = rest.get("chat_template") or processor.chat_template
        processor.tokenizer.padding_side = rest.get("padding_side") or processor.tokenizer.padding_side
        return processor


class AutoTokenizer:
    """Loads tokenizers."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """transformers' tokenizer, which also takes and gives MLX's arrays (`return_tensors="mlx"`).

        Of an id on the Hub the whole checkpoint is downloaded, weights too, as for the model that it belongs to.
        Honoured are `padding_side`, `pad_token` and other keywords of transformers' tokenizers, `revision` and
        `local_files_only`. Without effect: `use_fast`, since all are.
        """
        return _tokenizer(*_locate(pretrained_model_name_or_path, kwargs))


def _locate(path_or_id: str | Path, keywords: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint's folder, and the keywords that do not say where it is. What no class supports, remote code too,
    is refused before anything is downloaded."""
    rest = {name: value for name, value in keywords.items() if name not in _LOCATION}
    for name in _UNSUPPORTED:
        refuse_unsupported(_UNSUPPORTED, name, rest.get(name))
    revision = keywords.get("revision")
    folder = locate(path_or_id, None if revision == "main" else revision, bool(keywords.get("local_files_only")))
    return folder, rest


def _check(keywords: Mapping[str, Any], known: tuple[str, ...], unsupported: Unsupported) -> None:
    """TypeError for an unknown keyword, UnsupportedError for a value that cannot be honoured."""
    for name, value in keywords.items():
        if name in unsupported:
            refuse_unsupported(unsupported, name, value)
        elif name not in known:
            raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, (*known, *unsupported, *_LOCATION))}")


def _model(folder: Path, keywords: Mapping[str, Any]) -> Model:
    bits_of = {"load_in_4bit": 4, "load_in_8bit": 8}
    known = ("dtype", "torch_dtype", "device_map", "quantization_config", *bits_of, *_WITHOUT_EFFECT)
    _check(keywords, known, _UNSUPPORTED_OF_MODELS)
    for name, bits in bits_of.items():
        if keywords.get(name):
            raise UnsupportedError(f'{name} is bitsandbytes\': give quantization_config={{"bits": {bits}}}')
    _check_device(keywords.get("device_map"))
    dtype = keywords.get("dtype") or keywords.get("torch_dtype")
    if type(dtype).__module__ == "torch":
        dtype = str(dtype).removeprefix("torch.")
    return load(folder, dtype=dtype, quantization=_quantization(keywords.get("quantization_config")))[0]


def _check_device(device_map: Any) -> None:
    """UnsupportedError for a device that MLX does not run on here."""
    device = mx.default_device()
    names = r"cpu" if device.type == mx.DeviceType.cpu else r"(cuda|mps|gpu)(:0)?|0"
    if isinstance(device_map, Mapping) and list(device_map) == [""]:  # "" is the whole model in transformers
        device_map = device_map[""]
    any_device = (None, "auto", "balanced", "sequential", "balanced_low_0")
    if device_map in any_device or device_map == device or re.fullmatch(names, str(device_map)):
        return
    raise UnsupportedError(
        f'device_map={device_map!r:.80}: models run on MLX\'s default device, here {device}: give "auto", or call '
        "mx.set_default_device before loading"
    )


_TORCH_PREFIXES = ("load_in_", "bnb_", "llm_int8_", "quant_method")
"""How names begin in a quantization_config that is made for torch."""


def _quantization(config: Any) -> Any:
    """The quantization_config, as `load` takes it."""
    if config is None or (isinstance(config, Mapping) and not any(name.startswith(_TORCH_PREFIXES) for name in config)):
        return config
    eight = config.get("load_in_8bit") if isinstance(config, Mapping) else getattr(config, "load_in_8bit", False)
    raise UnsupportedError(
        f"quantization_config is a {type(config).__name__} for bitsandbytes or its like, which are made for torch: "
        f'give quantization_config={{"bits": {8 if eight else 4}}}, which quantizes as it loads'
    )


def _tokenizer(folder: Path, keywords: Mapping[str, Any]) -> Any:
    _check(keywords, (*_TOKENIZER, "use_fast"), _UNSUPPORTED)
    return load_tokenizer(folder, **{name: value for name, value in keywords.items() if name in _TOKENIZER})
