"""`model.generate` answers as that of transformers does: tokens, and everything else that it can return.

Each case runs for a third of the families that have it, in turn, where nothing of the model's inside is returned: what
it then compares is computed from logits, by the same code for all. `-m slow` runs all of them for all families.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import LoadFamily
from invariants.family import Family
from parity import expected, media
from parity.layouts import family_tensors, read_json
from parity.weights import fingerprint

from mlx_vlgen._runtime import mx
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.inputs.tensors import pack

from . import digest

TOLERANCE = 1e-4
QWEN = {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"}
"""What transformers takes for a model of Qwen's; for the other families the names are ours."""
FAMILIES = sorted(path.parent.name for path in digest.REFERENCE.glob("*/cases.json"))


@cache
def record(family: str) -> dict[str, Any]:
    """reference/<family>/cases.json."""
    return read_json(digest.REFERENCE / family / "cases.json")


@cache
def arrays(family: str) -> Mapping[str, np.ndarray]:
    """ "<case>.<name>" -> what digest.py stores of it."""
    with np.load(digest.REFERENCE / family / "arrays.npz") as file:
        return dict(file)


def cases() -> list[Any]:
    """(family, case) of every one that is stored."""
    having: dict[str, list[str]] = {}
    for family in FAMILIES:
        for name in record(family)["cases"]:
            having.setdefault(name, []).append(family)
    parameters = []
    for number, (name, families) in enumerate(having.items()):
        for place, family in enumerate(families):
            case = record(family)["cases"][name]
            of_inside = "hidden_states_shapes" in case or "attentions_shapes" in case
            in_turn = len(families) > 1 and not of_inside
            marks = [pytest.mark.slow] if in_turn and (number + place) % min(3, len(families)) else []
            parameters.append(pytest.param(family, name, id=f"{family}-{name}", marks=marks))
    return sorted(parameters, key=lambda parameter: FAMILIES.index(parameter.values[0]))


@dataclasses.dataclass(frozen=True, eq=False)
class Ran:
    """A case and our answer."""

    case: dict[str, Any]  # of cases.json
    stored: dict[str, np.ndarray]  # of transformers' outputs, by name
    mask: np.ndarray  # (B, L) of the prompts
    output: Any  # of `model.generate`, with all that is stored
    new: list[list[int]]  # the tokens after the prompt


OUTPUTS = ("scores", "logits", "hidden_states", "attentions")


def run(load_family: LoadFamily, family: str, name: str) -> Ran:
    """`model.generate` on the case's inputs; asserts that its prompts come back unchanged."""
    loaded, case = load_family(family), record(family)["cases"][name]
    stored = {
        key.removeprefix(f"{name}."): value for key, value in arrays(family).items() if key.startswith(f"{name}.")
    }
    prompt_tensors, keywords = tensors(loaded, case["inputs"]), dict(case["keywords"])
    keywords |= {f"output_{what}": True for what in OUTPUTS if what in stored}
    if {"sequences_scores", "transition_scores"} & case.keys() or "probabilities" in stored:
        keywords["output_scores"] = True
    if any(key.startswith("output_") for key in keywords):
        keywords["return_dict_in_generate"] = True
    if "stop_strings" in keywords:
        keywords["tokenizer"] = loaded.processor.tokenizer
    if "assistant" in case:
        keywords["assistant_model"] = load_family(case["assistant"]).model
    if "negative" in case:
        negative = tensors(loaded, case["negative"])
        keywords["negative_prompt_ids"] = negative["input_ids"]
        keywords["negative_prompt_attention_mask"] = negative["attention_mask"]
    output = loaded.model.generate(**prompt_tensors, **keywords)
    sequences = np.array(getattr(output, "sequences", output))
    prompts = np.array(prompt_tensors.get("input_ids", [[loaded.processor.tokenizer.bos_token_id]]))
    repeated = np.repeat(prompts, len(sequences) // len(prompts), axis=0)
    assert sequences[:, : repeated.shape[1]].tolist() == repeated.tolist()
    mask = np.array(prompt_tensors.get("attention_mask", np.ones(prompts.shape)))
    return Ran(case, stored, mask, output, sequences[:, prompts.shape[1] :].tolist())


def tensors(loaded: Family, name: str) -> dict[str, mx.array]:
    """An input by the names that its model takes, with the reference's pixels."""
    stored = record(loaded.name)["inputs"][name]
    if not stored["prompts"]:
        return {"input_ids": mx.array(stored["ids"])} if stored["ids"] else {}
    prompts = []
    for (text, images), ids in zip(stored["prompts"], stored["ids"], strict=True):
        prompt = loaded.processor.prepare(text, MediaInputs(images=[media.picture(image) for image in images]))
        assert prompt.tokens.tolist() == ids
        pixels = [expected.pixels(loaded.name, image, len(images) > 1).normalised for image in images]
        replaced = [dataclasses.replace(item, pixels=new) for item, new in zip(prompt.media, pixels, strict=True)]
        prompts.append(dataclasses.replace(prompt, media=tuple(replaced)))
    packed = pack(loaded.processor, prompts, loaded.processor.tokenizer.pad_token_id)
    of_qwen = "image_grid_thw" in packed
    return {key: mx.array(value) for key, value in packed.items() if not of_qwen or key in QWEN}


def max_difference(array: Any, reference: Any) -> float:
    """Of two arrays of one shape."""
    array, reference = np.asarray(array, np.float64), np.asarray(reference, np.float64)
    assert array.shape == reference.shape
    return float(np.abs(array - reference).max())


def _as_wide(layer: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The layer in transformers' shape, which leaves out keys that a sliding window has passed: they weigh nothing."""
    passed = layer.shape[-1] - shape[-1]
    assert not layer[..., :passed].any()
    assert list(layer[..., passed:].shape) == shape
    return layer[..., passed:]


@pytest.mark.parametrize(("family", "name"), cases())
def test_answer_is_that_of_transformers(load_family: LoadFamily, family: str, name: str) -> None:
    """Tokens with their padding, and whatever else the case stores."""
    ran = run(load_family, family, name)
    case, stored, output = ran.case, ran.stored, ran.output
    if "new" in case:
        assert ran.new == case["new"]
    for what in ("scores", "logits"):
        if what in stored:
            steps = [np.array(step) for step in getattr(output, what)]
            assert len(steps) == case["steps"]
            of_ended = ~stored[what].any(axis=-1)
            assert max_difference(np.where(of_ended[..., None], 0, digest.scores(steps)), stored[what]) < TOLERANCE, (
                what
            )
    for what, function in (("hidden_states", digest.hidden_states), ("attentions", digest.attentions)):
        if what in stored:
            steps = [[np.array(layer) for layer in step] for step in getattr(output, what)]
            steps = [
                [_as_wide(layer, shape) for layer, shape in zip(*both, strict=True)]
                for both in zip(steps, case[f"{what}_shapes"], strict=True)
            ]
            scale = max(1.0, stored[what].std())  # as promise 1 has it for logits
            assert max_difference(function(steps, ran.mask), stored[what]) < TOLERANCE * scale, what
    if "sequences_scores" in case:
        assert max_difference(np.array(output.sequences_scores), case["sequences_scores"]) < TOLERANCE
        assert np.array(output.beam_indices).tolist() == case["beam_indices"]
    if "transition_scores" in case:
        beams = {"beam_indices": output.beam_indices} if "beam_indices" in case else {"normalize_logits": True}
        transition_scores = load_family(family).model.compute_transition_scores(
            output.sequences, output.scores, **beams
        )
        assert max_difference(np.array(transition_scores), case["transition_scores"]) < TOLERANCE
    if "probabilities" in stored:
        scores = np.array(output.scores[0], np.float64)
        drawn_from = np.exp(scores - scores.max(axis=-1, keepdims=True))
        drawn_from /= drawn_from.sum(axis=-1, keepdims=True)
        assert max_difference(drawn_from, stored["probabilities"]) < 1e-5
        drawn = np.array(ran.new)[:, 0]
        assert (stored["probabilities"][np.arange(len(drawn)), drawn] > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_references_are_of_these_weights(family: str) -> None:
    """Whenever they change, the references are made again."""
    demo = media.DEMO / "model" / "model.safetensors"
    mark = media.file_hash(demo) if family == "demo" else fingerprint(family_tensors(family))
    assert mark == record(family)["fingerprint"], f"make them with `cd tests && python -m hf.make_reference {family}`"


def test_references_stay_small() -> None:
    """Under 1 MB."""
    assert sum(path.stat().st_size for path in digest.REFERENCE.rglob("*") if path.is_file()) < 1e6
