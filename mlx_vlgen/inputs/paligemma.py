"""PaliGemma's processor: pictures, the first token, one task in words, and a line feed."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .literal import Segment, join
from .plain import SIGLIP_MEAN, SIGLIP_STD, PlainSettings, fixed_picture
from .processor import Expansion, Kind, Processor, load_template, load_tokenizer, read_settings
from .prompt import Media, MediaInputs, Span

# Published checkpoints have none: they were trained on a task and its answer, without turns.
TEMPLATE = """\
{%- if messages | length != 1 or messages[0].role != 'user' -%}
{{- raise_exception('PaliGemma takes one message, of role user: it was not made for dialogue') -}}
{%- endif -%}
{%- if messages[0].content is string -%}
{{- messages[0].content -}}
{%- else -%}
{%- for part in messages[0].content if part.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}
{%- for part in messages[0].content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}"""


class PaliGemmaProcessor(Processor):
    """Source: transformers' PaliGemmaProcessor and SiglipImageProcessor; it takes no words without a picture, which are
    laid out here as those with one. count: features of a picture."""

    placeholders: Mapping[Kind, str] = {"image": "<image>"}
    prompt_tokens = r"<loc\d{4}>|<seg\d{3}>"
    adds_first_token = False

    def __init__(self, tokenizer: Any, chat_template: str | None, pictures: PlainSettings, count: int):
        super().__init__(tokenizer, chat_template or TEMPLATE)
        self.pictures, self.count = pictures, count

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "PaliGemmaProcessor":
        tokenizer, vision = load_tokenizer(folder), config["vision_config"]
        side, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
        pictures = PlainSettings.read(read_settings(folder).image, side, SIGLIP_MEAN, SIGLIP_STD)
        return cls(tokenizer, load_template(folder, tokenizer), pictures, (side // patch) ** 2)

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        pixels, original = fixed_picture(source, media, self.pictures)
        return Expansion(self.placeholders[kind] * self.count, (self.count,), pixels, (), original)

    def lay_out(self, segments: list[Segment], images: int) -> list[Segment]:
        """The first token after the last picture, and a line feed at the end. Text that names no picture gets all of
        them before it."""
        token, bos = self.placeholders["image"], self.tokenizer.bos_token
        naming = [i for i, segment in enumerate(segments) if token in segment.text and not segment.literal]
        if not naming:
            segments, naming = [Segment(token * images), *segments], [0]
        last = naming[-1]
        head, found, tail = segments[last].text.rpartition(token)
        segments = [*segments[:last], Segment(head + found + bos + tail), *segments[last + 1 :], Segment("\n")]
        return [join(list(run)) for _, run in itertools.groupby(segments, key=lambda segment: segment.literal)]

    def two_way(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[Span, ...]:
        return ((0, len(tokens)),)
