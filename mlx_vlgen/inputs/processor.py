"""Text and media to a `Prompt`: the chat template, placeholders and their expansion, token ids."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import PromptError, UnsupportedError
from . import chat_template
from .chat_template import Message, Segment
from .prompt import Media, MediaInputs, Prompt, Span

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class Expansion:
    """What one placeholder becomes: `text`, in which the feature token stands once a feature, in runs of `counts`.
    The other fields are those of `Media`."""

    text: str
    counts: tuple[int, ...]
    pixels: np.ndarray
    grid: tuple[int, ...]
    size: tuple[int, int]
    seconds: float = 0.0


class _Method:
    """A method that `mlx_vlgen.hf.processing` has: imported when it is first looked up, since this room imports none
    above it."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        function = getattr(import_module("mlx_vlgen.hf.processing"), self._name)
        return function if instance is None else MethodType(function, instance)


class Processor:
    """A checkpoint's tokenizer, chat template and picture settings. Holds nothing about any request.

    tokenizer: transformers' own, which also takes and gives MLX's arrays. chat_template: Jinja source, or None.
    min_pixels, max_pixels: bounds of a picture's area where a request gives none; default None, the family's own.

    Code written for transformers finds its processors' methods, documented in `mlx_vlgen.hf.processing`.
    """

    __call__ = _Method("process")
    apply_chat_template = _Method("apply_chat_template")
    batch_decode = _Method("batch_decode")
    decode = _Method("decode")
    post_process_image_text_to_text = _Method("post_process_image_text_to_text")

    min_pixels: int | None = None
    max_pixels: int | None = None

    placeholders: Mapping[Kind, str] = {}
    """What stands for one picture or video in a formatted prompt, of each kind of media that the family takes."""

    feature_tokens: Mapping[Kind, str] = {}
    """The token that stands for one feature of it in the expanded text, where that is another one."""

    adds_first_token: ClassVar[bool] = True
    """Whether the tokenizer's own first token goes before a text that does not begin with it."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None):
        self.tokenizer, self.chat_template = tokenizer, chat_template

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "Processor":
        """The processor of the checkpoint in `folder`."""
        tokenizer = load_tokenizer(folder)
        return cls(tokenizer, load_template(folder, tokenizer))

    # -- what a family says

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        """Read and process one picture or video. media: all of the prompt's, and how to read them."""
        raise self.takes_no(kind)

    def lay_out(self, segments: list[Segment], images: int) -> list[Segment]:
        """What a formatted prompt for so many pictures still needs around it."""
        return segments

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        """The spans of a prompt whose tokens all see each other."""
        return ()

    # -- what is the same for all

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """Messages, as `chat_template.normalize` gives them, through the chat template; `kwargs` go to it."""
        kwargs.setdefault("add_generation_prompt", True)
        for part in chat_template.media_parts(messages):
            if part.kind not in self.placeholders:
                raise self.takes_no(part.kind)
        if not self.placeholders:
            messages = chat_template.joined(messages)
        reserved = [*self.placeholders.values(), *self.feature_tokens.values()]
        return chat_template.render(self.tokenizer, self.chat_template, messages, reserved, **kwargs)

    def prepare(self, prompt: str | Sequence[Message], media: MediaInputs = MediaInputs(), **kwargs: Any) -> Prompt:
        """A formatted string, or messages, with their media -> `Prompt`.

        In a string each placeholder stands for one of `media`, in order. Messages hold their own pictures and
        videos, or bare parts for those in `media`; without any such part, those in `media` go before the text of
        the last user message. kwargs: for the chat template (`enable_thinking`, …).
        PromptError when placeholders and media do not match; MediaError when one cannot be read.
        """
        given: dict[Kind, list[Any]] = {"image": list(media.images), "video": list(media.videos)}
        if isinstance(prompt, str):
            segments = [Segment(prompt)]
        else:
            messages = chat_template.normalize(prompt)
            messages = chat_template.place(messages, len(given["image"]), len(given["video"]))
            given = _fill(messages, given)
            segments = self.format(messages, **kwargs)
        segments = self.lay_out(segments, len(given["image"]))
        text = "".join(segment.text for segment in segments)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError("the prompt holds bytes that are not text in UTF-8: convert it, or remove them")
        self._check_counts(segments, given)
        media = replace(
            media,
            images=tuple(given["image"]),
            videos=tuple(given["video"]),
            min_pixels=self.min_pixels if media.min_pixels is None else media.min_pixels,
            max_pixels=self.max_pixels if media.max_pixels is None else media.max_pixels,
        )
        expansions: list[tuple[Kind, Expansion]] = []
        tokens = self._tokenize([self._expand(segment, given, media, expansions) for segment in segments])
        processed = tuple(self._media(tokens, expansions))
        return Prompt(tokens, processed, self.two_way(tokens, processed), text)

    def _check_counts(self, segments: Sequence[Segment], given: Mapping[Kind, Sequence[Any]]) -> None:
        for kind, sources in given.items():
            token = self.placeholders.get(kind)
            if token is None:
                if sources:
                    raise self.takes_no(kind)
                continue
            found = sum(segment.text.count(token) for segment in segments if not segment.literal)
            if found != len(sources):
                raise PromptError(
                    f"the prompt has {found} placeholder{'s' * (found != 1)} {token} and {len(sources)} "
                    f"{_words(kind)}{'s' * (len(sources) != 1)} {'were' if len(sources) != 1 else 'was'} given: "
                    "give as many of one as of the other. `apply_chat_template(processor, config, text, "
                    "num_images=…)` writes the placeholders, and so do messages instead of a string"
                )
        for token in set(self.feature_tokens.values()) - set(self.placeholders.values()):
            if any(token in segment.text for segment in segments if not segment.literal):
                raise PromptError(
                    f"the prompt holds {token}, which stands for one feature of a picture and is written by the "
                    f"processor: write {' or '.join(self.placeholders.values())} where a picture belongs"
                )

    def takes_no(self, kind: str) -> UnsupportedError:
        """What to raise where media of a kind are given that this model does not take."""
        takes = ["text", *(_words(own) + "s" for own in self.placeholders)]
        listed = ", ".join(takes[:-1]) + " and " * (len(takes) > 1) + takes[-1]
        return UnsupportedError(f"{_a(kind)} was given, and this model takes only {listed}")

    def _expand(
        self,
        segment: Segment,
        given: Mapping[Kind, list[Any]],
        media: MediaInputs,
        expansions: list[tuple[Kind, Expansion]],
    ) -> Segment:
        """The segment with each placeholder expanded; takes the sources out of `given` and notes the expansions."""
        if segment.literal or not self.placeholders:
            return segment
        kinds = {token: kind for kind, token in self.placeholders.items()}

        def replace(match: re.Match[str]) -> str:
            kind = kinds[match.group()]
            expansion = self.expand(kind, given[kind].pop(0), media)
            expansions.append((kind, expansion))
            return expansion.text

        return Segment(re.sub("|".join(map(re.escape, kinds)), replace, segment.text))

    def _tokenize(self, segments: Sequence[Segment]) -> np.ndarray:
        """Token ids (L,). Literal segments are words: no special token is read in them."""
        ids: list[int] = []
        bos = self.tokenizer.bos_token
        for index, segment in enumerate(segments):
            # A template that writes the first token itself must not get a second one.
            special = self.adds_first_token and index == 0 and not (bos and segment.text.startswith(bos))
            ids += self.tokenizer.encode(
                segment.text, add_special_tokens=special, split_special_tokens=segment.literal, verbose=False
            )
        return np.array(ids, dtype=np.int32)

    def _media(self, tokens: np.ndarray, expansions: Sequence[tuple[Kind, Expansion]]) -> list[Media]:
        """Each expansion with its spans: the feature tokens of its kind, taken in order."""
        token_of = {**self.placeholders, **self.feature_tokens}
        places = {
            token: iter(np.flatnonzero(tokens == self.tokenizer.convert_tokens_to_ids(token)).tolist())
            for token in token_of.values()
        }
        media = []
        for kind, one in expansions:
            runs = [[next(places[token_of[kind]]) for _ in range(count)] for count in one.counts]
            spans = tuple((run[0], run[-1] + 1) for run in runs)
            media.append(Media(kind, one.pixels, one.grid, spans, one.size, one.seconds))
        return media


class TextProcessor(Processor):
    """Of a text decoder: takes no media."""


def _fill(messages: Sequence[Message], given: Mapping[Kind, list[Any]]) -> dict[Kind, list[Any]]:
    """The sources of all media in messages, in order; bare parts take theirs from `given`."""
    left = {kind: list(sources) for kind, sources in given.items()}
    filled: dict[Kind, list[Any]] = {"image": [], "video": []}
    for part in chat_template.media_parts(messages):
        if part.kind == "audio":
            continue  # `format` refuses it
        kind: Kind = "video" if part.kind == "video" else "image"
        if part.source is None and not left[kind]:
            raise PromptError(f"the messages have more {_words(kind)} parts than {_words(kind)}s were given")
        filled[kind].append(left[kind].pop(0) if part.source is None else part.source)
    for kind, sources in left.items():
        if sources:
            raise PromptError(
                f"{len(sources)} more {_words(kind)}{'s' * (len(sources) != 1)} given than the messages have parts "
                f'for: add {{"type": "{kind}"}} parts, or leave all of them out'
            )
    return filled


def _words(kind: str) -> str:
    return "picture" if kind == "image" else kind


def _a(kind: str) -> str:
    return kind if kind == "audio" else f"a {_words(kind)}"


def load_tokenizer(folder: Path, **keywords: Any) -> Any:
    """transformers' tokenizer of a checkpoint on disk, which also takes and gives MLX's arrays: no network, no code of
    the checkpoint's. keywords: its own."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **keywords)
    return import_module("mlx_vlgen.hf.encoding").taking_arrays(made)  # as `_Method`: MLX is not known in this room


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says of its processor: its own fields, and those for pictures and for videos."""

    own: Mapping[str, Any]
    image: Mapping[str, Any]
    video: Mapping[str, Any]


def read_settings(folder: Path) -> Settings:
    """From one nested file, as transformers 5 writes it, or from a flat one for each part. Before there was one for
    videos, that for pictures was for both."""
    own, flat = _json(folder / "processor_config.json"), _json(folder / "preprocessor_config.json")
    return Settings(
        own,
        own.get("image_processor") or flat,
        own.get("video_processor") or _json(folder / "video_preprocessor_config.json") or flat,
    )


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def load_template(folder: Path, tokenizer: Any) -> str | None:
    """The chat template: chat_template.jinja, chat_template.json, or the tokenizer's own."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    if (path := folder / "chat_template.json").is_file():
        return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"])
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own
