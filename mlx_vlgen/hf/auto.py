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

Fixed = Mapping[str, tuple[tuple[Any, ...], str]]
"""Keywords that may have these values only, which ask for nothing, and why others are refused."""

_WHERE = ("revision", "local_files_only")
_COMMON: Fixed = {
    "trust_remote_code": ((None, False), "no code of a checkpoint's is ever run; leave it out"),
    "cache_dir": ((None,), "the cache is where HF_HOME says; set that"),
    "token": ((None,), "log in with `hf auth login`, or set HF_TOKEN"),
    "force_download": ((None, False), "a whole copy in the cache is used; remove it with `hf cache`"),
    "subfolder": ((None, ""), "give the folder itself"),
    "proxies": ((None,), "set HTTPS_PROXY"),
}
_MODEL: Fixed = {
    **_COMMON,
    "use_safetensors": ((None, True), "pickled weights are not read; choose a checkpoint with safetensors"),
    "config": ((None,), "the checkpoint's own config.json is read; change a copy of it"),
    "max_memory": ((None,), "the memory is the machine's own; leave it out"),
    "offload_folder": (
        (None,),
        'weights stay in memory; quantization_config={"bits": 4} makes them small',
    ),
    "tp_plan": ((None,), "this package does not divide a model; leave it out"),
}
_IDLE = ("low_cpu_mem_usage", "attn_implementation", "use_cache", "_attn_implementation")
"""Of a model, without effect: weights are read one at a time, and MLX has one attention, fused where it can be."""

_TOKENIZER = (
    "padding_side", "truncation_side", "model_max_length", "pad_token", "bos_token", "eos_token", "unk_token",
    "add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "chat_template",
    "additional_special_tokens", "extra_special_tokens",
)  # fmt: skip
"""Keywords that are transformers' tokenizers' own."""


class AutoModelForImageTextToText:
    """Loads models that see."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Model:
        """The model, as `load` gives it.

        Honoured: `dtype`, or `torch_dtype`, by name ("auto", the default, is the checkpoint's, float32 on a CPU) or as
        torch's; `quantization_config={"bits": 4, …}`, as in `load(quantization=…)`; `revision`; `local_files_only`.

        Without effect: `device_map`, where it names MLX's own device or leaves the choice ("auto");
        `low_cpu_mem_usage`, since weights are always read one at a time; `attn_implementation`, since MLX has one
        attention, fused where it can be; `use_cache`, which `generate` takes.

        Everything else is refused with its reason: remote code, bitsandbytes, other devices, offloading.
        """
        folder, rest = _locate(pretrained_model_name_or_path, kwargs)
        if find(read_config(folder)) is TEXT:
            raise LoadError(f"{folder} is a model of text only: load it with AutoModelForCausalLM.")
        return _model(folder, rest)


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
        own = ("min_pixels", "max_pixels", "padding_side", "chat_template")
        _check(rest, (*own, "use_fast"), _COMMON)
        made = read_processor(folder, config)
        made.min_pixels, made.max_pixels = rest.get("min_pixels"), rest.get("max_pixels")
        made.chat_template = rest.get("chat_template") or made.chat_template
        made.tokenizer.padding_side = rest.get("padding_side") or made.tokenizer.padding_side
        return made


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


def _locate(given: str | Path, keywords: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint's folder, and the keywords that do not say where it is. Refuses remote code before it is asked
    for."""
    rest = {name: value for name, value in keywords.items() if name not in _WHERE}
    _check({name: rest[name] for name in rest.keys() & _COMMON.keys()}, (), _COMMON)
    revision = keywords.get("revision")
    folder = locate(given, None if revision == "main" else revision, bool(keywords.get("local_files_only")))
    return folder, rest


def _check(
    keywords: Mapping[str, Any], known: tuple[str, ...], fixed: Mapping[str, tuple[tuple[Any, ...], str]]
) -> None:
    """TypeError for an unknown keyword, UnsupportedError for a value that cannot be honoured."""
    for name, value in keywords.items():
        if name in fixed:
            idle, why = fixed[name]
            if value not in idle:
                raise UnsupportedError(f"{name}={value!r:.80}: {why}")
        elif name not in known:
            raise TypeError(f"unknown keyword {name!r}{did_you_mean(name, (*known, *fixed, *_WHERE))}")


def _model(folder: Path, keywords: Mapping[str, Any]) -> Model:
    bits = ("load_in_4bit", "load_in_8bit")
    _check(keywords, ("dtype", "torch_dtype", "device_map", "quantization_config", *bits, *_IDLE), _MODEL)
    for name, count in zip(bits, (4, 8), strict=True):
        if keywords.get(name):
            raise UnsupportedError(f'{name} is bitsandbytes\': give quantization_config={{"bits": {count}}}')
    _check_device(keywords.get("device_map"))
    dtype = keywords.get("dtype") or keywords.get("torch_dtype")
    if type(dtype).__module__ == "torch":
        dtype = str(dtype).removeprefix("torch.")
    return load(folder, dtype=dtype, quantization=_quantization(keywords.get("quantization_config")))[0]


def _check_device(given: Any) -> None:
    """UnsupportedError for a device that MLX does not run on here."""
    device = mx.default_device()
    names = r"cpu" if device.type == mx.DeviceType.cpu else r"(cuda|mps|gpu)(:0)?|0"
    if isinstance(given, Mapping) and list(given) == [""]:  # the whole model, by transformers' way of saying it
        given = given[""]
    places = ("auto", "balanced", "sequential", "balanced_low_0")
    if given is None or given in places or given == device or re.fullmatch(names, str(given)):
        return
    raise UnsupportedError(
        f'device_map={given!r:.80}: models run on MLX\'s default device, here {device}: give "auto", or call '
        "mx.set_default_device before loading"
    )


_TORCHS = ("load_in_", "bnb_", "llm_int8_", "quant_method")
"""How names begin in the quantization_config of what is made for torch."""


def _quantization(given: Any) -> Any:
    """What `load` takes of a quantization_config."""
    if given is None or (isinstance(given, Mapping) and not any(name.startswith(_TORCHS) for name in given)):
        return given
    eight = given.get("load_in_8bit") if isinstance(given, Mapping) else getattr(given, "load_in_8bit", False)
    raise UnsupportedError(
        f"quantization_config is a {type(given).__name__} for bitsandbytes or its like, which are made for torch: give "
        f'quantization_config={{"bits": {8 if eight else 4}}}, which quantizes as it loads'
    )


def _tokenizer(folder: Path, keywords: Mapping[str, Any]) -> Any:
    _check(keywords, (*_TOKENIZER, "use_fast"), _COMMON)
    own = {name: value for name, value in keywords.items() if name in _TOKENIZER}
    return load_tokenizer(folder, **own)
