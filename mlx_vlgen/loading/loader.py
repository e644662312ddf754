"""A path or Hub id -> the model and its processor."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._mlx_lm import unpack_awq
from .._runtime import blas_hint, memory_available, mx, tree_flatten
from ..errors import LoadError, UnsupportedError
from ..inputs.files import reading
from ..inputs.processor_files import check_tokenizer
from ..models import PROVED_TEXT, TEXT, find, mlx_lm_types
from ..models.base import Model
from ..models.few_rows import hasten_few_rows
from ..notices import notice
from .adapters import apply_adapter
from .checkpoint import (
    first_names,
    quantization_config,
    read_config,
    read_generation_config,
    read_processor,
    read_weights,
    refuse_remote_code,
    weight_files,
)
from .forward_check import check_forward
from .headers import check_sizes, read_shapes
from .hub import locate, locate_adapter
from .quantization import (
    Quantization,
    cast,
    dequantize_layers,
    dequantize_tables,
    quantize_as_stored,
    quantize_layers,
    recipe_of,
)
from .tokens import check_tokens

if TYPE_CHECKING:
    from ..inputs.processor import Processor

DTYPES: dict[str, mx.Dtype] = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def load(
    path_or_hf_repo: str | Path,
    *,
    adapter_path: str | Path | None = None,
    revision: str | None = None,
    dtype: str | mx.Dtype | None = None,
    lazy: bool = False,
    quantization: int | Mapping[str, Any] | None = None,
    trust_remote_code: bool | None = None,
) -> tuple[Model, "Processor"]:
    """Load a checkpoint: its network, ready to run, and the processor that makes its inputs.

    path_or_hf_repo: a folder; or an id on the Hugging Face Hub, of which a whole copy in the cache is used without
        a network; or "demo" or "demo-audio", the built-in models that see and hear.
    adapter_path: folder or Hub id of a LoRA or DoRA adapter in mlx-lm's or PEFT's layout. Default None.
    revision: branch, tag or commit on the Hub. Default None, the main branch.
    dtype: "float32", "bfloat16", "float16" or an mx.Dtype for the floating-point weights. Default None or "auto":
        the checkpoint's, and float32 where MLX runs on the CPU, on which the others are ten times slower.
    lazy: leave the weights on disk until they are used, by any thread, but the first time by one. Default False.
    quantization: bits, or {"bits", "group_size", "mode"}: quantize the text layers of a float checkpoint. Default None.
    trust_remote_code: refused; no code of a checkpoint's is ever run. Default None.

    Raises LoadError for a checkpoint that is missing, gated, damaged, unknown or refused (pickled weights, remote
    code, bitsandbytes, encoder-decoders), and UnsupportedError for an option it cannot honour.
    """
    loaded = assemble(
        path_or_hf_repo,
        adapter_path=adapter_path,
        revision=revision,
        dtype=dtype,
        any_thread=lazy,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    model, files = loaded.model, loaded.files
    del loaded  # which holds what was replaced, as by quantized layers
    with _streams_for_any_thread() if lazy else nullcontext():
        hasten_few_rows(model.text_decoder())
    _warn_if_too_large(model)
    if not lazy:
        with reading(files[0], "or a file beside it cannot be read"):
            # One at a time: together they would all be read before the first is narrowed or quantized.
            for tensor in _parameters(model).values():
                mx.eval(tensor)
        # What layers compute when they are made, as rotary frequencies: no thread but this one could, later.
        mx.eval([value for module in model.modules() for value in module.values() if isinstance(value, mx.array)])
    return model, model.processor


@dataclass
class Assembled:
    """A network over a checkpoint's tensors, none of which is read yet. stored: these by their names in `files`."""

    model: Model
    files: Sequence[Path]
    stored: Mapping[str, mx.array]


def assemble(
    path_or_hf_repo: str | Path,
    *,
    adapter_path: str | Path | None = None,
    revision: str | None = None,
    dtype: str | mx.Dtype | None = None,
    any_thread: bool = False,
    quantization: int | Mapping[str, Any] | None = None,
    trust_remote_code: bool | None = None,
) -> Assembled:
    """All of `load` but reading the weights. any_thread: whether another than this one may."""
    refuse_remote_code(trust_remote_code)
    recipe = None if quantization is None else Quantization.parse(quantization)
    as_type = float_dtype(dtype)
    folder = locate(path_or_hf_repo, revision)
    adapter = None if adapter_path is None else locate_adapter(adapter_path)
    if hint := blas_hint():
        notice(hint)
    config, generation = read_config(folder), read_generation_config(folder)
    check_tokenizer(folder)
    with _streams_for_any_thread() if any_thread else nullcontext():
        model = build(folder, config)
        model.generation_config.update(generation)
        stored = fill(model, folder, as_type)
        text_only = only_reads(model)
        if text_only and model.text_prefix:
            notice(f"{folder}: has the weights of the text decoder only, so it takes text and nothing else.")
        model.processor = read_processor(folder, config, text_only)
        with reading(folder / "tokenizer.json", "and the files beside it give no tokens"):
            check_tokens(folder, model)
        if recipe is not None:
            refuse_quantized(model, folder)
            quantize_layers(model, recipe)
        if adapter is not None:
            apply_adapter(model, adapter)
        with reading(folder / "config.json", "and the files beside it do not describe a model that runs"):
            check_forward(model)
    model.eval()
    return Assembled(model, weight_files(folder), stored)


@contextmanager
def _streams_for_any_thread() -> Iterator[None]:
    """Arrays made inside this context can be computed later in any one thread. MLX's default streams are bound to the
    thread that made them."""
    with ExitStack() as streams:
        for device in dict.fromkeys((mx.DeviceType.cpu, mx.default_device().type)):  # files are read on the CPU
            streams.enter_context(mx.stream(mx.new_thread_unsafe_stream(device)))
        yield


def float_dtype(value: str | mx.Dtype | None) -> mx.Dtype | None:
    """The type of the floating-point weights once they are loaded; None for the checkpoint's."""
    if value is None or value == "auto":
        return mx.float32 if mx.default_device().type == mx.DeviceType.cpu else None
    dtype = known_dtype(value)
    if dtype is None:
        raise UnsupportedError(f"dtype={value!r}: expected auto, {', '.join(DTYPES)}, or the mx.Dtype of one of these.")
    return dtype


def known_dtype(value: Any) -> mx.Dtype | None:
    """One of `DTYPES`, by its name or itself; None for anything else."""
    if isinstance(value, str):
        return DTYPES.get(value)
    return value if isinstance(value, mx.Dtype) and value in DTYPES.values() else None


def build(folder: Path, config: dict[str, Any]) -> Model:
    """The network of a checkpoint, before its weights."""
    family, model_type = find(config), config["model_type"]
    shapes = read_shapes(weight_files(folder))
    if family is TEXT and model_type not in PROVED_TEXT:
        notice(f"{model_type}: this package's tests do not cover text-only checkpoints of this type.")
    model_class = family.model_class()
    with reading(folder / "config.json", f"does not describe a {model_type}"):
        check_sizes(config, shapes)
        model = model_class(config)
    if model.left_out:
        notice(f"{model_type}: {model.left_out}")
    return model


def fill(model: Model, folder: Path, dtype: mx.Dtype | None, dequantize: bool = False) -> dict[str, mx.array]:
    """Load the checkpoint's weights into `model`, floats as `dtype`, and give them by their names in the files.
    dequantize: quantized ones become floats."""
    files = weight_files(folder)
    stored = read_weights(files)
    with reading(files[0], f"and what lies beside it are not the tensors of a {model.config['model_type']}"):
        if dtype is not None and dtype == mx.float32:  # MLX's types cannot be compared with None
            stored = cast(stored, dtype, model)  # first, for `sanitize` may add to weights, and halves would round
        weights = dequantize_tables(model, _unpack(model.config, model.sanitize(stored)))
        _leave_out_towers(model, weights)
        if dequantize:
            weights = dequantize_layers(model, weights)
        if dtype is not None:
            weights = cast(weights, dtype, model)
        quantize_as_stored(model, weights)
        _check_complete(model, weights, folder, stored)
        # Where axes were turned, that stays a view, which every use would copy: a picture's patches 14 ms on a CPU.
        model.load_weights([(name, mx.contiguous(tensor)) for name, tensor in weights.items()])
    return stored


def only_reads(model: Model) -> bool:
    """Whether all weights are of its text decoder."""
    return all(name.startswith(model.text_prefix) for name in _parameters(model))


def _leave_out_towers(model: Model, weights: Mapping[str, mx.array]) -> None:
    """Where `weights` are of the text decoder only, as mlx-lm writes them of models that see, all else of the model
    has no parameters, and is never asked for anything."""
    text_only = bool(weights) and all(name.startswith(model.text_prefix) for name in weights)
    if not text_only or not model.text_prefix or model.config["model_type"] not in mlx_lm_types():
        return
    for place, module in model.named_modules():
        if not f"{place}.".startswith(model.text_prefix):
            for name in [name for name, value in module.items() if isinstance(value, mx.array) and name[0] != "_"]:
                del module[name]


def refuse_quantized(model: Model, folder: Path) -> None:
    """UnsupportedError for a model that cannot be quantized, since it is already."""
    if recipe_of(model):
        raise UnsupportedError(
            f"{folder} is quantized already: take it without quantization, or the float checkpoint it was made of."
        )


def _unpack(config: Mapping[str, Any], weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The weights, those that AutoAWQ or GPTQ packed in MLX's packing."""
    settings = quantization_config(config) or {}
    method = settings.get("quant_method")
    if method not in ("awq", "gptq"):
        return weights
    try:
        if (layout := settings.get("version", "gemm")) != "gemm":
            raise ValueError(f"its {layout!r} layout is not known, only 'gemm'")
        unpacked: dict[str, mx.array] = unpack_awq(weights, settings)[0]
    except Exception as error:
        raise LoadError(
            f"The weights are packed by {method.upper()} in a way that cannot be read: {error}. "
            "Load the original checkpoint with quantization=…, or one converted for MLX."
        ) from error
    return unpacked


def _check_complete(
    model: Model, weights: Mapping[str, mx.array], folder: Path, stored: Mapping[str, mx.array]
) -> None:
    """LoadError unless `weights` are the model's parameters, all of them, and no others."""
    expected = _parameters(model)
    wrong_shape, wrong_type = [], []
    for name in expected.keys() & weights.keys():
        parameter, tensor = expected[name], weights[name]
        if tensor.shape != parameter.shape:
            wrong_shape.append(f"{name} {tensor.shape}, expected {parameter.shape}")
        if _is_float(tensor) != _is_float(parameter):
            wrong_type.append(f"{name} {tensor.dtype}, expected {parameter.dtype}")
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "not known": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(wrong_shape),
        "of another type": sorted(wrong_type),
    }
    if any(problems.values()):
        counts = [f"{len(names)} {problem} ({first_names(names)})" for problem, names in problems.items() if names]
        example = next(iter(stored), "")
        method = (quantization_config(model.config) or {}).get("quant_method")
        raise LoadError(
            f"{folder}: the tensors are not those of a {model.config['model_type']} with this config.json: "
            f"{'; '.join(counts)}. Names were read so: {example} -> {model.rename(example)}. The checkpoint is "
            "damaged, changed, or in a layout that is not "
            f"known{f' (its weights are stored in the format of {method!r})' if method else ''}."
        )


def _is_float(tensor: mx.array) -> bool:
    return bool(mx.issubdtype(tensor.dtype, mx.floating))


def _parameters(model: Model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def _warn_if_too_large(model: Model) -> None:
    needed = sum(tensor.nbytes for tensor in _parameters(model).values())
    available = memory_available()
    if available is not None and needed > available:
        notice(
            f"the weights take {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB of memory are free: this will swap "
            'or fail. Load a smaller or quantized checkpoint, or give quantization={"bits": 4}.'
        )
