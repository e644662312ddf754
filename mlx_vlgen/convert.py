"""Converts a Hugging Face checkpoint for MLX: renamed, quantized, or with floats of another type.

Also `python -m mlx_vlgen.convert`.
"""

if __name__ == "__main__":  # before the imports below, which take a second: --help is instant, Ctrl-C works
    from .entry import run

    run("main_convert")

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, constants, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from . import __version__
from ._mlx_lm import MIXED_RECIPES, get_total_parameters
from ._runtime import mx, tree_flatten
from .demo import NAMES
from .errors import UnsupportedError, VlgenError
from .loading.checkpoint import INDEX, read_config, weight_files
from .loading.hub import locate
from .loading.loader import DTYPES, build, fill, known_dtype, only_reads, refuse_quantized
from .loading.quantization import Quantization, quantize_layers, recipe_of
from .loading.saving import check_target, new_folder, write_json, write_weights
from .notices import format_size, notice

# Beside weights and configuration: settings, tokenizers, processors, templates, licences. Never code, never pickles.
_COPIED = ("*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_NOT_COPIED = {"config.json", INDEX, "adapter_config.json", "quantize_config.json", "hf_quant_config.json"}

# Fields that the model card copies from the original's.
_CARD_FIELDS = ("license", "license_name", "license_link", "language")


@dataclass(frozen=True)
class Plan:
    """What is done to the weights.

    quantization: of the text decoder; None for none.
    recipe: a mixed recipe of mlx-lm's, which chooses the bits of each layer; None for equal bits.
    vision: whether to quantize the vision tower and projector too.
    dequantize: whether to make floats of quantized weights.
    dtype: of the floating-point weights; None for the checkpoint's.
    """

    quantization: Quantization | None = None
    recipe: str | None = None
    vision: bool = False
    dequantize: bool = False
    dtype: mx.Dtype | None = None

    @classmethod
    def of(
        cls,
        *,
        quantize: bool = False,
        q_bits: int | None = None,
        q_group_size: int | None = None,
        q_mode: str | None = None,
        q_recipe: str | None = None,
        quantize_vision: bool = False,
        dtype: str | mx.Dtype | None = None,
        dequantize: bool = False,
    ) -> "Plan":
        """From `convert`'s keywords. UnsupportedError, which begins with a keyword's name, where they do not fit."""
        settings = {"bits": q_bits, "group_size": q_group_size, "mode": q_mode}
        settings = {name: value for name, value in settings.items() if value is not None}
        if dequantize and quantize:
            raise UnsupportedError("dequantize and quantize exclude each other.")
        if not quantize and (settings or q_recipe or quantize_vision):
            name = next((f"q_{name}" for name in settings), "q_recipe" if q_recipe else "quantize_vision")
            raise UnsupportedError(f"{name} says how to quantize, and quantize is not given.")
        if q_recipe and q_recipe not in MIXED_RECIPES:
            raise UnsupportedError(f"q_recipe={q_recipe!r}: expected one of {', '.join(MIXED_RECIPES)}.")
        if q_recipe and (q_bits is not None or q_mode not in (None, "affine")):
            raise UnsupportedError(
                f"q_recipe={q_recipe!r} chooses the bits, in mode affine: leave q_bits and q_mode out."
            )
        float_dtype = known_dtype(dtype)
        if dtype is not None and float_dtype is None:
            raise UnsupportedError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
        try:
            quantization = Quantization.parse(settings) if quantize else None
        except UnsupportedError as error:
            raise UnsupportedError(str(error).replace("quantization ", "q_", 1)) from None
        return cls(quantization, q_recipe, quantize_vision, dequantize, float_dtype)


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    revision: str | None = None,
    upload_repo: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> Path:
    """Write the checkpoint `hf_path` into the new folder `mlx_path`, as MLX reads it; return that folder.

    hf_path: a folder or an id on the Hugging Face Hub, as `load` takes it; nothing is written there.
    mlx_path: the new folder, which appears when everything in it is written. Default "mlx_model".
    revision: branch, tag or commit on the Hub. Default None, the main branch.
    upload_repo: id on the Hub to upload the result to. Default None, no upload.
    dry_run: only list on stdout what would be uploaded. Default False.

    What is done to the weights; without these keywords they are only renamed:
    quantize: quantize the text decoder. Default False.
    q_mode: "affine", "mxfp4", "mxfp8" or "nvfp4". Default "affine".
    q_bits, q_group_size: bits per weight and weights that share a scale. Default the mode's, 4 and 64 for affine.
    q_recipe: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6, mlx-lm's choices of bits for each layer. Default None.
    quantize_vision: quantize the linear layers of vision tower and projector too. Default False.
    dequantize: make floats of quantized weights. Default False.
    dtype: "float32", "bfloat16" or "float16" for floating-point weights. Default None, the checkpoint's.

    Raises what `load` raises; UnsupportedError for settings that do not fit; VlgenError where the result cannot be
    written.
    """
    plan = Plan.of(**settings)
    if upload_repo is not None:
        _check_repo(upload_repo)
    elif dry_run:
        raise UnsupportedError("dry_run lists what upload_repo would get, which is not given.")
    target = Path(mlx_path).expanduser().resolve()
    check_target(target)
    source = locate(hf_path, revision)
    if source.resolve() in (target, *target.parents):
        raise VlgenError(f"{target} is in the checkpoint's folder. Nothing is written there: choose another.")
    size_before = sum(file.stat().st_size for file in weight_files(source))
    base_model = None if Path(hf_path).expanduser().is_dir() or hf_path in NAMES else str(hf_path)
    with new_folder(target) as folder:
        tensors, count, recipe, has_vision = _weights(source, plan)
        bits = sum(tensor.nbytes for tensor in tensors.values()) * 8 / count
        write_weights(folder, tensors, {"total_parameters": count})
        write_json(folder / "config.json", _config(source, plan, recipe))
        _copy_files(source, folder)
        _model_card(source, base_model, upload_repo or target.name, recipe, has_vision).save(folder / "README.md")
    size_after = sum(file.stat().st_size for file in weight_files(target))
    notice(f"{target}: {format_size(size_after)}, {bits:.3f} bits per weight; it was {format_size(size_before)}")
    if upload_repo is not None:
        _upload(target, upload_repo, dry_run)
    return target


def _weights(source: Path, plan: Plan) -> tuple[dict[str, mx.array], int, dict[str, Any], bool]:
    """The converted weights.

    Returns the tensors by the names of conversions for MLX, not computed yet; how many parameters they hold; the entry
    of config.json for their quantization; and whether the model takes pictures.
    """
    config = read_config(source)
    model = build(source, config)
    fill(model, source, plan.dtype, plan.dequantize)
    has_vision = not only_reads(model)
    if plan.vision and not has_vision:
        raise UnsupportedError(
            f"quantize_vision: {config['model_type']} is a text decoder; there is nothing that sees."
        )
    if plan.quantization:
        refuse_quantized(model, source)
        quantize_layers(model, plan.quantization, plan.recipe, plan.vision)
    recipe = {name: value for key, value in recipe_of(model).items() for name in model.published(key)}
    if plan.quantization and not recipe:
        raise UnsupportedError("q_group_size: no layer's rows divide into such groups, so nothing would be quantized.")
    tensors: dict[str, mx.array] = {}
    for name, tensor in tree_flatten(model.parameters()):
        names = model.published(name)
        tensors |= zip(names, mx.split(tensor, len(names)) if len(names) > 1 else [tensor], strict=True)
    for duplicate, layer in model.duplicated_layers.items():
        if f"{layer}.scales" in tensors and f"{duplicate}.weight" not in tensors:
            for part in ("weight", "scales", "biases"):
                if f"{layer}.{part}" in tensors:
                    tensors[f"{duplicate}.{part}"] = tensors[f"{layer}.{part}"]
            if layer in recipe:
                recipe[duplicate] = recipe[layer]
    return tensors, get_total_parameters(model), recipe, has_vision


def _config(source: Path, plan: Plan, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The original's config.json, with the quantization and the types that the weights have now."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if "thinker_config" in config:
        config["enable_audio_output"] = False  # what speaks is passed over
    for part in [*_parts(config)]:
        for key in ("quantization", "quantization_config"):
            part.pop(key, None)
        if plan.dtype is not None:
            name = next(name for name, dtype in DTYPES.items() if dtype == plan.dtype)
            part |= {key: name for key in ("dtype", "torch_dtype") if part.get(key)}
    return config | ({"quantization": recipe, "quantization_config": recipe} if recipe else {})


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for part in config.values():
        if isinstance(part, dict):
            yield from _parts(part)


def _copy_files(source: Path, folder: Path) -> None:
    for path in {path for pattern in _COPIED for path in source.glob(pattern)}:
        if path.is_file() and path.name not in _NOT_COPIED:
            shutil.copyfile(path, folder / path.name)


def _model_card(
    source: Path, base_model: str | None, name: str, recipe: Mapping[str, Any], has_vision: bool
) -> ModelCard:
    """README.md. base_model: the original's id on the Hub; None for a folder."""
    try:
        original = metadata_load(source / "README.md") or {}
    except Exception:  # its author may have written anything
        original = {}
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="quantized" if recipe and base_model else None,
        library_name="mlx",
        pipeline_tag="image-text-to-text" if has_vision else "text-generation",
        tags=["mlx", "mlx-vlgen"],
        **{field: original[field] for field in _CARD_FIELDS if field in original},
    )
    how = f" with {recipe['bits']} bits per weight ({recipe['mode']})" if recipe else ""
    what = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "A checkpoint"
    flag, count, image = ("--image photo.jpg ", ", num_images=1", ', image="photo.jpg"') if has_vision else ("", "", "")
    text = f"""# {name}

{what} in MLX format{how}, converted by mlx-vlgen {__version__}.

```sh
python -m mlx_vlgen.generate --model {name} {flag}--prompt "What is this?"
```

```python
from mlx_vlgen import apply_chat_template, generate, load

model, processor = load("{name}")
prompt = apply_chat_template(processor, model.config, "What is this?"{count})
print(generate(model, processor, prompt{image}).text)
```
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UnsupportedError(
            f"upload_repo={repo!r} is no id on the Hugging Face Hub; ids look like owner/name."
        ) from None


def _upload(folder: Path, repo: str, dry_run: bool) -> None:
    files = sorted(folder.iterdir())
    size = sum(file.stat().st_size for file in files)
    if dry_run:
        print(f"{len(files)} files, {format_size(size)}, would be uploaded to {constants.ENDPOINT}/{repo}:")
        for file in files:
            print(f"{file.stat().st_size:>15,} {file.name}")
        return
    notice(f"uploading {len(files)} files, {format_size(size)}, to {constants.ENDPOINT}/{repo}")
    try:
        hub = HfApi()
        hub.create_repo(repo, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Converted by mlx-vlgen {__version__}")
    except Exception as error:  # huggingface_hub raises errors of its HTTP library, which differs by version
        raise VlgenError(
            f"{folder} is whole, but uploading it to {repo} failed ({type(error).__name__}: {error}). "
            f"Log in with `hf auth login` if you have not, and try again: hf upload {repo} {folder}"
        ) from None
