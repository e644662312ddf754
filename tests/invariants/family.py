"""A tiny checkpoint, its requests, and the answers that a plain loop gives to them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import expected, media
from parity.recipe import holds_audio

import mlx_vlgen
from mlx_vlgen import SamplingParams
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.engine.intake import end_tokens
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.inputs.prompt import Media, MediaInputs
from mlx_vlgen.models.base import Embedded, Features

VARIANTS = frozenset(
    "cohere2_vision deepseek_ocr gemma4_moe glm46v glm46v_moe idefics2_whole internvl_internlm2 internvl_phi3 "
    "internvl_qwen3 llama4_maverick llava_siglip minicpmv4_6 molmo2_o paligemma qwen3_5_moe".split()
)
"""Of which another family has the model's class, the kinds of layers and the processor: parity goes through them, and
batches and talks with `-m slow`."""

STEPS = 8
"""Tokens of a reference answer, and the most that a test asks for."""

MEDIA = {
    "text": ["What can you do?"],
    "img1": ["plain", "Describe this image."],
    "upright": ["upright", "What is it?"],
    "img2": ["upright", " and ", "large", "What differs?"],
    "video": ["clip", "Describe this video."],
    "img_video": ["small", "clip", "Compare."],
}
"""Requests that the tests of what sees name: pictures, clips and words in order."""


def variants_slow(names: Iterable[str]) -> list[Any]:
    """Parameters of a test, `VARIANTS` under -m slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in names]


def encode_once(model: Any) -> None:
    """Have it remember the features of each picture. The built-in model's tower takes half the time of its tests, and
    is compared for itself in tests/parity and in test_demo.py; that of the tiny ones runs each time."""
    encode, known = model.encode, dict[str, Features]()

    def encode_new(media: Sequence[Media]) -> list[Features]:
        new = {medium.key: medium for medium in media if medium.key not in known}
        known.update(zip(new, encode(list(new.values())) if new else [], strict=True))
        return [known[medium.key] for medium in media]

    model.encode = encode_new


@dataclass(frozen=True)
class Ask:
    """A formatted prompt and its media, by their names in parity.media."""

    name: str
    text: str
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()
    hears_videos: bool = False

    @property
    def media(self) -> MediaInputs:
        return MediaInputs(
            images=[media.picture(name) for name in self.images],
            videos=[media.clip(name) for name in self.videos],
            audios=[media.sound(name) for name in self.audios],
            video_fps=media.CLIP_FPS if self.videos else None,
            use_audio_in_video=self.hears_videos,
        )


@dataclass(frozen=True, eq=False)
class Answer:
    """tokens (n,), and the log-probabilities (n, V) that each was chosen from."""

    tokens: list[int]
    scores: np.ndarray


@dataclass(eq=False)
class Family:
    """A loaded checkpoint. `answer` remembers what it computed; drawn: what rows that sample drew alone."""

    name: str
    folder: Path
    model: Any
    processor: Any
    drawn: dict[tuple[Ask, SamplingParams, KVSettings], Answer] = field(default_factory=dict)
    _answers: dict[Ask, Answer] = field(default_factory=dict)
    _features: dict[str, Features] = field(default_factory=dict)

    @staticmethod
    def load(name: str, folder: Path) -> "Family":
        return Family(name, folder, *mlx_vlgen.load(folder, dtype="float32"))

    @cached_property
    def asks(self) -> dict[str, Ask]:
        """The cases of the parity suite; those of `MEDIA` that it has not, for a family that sees; and short texts
        of equal lengths and unequal ones, down to one token."""
        asks = {name: self._ask(name, content) for name, content in MEDIA.items() if self._takes(content)}
        for name, case in expected.record(self.name)["cases"].items():
            names = (tuple(case.get(kind, ())) for kind in ("images", "videos", "audios"))
            hears_videos = bool(case.get("audios")) and not holds_audio(case["messages"])
            asks[name] = Ask(name, case["text"], *names, hears_videos)
        # Words with a space before each are the same tokens in any order: "words5" and "turned5" are equally long.
        words = " The picture of the user is beautiful and explicit is better than implicit although never is often"
        for count in (2, 5, 11, 16):
            chosen = [f" {word}" for word in words.split()[:count]]
            asks[f"words{count}"] = Ask(f"words{count}", "".join(chosen))
            if count in (5, 11):
                asks[f"turned{count}"] = Ask(f"turned{count}", "".join(reversed(chosen)))
        return asks | {"word": Ask("word", "The")}

    def _takes(self, content: Sequence[str]) -> bool:
        """Whether this family sees, and takes videos where there is one."""
        kinds = self.processor.placeholders
        return "image" in kinds and ("video" in kinds or not any(word in media.CLIPS for word in content))

    def _ask(self, name: str, content: Sequence[str]) -> Ask:
        """A turn of pictures and clips of parity.media, and other words."""
        kinds = dict.fromkeys(media.PICTURES, "image") | dict.fromkeys(media.CLIPS, "video")
        parts = [{"type": kinds[word]} if word in kinds else {"type": "text", "text": word} for word in content]
        text = mlx_vlgen.apply_chat_template(self.processor, self.model.config, [{"role": "user", "content": parts}])
        named = [tuple(word for word in content if kinds.get(word) == kind) for kind in ("image", "video")]
        return Ask(name, text, *named)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The end tokens."""
        return end_tokens(self.model, self.processor)

    def answer(self, ask: Ask, said: Sequence[int] = ()) -> Answer:
        """The greedy answer, up to its end token, `STEPS` tokens at most. said: what some row answered: where that is
        right, one forward tells so, and no loop needs to find it."""
        if ask not in self._answers:
            whole = len(said) == STEPS or {*said[-1:]} & self.ends
            scores = self.scores(ask, said) if whole else None
            if scores is None or scores.argmax(axis=1).tolist() != said or {*said[:-1]} & self.ends:
                self._answers[ask] = self._plain_loop(ask, None)
            else:
                self._answers[ask] = Answer(said, scores)
        return self._answers[ask]

    def scores(self, ask: Ask, tokens: Sequence[int], kv: KVSettings = KVSettings()) -> np.ndarray:
        """(n, V): the log-probabilities that each of these tokens would be chosen from."""
        return self._one_forward(ask, tokens) if kv == KVSettings() else self._plain_loop(ask, tokens, kv).scores

    def _encoded(self, medium: Media) -> Features:
        """Of it alone, which is done once."""
        if medium.key not in self._features:
            [self._features[medium.key]] = self.model.encode([medium])
        return self._features[medium.key]

    def _one_forward(self, ask: Ask, said: Sequence[int]) -> np.ndarray:
        """(n, V): what the plain loop finds token by token, of the prompt at once and of all that was said. What was
        said is no prompt: a drawn token that marks a picture is read as any other."""
        prompt = self.processor.prepare(ask.text, ask.media)
        cache = make_cache(self.model.cache_layout(), prompts=[len(prompt.tokens)])
        inputs = self.model.embed(prompt, [self._encoded(medium) for medium in prompt.media])
        logits = self.model(inputs, cache)[0, -1:]
        if len(said) > 1:
            after = Embedded(mx.array([said[:-1]]), delta=inputs.delta, variant=inputs.variant)
            logits = mx.concatenate([logits, self.model(after, cache)[0]])
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    def _plain_loop(self, ask: Ask, forced: Sequence[int] | None, kv: KVSettings = KVSettings()) -> Answer:
        """The whole prompt in one forward over unbatched caches, then one token at a time: what all rows must equal."""
        prompt = self.processor.prepare(ask.text, ask.media)
        inputs = self.model.embed(prompt, [self._encoded(medium) for medium in prompt.media])
        cache = make_cache(self.model.cache_layout(), kv, prompts=[len(inputs)])
        logits = self.model(inputs, cache)[0, -1]
        tokens: list[int] = []
        scores: list[np.ndarray] = []
        count = STEPS if forced is None else len(forced)
        while True:
            scores.append(np.array(logits - mx.logsumexp(logits)))
            tokens.append(int(scores[-1].argmax()) if forced is None else forced[len(tokens)])
            if len(tokens) == count or (forced is None and tokens[-1] in self.ends):
                break
            last = Embedded(mx.array([tokens[-1:]]), delta=inputs.delta, variant=inputs.variant)
            logits = self.model(last, cache)[0, -1]
        return Answer(tokens, np.stack(scores))
