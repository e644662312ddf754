"""Text and media to a `Prompt`: the chat template, placeholders and their expansion, token ids."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import LoadError, PromptError, UnsupportedError
from ..notices import notice
from . import chat_template, template_sandbox
from .chat_template import Message
from .files import check_bytes, check_settings, read_json, read_text, reading
from .images import MANY_TOKENS, MANY_VIDEO_TOKENS
from .literal import Segment, Strings, check_text, encode_words, runs
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

    prompt_tokens: ClassVar[str] = ""
    """Pattern of the tokens that the family documents for prompts: they are tokens in a person's words, too."""

    adds_first_token: ClassVar[bool] = True
    """Whether the tokenizer's own first token goes before a text that does not begin with it."""

    max_positions: int | None = None
    """How many tokens the model was made for; None where that is not known."""

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

    def check_count(self, kind: Kind, size: tuple[int, int], count: int, remedy: str) -> None:
        """Before pixels are made of one picture or video of `size`, its original (height, width), which becomes `count`
        tokens: a notice where these are many, PromptError where the model has less positions. remedy: what makes them
        fewer."""
        one = f"{_a(kind)} of {size[1]} x {size[0]} pixels becomes {count:,} tokens"
        if self.max_positions is not None and count > self.max_positions:
            raise PromptError(f"{one} and the model has {self.max_positions:,} positions: {remedy}")
        if count > (MANY_TOKENS if kind == "image" else MANY_VIDEO_TOKENS):
            notice(f"{one}; {remedy}")

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """Messages, as `chat_template.normalize` gives them, through the chat template; `kwargs` go to it."""
        kwargs.setdefault("add_generation_prompt", True)
        for part in chat_template.media_parts(messages):
            if part.kind not in self.placeholders:
                raise self.takes_no(part.kind)
        if not self.placeholders:
            messages = chat_template.joined(messages)
        media = frozenset([*self.placeholders.values(), *self.feature_tokens.values()])
        return chat_template.render(
            self.tokenizer, self.chat_template, messages, media | self._steering(), media, **kwargs
        )

    def _steering(self) -> frozenset[str]:
        """The tokens that steer a conversation: special ones, those that the template writes, and marks of thinking
        and of tools; but none that the family documents for prompts."""
        return _steering(self._added, self.chat_template or "", self.prompt_tokens)

    @functools.cached_property
    def _added(self) -> frozenset[tuple[str, bool]]:
        """The tokenizer's added tokens, and whether each is a special one."""
        return frozenset((token.content, token.special) for token in self.tokenizer.added_tokens_decoder.values())

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
        check_text(text)
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
        tail = "".join(segment.text[segment.said :] for segment in segments)
        return Prompt(tokens, processed, self.two_way(tokens, processed), text, tail)

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

        def expanded(text: str) -> str:
            parts = Strings.of(frozenset(kinds)).split(text)
            for place in range(1, len(parts), 2):
                kind = kinds[parts[place]]
                expansion = self.expand(kind, given[kind].pop(0), media)
                expansions.append((kind, expansion))
                self._check_positions(expansions, waiting=sum(map(len, given.values())))
                parts[place] = expansion.text
            return "".join(parts)

        said = expanded(segment.text[: segment.said])
        return Segment(said + expanded(segment.text[segment.said :]), said=len(said))

    def _check_positions(self, expansions: Sequence[tuple[Kind, Expansion]], waiting: int) -> None:
        """PromptError as soon as the media that are processed take more tokens than the model has positions; `waiting`
        ones are not processed yet."""
        total, most = sum(sum(expansion.counts) for _, expansion in expansions), self.max_positions
        if most is not None and total > most:
            raise PromptError(
                f"{len(expansions)} of {len(expansions) + waiting} pictures and videos become {total:,} tokens and the "
                f"model has {most:,} positions: give fewer or smaller pictures (max_pixels), or fewer frames "
                "(max_frames)"
            )

    def _tokenize(self, segments: Sequence[Segment]) -> np.ndarray:
        """Token ids (L,). Literal segments are words: no added token is read in them."""
        ids: list[int] = []
        bos = self.tokenizer.bos_token
        for index, run in enumerate(runs(segments, frozenset(token for token, _ in self._added))):
            # A template that writes the first token itself must not get a second one.
            written = bos and not run.literal and run.text.startswith(bos)
            special = self.adds_first_token and index == 0 and not written
            if run.literal:
                made = encode_words(self.tokenizer, run.text, first=index == 0, special=special)
                self._check_words(made[special:])
                ids += made
            else:
                ids += self.tokenizer.encode(run.text, add_special_tokens=special, verbose=False)
        return np.array(ids, dtype=np.int32)

    def _check_words(self, ids: Sequence[int]) -> None:
        known = self.tokenizer.added_tokens_encoder
        for token in self._steering() - {self.tokenizer.unk_token}:
            if known[token] in ids:
                raise PromptError(
                    f"this checkpoint's tokenizer makes {token} of plain text, too, and it steers the conversation: "
                    "remove it from the messages"
                )

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


FEWER_FRAMES = "video_fps (--video-fps) or max_frames (--max-frames) keeps fewer frames"
"""What makes a video's tokens fewer in every family."""


class TextProcessor(Processor):
    """Of a text decoder: takes no media."""


@functools.lru_cache(maxsize=16)
def _steering(added: frozenset[tuple[str, bool]], template: str, prompt_tokens: str) -> frozenset[str]:
    written = template_sandbox.literals(template)
    return frozenset(
        token
        for token, special in added
        if (special or token in written or re.match(r"[<\[].*(think|tool)", token, re.IGNORECASE))
        and token.strip()
        and not re.fullmatch(prompt_tokens, token)
    )


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


def check_tokenizer(folder: Path) -> None:
    """LoadError for a checkpoint on disk without a tokenizer that can be read."""
    files = {path.name for path in folder.iterdir()}
    if "tekken.json" in files and not files & {"tokenizer.json", "tokenizer.model"}:
        raise LoadError(
            f"{folder} has Mistral's tekken.json and no tokenizer.json, which alone is read here: put the "
            "tokenizer.json and tokenizer_config.json of this model beside it, as copies of it for MLX have them."
        )
    if not files & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}:
        raise LoadError(f"{folder} holds no tokenizer.")


def load_tokenizer(folder: Path, **keywords: Any) -> Any:
    """transformers' tokenizer of a checkpoint on disk, which also takes and gives MLX's arrays: no network, no code of
    the checkpoint's. keywords: its own."""
    from transformers import AutoTokenizer

    check_tokenizer(folder)
    for path in folder.iterdir():
        if path.suffix in (".json", ".model", ".tiktoken", ".txt"):
            check_bytes(path)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        _json(folder / name)  # transformers would not say which of them it cannot read
    if (template := folder / "chat_template.jinja").is_file():
        read_text(template)
    with reading(folder / "tokenizer.json", "and the files beside it give no tokenizer"):
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
    names = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
    own, flat, video = (_json(folder / name) for name in names)
    for name, settings in zip(names, (own, flat, video), strict=True):
        check_settings(folder / name, settings)
    return Settings(own, own.get("image_processor") or flat, own.get("video_processor") or video or flat)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def load_template(folder: Path, tokenizer: Any) -> str | None:
    """The chat template: chat_template.jinja, chat_template.json, or the tokenizer's own."""
    if (path := folder / "chat_template.jinja").is_file():
        return read_text(path)
    if (path := folder / "chat_template.json").is_file():
        template = read_json(path).get("chat_template")
    else:
        path, template = folder / "tokenizer_config.json", tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None:
            return None
    if not isinstance(template, str):
        raise LoadError(f"{path} says chat_template = {template!r:.80}; expected a Jinja template's text.")
    return template
