"""Keywords of `stream_generate` and `batch_generate`, one or two at a time, with values of any kind."""

import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from parity.layouts import write_checkpoint

import mlx_vlgen
from mlx_vlgen.options import OPTIONS

from .trial import Try
from .values import NUMBERS, array, text, value

NAMES = [option.name for option in OPTIONS if option.name != "draft_model"]
CALLABLES = ["logits_processors", "sampler", "stopping_criteria", "logprobs", "top_logprobs", "logit_bias"]
MEDIA = ["image", "video", "audio", "prompt"]


class Attack:
    """On a tiny Qwen3-VL."""

    def __init__(self, folder: Path):
        self._loaded = mlx_vlgen.load(write_checkpoint("qwen3_vl", "v5", folder / "model"), dtype="float32")
        self._image = np.full((48, 64, 3), 128, dtype=np.uint8)

    def draw(self, seed: int) -> Try:
        draw = random.Random(seed)
        keywords: dict[str, Any] = {"prompt": [{"role": "user", "content": "Hello"}]}
        if draw.random() < 0.3:
            keywords["image"] = self._image
        for name in draw.sample([*NAMES, *CALLABLES, *MEDIA], draw.choice([1, 1, 2])):
            keywords[name] = self._value(draw, name)
        run = self._batch if draw.random() < 0.3 else self._stream
        arguments = [*keywords, "images", "prompts", "videos", "audios", *CALLABLES, "logits processor"]
        return Try(f"{run.__name__} {keywords!r:.300}", lambda: run(keywords), arguments)

    def _value(self, draw: random.Random, name: str) -> Any:
        if name == "logit_bias":
            return {draw.choice(NUMBERS): draw.choice(NUMBERS) for _ in range(draw.randrange(3))}
        if name == "prompt" and draw.random() < 0.5:
            return text(draw)
        if name in ("image", "video") and draw.random() < 0.5:
            return array(draw)
        return draw.choice(NUMBERS) if draw.random() < 0.5 else value(draw)

    def _stream(self, keywords: dict[str, Any]) -> None:
        stream = mlx_vlgen.stream_generate(*self._loaded, **keywords)
        for result in islice(stream, 4):
            result.logprobs  # noqa: B018  computed when it is looked at
        stream.close()  # type: ignore[attr-defined]

    def _batch(self, keywords: dict[str, Any]) -> None:
        keywords = dict(keywords)
        prompt, image, video = (keywords.pop(name, None) for name in ("prompt", "image", "video"))
        audio = keywords.pop("audio", None)
        keywords.setdefault("max_tokens", 3)
        keywords["max_time"] = keywords.get("max_time", 1.0)
        mlx_vlgen.batch_generate(
            *self._loaded,
            prompts=[prompt, "Hello"],
            images=[image, None],
            videos=[video, None],
            audios=audio,
            **keywords,
        )
