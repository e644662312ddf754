"""`generate`, `stream_generate`, `batch_generate`: three thin faces of the token iterator.

Also `python -m mlx_vlgen.generate`.
"""

if __name__ == "__main__":  # before the imports below, which take a second: --help is instant, Ctrl-C is heeded
    from .entry import run

    run("main_generate")

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from .engine.iterator import TokenIterator
from .engine.kv_settings import KVSettings
from .engine.modes import Drafter
from .engine.params import sampling_params
from .engine.request import Request
from .engine.speculative import DraftModel, PromptLookup, same_vocabulary
from .errors import PromptError, UnsupportedError, described
from .inputs import chat_template
from .inputs.processor import Processor
from .inputs.prompt import MediaInputs
from .loading import load
from .models.base import Model
from .notices import notice, progress_bar
from .options import NULLABLE, divide
from .prompt_utils import as_videos
from .results import BatchResponse, BatchStats, GenerationResult, speed

Prompt = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    image: Any = None,
    audio: Any = None,
    verbose: bool = False,
    **kwargs: Any,
) -> GenerationResult:
    """The whole answer to one prompt.

    prompt: a formatted string (see `apply_chat_template`), or messages. image: one picture or a list: path, URL,
    data: URI, bytes, file, PIL picture or array. video: likewise, as a keyword. verbose: print the prompt, the text
    as it comes and the statistics.

    Keywords are every field of `SamplingParams` and `MediaInputs`; `kv_bits`, `kv_group_size`, `quantized_kv_start` and
    `max_kv_size` (see `KVSettings`); `draft_model` (a model, its folder or Hub id) with `num_draft_tokens`, or
    `prompt_lookup`, which guess tokens and leave the answer as it is; `enable_thinking`; `prefill_step_size`;
    `prompt_progress_callback`, called with the prompt tokens that are computed and all there are; and `sampling`, which
    names a preset ("instruct", "thinking", "model") over which the other keywords win.

    Raises what is wrong with the request: PromptError, MediaError, UnsupportedError; TypeError for an unknown keyword.
    """
    pieces, last = [], GenerationResult()
    for last in stream_generate(model, processor, prompt, image, audio, verbose, **kwargs):
        pieces.append(last.text)
    last.text = "".join(pieces)
    return last


def _shown(prompt: Prompt) -> str:
    """A prompt for a person's eyes: of messages, who said what, without the bytes of their pictures."""
    if isinstance(prompt, str):
        return prompt
    lines = []
    for message in chat_template.normalize(prompt):
        content = message.get("content") or ""
        parts = [part.get("text", f"<{part['type']}>") for part in content] if isinstance(content, list) else [content]
        lines.append(f"{message['role']}: {' '.join(parts)}")
    return "\n".join(lines)


def stream_generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    image: Any = None,
    audio: Any = None,
    verbose: bool = False,
    **kwargs: Any,
) -> Iterator[GenerationResult]:
    """One `GenerationResult` a token, as soon as it is there; `text` is the new segment, all else is so far.

    Arguments as for `generate`. Closing the iterator, or leaving it, ends the request.
    """
    _check_order(processor)
    if _listed(audio):
        raise UnsupportedError("audio: this model does not hear; leave it out")
    given = divide(kwargs, "video", "prompt_progress_callback")
    told = given["other"].get("prompt_progress_callback")
    request = Request(
        [prompt] if isinstance(prompt, Mapping) else prompt,
        MediaInputs(images=_listed(image), videos=as_videos(given["other"].get("video")), **given["media"]),
        sampling_params(given["sampling"], model.generation_config),
        KVSettings.of(given["kv"]),
        drafter=_drafter(processor, **given["draft"]),
        **given["template"],
    )
    _tell_formatted([request])
    progress = None if told is None else lambda id, done, total: told(done, total)
    stream = _stream(TokenIterator(model, processor, progress=progress, **given["engine"]), request)
    return _printed(stream, prompt) if verbose else stream


def _printed(stream: Iterator[GenerationResult], prompt: Prompt) -> Iterator[GenerationResult]:
    """The same, printed as it comes, with the prompt before and the statistics after it."""
    print("=" * 10)
    print("Prompt:", _shown(prompt), end="\n\n", flush=True)
    last = GenerationResult()
    for last in stream:
        print(last.text, end="", flush=True)
        yield last
    print("\n" + statistics(last), flush=True)


def _tell_formatted(requests: Sequence[Request]) -> None:
    if any(isinstance(request.prompt, str) and request.enable_thinking for request in requests):
        notice(
            "enable_thinking does not change a prompt that is formatted already; "
            "apply_chat_template(processor, config, text, enable_thinking=True) formats one for it"
        )


def _stream(iterator: TokenIterator, request: Request) -> Iterator[GenerationResult]:
    with iterator:
        iterator.add(request)
        for _, result in iterator:
            if result.error is not None:
                raise result.error
            yield result


def batch_generate(
    model: Model,
    processor: Processor,
    images: Any = None,
    audios: Any = None,
    prompts: Sequence[Prompt] | None = None,
    max_tokens: int | Sequence[int] = 128,
    verbose: bool = False,
    group_by_shape: bool = True,
    track_image_sizes: bool = True,
    **kwargs: Any,
) -> BatchResponse:
    """Answers to many prompts, which run together. Each is what `generate` gives for it alone.

    prompts: formatted strings or messages. images: None, or one entry a prompt: a picture, a list of pictures or
    None. videos: likewise, as a keyword. max_tokens and every sampling and stopping keyword: one value, or a list of
    one a prompt. group_by_shape: encode pictures of equal processed shape together; the texts are the same.
    track_image_sizes: report the pictures' original sizes. verbose: print the statistics.

    A row that fails has its text so far, finish_reason "error" and its error; the others are answered.
    ValueError for lists of different length. No prompts give an empty response.
    """
    _check_order(processor)
    other_names = ("videos", "max_batch_size", "kv_token_budget", "vision_batch_pixels", "prompt_progress_callback")
    given = divide({"max_tokens": max_tokens, **kwargs}, *other_names, per_row=True)
    prompts = [prompts] if isinstance(prompts, str | Mapping) else list(prompts or ())
    count, other = len(prompts), given["other"]
    if any(_listed(audio) for audio in _per_row("audios", _listed(audios) or None, count)):
        raise UnsupportedError("audios: this model does not hear; leave it out")
    pictures = _per_row("images", [images] if count == 1 and not isinstance(images, list | tuple) else images, count)
    videos = _per_row("videos", other.pop("videos", None), count)
    rows = _rows(given["sampling"], count)
    templates, caches = _rows(given["template"], count), _rows(given["kv"], count)
    drafter = _drafter(processor, **given["draft"])
    requests = [
        Request(
            [prompt] if isinstance(prompt, Mapping) else prompt,
            MediaInputs(images=_listed(picture), videos=as_videos(video), **given["media"]),
            sampling_params(settings, model.generation_config),
            KVSettings.of(cache),
            drafter=drafter,
            **template,
        )
        for prompt, picture, video, settings, cache, template in zip(
            prompts, pictures, videos, rows, caches, templates, strict=True
        )
    ]
    _tell_formatted(requests)
    progress = _summed(other.pop("prompt_progress_callback", None))
    texts, results = [""] * count, [GenerationResult()] * count
    settings_of_all = {**given["engine"], **other, "group_by_shape": group_by_shape, "progress": progress}
    bar = progress_bar("answering", "prompt", count) if count > 1 else None
    with TokenIterator(model, processor, **settings_of_all) as iterator, bar or nullcontext():
        place = {iterator.add(request): i for i, request in enumerate(requests)}
        for id, result in iterator:
            texts[place[id]] += result.text
            if result.finish_reason is not None:
                results[place[id]] = result
                if bar:
                    bar.update()
        stats = _batch_stats(results, iterator)
    for text, result in zip(texts, results, strict=True):
        result.text = text
    _tell_failures(results)
    if verbose:
        print(batch_statistics(stats), flush=True)
    sizes: list[Any] = [result.image_sizes for result in results]
    if all(len(own) == 1 for own in sizes):
        sizes = [own[0] for own in sizes]
    return BatchResponse(texts, stats, sizes if track_image_sizes else None, results)


def _check_order(processor: Any) -> None:
    if isinstance(processor, Model):
        raise TypeError(
            "processor: a model was given; model and processor may be swapped: give them as load returns them, "
            "generate(model, processor, prompt)"
        )


def _tell_failures(results: Sequence[GenerationResult]) -> None:
    """Rows that failed say so in their result, which nobody may read."""
    failed = [row for row, result in enumerate(results) if result.error is not None]
    if failed:
        more = f" (the others' are in results[{failed[1]}].error{' …' * (len(failed) > 2)})" if failed[1:] else ""
        notice(
            f"{len(failed)} of {len(results)} failed: results[{failed[0]}]: {described(results[failed[0]].error)}{more}"
        )


def _summed(told: Callable[[int, int], None] | None) -> Callable[[int, int, int], None] | None:
    """Progress of all rows as one: prompt tokens computed, and those of all prompts that were begun."""
    if told is None:
        return None
    rows: dict[int, tuple[int, int]] = {}

    def tell(id: int, done: int, total: int) -> None:
        rows[id] = done, total
        told(sum(done for done, _ in rows.values()), sum(total for _, total in rows.values()))

    return tell


def _drafter(
    processor: Processor, draft_model: Any = None, num_draft_tokens: int | None = None, prompt_lookup: int | None = None
) -> Callable[[], Drafter] | None:
    """What makes a row's guesses, if any are asked for."""
    if draft_model is None:
        if num_draft_tokens is not None:
            raise PromptError(f"num_draft_tokens={num_draft_tokens} does nothing without draft_model: give that too")
        return None if prompt_lookup is None else lambda: PromptLookup(prompt_lookup)
    if prompt_lookup is not None:
        raise UnsupportedError("draft_model and prompt_lookup do not go together: leave one of them out")
    drafts: Model = draft_model if isinstance(draft_model, Model) else load(draft_model)[0]
    if not same_vocabulary(processor, drafts.processor):
        raise UnsupportedError("draft_model: it has another vocabulary than the model; take one of the same family")
    reads_media = bool(drafts.processor.placeholders)
    return lambda: DraftModel(drafts, num_draft_tokens or 3, reads_media=reads_media)


def _listed(image: Any) -> tuple[Any, ...]:
    """One picture or several, as several."""
    return () if image is None else tuple(image) if isinstance(image, list | tuple) else (image,)


def _per_row(name: str, values: Any, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    values = list(values) if isinstance(values, list | tuple) else [values]
    if len(values) != count:
        raise ValueError(
            f"{name}: {len(values)} given for {count} prompt{'s' * (count != 1)}; "
            "give one for each, None where there is none"
        )
    return values


def _rows(keywords: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Each row's own keywords, None standing for the default where it is no value. One that takes a list itself is one
    a row when it is a list of lists."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in keywords.items():
        listed = isinstance(value, list | tuple)
        if listed and name in ("eos_tokens", "stop", "choices", "logits_processors", "stopping_criteria"):
            listed = any(isinstance(own, list | tuple) or own is None for own in value)
        for row, own in zip(rows, _per_row(name, value, count) if listed else [value] * count, strict=True):
            if own is not None or name in NULLABLE:
                row[name] = own
    return rows


def _batch_stats(results: Sequence[GenerationResult], iterator: TokenIterator) -> BatchStats:
    prompt, made = (sum(getattr(r, name) for r in results) for name in ("prompt_tokens", "generation_tokens"))
    decoded = any(r.generation_tokens > 1 for r in results)  # a first token takes the prompt's time
    generation_time = iterator.generation_time if decoded else 0.0
    return BatchStats(
        prompt_tokens=prompt,
        prompt_tps=speed(prompt, iterator.prompt_time),
        prompt_time=iterator.prompt_time,
        generation_tokens=made,
        generation_tps=speed(made, generation_time),
        generation_time=generation_time,
        peak_memory=max((r.peak_memory for r in results), default=0.0),
        cached_tokens=sum(r.cached_tokens for r in results),
        drafted_tokens=sum(r.drafted_tokens for r in results),
        accepted_tokens=sum(r.accepted_tokens for r in results),
        encode_time=sum(r.encode_time for r in results),
    )


def statistics(result: GenerationResult) -> str:
    """The lines that mlx-vlm prints after an answer, which scripts parse; how long pictures and video took, which the
    prompt's speed leaves out; and what became of guesses, if any were made."""
    drafts = f"\nDrafts: {result.drafted_tokens} tokens, {result.accepted_tokens} right" * (result.drafted_tokens > 0)
    vision = f"\nPictures and video: encoded in {result.encode_time:.3f} s" * (result.encode_time > 0)
    return (
        f"{'=' * 10}\n"
        f"Prompt: {result.prompt_tokens} tokens, {result.prompt_tps:.3f} tokens-per-sec\n"
        f"Generation: {result.generation_tokens} tokens, {result.generation_tps:.3f} tokens-per-sec\n"
        f"Peak memory: {result.peak_memory:.3f} GB{vision}{drafts}"
    )


def batch_statistics(stats: BatchStats) -> str:
    return statistics(GenerationResult(**dataclasses.asdict(stats)))
