"""Make the reference outputs anew, with transformers.

    pip install torch==2.13.0 transformers==5.23.0 numpy pillow
    pip install --no-deps torchvision==0.28.0
    cd tests && python -m parity.make_reference [FAMILY ...]

Without a name, all families; `demo` is the built-in model. On one machine a second run writes the same bytes. Any
torchvision will do that transformers accepts: where its compiled operators do not fit the torch at hand, two of them
are declared, never defined, and its pure Python part, which is all that video processing needs, loads.

For each family the checkpoint is written (layouts.py) with weights drawn by rule (weights.py) and read by
transformers in float32. The seed is the first at which every greedy step has a clear winner, so that a last-bit
difference in the logits cannot change the tokens.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.numpy import load_file

from . import expected, media
from .demo import DEMO
from .demo import MODEL as DEMO_MODEL
from .layouts import LAYOUTS, REFERENCE, Layout, assemble, read_json, write_json
from .recipe import Case, ProcessorKit, Recipe
from .recipes import recipes
from .weights import Tensors, draw, fingerprint, projection

try:
    importlib.import_module("torchvision")
except RuntimeError:  # its compiled operators are for another torch
    operators = torch.library.Library("torchvision", "DEF")  # what it declares dies with it
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

transformers: Any = importlib.import_module("transformers")
from .kits import build_tokenizer  # noqa: E402  it imports transformers, which must find torchvision

MARGIN = 1e-3
# Clips are resized by torchvision here and by Pillow in mlx_vlgen: one level apart in places, a few 1e-3 in logits.
VIDEO_MARGIN = 5e-3
ROUTING_MARGIN = 2e-5
# By how much what goes in is nudged, relatively, and how many times as much, in standard deviations, logits may move: a
# network that makes more of a rounding shows how two libraries round, and not whether they compute the same.
NUDGE, GAIN, DRAWS = 1e-5, 200, 4


class Unsuitable(Exception):
    """With these weights a case would not be a clear test; make_family takes the next seed."""


# Kits


def write_kits(names: Collection[str]) -> None:
    """Tokenizers and processors of these families, apart from the one byte-pair model that they share."""
    chosen = [recipe for name, recipe in recipes().items() if name in names]
    with tempfile.TemporaryDirectory() as temporary:
        for kit in {recipe.tokenizer.name: recipe.tokenizer for recipe in chosen}.values():
            folder = REFERENCE / "tokenizers" / kit.name
            folder.mkdir(parents=True, exist_ok=True)
            if kit.template:
                (folder / "chat_template.jinja").write_text(kit.template, encoding="utf-8")
            build_tokenizer(kit).save_pretrained(temporary)
            tokenizer = read_json(Path(temporary, "tokenizer.json"))
            (folder.parent / "bpe.json").write_text(json.dumps(tokenizer.pop("model"), ensure_ascii=False) + "\n")
            write_json(folder / "tokenizer.json", tokenizer)
            config = read_json(Path(temporary, "tokenizer_config.json"))
            write_json(folder / "tokenizer_config.json", config)
        for recipe in chosen:
            if recipe.processor is None:
                continue
            folder = REFERENCE / "processors" / recipe.processor.name
            folder.mkdir(parents=True, exist_ok=True)
            load_processor(recipe).save_pretrained(temporary)
            # The class is named after the backend that is installed; checkpoints name the family's.
            text = Path(temporary, "processor_config.json").read_text().replace('ImageProcessorPil"', 'ImageProcessor"')
            write_json(folder / "processor_config.json", json.loads(text))


def load_processor(recipe: Recipe) -> Any:
    """The family's processor with pictures resized by Pillow, or its tokenizer where it has no processor."""
    if recipe is DEMO:
        tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    else:
        tokenizer = build_tokenizer(recipe.tokenizer)
        file = REFERENCE / "tokenizers" / recipe.tokenizer.name / "chat_template.jinja"
        tokenizer.chat_template = file.read_text(encoding="utf-8") if file.exists() else None
    return recipe.processor.build(tokenizer) if recipe.processor else tokenizer


def load_model(folder: Path) -> Any:
    """The checkpoint in float32 with the plainest attention."""
    auto = auto_class(read_json(folder / "config.json"))
    model, loading_info = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(loading_info.values()):
        raise RuntimeError(f"{folder} does not fit the model: {loading_info}")
    return model.eval()


def auto_class(config: Mapping[str, Any]) -> Any:
    """transformers' class for models with this configuration."""
    if thinker := config.get("thinker_config"):  # as a part of what speaks it has no forward
        return getattr(transformers, thinker["architectures"][0])
    if "audio_config" in config:
        return transformers.AutoModelForMultimodalLM
    vision = {"vision_config", "vit_config"} & config.keys()
    return transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM


# Inputs


def prompt_text(processor: Any, case: Case) -> str:
    """The formatted prompt."""
    if isinstance(case.prompt, str):
        return case.prompt
    return processor.apply_chat_template(case.prompt, tokenize=False, add_generation_prompt=True)


def model_inputs(recipe: Recipe, processor: Any, cases: list[Case]) -> dict[str, torch.Tensor]:
    """One padded batch, or one row without padding."""
    texts = [prompt_text(processor, case) for case in cases]
    kit = recipe.processor
    if kit is None:
        rows = [
            processor(text, add_special_tokens=isinstance(case.prompt, str)).input_ids
            for text, case in zip(texts, cases, strict=True)
        ]
        return dict(processor.pad({"input_ids": rows}, return_tensors="pt"))
    keywords: dict[str, Any] = {}
    images = [[media.picture(name) for name in case.images] for case in cases]
    if any(images):
        keywords["images"] = images if kit.nested else [image for row in images for image in row]
    if clips := [media.clip(name) for case in cases for name in case.videos]:
        keywords |= {"videos": clips, "do_sample_frames": False, **kit.clips(clips)}
    if sounds := [_samples(name) for case in cases for name in case.audios]:
        keywords |= {"audio": sounds}
    heard = [case.hears_videos for case in cases]
    if any(heard):
        keywords |= {"load_audio_from_video": True, "audio_from_video_indices": [*range(len(sounds))]}
    bos = processor.tokenizer.bos_token
    if bos and all(text.startswith(bos) for text in texts):
        keywords["add_special_tokens"] = False  # the template wrote it
    padding = len(texts) > 1 or "audio" in keywords  # some take it for the clips, too
    inputs = dict(processor(text=texts, return_tensors="pt", padding=padding, **keywords))
    return inputs | ({"use_audio_in_video": True} if any(heard) else {})


def pixel_levels(recipe: Recipe, processor: Any) -> dict[str, np.ndarray]:
    """Of each picture and clip of the cases: name -> levels, uint8 before normalisation in the shape of pixels; the
    grid; normal, mean and standard deviation per channel (2, 3)."""
    kit = recipe.processor
    assert kit
    arrays: dict[str, np.ndarray] = {}
    several = {name for case in recipe.cases.values() if len(case.images) > 1 for name in case.images}
    for kind, name in sorted({entry for case in recipe.cases.values() for entry in _media(case)}):
        if kind == "audio":
            assert kit.audio, f"{kit.name} does not hear"
            features, grid = kit.audio(processor, _samples(name))
            arrays |= {f"{name}.features": expected.projected(features), f"{name}.grid": np.asarray(grid, np.int32)}
            continue
        if kind == "image":
            assert kit.image, f"{kit.name} does not see"
            (pixels, grid), settings = kit.image(processor, media.picture(name)), processor.image_processor
            if kit.one_of_several and name in several:
                other_pixels, other_grid = kit.one_of_several(processor, media.picture(name))
                arrays |= _levels(f"{name}{expected.SEVERAL}", other_pixels, other_grid, settings, kit)
        else:
            assert kit.video, f"{kit.name} has no video"
            (pixels, grid), settings = kit.video(processor, media.clip(name)), processor.video_processor
        arrays |= _levels(name, pixels, grid, settings, kit)
    return arrays


def _levels(
    name: str, pixels: np.ndarray, grid: tuple[int, ...], settings: Any, kit: ProcessorKit
) -> dict[str, np.ndarray]:
    normal = np.array([settings.image_mean, settings.image_std])
    levels = expected.levels_of(pixels, normal, kit.channels_last)
    rounded = np.rint(levels)
    assert np.abs(levels - rounded).max() < 1e-3, f"{name}: pixels are no 8-bit levels"
    return {
        f"{name}.levels": rounded.astype(np.uint8),
        f"{name}.grid": np.asarray(grid, np.int32),
        f"{name}.normal": normal,
    }


def _samples(name: str) -> np.ndarray:
    return media.sound(name).astype(np.float32) / 32768


def _media(case: Case) -> Iterator[tuple[str, str]]:
    yield from (("image", name) for name in case.images)
    yield from (("video", name) for name in case.videos)
    yield from (("audio", name) for name in case.audios)


# Outputs


def run_case(
    model: Any, inputs: dict[str, torch.Tensor], new_tokens: int, clips: bool, drawn: bool
) -> dict[str, np.ndarray]:
    """Logits of the whole prompt and greedy steps of one row, with `clips` or not. With weights that were `drawn`, a
    text of few different tokens is refused."""
    with torch.no_grad(), _RoutingMargins(model) as margins:
        logits = model(**inputs).logits[0].double().numpy()
        steps, tokens = _greedy(model, inputs, new_tokens)
        if margins.smallest < ROUTING_MARGIN:
            raise Unsuitable(f"routing margin {margins.smallest:.1e}")
        for key in (
            "pixel_values",
            "pixel_values_videos",
            "input_features",
            "image_pixel_values",
            "audio_input_features",
        ):
            if key in inputs:
                other = model(**(inputs | {key: -inputs[key].flip(0)})).logits[0, -1].double().numpy()
                if np.abs(other - logits[-1]).max() < 0.1 * logits.std():
                    raise Unsuitable(f"{key} make no difference")
        moved = max(np.abs(_nudged(model, inputs, draw) - logits).max() for draw in range(DRAWS)) if drawn else 0
        if (gain := moved / NUDGE / logits.std()) > GAIN:
            raise Unsuitable(f"rounding grows by {gain:.0f}")
    best = np.sort(steps[0], axis=-1)
    margin = (best[:, -1] - best[:, -2]).min()
    if margin < (VIDEO_MARGIN if clips else MARGIN):
        raise Unsuitable(f"greedy margin {margin:.1e}")
    if drawn and (tokens.shape[1] < new_tokens or len(set(tokens[0].tolist())) < 4):
        raise Unsuitable(f"dull text {tokens[0].tolist()}")
    onto = projection(logits.shape[-1]).astype(np.float64)
    log_probabilities = steps[0] - np.log(np.exp(steps[0]).sum(axis=-1, keepdims=True))
    return {
        "ids": inputs["input_ids"][0].numpy().astype(np.uint16),
        "last": logits[-1].astype(np.float32),
        "projected": (logits @ onto).astype(np.float32),
        "std": np.float32(logits.std()),
        "tokens": tokens[0].astype(np.uint16),
        "steps": (log_probabilities @ onto).astype(np.float32),
    }


def _nudged(model: Any, inputs: dict[str, torch.Tensor], draw: int) -> np.ndarray:
    """Logits (L, V) of the whole prompt where all that goes in is another by a few roundings."""
    random = np.random.default_rng(draw)

    def nudged(value: torch.Tensor) -> torch.Tensor:
        return value * torch.from_numpy(1 + NUDGE * random.choice([-1.0, 1.0], value.shape)).to(value.dtype)

    handle = model.get_input_embeddings().register_forward_hook(lambda module, arguments, out: nudged(out))
    try:
        floats = {key: nudged(value) for key, value in inputs.items() if value.is_floating_point()}
        return model(**(inputs | floats)).logits[0].double().numpy()
    finally:
        handle.remove()


def _greedy(model: Any, inputs: dict[str, torch.Tensor], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, steps, V) and tokens (B, steps), up to the end token."""
    outputs = model.generate(
        **inputs, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    tokens = outputs.sequences[:, inputs["input_ids"].shape[1] :]
    return torch.stack(outputs.logits, dim=1).double().numpy(), tokens.numpy()


class _RoutingMargins:
    """The smallest margin of a chosen expert over the best one that is not chosen."""

    def __init__(self, model: Any) -> None:
        self.smallest = np.inf
        self.routers = [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]
        self.others = [module for module in model.modules() if type(module).__name__ == "Gemma4TextRouter"]
        self.scorers = [module for module in model.modules() if type(module).__name__ == "Llama4Router"]

    def __enter__(self) -> Self:
        self.handles = [router.register_forward_pre_hook(self._before_router) for router in self.routers]
        self.handles += [router.register_forward_hook(self._after_router) for router in self.others]
        self.handles += [router.register_forward_hook(self._after_scorer) for router in self.scorers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _before_router(self, router: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        hidden = arguments[0].reshape(-1, arguments[0].shape[-1])
        scores = hidden @ router.weight.T
        corrected = hasattr(router, "e_score_correction_bias")
        scores = scores.sigmoid() + router.e_score_correction_bias if corrected else scores.softmax(dim=-1)
        if hasattr(router, "moe_statics"):
            scores = router.moe_statics(scores)
        scores = scores.sort(descending=True).values
        self._note(scores, router.top_k)

    def _after_router(self, router: Any, _: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        """For a router that returns the probabilities of all experts."""
        self._note(outputs[0].sort(descending=True).values, router.config.top_k_experts)

    def _after_scorer(self, router: Any, _: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        """For a router that returns the weights of those that it chose, and all scores."""
        self._note(outputs[1].sort(descending=True).values, router.top_k)

    def _note(self, scores: torch.Tensor, chosen: int) -> None:
        gap = scores[:, chosen - 1] - scores[:, chosen]
        self.smallest = min(self.smallest, gap.min().item())


def padded_difference(
    recipe: Recipe, model: Any, processor: Any, rows: list[Case], single: list[dict[str, np.ndarray]]
) -> float:
    """The largest difference in logits of transformers' padded rows from the single runs, which are the reference."""
    with torch.no_grad():
        inputs = model_inputs(recipe, processor, rows)
        logits = model(**inputs).logits[:, -1].double().numpy()
        tokens = _greedy(model, inputs, recipe.new_tokens)[1]
    same = all(
        row[: len(alone["tokens"])].tolist() == alone["tokens"].tolist()
        for row, alone in zip(tokens, single, strict=True)
    )
    return float(np.abs(logits - [alone["last"] for alone in single]).max()) if same else np.inf


# Families


def make_family(name: str, recipe: Recipe) -> None:
    """Write reference/<name>/."""
    folder = REFERENCE / name
    folder.mkdir(parents=True, exist_ok=True)
    config, shapes = saved_form(recipe)
    for seed in range(1000):
        tensors = draw(shapes, seed, recipe.rules) | recipe.buffers
        with tempfile.TemporaryDirectory() as temporary:

            def checkpoint(layout: Layout, tensors: Tensors = tensors, root: str = temporary) -> Path:
                return assemble(recipe, config, tensors, layout, Path(root, layout))

            try:
                arrays, record = run_cases(checkpoint("v5"), recipe)
            except Unsuitable as reason:
                print(f"{name}: seed {seed}: {reason}")
                continue
            check_hub_layout(checkpoint("v5"), checkpoint("hub"), recipe)
        break
    else:
        raise RuntimeError(f"{name}: no seed gives clear cases")
    write_json(folder / "config.json", config)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(shape)}" for key, shape in sorted(shapes.items()))
    (folder / "shapes.json").write_text(f"{{\n{lines}\n}}\n")
    write_record(folder, arrays, record, seed, recipe, fingerprint(tensors))


def make_demo() -> None:
    """Write reference/demo/ from the built-in model's folder."""
    folder = REFERENCE / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    arrays, record = run_cases(DEMO_MODEL, DEMO)
    write_record(folder, arrays, record, 0, DEMO, media.file_hash(DEMO_MODEL / "model.safetensors"))


def write_record(
    folder: Path, arrays: dict[str, np.ndarray], record: dict[str, Any], seed: int, recipe: Recipe, mark: str
) -> None:
    """cases.npz and cases.json."""
    _save(folder / "cases.npz", arrays)
    write_json(
        folder / "cases.json",
        {
            "seed": seed,
            "rules": recipe.rules,
            "processor": recipe.processor and recipe.processor.name,
            "channels_last": bool(recipe.processor and recipe.processor.channels_last),
            "fingerprint": mark,
            "transformers": transformers.__version__,
            **record,
        },
    )
    print(f"{folder.name}: written with seed {seed}")


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def saved_form(recipe: Recipe) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """config.json, and names and shapes of the tensors, as transformers saves the family."""
    tokenizer = build_tokenizer(recipe.tokenizer)
    config = recipe.config(tokenizer.convert_tokens_to_ids, len(tokenizer))
    auto = auto_class(config.to_dict())
    with tempfile.TemporaryDirectory() as temporary:
        auto.from_config(config, dtype=torch.float32).save_pretrained(temporary)
        saved = load_file(Path(temporary, "model.safetensors"))
        return read_json(Path(temporary, "config.json")), {name: tensor.shape for name, tensor in saved.items()}


def run_cases(checkpoint: Path, recipe: Recipe) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays for cases.npz and the record for cases.json."""
    model, processor = load_model(checkpoint), load_processor(recipe)
    single = {
        name: run_case(
            model, model_inputs(recipe, processor, [case]), recipe.new_tokens, bool(case.videos), recipe is not DEMO
        )
        for name, case in recipe.cases.items()
    }
    if recipe.processor:
        pixels = REFERENCE / "processors" / recipe.processor.name / "pixels.npz"
        pixels.parent.mkdir(parents=True, exist_ok=True)
        _save(pixels, pixel_levels(recipe, processor))
    record = {
        "cases": {
            name: {
                "messages": None if isinstance(case.prompt, str) else case.prompt,
                "text": prompt_text(processor, case),
                "images": list(case.images),
                "videos": list(case.videos),
                **({"audios": list(case.audios)} if case.audios else {}),
            }
            for name, case in recipe.cases.items()
        },
        "batches": recipe.batches,
        "new_tokens": recipe.new_tokens,
    }
    for name, rows in recipe.batches.items():
        cases, alone = [recipe.cases[row] for row in rows], [single[row] for row in rows]
        difference = padded_difference(recipe, model, processor, cases, alone)
        print(f"{name}: transformers' padded rows are off by {difference:.0e}")
    arrays = {f"{name}.{key}": value for name, case in single.items() for key, value in case.items()}
    return arrays, record


def check_hub_layout(v5: Path, hub: Path, recipe: Recipe) -> None:
    """transformers must read the "hub" layout as the same model."""
    case = list(recipe.cases.values())[-1]
    inputs = model_inputs(recipe, load_processor(recipe), [case])
    models = [load_model(folder) for folder in (v5, hub)]
    for model in models:  # to equal addresses, which decide how the last bit is rounded
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    logits = [model(**inputs).logits.detach() for model in models]
    difference = (logits[0] - logits[1]).abs().max().item()
    if difference:
        raise RuntimeError(f'transformers reads the "hub" layout differently: {difference}')


def main(names: list[str]) -> None:
    """Make the families of `names`, or all."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = [*recipes(), *(["demo"] if DEMO_MODEL.exists() else [])]
    write_kits(names or known)
    for name in names or known:
        if name not in known:
            raise SystemExit(f"unknown family {name!r}; known: {', '.join(known)} (layouts: {', '.join(LAYOUTS)})")
        make_demo() if name == "demo" else make_family(name, recipes()[name])


if __name__ == "__main__":
    main(sys.argv[1:])
