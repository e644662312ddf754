"""Every call that these tests make into mlx_vlgen."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

import mlx_vlgen
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.inputs.prompt import Media, MediaInputs, Prompt
from mlx_vlgen.models import FAMILIES, PROVED_TEXT

from . import expected, media
from .expected import Expected

Loaded = tuple[Any, Any]
"""Model and processor."""


def supported() -> set[str]:
    """Every model_type that is said to be right."""
    return {*FAMILIES, *PROVED_TEXT}


def load(folder: Path) -> Loaded:
    """The checkpoint in float32."""
    return mlx_vlgen.load(str(folder), dtype="float32")


def format_prompt(loaded: Loaded, messages: list[dict[str, Any]]) -> str:
    """The chat template's text."""
    model, processor = loaded
    return mlx_vlgen.apply_chat_template(processor, model.config, messages)


def prepare(loaded: Loaded, prompt: Any, case: Expected) -> Prompt:
    """Token ids and pixels of a prompt with the media of a case."""
    return loaded[1].prepare(prompt, _media(case))


def pixel_values(loaded: Loaded, medium: Media) -> np.ndarray:
    """Normalised pixels of a processed medium, as transformers lays them out."""
    values: np.ndarray = loaded[1].pixel_values(medium)
    return values


def with_pixels(prompt: Prompt, pixels: Sequence[np.ndarray]) -> Prompt:
    """The prompt with other pixels, one array per medium."""
    replaced = (dataclasses.replace(m, pixels=p) for m, p in zip(prompt.media, pixels, strict=True))
    return dataclasses.replace(prompt, media=tuple(replaced))


def reference_pixels(family: str, case: Expected, prompt: Prompt) -> list[np.ndarray]:
    """The reference's pixels of a prompt's media, as towers take them; of sounds what is made here."""
    references = expected.media_pixels(family, case, [medium.kind for medium in prompt.media])
    return [
        medium.pixels if isinstance(reference, expected.Sound) else reference.normalised
        for medium, reference in zip(prompt.media, references, strict=True)
    ]


def logits(loaded: Loaded, prompt: Prompt) -> np.ndarray:
    """(L, V) of a whole prompt in one forward."""
    model = loaded[0]
    features = [model.encode([medium])[0] for medium in prompt.media]
    logits = model(model.embed(prompt, features), make_cache(model.cache_layout()))
    return np.array(logits.astype(mx.float32))[0]


class _WithPixels:
    """A processor whose prompts carry given pixels in the place of those it makes."""

    def __init__(self, processor: Any, pixels: Sequence[np.ndarray]) -> None:
        self._processor, self._pixels = processor, pixels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def prepare(self, *arguments: Any, **keywords: Any) -> Prompt:
        return with_pixels(self._processor.prepare(*arguments, **keywords), self._pixels)


def greedy(loaded: Loaded, case: Expected, pixels: Sequence[np.ndarray], count: int) -> tuple[list[int], np.ndarray]:
    """Tokens, and log-probabilities (count, V) that they were chosen from, by `stream_generate` on given pixels."""
    model, processor = loaded
    stream = mlx_vlgen.stream_generate(
        model, cast(Any, _WithPixels(processor, pixels)), case.text, **_media_keywords(case), max_tokens=count
    )
    tokens, log_probabilities = [], []
    for result in stream:
        tokens.append(_token(result))
        log_probabilities.append(np.array(result.logprobs))
    return tokens, np.stack(log_probabilities)


def generate(loaded: Loaded, case: Expected, count: int) -> list[int]:
    """Tokens by `generate`, from the case's messages or text."""
    return mlx_vlgen.generate(*loaded, case.prompt, **_media_keywords(case), max_tokens=count).tokens


def batch_generate(loaded: Loaded, cases: Sequence[Expected], count: int) -> list[list[int]]:
    """Tokens of each row by `batch_generate`."""
    images, audios = ([list(getattr(_media(case), kind)) for case in cases] for kind in ("images", "audios"))
    response = mlx_vlgen.batch_generate(
        *loaded, images=images, audios=audios, prompts=[case.prompt for case in cases], max_tokens=count
    )
    return [result.tokens for result in response.results]


def iterate(loaded: Loaded, cases: Sequence[Expected], count: int) -> list[list[int]]:
    """Tokens of each row by one `TokenIterator`."""
    rows: dict[int, list[int]] = {}
    with mlx_vlgen.TokenIterator(*loaded) as iterator:
        for case in cases:
            request = mlx_vlgen.Request(case.prompt, _media(case), mlx_vlgen.SamplingParams(max_tokens=count))
            rows[iterator.add(request)] = []
        for row, result in iterator:
            rows[row].append(_token(result))
    return list(rows.values())


def _token(result: mlx_vlgen.GenerationResult) -> int:
    if result.error:
        raise result.error
    assert result.token is not None
    return result.token


def _media_keywords(case: Expected) -> dict[str, Any]:
    """A case's media as keywords: nothing, one, or a list."""
    media = _media(case)
    images, videos, audios = list(media.images), list(media.videos), list(media.audios)
    keywords: dict[str, Any] = {}
    if images:
        keywords["image"] = images if len(images) > 1 else images[0]
    if videos:
        keywords |= {"video": videos if len(videos) > 1 else videos[0], "video_fps": media.video_fps}
    if audios:
        keywords["audio"] = audios if len(audios) > 1 else audios[0]
    if media.use_audio_in_video:
        keywords["use_audio_in_video"] = True
    return keywords


def _media(case: Expected) -> MediaInputs:
    return MediaInputs(
        images=[media.picture(name) for name in case.images],
        videos=[media.clip(name) for name in case.videos],
        audios=[media.sound(name) for name in case.audios],
        video_fps=media.CLIP_FPS if case.videos else None,
        use_audio_in_video=case.hears_videos,
    )
