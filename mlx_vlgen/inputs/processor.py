"""Text and media to a `Prompt`: the chat template, placeholders and their expansion, token ids."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar, Self

import numpy as np

from ..errors import PromptError, UnsupportedError
from ..notices import notice
from . import chat_template as templates
from .audio_tensors import AudioTensors
from .chat_template import Message
from .encode import control_tokens, encode, encode_features
from .expansions import Expansion, Expansions
from .heard_video import heard_videos
from .identify import identified
from .kinds import KINDS, Kind
from .literal import Segment, check_text, split_at
from .processor_files import ProcessorSettings, load_template, load_tokenizer, read_settings
from .prompt import Media, MediaInputs, Prompt, Span

Sources = dict[Kind, list[Any]]
"""The media of a prompt, of each kind in order."""

FEWER_FRAMES = "video_fps (--video-fps) or max_frames (--max-frames) keeps fewer frames"
"""What reduces a video's tokens in every family."""

_NOT_OF_MEDIA = ("tokenizer", "chat_template")
"""Fields of a processor that say nothing of how media are processed."""


class _HfMethod:
    """A method defined in `mlx_vlgen.hf.processing`, imported when it is first looked up: this room imports none above
    it."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        function = getattr(import_module("mlx_vlgen.hf.processing"), self._name)
        return function if instance is None else MethodType(function, instance)


@dataclass(eq=False, repr=False)
class Processor:
    """A checkpoint's tokenizer, chat template and image settings. Holds nothing about any request.

    tokenizer: transformers', which also takes and returns MLX's arrays. chat_template: Jinja source, or None.
    min_pixels, max_pixels: bounds of an image's area where a request has none; None: the family's.
    max_positions: how many tokens the model was made for; None where that is not known.

    Code written for transformers finds its processors' methods, documented in `mlx_vlgen.hf.processing`.
    """

    tokenizer: Any
    chat_template: str | None
    _: KW_ONLY
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_positions: int | None = None

    placeholders: ClassVar[Mapping[Kind, str]] = {}
    """What stands for one medium in a formatted prompt, of each kind of media that the family takes."""

    feature_tokens: ClassVar[Mapping[Kind, str]] = {}
    """The token that stands for one feature of it in the expanded text, where that is another one."""

    prompt_tokens: ClassVar[str] = ""
    """Pattern of the tokens that the family documents for prompts: in user text they are tokens, too."""

    seconds_tensor: ClassVar[str] = "second_per_grid_ts"
    """transformers' name for `Media.seconds` of videos."""

    hears_videos: ClassVar[bool] = False
    """Whether it takes a video with its sound, as a `HeardVideo`."""

    adds_first_token: ClassVar[bool] = True
    """Whether the tokenizer's first token goes before a text that does not begin with it."""

    __call__ = _HfMethod("process")
    apply_chat_template = _HfMethod("apply_chat_template")
    batch_decode = _HfMethod("batch_decode")
    decode = _HfMethod("decode")
    post_process_image_text_to_text = _HfMethod("post_process_image_text_to_text")

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """The processor of the checkpoint in `folder`."""
        tokenizer = load_tokenizer(folder)
        fields = cls.read_fields(read_settings(folder), config)
        return cls(tokenizer, load_template(folder, tokenizer), **fields)

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call `prepare` at once: tokenizers in Python are not made for it."""
        return bool(getattr(self.tokenizer, "is_fast", False))

    # -- what a family defines

    @classmethod
    def read_fields(cls, settings: ProcessorSettings, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that the family adds."""
        return {}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        """Read and process one image, video or clip of sound. media: what `context` returns. The same, by the same
        fields of this processor, gives the same: it is cached."""
        raise self.unsupported(kind)

    @property
    def audio_tensors(self) -> AudioTensors:
        """Names and layout of its clips as tensors, of a family that hears."""
        return AudioTensors()

    def audio_tokens(self, frames: int) -> int:
        """How many tokens a clip of so many frames becomes, of a family that hears."""
        raise self.unsupported("audio")

    def context(self, media: MediaInputs) -> MediaInputs:
        """What `expand` gets of all media of a prompt: how to read them, not what they are."""
        return media.with_sources({})

    def lay_out(self, segments: list[Segment], images: int) -> list[Segment]:
        """Add what a formatted prompt for so many images still needs around it."""
        return segments

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        """The spans of a prompt whose tokens all attend to each other."""
        return ()

    def placed(self, tokens: np.ndarray, media: Sequence[Media]) -> Sequence[Media]:
        """The media of a prompt, with what the tokens around them say of them."""
        return media

    def pixel_values(self, media: Media) -> np.ndarray:
        """Its pixels as transformers' processor returns them, float32."""
        if media.pixels.dtype != np.uint8 or media.normalization is None:
            return media.pixels
        values = media.normalization(media.pixels.reshape(*media.pixels.shape[:-1], -1, 3)).reshape(media.pixels.shape)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if values.ndim == 4 else values

    # -- what all families share

    def format(self, messages: Sequence[Message], **kwargs: Any) -> list[Segment]:
        """Messages, as `chat_template.normalize` returns them, through the chat template; `kwargs` go to it."""
        kwargs.setdefault("add_generation_prompt", True)
        for part in templates.media_parts(messages):
            if part.kind not in self.placeholders:
                raise self.unsupported(part.kind)
        if not self.placeholders:
            messages = [templates.parts_to_string(message) for message in messages]
        media = frozenset([*self.placeholders.values(), *self.feature_tokens.values()])
        control = media | self._control_tokens()
        return templates.render(self.tokenizer, self.chat_template, messages, control, media, **kwargs)

    def prepare(
        self,
        prompt: str | Sequence[Message],
        media: MediaInputs = MediaInputs(),
        *,
        expansions: Expansions | None = None,
        **kwargs: Any,
    ) -> Prompt:
        """A formatted string, or messages, with their media -> `Prompt`.

        In a string each placeholder stands for one of `media`, in order. Messages hold their images and videos, or
        bare parts for those in `media`; without any such part, those in `media` go before the text of the last user
        message. expansions: media that it has are neither decoded nor resized again. kwargs: for the chat template
        (`enable_thinking`, …).
        PromptError when placeholders and media do not match; MediaError when one cannot be read.
        """
        sources, tracks = media.sources, list[Any]()
        if media.use_audio_in_video and not self.hears_videos:
            raise UnsupportedError("use_audio_in_video: this model does not hear the sound of videos; leave it out")
        messages = [] if isinstance(prompt, str) else templates.normalize(prompt)
        if media.use_audio_in_video and not self._holds_audio(prompt, messages):
            tracks, sources["audio"] = sources["audio"], []
        if isinstance(prompt, str):
            segments = [Segment(prompt)]
        else:
            messages = templates.insert_media_parts(messages, {kind: len(items) for kind, items in sources.items()})
            segments = self.format(messages, **kwargs)
            sources = _collect_sources(messages, beside=sources)
        if media.use_audio_in_video:
            sources["video"] = heard_videos(sources["video"], tracks)
        segments = self.lay_out(segments, len(sources["image"]))
        text = "".join(segment.text for segment in segments)
        check_text(text)
        self._check_placeholders(segments, sources)
        media = replace(
            media.with_sources(sources),
            min_pixels=self.min_pixels if media.min_pixels is None else media.min_pixels,
            max_pixels=self.max_pixels if media.max_pixels is None else media.max_pixels,
        )
        expand = functools.partial(self._expand, media=self.context(media), cache=expansions)
        found: list[tuple[Kind, Expansion]] = []
        expanded = [self._expand_segment(segment, sources, expand, found) for segment in segments]
        added = frozenset(token for token, _ in self._added)
        features = frozenset({**self.placeholders, **self.feature_tokens}.values())
        arguments = self.tokenizer, expanded, added, self._control_tokens(), self.adds_first_token
        tokens = encode_features(*arguments, features) if found else encode(*arguments)
        processed = tuple(self.placed(tokens, self._with_spans(tokens, found)))
        tail = "".join(segment.text[segment.tail_start :] for segment in segments)
        return Prompt(tokens, processed, self.two_way(tokens, processed), text, tail)

    def check_count(self, kind: Kind, size: tuple[int, int] | float, count: int, remedy: str) -> None:
        """Before pixels are made of one image or video of `size`, its original (height, width), or features of so many
        seconds of sound, which becomes `count` tokens: a notice where these are many, PromptError where the model has
        less positions. remedy: what makes them fewer."""
        measured = f"{size[1]} x {size[0]} pixels" if isinstance(size, tuple) else f"{size:.1f} seconds"
        sentence = f"{KINDS[kind].one} of {measured} becomes {count:,} tokens"
        if self.max_positions is not None and count > self.max_positions:
            raise PromptError(f"{sentence} and the model has {self.max_positions:,} positions: {remedy}")
        if count > KINDS[kind].many_tokens:
            notice(f"{sentence}; {remedy}")

    def unsupported(self, kind: Kind) -> UnsupportedError:
        """The error for media of a kind that this model does not take."""
        supported = ["text", *(KINDS[other].noun + "s" for other in self.placeholders)]
        listed = ", ".join(supported[:-1]) + " and " * (len(supported) > 1) + supported[-1]
        return UnsupportedError(f"{KINDS[kind].one} was given, and this model takes only {listed}")

    def _control_tokens(self) -> frozenset[str]:
        return control_tokens(self._added, self.chat_template or "", self.prompt_tokens)

    @functools.cached_property
    def _added(self) -> frozenset[tuple[str, bool]]:
        """The tokenizer's added tokens, and whether each is a special one."""
        return frozenset((token.content, token.special) for token in self.tokenizer.added_tokens_decoder.values())

    def _holds_audio(self, prompt: Any, messages: Sequence[Message]) -> bool:
        """Whether placeholders of a prompt stand for sound."""
        if isinstance(prompt, str):
            return self.placeholders["audio"] in prompt
        return any(part.kind == "audio" for part in templates.media_parts(messages))

    def _check_placeholders(self, segments: Sequence[Segment], sources: Mapping[Kind, Sequence[Any]]) -> None:
        for kind, items in sources.items():
            token = self.placeholders.get(kind)
            if token is None:
                if items:
                    raise self.unsupported(kind)
                continue
            count = sum(segment.text.count(token) for segment in segments if not segment.literal)
            if count != len(items):
                count_name = "num_audios" if kind == "audio" else "num_images"
                raise PromptError(
                    f"the prompt has {count} placeholder{'s' * (count != 1)} {token} and "
                    f"{KINDS[kind].count(len(items))} {'were' if len(items) != 1 else 'was'} given: "
                    "give as many of one as of the other. `apply_chat_template(processor, config, text, "
                    f"{count_name}=…)` writes the placeholders, and so do messages instead of a string"
                )
        for token in set(self.feature_tokens.values()) - set(self.placeholders.values()):
            if any(token in segment.text for segment in segments if not segment.literal):
                raise PromptError(
                    f"the prompt holds {token}, which stands for one feature of a picture and is written by the "
                    f"processor: write {' or '.join(self.placeholders.values())} where a picture belongs"
                )

    def _expand(self, kind: Kind, source: Any, media: MediaInputs, cache: Expansions | None) -> Expansion:
        """`expand`, unless the cache has it."""
        if cache is None:
            return self.expand(kind, source, media)
        source, content = identified(kind, source)
        if content is None:
            return self.expand(kind, source, media)

        def make() -> Expansion:
            made = self.expand(kind, source, media)
            return replace(made, key=made.media(kind, ()).key)

        settings = [getattr(self, field.name) for field in fields(self) if field.name not in _NOT_OF_MEDIA]
        return cache.get((type(self), kind, content, repr((settings, media))), make)

    def _expand_segment(
        self,
        segment: Segment,
        sources: Sources,
        expand: Callable[[Kind, Any], Expansion],
        expansions: list[tuple[Kind, Expansion]],
    ) -> Segment:
        """The segment with each placeholder expanded; moves the media from `sources` to `expansions`."""
        if segment.literal or not self.placeholders:
            return segment
        kinds = {token: kind for kind, token in self.placeholders.items()}

        def replaced(text: str) -> str:
            parts = split_at(frozenset(kinds), text)
            for i in range(1, len(parts), 2):
                kind = kinds[parts[i]]
                expansion = expand(kind, sources[kind].pop(0))
                expansions.append((kind, expansion))
                if expansion.sound:
                    expansions.append(("audio", expansion.sound))
                self._check_positions(expansions, waiting=sum(map(len, sources.values())))
                parts[i] = expansion.text
            return "".join(parts)

        before_tail = replaced(segment.text[: segment.tail_start])
        return Segment(before_tail + replaced(segment.text[segment.tail_start :]), tail_start=len(before_tail))

    def _check_positions(self, expansions: Sequence[tuple[Kind, Expansion]], waiting: int) -> None:
        """PromptError as soon as the media that are processed take more tokens than the model has positions; `waiting`
        ones are not processed yet."""
        total = sum(sum(expansion.counts) for _, expansion in expansions)
        if self.max_positions is not None and total > self.max_positions:
            sounds = any(kind == "audio" for kind, _ in expansions)
            kinds = "pictures, videos and audio clips" if sounds else "pictures and videos"
            fewer = "fewer or smaller pictures (max_pixels), " + "shorter audio clips, " * sounds
            fewer += "or fewer frames (max_frames)"
            raise PromptError(
                f"{len(expansions)} of {len(expansions) + waiting} {kinds} become {total:,} tokens and the model has "
                f"{self.max_positions:,} positions: give {fewer}"
            )

    def _with_spans(self, tokens: np.ndarray, expansions: Sequence[tuple[Kind, Expansion]]) -> list[Media]:
        """Each expansion with its spans: the feature tokens of its kind, taken in order."""
        token_of = {**self.placeholders, **self.feature_tokens}
        positions = {
            token: iter(np.flatnonzero(tokens == self.tokenizer.convert_tokens_to_ids(token)).tolist())
            for token in token_of.values()
        }
        media = []
        for kind, expansion in expansions:
            runs = [[next(positions[token_of[kind]]) for _ in range(count)] for count in expansion.counts]
            spans = tuple((run[0], run[-1] + 1) for run in runs)
            media.append(expansion.media(kind, spans))
        return media


class TextProcessor(Processor):
    """Of a text decoder: takes no media."""


def _collect_sources(messages: Sequence[Message], beside: Mapping[Kind, Sequence[Any]]) -> Sources:
    """The sources of all media in messages, in order; bare parts take theirs from those given `beside` them."""
    unused: Sources = {kind: list(sources) for kind, sources in beside.items()}
    collected: Sources = {kind: [] for kind in KINDS}
    for part in templates.media_parts(messages):
        if part.source is None and not unused[part.kind]:
            noun = KINDS[part.kind].noun
            raise PromptError(f"the messages have more {noun} parts than {noun}s were given")
        collected[part.kind].append(unused[part.kind].pop(0) if part.source is None else part.source)
    for kind, sources in unused.items():
        if sources:
            raise PromptError(
                f"{len(sources)} more {KINDS[kind].noun}{'s' * (len(sources) != 1)} given than the messages have parts "
                f'for: add {{"type": "{kind}"}} parts, or leave all of them out'
            )
    return collected
