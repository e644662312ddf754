"""Promise 1: the same answers as transformers, in every layout that a checkpoint is published in.

Pixels are compared for every case in every layout. Prompts, logits and answers are compared for every case in one
layout, which changes from case to case; those of a picture and of a clip in every layout (in one of them for families
that share another's classes); log-probabilities of answers for one case and those that are in no batch, a third of
them from messages and media too. `-m slow` compares all of it for all cases in all layouts, and batches by the
iterator too.
"""

from pathlib import Path

import numpy as np
import pytest
from conftest import LoadFamily
from invariants.family import VARIANTS

from . import expected, media, ours
from .expected import Expected, Sound
from .layouts import LAYOUTS, REFERENCE, family_tensors, layout_config, read_json, write_checkpoint
from .recipes import recipes
from .weights import fingerprint, projection

DEMO_MODEL = media.DEMO / "model"
FAMILIES = expected.families()
IN_ALL_LAYOUTS = ("img1", "short")
# The built-in model is a checkpoint folder, in one layout.
CHECKPOINTS = [(f, layout) for f in FAMILIES for layout in (("saved",) if f == "demo" else LAYOUTS)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per checkpoint and case (or batch of cases) that its family has."""
    if "checkpoint" not in metafunc.fixturenames:
        return
    kind = "case" if "case" in metafunc.fixturenames else "batch"
    parameters = []
    for family, layout in CHECKPOINTS:
        record = expected.record(family)
        cases = {name: expected.case(family, name) for name in record["cases"]}
        in_batches = {row for rows in record["batches"].values() for row in rows} - {next(iter(cases))}
        batches = {name: [cases[row] for row in rows] for name, rows in record["batches"].items()}
        for index, (name, value) in enumerate((cases if kind == "case" else batches).items()):
            seen = metafunc.function is test_pixels
            if seen and not (cases[name].images or cases[name].videos or cases[name].audios):
                continue
            in_turn = metafunc.function in (test_greedy, test_generate, test_batch)
            in_turn |= metafunc.function in (test_token_ids, test_logits) and name not in IN_ALL_LAYOUTS
            in_layout = "v5" if family in VARIANTS else LAYOUTS[index % len(LAYOUTS)]
            longer = layout in LAYOUTS and in_layout != layout and (in_turn or family in VARIANTS)
            longer |= metafunc.function in (test_greedy, test_generate) and name in in_batches
            longer |= metafunc.function is test_generate and index % 3 > 0
            marks = [pytest.mark.slow] if longer else []
            parameters.append(pytest.param((family, layout), value, id=f"{family}-{layout}-{name}", marks=marks))
    metafunc.parametrize(("checkpoint", kind), parameters, indirect=["checkpoint"], scope="module")


@pytest.fixture(scope="module")
def checkpoint(
    request: pytest.FixtureRequest, load_family: LoadFamily, tmp_path_factory: pytest.TempPathFactory
) -> ours.Loaded:
    """Model and processor of (family, layout)."""
    family, layout = request.param
    if family == "demo":
        return ours.load(DEMO_MODEL)
    if layout == "v5":  # that of other suites
        return load_family(family).model, load_family(family).processor
    return ours.load(write_checkpoint(family, layout, tmp_path_factory.mktemp(f"{family}-{layout}")))


@pytest.fixture
def family(request: pytest.FixtureRequest) -> str:
    """The family of the test's checkpoint."""
    return request.node.callspec.params["checkpoint"][0]


@pytest.fixture
def new_tokens(family: str) -> int:
    """Greedy steps to take; an end token may come before."""
    return expected.record(family)["new_tokens"]


def normalised_pixels(checkpoint: ours.Loaded, family: str, case: Expected) -> list[np.ndarray]:
    """The reference's pixels of a case's media, as towers take them."""
    return ours.reference_pixels(family, case, ours.prepare(checkpoint, case.text, case))


def test_token_ids(checkpoint: ours.Loaded, case: Expected) -> None:
    """From the formatted text, and from messages by way of the template."""
    assert ours.prepare(checkpoint, case.text, case).tokens.tolist() == case.ids.tolist()
    if case.messages:
        assert ours.format_prompt(checkpoint, case.messages) == case.text
        assert ours.prepare(checkpoint, case.messages, case).tokens.tolist() == case.ids.tolist()


def test_pixels(checkpoint: ours.Loaded, case: Expected, family: str) -> None:
    """Within one 8-bit level before normalisation; features of sound, with all that is kept of them."""
    prompt = ours.prepare(checkpoint, case.text, case)
    references = expected.media_pixels(family, case, [medium.kind for medium in prompt.media])
    assert len(references) == len(case.images) + len(case.videos) + len(case.audios)
    for medium, reference in zip(prompt.media, references, strict=True):
        assert medium.grid == reference.grid
        if isinstance(reference, Sound):
            assert np.abs(expected.projected(medium.pixels) - reference.features).max() < 1e-5
            continue
        assert np.abs(reference.levels_of(ours.pixel_values(checkpoint, medium)) - reference.levels).max() < 1.001


def test_logits(checkpoint: ours.Loaded, case: Expected, family: str) -> None:
    """Of the whole prompt, on the reference's pixels."""
    pixels = normalised_pixels(checkpoint, family, case)
    prompt = ours.with_pixels(ours.prepare(checkpoint, case.text, case), pixels)
    logits = ours.logits(checkpoint, prompt)
    assert logits.shape == (len(case.ids), len(case.last))
    assert np.abs(logits[-1] - case.last).max() < case.tolerance
    assert np.abs(logits.astype(np.float64) @ projection(len(case.last)) - case.projected).max() < case.tolerance


def test_greedy(checkpoint: ours.Loaded, case: Expected, family: str, new_tokens: int) -> None:
    """Tokens and their log-probabilities, on the reference's pixels."""
    pixels = normalised_pixels(checkpoint, family, case)
    tokens, log_probabilities = ours.greedy(checkpoint, case, pixels, new_tokens)
    assert tokens == case.tokens.tolist()
    steps = log_probabilities.astype(np.float64) @ projection(len(case.last))
    assert np.abs(steps - case.steps).max() < case.tolerance


def test_generate(checkpoint: ours.Loaded, case: Expected, new_tokens: int) -> None:
    """Tokens, from the case's messages and media."""
    assert ours.generate(checkpoint, case, new_tokens) == case.tokens.tolist()


def test_batch(checkpoint: ours.Loaded, batch: list[Expected], new_tokens: int) -> None:
    """Each row answers as it does alone; video goes in by the iterator only."""
    ask = ours.iterate if any(case.videos for case in batch) else ours.batch_generate
    assert ask(checkpoint, batch, new_tokens) == [case.tokens.tolist() for case in batch]


@pytest.mark.slow
def test_batch_by_the_iterator(checkpoint: ours.Loaded, batch: list[Expected], new_tokens: int) -> None:
    """On which `batch_generate` stands."""
    assert ours.iterate(checkpoint, batch, new_tokens) == [case.tokens.tolist() for case in batch]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "demo"])
def test_weights_are_those_of_the_reference(family: str) -> None:
    """Drawn here as they were drawn there, to the bit."""
    assert fingerprint(family_tensors(family)) == expected.record(family)["fingerprint"]


def test_every_supported_family_has_references() -> None:
    """A family without a reference is not supported."""
    compared = {
        layout_config(recipes()[family], read_json(REFERENCE / family / "config.json"), layout)["model_type"]
        for family, layout in CHECKPOINTS
        if layout != "saved"
    }
    compared.add("phi4mm")  # Phi-4's first release, which transformers does not know: unit/test_phi4_multimodal.py
    assert ours.supported() <= compared


def test_built_in_model_has_its_own_reference() -> None:
    """The reference is of the model in the package."""
    remedy = "make it with `cd tests && python -m parity.make_reference demo`"
    assert DEMO_MODEL.exists() == ("demo" in FAMILIES), remedy
    if DEMO_MODEL.exists():
        mark = media.file_hash(DEMO_MODEL / "model.safetensors")
        assert mark == expected.record("demo")["fingerprint"], remedy


def test_references_stay_small() -> None:
    """120 KB a vision-language family, 25 KB a text decoder, 8 MB in all."""
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 8e6
    for family in FAMILIES:
        limit = 120e3 if expected.record(family)["processor"] else 25e3
        assert sum(path.stat().st_size for path in Path(REFERENCE, family).iterdir()) < limit, family
