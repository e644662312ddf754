"""Checkpoints that mlx-vlm 0.7.10 and this package write of the same original are the same, and each loads the other's.

MLX_VLGEN_PEER_PYTHON is the Python of an environment with mlx-vlm; run with -m peer.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.published import write_internvl_of_transformers, write_published
from parity.recipes import recipes
from peer_process import NOT_THERE, as_ours, needs_peer, run_jobs, stored, unlike

from mlx_vlgen import load
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.convert import convert

pytestmark = [pytest.mark.peer, needs_peer]

SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "4 bits": {"quantize": True, "q_bits": 4, "q_group_size": 32},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8", "q_bits": 8, "q_group_size": 32},
    "bfloat16": {"dtype": "bfloat16"},
}
EVERY_SETTING = ("qwen3_vl", "llava")

# What it writes otherwise, and this package reads all the same: (family, setting) -> names, and why.
PROJECTOR = r"mlp1\.", "it quantizes the projector too"
CONNECTOR = r"connector\.", "it quantizes the connector too"
LINEAR = r"\.embed_tokens\.|\.linear_attn\.", "it leaves embeddings and linear attention whole"
TIED = r"lm_head\.", "it writes tied embeddings a second time"
WRITTEN_OTHERWISE: dict[tuple[str, str], tuple[str, str]] = {
    ("gemma3", "as it is"): TIED,
    ("gemma3_text", "as it is"): TIED,
    ("gemma3_text", "4 bits"): TIED,
    ("gemma4_unified", "4 bits"): (r"embed_audio\.", "it quantizes the projection of sound too"),
    ("idefics2", "4 bits"): CONNECTOR,
    ("idefics2_whole", "4 bits"): CONNECTOR,
    ("idefics3", "4 bits"): CONNECTOR,
    ("internvl", "4 bits"): PROJECTOR,
    ("internvl_qwen3", "4 bits"): PROJECTOR,
    ("kimi_k25", "4 bits"): (r"mm_projector\.", "it quantizes the projector too"),
    ("minicpmv4_6", "4 bits"): LINEAR,
    ("minicpmv4_7", "4 bits"): LINEAR,
    ("mistral3", "4 bits"): (r"language_model\.lm_head\.", "it leaves the output layer whole"),
    ("qwen3_vl_moe", "4 bits"): (r"\.mlp\.gate\.", "it quantizes routers to 4 bits, mlx-lm's decoder wants 8"),
    ("smolvlm", "4 bits"): CONNECTOR,
}
# What it makes of this package's that is not in the file.
LOADED_OTHERWISE = {("gemma3", "as it is"): TIED, ("gemma3_text", "as it is"): TIED}
# What it cannot load: what it says, and why.
NOT_LOADED = {
    ("gemma3_text", "4 bits"): (
        "Expected shape",
        "of tied embeddings that are quantized it takes the packed numbers for an output layer's; mlx-lm's "
        "conversions, which have no output layer either, fall to the same",
    ),
}


@pytest.mark.parametrize("family", sorted(recipes().keys() - NOT_THERE))
def test_both_write_the_same_and_load_each_others(family: str, tmp_path: Path) -> None:
    exchange(family, write_published(family, tmp_path / "original"), tmp_path)


def test_so_they_do_of_internvl_as_transformers_has_it(tmp_path: Path) -> None:
    """With Qwen3; with Qwen2, in which InternVL 3 was published so, mlx-vlm does not load it."""
    source = write_internvl_of_transformers("internvl_qwen3", tmp_path / "original")
    exchange("internvl of transformers", source, tmp_path)
    source = write_internvl_of_transformers("internvl", tmp_path / "with Qwen2")
    assert "head_dim" in run_jobs([("convert", source, tmp_path / "never", {})], tmp_path)[0]


def exchange(family: str, source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text_only = not {"vision_config", "vit_config"} & config.keys()
    settings = [setting for setting in SETTINGS if family in EVERY_SETTING or setting in ("as it is", "4 bits")]
    ours, theirs, files = (
        {setting: tmp_path / f"{kind} {setting}{end}" for setting in settings}
        for kind, end in (("ours", ""), ("theirs", ""), ("loaded", ".safetensors"))
    )
    for setting in settings:
        convert(source, ours[setting], **SETTINGS[setting])
    errors = run_jobs(
        [("convert", source, theirs[setting], SETTINGS[setting]) for setting in settings]
        + [("load", ours[setting], files[setting], {}) for setting in settings],
        tmp_path,
    )
    assert errors[: len(settings)] == [""] * len(settings)

    for setting, error in zip(settings, errors[len(settings) :], strict=True):
        our_weights, their_weights = stored(ours[setting]), as_ours(stored(theirs[setting]), text_only)
        assert_only(WRITTEN_OTHERWISE.get((family, setting)), unlike(our_weights, their_weights))
        if (family, setting) in NOT_LOADED:
            assert NOT_LOADED[family, setting][0] in error
        else:
            assert not error, setting
            loaded = as_ours(mx.load(str(files[setting])), text_only)  # type: ignore[arg-type]
            assert_only(LOADED_OTHERWISE.get((family, setting)), unlike(our_weights, loaded))

        first, second = (
            dict(tree_flatten(load(folder)[0].parameters())) for folder in (ours[setting], theirs[setting])
        )
        if (family, setting) not in WRITTEN_OTHERWISE:
            assert recipe(ours[setting]) == recipe(theirs[setting])
            assert first.keys() == second.keys()
            assert all(np.array_equal(np.array(first[name]), np.array(second[name])) for name in first)


def assert_only(known: tuple[str, str] | None, names: set[str]) -> None:
    """The known difference is there, and no other."""
    assert bool(known) == bool(names)
    assert known is None or all(re.search(known[0], name) for name in names), names


def recipe(folder: Path) -> dict[str, Any]:
    """config.json's quantization: of the model, and of single layers, affine where no mode is named."""
    quantization = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization", {})
    return {
        name.removeprefix("language_model."): {"mode": "affine"} | value if isinstance(value, dict) else value
        for name, value in quantization.items()
    }
