"""Prompts as named tensors, as transformers' processors return them, and back.

For the families of Qwen and GLM names, shapes and values are those of transformers 5:

    input_ids, attention_mask, mm_token_type_ids   (B, L) int64; the last is 0 for text, 1 for images, 2 for videos
    pixel_values, pixel_values_videos              (N, patch) float32, all images' (videos') patches, row by row
    image_grid_thw, video_grid_thw                 (n, 3) int64, frames, rows and columns in patches
    second_per_grid_ts                             (n,) float64, `Media.seconds` of videos, where positions tell them;
                                                   Qwen-Omni calls it video_second_per_grid

Families without such grids have the first two lines, pixels padded with zeros where images differ in shape, and

    num_image_tokens, num_video_tokens   (n,) int64, features of each
    image_shapes, video_shapes           (n, d) int64, the shape of each one's pixels
    image_grids, video_grids             (n, g) int64, each one's `Media.grid`, -1 after its end; absent if all empty

Sound has the names and the layout that its family has in transformers, `Processor.audio_tensors`.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PromptError, UnsupportedError
from .kinds import KINDS, Kind
from .processor import Processor
from .prompt import Media, Prompt, Span
from .qwen_vl import QwenVLProcessor

PIXELS: Mapping[Kind, str] = {kind: record.pixels for kind, record in KINDS.items() if record.pixels is not None}
"""The kinds whose tensors have the same names in all families."""

NAMES = (
    "input_ids", "attention_mask", "mm_token_type_ids", *PIXELS.values(),
    *(name.format(kind) for kind in PIXELS for name in ("{}_grid_thw", "num_{}_tokens", "{}_shapes", "{}_grids")),
)  # fmt: skip


def tensor_names(processor: Processor) -> tuple[str, ...]:
    """All that prompts of its family may have."""
    return (*NAMES, processor.seconds_tensor, *processor.audio_tensors.names)


# -- prompts to tensors


def pack(
    processor: Processor,
    prompts: Sequence[Prompt],
    pad_token: int | None,
    *,
    side: str = "left",
    padding: bool | str = True,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> dict[str, np.ndarray]:
    """Prompts -> tensors of one batch.

    side: where padding goes, "left" or "right". padding: True or "longest": as long as the longest row; "max_length":
    `max_length` tokens, or more where a row is longer; False: rows must be equally long. pad_to_multiple_of: lengths
    are rounded up to it. PromptError where padding is needed and forbidden, or there is no pad_token.
    """
    length = _length([len(prompt.tokens) for prompt in prompts], padding, max_length, pad_to_multiple_of)
    if pad_token is None and any(len(prompt.tokens) < length for prompt in prompts):
        raise PromptError("rows are to be padded and the tokenizer has no pad_token: set tokenizer.pad_token")

    def rows(arrays: Iterable[np.ndarray], filler: int) -> np.ndarray:
        padded = np.full((len(prompts), length), filler, np.int64)
        for row, array in zip(padded, arrays, strict=True):
            row[slice(length - len(array), None) if side == "left" else slice(len(array))] = array
        return padded

    tensors = {
        "input_ids": rows((prompt.tokens for prompt in prompts), pad_token or 0),
        "attention_mask": rows((np.ones(len(prompt.tokens)) for prompt in prompts), 0),
        "mm_token_type_ids": rows(map(_types, prompts), 0),
    }
    for kind in PIXELS:
        if media := [item for prompt in prompts for item in prompt.media if item.kind == kind]:
            tensors |= _pack_media(processor, kind, media)
    if clips := [item for prompt in prompts for item in prompt.media if item.kind == "audio"]:
        tensors |= processor.audio_tensors.pack(clips)
    return tensors


def _length(lengths: Sequence[int], padding: bool | str, max_length: int | None, multiple: int | None) -> int:
    """Tokens of a padded row."""
    longest = max(lengths, default=0)
    if padding == "max_length":
        longest = max(longest, max_length or 0)
    elif padding in (False, "do_not_pad"):
        if len(set(lengths)) > 1:
            raise PromptError("the prompts differ in length, so that they are no tensor: give padding=True")
        return longest
    elif padding not in (True, "longest"):
        raise ValueError(f'padding={padding!r}: expected True, "longest", "max_length" or False')
    return -(-longest // multiple) * multiple if multiple else longest


def _types(prompt: Prompt) -> np.ndarray:
    types = np.zeros(len(prompt.tokens), np.int64)
    for media in prompt.media:
        for start, end in media.spans:
            types[start:end] = KINDS[media.kind].token_type
    return types


def _pack_media(processor: Processor, kind: Kind, media: Sequence[Media]) -> dict[str, np.ndarray]:
    pixels = [processor.pixel_values(item) for item in media]
    grids = [item.grid for item in media]
    if all(len(grid) == 3 for grid in grids):
        tensors = {PIXELS[kind]: np.concatenate(pixels), f"{kind}_grid_thw": np.array(grids)}
        if any(item.seconds for item in media):
            tensors[processor.seconds_tensor] = np.array([item.seconds for item in media])
        return tensors
    shapes = np.array([values.shape for values in pixels])
    largest = shapes.max(axis=0)[1:]
    padded = np.zeros((shapes[:, 0].sum(), *largest), np.float32)
    for values, index in zip(pixels, _indices(shapes), strict=True):
        padded[index] = values
    tensors = {
        PIXELS[kind]: padded,
        f"num_{kind}_tokens": np.array([sum(end - start for start, end in item.spans) for item in media]),
        f"{kind}_shapes": shapes,
    }
    if longest := max(map(len, grids)):
        tensors[f"{kind}_grids"] = np.array([(*grid, *[-1] * (longest - len(grid))) for grid in grids])
    return tensors


def _indices(shapes: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """The index of each array of these shapes in one that holds them one after the other, padded to the largest."""
    start = 0
    for rows, *rest in shapes.tolist():
        yield slice(start, start + rows), *(slice(side) for side in rest)
        start += rows


# -- tensors to prompts


def unpack(processor: Processor, tensors: Mapping[str, Any]) -> list[Prompt]:
    """Tensors -> a prompt a row, without its padding on the left. The inverse of `pack`, and for the families of Qwen
    and GLM of what transformers' processors return.

    tensors: numpy or MLX arrays, or nested lists, by the names above; None stands for one that is absent. They do not
    hold all of a prompt: `Media.size` is (0, 0), `Prompt.text` empty.

    PromptError for what does not fit together, or is padded on the right; TypeError for an unknown name, with the
    nearest one; UnsupportedError for media that the model does not take, and for torch's tensors.
    """
    arrays = {name: value for name, value in tensors.items() if value is not None}
    names = tensor_names(processor)
    for name in arrays.keys() - set(names):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        raise TypeError(f"unknown tensor {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if "input_ids" not in arrays:
        raise PromptError("input_ids are missing: give what the processor returned, as generate(**inputs)")
    rows = _rows("input_ids", arrays["input_ids"])
    if any(((ids < 0) | (ids >= 2**31)).any() for ids in rows):
        raise PromptError("input_ids holds negative numbers, or such as need more than 32 bits, which are no tokens")
    masks = _like(rows, "attention_mask", arrays)
    types = _like(rows, "mm_token_type_ids", arrays)
    media = {kind: _unpack_media(processor, kind, arrays) for kind in PIXELS}
    media["audio"] = _unpack_audio(processor, arrays)
    prompts = []
    for number, ids in enumerate(rows):
        begin = 0 if masks is None else _padding(masks[number])
        row_types = None if types is None else types[number][begin:]
        prompts.append(_row(processor, ids[begin:].astype(np.int32), row_types, media))
    for kind, unused in media.items():
        if unused:
            name = PIXELS.get(kind, processor.audio_tensors.features)
            raise PromptError(
                f"{name} holds {len(unused)} more {kind}{'s' * (len(unused) != 1)} than input_ids has placeholders "
                "for: give all tensors as the processor returned them"
            )
    return prompts


@dataclass(frozen=True)
class _Source:
    """One image, video or clip of sound of a batch. count: how many tokens stand for it."""

    pixels: np.ndarray
    grid: tuple[int, ...]
    count: int
    seconds: float


def read_array(name: str, value: Any) -> np.ndarray:
    """Numbers of any type. PromptError, by name, for anything else; UnsupportedError for torch's tensors."""
    _refuse_torch(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list; a type of MLX's that numpy lacks
        reason = f"{name}: numpy cannot read it ({error}); give rows of equal length, and pixels in float32"
        raise PromptError(reason) from None
    if array.dtype.kind not in "biuf":
        raise PromptError(f"{name}: {array.dtype} values; expected numbers")
    return array


def _refuse_torch(name: str, value: Any) -> None:
    first = value[0] if isinstance(value, list | tuple) and value else value
    for item in (value, first):
        package = type(item).__module__.partition(".")[0]
        if package in ("torch", "tensorflow", "jax", "jaxlib"):
            raise UnsupportedError(
                f'{name} is a tensor of {package}: make inputs with return_tensors="mlx" or return_tensors="np"'
            )


def _integers(name: str, value: Any, dimensions: int) -> np.ndarray:
    array = read_array(name, value)
    if array.ndim != dimensions or array.dtype.kind == "f":
        shape = ("(n,)", "(n, …)")[dimensions - 1]
        raise PromptError(f"{name}: {array.dtype} of shape {array.shape}; expected whole numbers of shape {shape}")
    return array.astype(np.int64)


def _rows(name: str, value: Any) -> list[np.ndarray]:
    """(B, L), or a list of rows that may differ in length -> each row, whole numbers."""
    _refuse_torch(name, value)
    rows = (
        [read_array(name, row) for row in value]
        if isinstance(value, list | tuple)
        else [*np.atleast_1d(read_array(name, value))]
    )
    if not rows or any(row.ndim != 1 or (row.dtype.kind == "f" and len(row)) for row in rows):
        raise PromptError(
            f"{name}: expected whole numbers of shape (batch, tokens); a single row needs a list around it"
        )
    return [row.astype(np.int64) for row in rows]


def _like(rows: Sequence[np.ndarray], name: str, arrays: Mapping[str, Any]) -> list[np.ndarray] | None:
    """The rows of `name`, as many and as long as those of input_ids; None where it is absent."""
    if name not in arrays:
        return None
    aligned = _rows(name, arrays[name])
    if list(map(len, aligned)) != list(map(len, rows)):
        raise PromptError(
            f"{name} has rows of other lengths than input_ids: give all tensors as the processor made them"
        )
    return aligned


def _padding(mask: np.ndarray) -> int:
    """How many tokens on the left are padding."""
    attended = np.flatnonzero(mask)
    if not len(attended):
        raise PromptError("a row's attention_mask is 0 throughout: the prompt is empty")
    if len(attended) != len(mask) - attended[0]:
        raise PromptError(
            "a row's attention_mask has zeros after its first token: an answer must follow the prompt itself. "
            'Set processor.tokenizer.padding_side = "left" before making the inputs'
        )
    return int(attended[0])


def _unpack_media(processor: Processor, kind: Kind, arrays: Mapping[str, Any]) -> list[_Source]:
    """The images, or videos, of all rows, in order."""
    names = [name for name in NAMES if name in arrays and (name == PIXELS[kind] or kind in name.split("_"))]
    if not names:
        return []
    if kind not in processor.placeholders:
        raise processor.unsupported(kind)
    gridded = isinstance(processor, QwenVLProcessor)
    needed = [PIXELS[kind], *([f"{kind}_grid_thw"] if gridded else [f"num_{kind}_tokens", f"{kind}_shapes"])]
    if missing := [name for name in needed if name not in arrays]:
        raise PromptError(f"{names[0]} is given without {' and '.join(missing)}: give all tensors of the processor")
    pixels = read_array(PIXELS[kind], arrays[PIXELS[kind]])
    if isinstance(processor, QwenVLProcessor):
        thw = _integers(f"{kind}_grid_thw", arrays[f"{kind}_grid_thw"], 2)
        settings = processor.image_settings if kind == "image" else processor.video_settings
        merge, width = settings.merge, 3 * settings.frames * settings.patch**2
        if pixels.shape[1:] != (width,):
            raise PromptError(f"{PIXELS[kind]} has the shape {pixels.shape}; expected (patches, {width})")
        if thw.shape[1] != 3 or (thw < 1).any() or (thw[:, 1:] % merge).any():
            raise PromptError(
                f"{kind}_grid_thw: {thw.tolist()!r:.80}; expected (frames, rows, columns) of each {kind}, in patches, "
                f"rows and columns multiples of {merge}"
            )
        grids = [tuple(grid) for grid in thw.tolist()]
        counts = [math.prod(grid) // merge**2 for grid in grids]
        shapes = np.array([(math.prod(grid), *pixels.shape[1:]) for grid in grids]).reshape(len(grids), -1)
    else:
        counts = _integers(f"num_{kind}_tokens", arrays[f"num_{kind}_tokens"], 1).tolist()
        shapes = _integers(f"{kind}_shapes", arrays[f"{kind}_shapes"], 2)
        ends = _integers(name, arrays[name], 2).tolist() if (name := f"{kind}_grids") in arrays else [()] * len(counts)
        grids = [tuple(side for side in grid if side >= 0) for grid in ends]
    timed = kind == "video" and (name := processor.seconds_tensor) in arrays
    seconds = read_array(name, arrays[name]) if timed else np.zeros(len(counts))
    fit = (
        {len(counts), len(shapes), len(grids)} == {len(counts)}
        and seconds.shape == (len(counts),)
        and shapes.shape[1] == pixels.ndim
        and sum(shapes[:, 0]) == len(pixels)
        and min(counts, default=0) > 0
        and (shapes > 0).all()
        and (shapes[:, 1:] <= pixels.shape[1:]).all()
    )
    if not fit:
        raise PromptError(
            f"{PIXELS[kind]} of shape {pixels.shape} is not what {', '.join(needed[1:])} describe: give all tensors as "
            "the processor returned them"
        )
    views = [pixels[index] for index in _indices(shapes)]
    return [_Source(*fields) for fields in zip(views, grids, counts, seconds.tolist(), strict=True)]


def _unpack_audio(processor: Processor, arrays: Mapping[str, Any]) -> list[_Source]:
    """The clips of all rows, in order."""
    layout = processor.audio_tensors
    given = [name for name in layout.names if name in arrays]
    if not given:
        return []
    if "audio" not in processor.placeholders:
        raise processor.unsupported("audio")
    if missing := [name for name in layout.names if name not in arrays]:
        raise PromptError(f"{given[0]} is given without {missing[0]}: give all tensors of the processor")
    mask = None if layout.mask is None else read_array(layout.mask, arrays[layout.mask])
    clips = layout.unpack(read_array(layout.features, arrays[layout.features]), mask)
    counts = [processor.audio_tokens(length) for _, (length,) in clips]
    if min(counts, default=1) < 1:
        raise PromptError(f"{layout.features}: a clip is too short to become a token")
    return [_Source(*clip, count, 0.0) for clip, count in zip(clips, counts, strict=True)]


def _row(
    processor: Processor, tokens: np.ndarray, types: np.ndarray | None, media: Mapping[Kind, list[_Source]]
) -> Prompt:
    """One prompt; removes its media from `media`."""
    feature_tokens = {kind: processor.feature_tokens.get(kind, token) for kind, token in processor.placeholders.items()}
    row_media = []
    for kind, name in feature_tokens.items():
        features = tokens == processor.tokenizer.convert_tokens_to_ids(name)
        if list(feature_tokens.values()).count(name) > 1:
            features &= _of_kind(kind, types, media)
        positions = np.flatnonzero(features)
        while len(positions):
            if not media[kind] or media[kind][0].count > len(positions):
                rest = f"one {kind} of {media[kind][0].count}" if media[kind] else f"no {kind} left"
                raise PromptError(
                    f"a row has {len(positions)} placeholders {name} and {rest} to fill them: give all tensors as the "
                    "processor returned them, without cutting rows"
                )
            source = media[kind].pop(0)
            spans = _runs(positions[: source.count])
            pixels = np.ascontiguousarray(source.pixels, np.float32)  # until they fit, they may be a view of any size
            row_media.append(Media(kind, pixels, source.grid, spans, (0, 0), source.seconds))
            positions = positions[source.count :]
    row_media.sort(key=lambda item: item.spans)
    return Prompt(tokens, tuple(processor.placed(tokens, row_media)), processor.two_way(tokens, row_media))


def _of_kind(kind: Kind, types: np.ndarray | None, media: Mapping[Kind, list[_Source]]) -> np.ndarray | bool:
    """Which features are of this kind, in a family that has one token for both."""
    if types is not None:
        return types == KINDS[kind].token_type
    if all(media[kind] for kind in PIXELS):
        raise PromptError("pictures and videos have one placeholder in this model: give mm_token_type_ids, which tells")
    return bool(media[kind])


def _runs(positions: np.ndarray) -> tuple[Span, ...]:
    """Positions in order -> their unbroken runs."""
    cuts = np.flatnonzero(np.diff(positions) > 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(positions, cuts))
