"""`python -m mlx_vlgen.verify`: a checkpoint here beside transformers, and beside itself, as one report."""

if __name__ == "__main__":
    from .entry import run

    run("main_verify")

import platform
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from ._runtime import mx
from .engine.iterator import TokenIterator
from .engine.params import SamplingParams
from .engine.request import Request
from .engine.store import PrefixCache
from .errors import VlgenError, one_line
from .flags import Parser
from .inputs.audio import load_audio
from .inputs.media import load_image
from .loading.checkpoint import read_config
from .loading.hub import locate
from .loading.loader import load
from .models import find

STEPS = 16
"""Tokens that each case is answered with."""

BOUND = 1e-4
"""What float32 logits and log-probabilities may differ by, in parts of the greater of 1 and their standard deviation.
Other types have no bound: what they differ by is told."""

FEATURE_BOUND = 1e-3
"""What features of sound may differ by, in parts of the greater of 1 and their standard deviation: logarithms of a
spectrum that NumPy and torch transform by different roundings."""

RATE = 16_000
"""Samples a second of a clip, which both sides get as an array."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """messages: as transformers takes them; pictures, clips: those of them, in order."""

    name: str
    messages: list[Message]
    pictures: Sequence[Any] = ()
    clips: Sequence[np.ndarray] = ()


Tensors = dict[str, np.ndarray]
"""A processor's output, as numpy arrays."""


@dataclass(frozen=True)
class Answer:
    """logits: (steps, V) before each token. tokens: (steps,)."""

    logits: np.ndarray
    tokens: list[int]


@dataclass(frozen=True)
class Line:
    """One line of the report. verdict: "equal", "told" (no bound holds for it) or what is wrong."""

    case: str
    measured: Mapping[str, str]
    verdict: str

    @property
    def good(self) -> bool:
        return self.verdict in ("equal", "told")


def make_cases(pictures: Sequence[Any], clips: Sequence[np.ndarray], kinds: Container[str]) -> list[Case]:
    """pictures, clips: two of each. kinds: of media that the model takes."""

    def case(name: str, text: str, pictures: Sequence[Any] = (), clips: Sequence[np.ndarray] = ()) -> Case:
        parts = [
            *({"type": "image", "image": picture} for picture in pictures),
            *({"type": "audio", "audio": clip} for clip in clips),
            {"type": "text", "text": text},
        ]
        return Case(name, [{"role": "user", "content": parts if sees or hears else text}], pictures, clips)

    sees, hears = "image" in kinds, "audio" in kinds
    cases = [case("text", "Write one sentence about the sea.")]
    if sees:
        cases.append(case("one picture", "Describe this image.", pictures[:1]))
        cases.append(case("two pictures", "What is different?", pictures))
    if hears:
        cases.append(case("one clip", "What do you hear?", clips=clips[:1]))
        cases.append(case("a longer clip", "Describe this sound.", clips=clips[1:]))
    if sees and hears:
        cases.append(case("a picture and a clip", "Do they belong together?", pictures[:1], clips[:1]))
    return cases


class Theirs:
    """transformers' answers on torch. The model is not held: beside ours there may be no room for it.

    tensors, answers: of each case, by its name. level: one of 8 bits, in normalised values.
    """

    def __init__(self, folder: Path, cases: Sequence[Case], dtype: str, device: str):
        import torch
        import transformers

        media = not isinstance(cases[0].messages[0]["content"], str)
        general = "AutoModelForMultimodalLM" if media else "AutoModelForCausalLM"
        kind = getattr(transformers, _THINKERS.get(read_config(folder)["model_type"].removesuffix("_thinker"), general))
        model = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
        processor = (transformers.AutoProcessor if media else transformers.AutoTokenizer).from_pretrained(folder)
        stds = getattr(getattr(processor, "image_processor", None), "image_std", None) or [1.0]
        self.level = 1 / 255 / min(stds)
        self.tensors: dict[str, Tensors] = {}
        self.answers: dict[str, Answer] = {}
        for case in cases:
            inputs = processor.apply_chat_template(case.messages, **_TEMPLATE, return_tensors="pt")
            inputs = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
            self.tensors[case.name] = {name: value.numpy() for name, value in inputs.items()}
            floats = {name: value.to(model.dtype) for name, value in inputs.items() if value.is_floating_point()}
            with torch.no_grad():
                out = model.generate(**{k: v.to(device) for k, v in {**inputs, **floats}.items()}, **_GREEDY)
            logits = np.concatenate([step.float().cpu().numpy() for step in out.logits])
            self.answers[case.name] = Answer(logits, out.sequences[0, -len(logits) :].tolist())


class Ours:
    """This package, through the same calls. sounds: names of the tensors that are made of clips."""

    def __init__(self, folder: Path, dtype: str):
        self.model, self.processor = load(folder, dtype=dtype)
        self.sounds = self.processor.audio_tensors.names

    def prepare(self, case: Case) -> Tensors:
        inputs = self.processor.apply_chat_template(case.messages, **_TEMPLATE, return_tensors="np")
        return {name: np.asarray(value) for name, value in inputs.items()}

    def answer(self, tensors: Tensors) -> Answer:
        out = self.model.generate(**{name: mx.array(value) for name, value in tensors.items()}, **_GREEDY)
        logits = np.concatenate([np.array(mx.array(step).astype(mx.float32)) for step in out.logits])
        return Answer(logits, np.array(mx.array(out.sequences))[0, -len(logits) :].tolist())


_THINKERS = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
"""transformers' classes of those parts of models that speak which write the text."""

_FILES_ONLY = ("voxtral",)
"""Families whose processor there takes no sound but in files, which mistral-common reads."""

_TEMPLATE: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}

# Greedy whatever the checkpoint's defaults, and all steps, whichever tokens are drawn.
_GREEDY: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "max_new_tokens": STEPS, "min_new_tokens": STEPS,
    "output_logits": True, "return_dict_in_generate": True,
}  # fmt: skip


def compare(case: Case, ours: Ours, theirs: Theirs, exact: bool) -> Line:
    """Both processors, then both networks on what transformers' processor gave. exact: whether `BOUND` holds, as it
    does in float32."""
    here, tensors, b = ours.prepare(case), theirs.tensors[case.name], theirs.answers[case.name]
    wrong = []
    if not np.array_equal(here["input_ids"], tensors["input_ids"]):
        wrong.append("other token ids")
    floats = _floats(tensors, here)
    sounds = {name: value for name, value in floats.items() if name in ours.sounds}
    levels = _largest_difference(here, {n: v for n, v in floats.items() if n not in sounds}) / theirs.level
    if levels > 1.01:
        wrong.append("other pixels")
    features = _largest_difference(here, sounds) / max([1.0, *(float(value.std()) for value in sounds.values())])
    if features > FEATURE_BOUND:
        wrong.append("other features of sound")
    # Each has tensors beside the ids, the pixels and the features that the other does not want.
    a = ours.answer(here | floats if max(levels, features) < np.inf else here)
    same = _same_start(a.tokens, b.tokens)
    steps = slice(0, same + 1)
    finite = np.isfinite(b.logits[steps])
    spread = max(1.0, float(b.logits[steps][finite].std()))
    difference = float(np.abs(a.logits[steps][finite] - b.logits[steps][finite]).max()) / spread
    if exact and not difference <= BOUND:
        wrong.append("other logits")
    parting = "none"
    if same < STEPS:
        second, first = np.sort(b.logits[same][np.isfinite(b.logits[same])])[-2:]
        parting = f"{same + 1}, margin {(first - second) / spread:.1e}"
        if (first - second) / spread > 2 * difference:
            wrong.append("other tokens")
    measured = {
        "prompt": f"{tensors['input_ids'].shape[1]} tokens",
        "ids": "other" if "other token ids" in wrong else "equal",
        "pixels, in levels": f"{levels:.2f}" if case.pictures else "",
        "features of sound, in deviations": f"{features:.1e}" if case.clips else "",
        "logits, in deviations": f"{difference:.1e}",
        "first other token": parting,
    }
    return Line(case.name, measured, ", ".join(wrong) or ("equal" if exact else "told"))


def _floats(theirs: Tensors, ours: Tensors) -> Tensors:
    """Those of floats, without an axis of pictures and the tiles of zeros that fill it up: the rows of ours."""
    found = {name: value for name, value in theirs.items() if np.issubdtype(value.dtype, np.floating)}
    for name, value in found.items():
        shape = ours[name].shape[1:] if name in ours else ()
        if value.ndim == len(shape) + 2 and value.shape[2:] == shape:
            rows = value.reshape(-1, *shape)
            found[name] = rows[rows.reshape(len(rows), -1).any(axis=1)]
    return found


def _largest_difference(ours: Tensors, theirs: Tensors) -> float:
    """The largest between tensors of floats; infinite where one is missing or has another shape."""
    if any(name not in ours or ours[name].shape != value.shape for name, value in theirs.items()):
        return np.inf
    return max((float(np.abs(ours[name] - value).max()) for name, value in theirs.items()), default=0.0)


def _same_start(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def one_answer(ours: Ours, cases: Sequence[Case], exact: bool) -> Iterator[Line]:
    """Each case alone against itself in one batch, read in small chunks, and over a reused prefix."""
    alone = [_run(ours, [case])[0] for case in cases]
    cache = PrefixCache()
    _run(ours, cases, reuse=cache)
    runs: dict[str, dict[str, Any]] = {
        "in one batch": {},
        "in chunks of 7": {"prefill_step_size": 7},
        "over a reused prefix": {"reuse": cache},
    }
    for name, settings in runs.items():
        for case, one, other in zip(cases, alone, _run(ours, cases, **settings), strict=True):
            same = _same_start(one.tokens, other.tokens)
            steps = slice(0, same + 1)
            pairs = zip(one.logprobs[steps], other.logprobs[steps], strict=False)
            difference = max((float(np.abs(a - b).max()) / max(1.0, float(a.std())) for a, b in pairs), default=0.0)
            wrong = exact and (one.tokens != other.tokens or difference > BOUND)
            measured = {
                "log-probabilities, in deviations": f"{difference:.1e}",
                "first other token": "none" if one.tokens == other.tokens else str(same + 1),
                "reused": f"{other.reused} tokens",
            }
            yield Line(f"{case.name}, {name}", measured, "differs" if wrong else "equal" if exact else "told")


@dataclass
class Run:
    """Of one row. logprobs: (V,) of each of its tokens. reused: tokens of its prompt."""

    tokens: list[int]
    logprobs: list[np.ndarray]
    reused: int = 0


def _run(ours: Ours, cases: Sequence[Case], reuse: bool | PrefixCache = False, **settings: Any) -> list[Run]:
    """All cases together."""
    rows: dict[int, Run] = {}
    with TokenIterator(ours.model, ours.processor, reuse=reuse, **settings) as iterator:
        for case in cases:
            rows[iterator.add(Request(case.messages, sampling=SamplingParams(max_tokens=STEPS)))] = Run([], [])
        for row, result in iterator:
            if result.error is not None:
                raise result.error
            if result.token is not None:
                rows[row].tokens.append(result.token)
                rows[row].logprobs.append(np.array(result.logprobs))
            rows[row].reused = result.cached_tokens
    return list(rows.values())


def run_verify(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    for path in args.image:
        load_image(path)  # what cannot be read is told before anything is loaded
    clips = [load_audio(path, RATE) for path in args.audio]
    folder = locate(args.model)
    config = read_config(folder)
    kinds = find(config).processor_class().placeholders
    cases = make_cases([*args.image, *_drawn()][:2], [*clips, *_drawn_clips()][:2], kinds)
    torch = not args.no_torch and find_spec("torch") is not None
    print(_heading(args.model, config["model_type"], args.dtype, args.torch_device if torch else None), flush=True)
    exact, lines = args.dtype == "float32", list[Line]()
    both = [case for case in cases if not case.clips or config["model_type"] not in _FILES_ONLY]
    theirs = _theirs(folder, both, args.dtype, args.torch_device) if torch else None
    ours = Ours(folder, args.dtype)
    if theirs is not None:
        lines += _table("transformers", (compare(case, ours, theirs, exact) for case in both))
        if both != cases:
            print("Sound is not compared with transformers: its processor of this family reads files only.\n")
    else:
        reason = "--no-torch was given" if args.no_torch else "torch is not installed (pip install torch torchvision)"
        print(f"Not compared with transformers: {reason}.\n")
    lines += _table("itself", one_answer(ours, cases, exact))
    bad = [line for line in lines if not line.good]
    print(f"**{len(lines) - len(bad)} of {len(lines)} as they should be.**")
    return 1 if bad else 0


def _theirs(folder: Path, cases: Sequence[Case], dtype: str, device: str) -> Theirs:
    try:
        return Theirs(folder, cases, dtype, device)
    except Exception as error:  # transformers', torch's or a library's that they want
        raise VlgenError(
            f"transformers gives no answers: {one_line(error).rstrip('.')}. "
            "--no-torch compares the checkpoint with itself only"
        ) from error


def _drawn() -> list[Any]:
    """Two pictures, for who gives fewer: a ground that fades, with a disc on it, and noise of another shape."""
    from PIL import Image

    y, x = np.mgrid[0:300, 0:400]
    ground = np.stack([x * 255 // 400, y * 255 // 300, 255 - x * 255 // 400], -1).astype(np.uint8)
    ground[(x - 150) ** 2 + (y - 120) ** 2 < 70**2] = (250, 220, 30)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return [Image.fromarray(ground), Image.fromarray(noise).resize((512, 288), Image.Resampling.BICUBIC)]


def _drawn_clips() -> list[np.ndarray]:
    """Two clips, of 1.3 and 2.5 seconds: a tone that rises, in noise, and a lower one."""
    clips = []
    for number, seconds in enumerate((1.3, 2.5)):
        time = np.arange(int(seconds * RATE)) / RATE
        noise = np.random.default_rng(number).normal(scale=0.02, size=len(time))
        clips.append((0.3 * np.sin(2 * np.pi * time * (440 / (1 + number) + 300 * time)) + noise).astype(np.float32))
    return clips


def _heading(name: str, family: str, dtype: str, device: str | None) -> str:
    packages = ["mlx", "mlx-lm", "transformers", *(["torch"] if device else [])]
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    where = f"MLX on the {mx.default_device().type.name.upper()}" + (f", torch on {device}" if device else "")
    return (
        f"### {name} ({family}), {dtype}\n\n"
        f"mlx-vlgen {__version__}, {versions}; Python {platform.python_version()}, {platform.platform()}; {where}\n"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _table(beside: str, lines: Iterator[Line]) -> list[Line]:
    """Print lines as they come, as a table in Markdown."""
    done: list[Line] = []
    for line in lines:
        if not done:
            print(f"| beside {beside} | {' | '.join(line.measured)} | |\n|---|{'---:|' * len(line.measured)}---|")
        print(f"| {line.case} | {' | '.join(line.measured.values())} | {line.verdict} |", flush=True)
        done.append(line)
    print()
    return done
