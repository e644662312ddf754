"""What mlx-vlm 0.7.10 converts to 4 and 8 bits answers here as transformers does on the same weights, dequantized.

MLX_VLGEN_PEER_PYTHON is the Python of an environment with mlx-vlm, MLX_VLGEN_ORACLE_PYTHON of one with the packages
that parity/make_reference.py needs; run with -m peer.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from parity import expected, ours
from parity.expected import Expected
from parity.layouts import assemble
from parity.published import published_parts, write_published
from parity.recipe import Recipe
from parity.recipes import recipes
from parity.weights import Tensors
from peer_process import NOT_THERE, Weights, as_ours, needs_peer, run_jobs, stored

from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import PromptError

ORACLE = os.environ.get("MLX_VLGEN_ORACLE_PYTHON", "")
pytestmark = [
    pytest.mark.peer,
    needs_peer,
    pytest.mark.skipif(not ORACLE, reason="MLX_VLGEN_ORACLE_PYTHON names no Python with transformers and torch"),
]
TESTS = Path(__file__).parents[1]
BITS, GROUP = (4, 8), 32
# Where the processor's files that it writes say something else than the original's, and what.
ANOTHER_PROCESSOR = {
    **dict.fromkeys(
        ("gemma4", "gemma4_moe", "gemma4_unified", "kimi_k25", "minicpmv4_7"),
        "other sizes of pictures, which published checkpoints have, too",
    ),
    **dict.fromkeys(("glm5_next", "hunyuan_vl"), "other sizes and tokens of pictures"),
    **dict.fromkeys(("internvl", "internvl_qwen3"), "no chat template where it is in a separate file"),
}


@pytest.mark.parametrize("family", sorted(recipes().keys() - NOT_THERE))
def test_what_the_other_package_converts_answers_as_transformers_on_the_dequantized_weights(
    family: str, tmp_path: Path
) -> None:
    recipe = recipes()[family]
    config, originals = published_parts(family)
    source = write_published(family, tmp_path / "original")
    converted = {f"{bits}": tmp_path / f"{bits} bits" for bits in BITS}
    settings = {"quantize": True, "q_group_size": GROUP}
    errors = run_jobs(
        [("convert", source, converted[f"{bits}"], settings | {"q_bits": bits}) for bits in BITS], tmp_path
    )
    assert not any(errors)

    folders = {}
    named = {name: mx.array(value) for name, value in recipe.mlx(originals).items()}
    for bits, folder in converted.items():
        theirs = as_ours(stored(folder), text_only="vision_config" not in config)
        tied = not any(name.endswith("lm_head.weight") for name in originals)
        counterparts = tied_alike(named, theirs) if tied else named
        back = put_back(recipe, originals, dequantized(theirs, counterparts))
        folders[bits] = assemble(recipe, config, back, "v5", tmp_path / f"{bits} bits, dequantized")
    truth = transformers_logits(family, folders, tmp_path / "logits.npz")

    _, processor = ours.load(source)
    for bits, folder in converted.items():
        loaded = ours.load(folder)
        processors_alike = True
        for name in recipe.cases:
            case = expected.case(family, name)
            processors_alike &= ids_of(loaded, case) == truth[f"{name}.ids"].tolist()
            prompt = ours.prepare((None, processor), case.prompt, case)
            assert prompt.tokens.tolist() == truth[f"{name}.ids"].tolist(), name
            pixels = ours.reference_pixels(family, case, prompt)
            logits = ours.logits(loaded, ours.with_pixels(prompt, pixels))
            expected_logits = truth[f"{name}.{bits}.logits"].astype(np.float64)
            assert np.abs(logits - expected_logits).max() < 1e-3 * max(1.0, expected_logits.std()), (bits, name)
        assert processors_alike == (family not in ANOTHER_PROCESSOR)


def ids_of(loaded: ours.Loaded, case: Expected) -> list[int] | None:
    """The ids of a case by the checkpoint's processor; None where it refuses the case."""
    try:
        return ours.prepare(loaded, case.prompt, case).tokens.tolist()
    except PromptError:
        return None


def tied_alike(named: Weights, theirs: Weights) -> Weights:
    """With tied embeddings a second time, as an output layer, where mlx-vlm has them so, and only there."""
    heads = {name for name in (*named, *theirs) if name.endswith("lm_head.weight")}
    others = {name: value for name, value in named.items() if name not in heads}
    return others | {name: others[name.replace("lm_head", "model.embed_tokens")] for name in heads & theirs.keys()}


def dequantized(weights: Weights, originals: Weights) -> Weights:
    """Floats of the layers that mlx-vlm quantized, each checked to be the quantization of the original; all others are
    checked to be unchanged. originals: by the same names."""
    rest, floats = dict(weights), {}
    for layer in [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]:
        original = originals[f"{layer}.weight"]
        parts = [rest.pop(f"{layer}.{part}") for part in ("weight", "scales", "biases")]
        packed, scales, _ = parts
        width = original.shape[-1]
        settings = {"group_size": width // scales.shape[-1], "bits": 32 * packed.shape[-1] // width}
        logits = mx.quantize(original, **settings)
        assert all(mx.array_equal(part, other) for part, other in zip(parts, logits, strict=True)), layer
        floats[f"{layer}.weight"] = mx.dequantize(*parts, **settings)
    assert floats
    assert all(mx.array_equal(value, originals[name]) for name, value in rest.items())
    assert rest.keys() | floats.keys() == originals.keys()
    return floats


def put_back(recipe: Recipe, originals: Tensors, floats: Mapping[str, mx.array]) -> Tensors:
    """`originals`, by the names that transformers 5 saves, with `floats`, by those of conversions for MLX, in their
    places: `recipe.mlx` of an array of places says from which original a number comes. Integers stay what they
    are: those by which n-grams are hashed have more digits than a float."""
    ends = np.cumsum([tensor.size for tensor in originals.values()])
    places = {
        name: np.arange(end - tensor.size, end).reshape(tensor.shape)
        for (name, tensor), end in zip(originals.items(), ends, strict=True)
    }
    numbers, changed = np.zeros(ends[-1], np.float32), np.zeros(ends[-1], bool)
    for name, place in recipe.mlx(places).items():
        if name in floats:
            numbers[place], changed[place] = np.array(floats[name]), True
    out = {name: np.array(tensor) for name, tensor in originals.items()}
    for name, place in places.items():
        out[name][changed[place]] = numbers[place][changed[place]]
    return out


def transformers_logits(family: str, folders: Mapping[str, Path], file: Path) -> dict[str, np.ndarray]:
    """The arrays that reference_logits.py writes into `file`."""
    arguments = [f"{bits}={folder}" for bits, folder in folders.items()]
    ran = subprocess.run(
        [ORACLE, "-m", "peer.reference_logits", family, *arguments, file], cwd=TESTS, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    with np.load(file) as arrays:
        return dict(arrays)
