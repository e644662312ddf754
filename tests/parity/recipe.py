"""The parts of a family's reference: its configuration, tokenizer, processor, cases and published layouts.

A new family is a file in recipes/. Nothing here needs transformers or torch until a recipe's functions are called,
which only make_reference.py does; the layouts are for the tests too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import media
from .weights import Rule, Tensors

Messages = list[dict[str, Any]]
Config = dict[str, Any]
Ids = Callable[[str], int]
"""From a special token to its id."""


def holds_audio(prompt: Messages | str | None) -> bool:
    """Whether parts of messages are sound."""
    parts = [part for message in prompt or () if isinstance(message, dict) for part in message["content"]]
    return any(isinstance(part, dict) and part["type"] == "audio" for part in parts)


@dataclass(frozen=True)
class Case:
    """One request: `prompt` is messages, which the chat template formats, or text as it is.

    images, videos, audios: names in media.py, in order of appearance; audios that no part stands for are the sound of
    the videos.
    """

    prompt: Messages | str
    images: Sequence[str] = ()
    videos: Sequence[str] = ()
    audios: Sequence[str] = ()

    @property
    def hears_videos(self) -> bool:
        return bool(self.audios) and not holds_audio(self.prompt)


@dataclass(frozen=True)
class TokenizerKit:
    """Special tokens and template over the common byte-pair model; `bos` stands before every text, and has the first
    of the special tokens' ids where `first` says so. named: attributes of the tokenizer (`image_token`, …)."""

    name: str
    specials: Sequence[str]
    eos: str
    pad: str
    template: str
    bos: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)


def metadata(clips: list[np.ndarray]) -> Config:
    """Keywords about clips for transformers' newer video processors."""
    return {
        "video_metadata": [
            {
                "fps": media.CLIP_FPS,
                "total_num_frames": len(clip),
                "frames_indices": list(range(len(clip))),
                "duration": len(clip) / media.CLIP_FPS,
            }
            for clip in clips
        ]
    }


@dataclass(frozen=True)
class ProcessorKit:
    """`build` gives transformers' processor on a tokenizer, pictures resized by Pillow.

    image, video: that processor and a picture (H, W, 3), or a clip (T, H, W, 3), to (pixels as `Media.pixels` has them,
    grid as `Media.grid` has it). channels: where they lie in pixels once everything else is flattened: (N, 3, rest) or
    (N, rest, 3). nested: whether it takes pictures as one list a row. one_of_several: as image, of a picture that is
    not the only one of its prompt, where that differs. clips: the processor's keywords for clips.
    audio: that processor and a sound (n,) float32 to (features as `Media.pixels` has them, grid).
    """

    name: str
    build: Callable[[Any], Any]
    image: Callable[[Any, np.ndarray], tuple[np.ndarray, tuple[int, ...]]] | None = None
    video: Callable[[Any, np.ndarray], tuple[np.ndarray, tuple[int, ...]]] | None = None
    channels_last: bool = False
    nested: bool = False
    one_of_several: Callable[[Any, np.ndarray], tuple[np.ndarray, tuple[int, ...]]] | None = None
    clips: Callable[[list[np.ndarray]], Config] = metadata
    audio: Callable[[Any, np.ndarray], tuple[np.ndarray, tuple[int, ...]]] | None = None


def as_they_are(tensors: Tensors) -> Tensors:
    return tensors


def nothing(config: Config) -> None:
    pass


@dataclass(frozen=True)
class Recipe:
    """A family: `config(ids, vocabulary)` is transformers' configuration object.

    batches: names of cases that are answered together. rules: see weights.draw. new_tokens: the limit of greedy steps.
    hub, mlx: tensors as transformers 5 saves them to those of the Hub's original, and of conversions for MLX.
    legacy: what transformers 4.x wrote otherwise in config.json, beyond `layouts.hub_config`; changes it in place.
    mlx_config: what conversions for MLX wrote otherwise, beyond that; changes it in place.
    """

    config: Callable[[Ids, int], Any]
    tokenizer: TokenizerKit
    cases: dict[str, Case]
    batches: dict[str, list[str]]
    processor: ProcessorKit | None = None
    rules: Sequence[Rule] = ()
    new_tokens: int = 12
    hub: Callable[[Tensors], Tensors] = as_they_are
    mlx: Callable[[Tensors], Tensors] = as_they_are
    legacy: Callable[[Config], None] = nothing
    mlx_config: Callable[[Config], None] = nothing


# Cases


def user(*content: str) -> Messages:
    """One turn; "image", "video" and "audio" stand for media, other strings are text."""
    parts = [
        {"type": part} if part in ("image", "video", "audio") else {"type": "text", "text": part} for part in content
    ]
    return [{"role": "user", "content": parts}]


def case_texts(case: Case) -> list[str]:
    """The texts of a case's prompt."""
    if isinstance(case.prompt, str):
        return [case.prompt]
    contents = [message["content"] for message in case.prompt]
    return [
        text
        for content in contents
        for text in ([content] if isinstance(content, str) else [part["text"] for part in content if "text" in part])
    ]


DIALOGUE = [
    {"role": "system", "content": "You are a careful assistant. Answer in français, 日本語 or emoji 🙂."},
    {"role": "user", "content": "Describe the picture, s'il te plaît: naïve café, 図書館, 12345 + 678?"},
    {"role": "assistant", "content": "A café, très naïve."},
    {"role": "user", "content": "And what else is there? 続けて。"},
]
VISION_CASES = {
    "text": Case(user("Describe the user.")),
    "dialogue": Case(DIALOGUE),
    "img1": Case(user("image", "Describe this image."), images=["plain"]),
    "upright": Case(user("image", "What is it? Tell the model more about the picture."), images=["upright"]),
    "img2": Case(user("image", " and ", "image", "What differs?"), images=["upright", "large"]),
}
VIDEO_CASES = {
    "video": Case(user("video", "Describe this video."), videos=["clip"]),
    "odd_video": Case(user("video", "What moves?"), videos=["odd_clip"]),
    "img_video": Case(user("image", "video", "Compare."), images=["small"], videos=["clip"]),
    "video_img": Case(user("video", "image", "Compare."), images=["upright"], videos=["odd_clip"]),
}
AUDIO_CASES = {
    "audio": Case(user("audio", "Describe this."), audios=["sound"]),
    "audio2": Case(user("audio", " and ", "audio", "What differs?"), audios=["sound", "short_sound"]),
    "long_audio": Case(user("What is it? Tell the model more.", "audio"), audios=["long_sound"]),
    "audio_dialogue": Case(
        [
            *user("audio", "What is it?"),
            {"role": "assistant", "content": [{"type": "text", "text": "A café, très naïve."}]},
            *user("And what else is there?", "audio"),
        ],
        audios=["short_sound", "sound"],
    ),
}
AUDIO_BATCHES = {"batch_audio": ["audio", "long_audio", "text"]}
VISION_BATCHES = {"batch": ["img1", "upright", "text"]}
VIDEO_BATCHES = {"batch_video": ["video", "img2", "dialogue"]}

TEXT_CASES = {
    "short": Case([{"role": "user", "content": "Describe the user."}]),
    "plain": Case("The picture of the user is a café"),
    "long": Case(DIALOGUE[1:]),
}
TEXT_BATCHES = {"batch": ["short", "long", "plain"]}


# What processors and configurations share


def whisper_extractor(**settings: Any) -> Any:
    """transformers' extractor on its path of numpy, from which that of torch is 5e-5 off."""
    import transformers

    base = transformers.WhisperFeatureExtractor
    numpy_path = {"_torch_extract_fbank_features": base._np_extract_fbank_features}
    return type(base.__name__, (base,), numpy_path)(**settings)


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}


def rope(theta: float, **more: Any) -> Config:
    return {"rope_type": "default", "rope_theta": theta} | more


def ends(bos: str, eos: str, pad: str) -> Callable[[Ids], Config]:
    return lambda ids: {"bos_token_id": ids(bos), "eos_token_id": ids(eos), "pad_token_id": ids(pad)}


QWEN_ENDS = ends("<|endoftext|>", "<|im_end|>", "<|endoftext|>")
QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<think>", "</think>",
)  # fmt: skip

# Gemma multiplies normalised states by 1 + weight, and embeddings by the root of the hidden size.
GEMMA_RULES: Sequence[Rule] = ((r"norm\.weight$", 0.0, 0.2), (r"embed_tokens\.weight$", 0.0, 0.04))


# Tensors in conversions for MLX


MLX_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "vision_tower."),
    ("lm_head.", "language_model.lm_head."),
)
"""What conversions call the parts that transformers 5 calls so, in families with a `visual` tower."""


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """With the first fitting (old, new) beginning of each name replaced."""

    def rename(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in pairs if name.startswith(old)), name)

    return {rename(name): tensor for name, tensor in tensors.items()}


def channels_last(tensors: Tensors) -> Tensors:
    """Convolutions (out, in, *kernel) with their channels last; experts (E, out, in) are none."""
    return {
        name: np.ascontiguousarray(np.moveaxis(tensor, 1, -1))
        if tensor.ndim >= 4 or name.endswith("conv.conv.weight")
        else tensor
        for name, tensor in tensors.items()
    }


def swap(tensor: np.ndarray, first: int, second: int) -> np.ndarray:
    return np.ascontiguousarray(np.swapaxes(tensor, first, second))


def switch_experts(tensors: Tensors) -> Tensors:
    """`switch_mlp.{gate,up,down}_proj.weight` (E, out, in) from fused experts or from experts saved one by one."""
    out: Tensors = {}
    single: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        stem, is_expert, rest = name.partition(".experts.")
        if not is_expert:
            out[name] = tensor
        elif rest == "gate_up_proj":
            gate, up = np.split(tensor, 2, axis=1)
            out[f"{stem}.switch_mlp.gate_proj.weight"] = np.ascontiguousarray(gate)
            out[f"{stem}.switch_mlp.up_proj.weight"] = np.ascontiguousarray(up)
        elif rest == "down_proj":
            out[f"{stem}.switch_mlp.down_proj.weight"] = tensor
        else:
            number, projection = rest.split(".", 1)
            single.setdefault(f"{stem}.switch_mlp.{projection}", {})[int(number)] = tensor
    return out | {name: np.stack([experts[i] for i in sorted(experts)]) for name, experts in single.items()}
