"""`generate`, `stream_generate` and `batch_generate`: three thin faces of the token iterator.

Also `python -m mlx_vlgen.generate`.
"""

if __name__ == "__main__":  # before the imports below, which take a second: --help is instant, Ctrl-C works
    from .entry import run

    run("main_generate")

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

from .engine.drafters import DraftModel, PromptLookup, same_vocabulary
from .engine.iterator import TokenIterator
from .engine.kv_settings import KVSettings
from .engine.modes import Drafter
from .engine.params import sampling_params
from .engine.request import Request
from .engine.store import PrefixCache
from .errors import PromptError, UnsupportedError, one_line
from .inputs import chat_template
from .inputs.kinds import KINDS, Kind
from .inputs.processor import Processor
from .inputs.prompt import MediaInputs
from .loading import load
from .models.base import Model
from .notices import PromptBar, notice, progress_bar
from .options import NULLABLE, PER_ROW_GROUPS, Keywords, group_keywords
from .prompt_utils import as_several, check_hears, is_clip
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

    model, processor: as `load` returns them.
    prompt: a formatted string (see `apply_chat_template`), one message, or a list of messages.
    image: one picture or a list: path, URL, data: URI, bytes, file, PIL picture or array. Default None.
    audio: one clip of sound or a list: path, URL, data: URI, bytes, file, array at the model's rate, or a tuple of an
    array and its rate. Default None.
    verbose: print the prompt, the text as it comes and the statistics on stdout; on a terminal show what is read of a
    prompt that takes over two seconds. Default False.

    The keywords, by group; None stands for the default of each:
    video: one video or a list: file, folder of frames, list of pictures, or array (frames, height, width, 3).
    length: max_tokens (256), max_time in seconds, stop, eos_tokens, stopping_criteria.
    drawing: temperature (0, greedy), top_p, top_k, min_p, typical_p, top_n_sigma, xtc_probability, xtc_threshold, seed.
    preset: sampling, "instruct", "thinking" or "model", over which the other keywords win.
    logits: repetition_penalty, repetition_context_size, presence_penalty, frequency_penalty, logit_bias.
    functions: logits_processors, and sampler in the place of all drawing.
    form, one of: json_schema, regex, grammar, choices.
    thinking: enable_thinking (False), thinking_budget in tokens, thinking_start_token, thinking_end_token.
    result: logprobs (True), top_logprobs (0), skip_special_tokens (False), include_eos (False).
    pictures: resize_shape as (height, width), min_pixels, max_pixels.
    frames: video_fps (2), num_frames, max_frames (768). sound of videos: use_audio_in_video (False).
    guesses: draft_model (a model, its folder or id) with num_draft_tokens (3), or prompt_lookup. Same answer, faster.
    KV cache: kv_bits with kv_group_size (64) and quantized_kv_start (0), or max_kv_size.
    prefill: prefill_step_size (2048), prompt_progress_callback(tokens computed, tokens in all).
    prompt_cache: a `PrefixCache`; what earlier prompts and answers in it begin alike with is not computed again.
    `SamplingParams`, `MediaInputs` and `KVSettings` say more of each.

    PromptError, MediaError or UnsupportedError for what is wrong with the request; TypeError for an unknown keyword or
    a value of another type; ValueError for a value out of range.
    """
    pieces, last = [], GenerationResult()
    for last in stream_generate(model, processor, prompt, image, audio, verbose, **kwargs):
        pieces.append(last.text)
    last.text = "".join(pieces)
    return last


def stream_generate(
    model: Model,
    processor: Processor,
    prompt: Prompt,
    image: Any = None,
    audio: Any = None,
    verbose: bool = False,
    **kwargs: Any,
) -> Iterator[GenerationResult]:
    """One `GenerationResult` for each token, as soon as it is drawn. `text` is the new segment; the other fields are
    totals so far.

    Arguments and errors as for `generate`. Closing or leaving the iterator ends the request.
    """
    _check_processor(processor)
    check_hears(processor, "audio", as_several("audio", audio))
    names = ("video", "prompt_progress_callback", "prompt_cache")
    groups = group_keywords(kwargs, *names)
    video, callback, prompt_cache = map(groups["other"].get, names)
    request = make_request(model, prompt, {"image": image, "video": video, "audio": audio}, groups)
    request = replace(request, drafter=make_drafter(processor, **groups["draft"]))
    _warn_if_formatted([request])
    callbacks = [] if callback is None else [callback]
    settings: dict[str, Any] = {"progress": _progress(callbacks), "reuse": check_prompt_cache(prompt_cache) or False}
    stream = _stream(TokenIterator(model, processor, **settings, **groups["engine"]), request)
    return _print_stream(stream, prompt, callbacks) if verbose else stream


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
    reuse: bool = True,
    **kwargs: Any,
) -> BatchResponse:
    """Answers to many prompts, which run together. Each is what `generate` returns for it alone.

    model, processor: as `load` returns them.
    images: None, or for each prompt a picture, a list of pictures or None.
    audios: None, or for each prompt a clip, a list of clips or None.
    prompts: formatted strings or messages. No prompts give an empty response.
    max_tokens: new tokens at most; one number, or a list of one for each prompt. Default 128.
    verbose: print the statistics on stdout. Default False.
    group_by_shape: bring pictures together that are encoded as one batch; the texts are the same. Default True.
    track_image_sizes: whether the response has the pictures' original sizes. Default True.
    reuse: compute once what prompts of this call begin alike with; the texts are the same. Default True.

    The keywords are those of `generate`, with these differences:
    videos, in the place of video: None, or for each prompt a video, a list of videos or None.
    sampling, stopping, thinking and KV cache: one value, or a list of one for each prompt.
    logprobs: default False, since every result is held until the last one is there: 0.6 MB each at 150,000 tokens.
    max_batch_size (32): rows that run together. kv_token_budget (None): tokens that their caches hold at most.
    vision_batch_pixels: pixels of pictures that are encoded together.

    A row that fails has its text so far, finish_reason "error" and its error; the others are answered.
    ValueError for lists of different length.
    """
    _check_processor(processor)
    names = ("videos", "max_batch_size", "kv_token_budget", "vision_batch_pixels", "prompt_progress_callback")
    groups = group_keywords({"max_tokens": max_tokens, **kwargs}, *names, "prompt_cache", per_row=True)
    other = groups["other"]
    prompts = [prompts] if isinstance(prompts, str | Mapping) else list(prompts or ())
    audios = audios if as_several("audio", audios) else None
    media: dict[Kind, Any] = {"image": images, "video": other.pop("videos", None), "audio": audios}
    requests = _batch_requests(model, prompts, media, groups)
    check_hears(processor, "audios", [clip for request in requests for clip in request.media.audios])
    drafter = make_drafter(processor, **groups["draft"])
    requests = [replace(request, drafter=drafter) for request in requests]
    _warn_if_formatted(requests)
    callback = other.pop("prompt_progress_callback", None)
    progress = None if callback is None else _progress([callback])
    prompt_cache = check_prompt_cache(other.pop("prompt_cache", None))
    settings = {**groups["engine"], **other, "group_by_shape": group_by_shape, "progress": progress}
    settings["reuse"] = prompt_cache or (reuse if len(requests) > 1 else False)
    results, stats = _run_batch(TokenIterator(model, processor, **settings), requests)
    _warn_of_failures(results)
    if verbose:
        print(statistics(stats), flush=True)
    sizes = _image_sizes(results) if track_image_sizes else None
    return BatchResponse([result.text for result in results], stats, sizes, results)


def statistics(result: GenerationResult | BatchStats) -> str:
    """The lines that mlx-vlm prints after an answer, which scripts parse. Then, where there were any, how long pictures
    and video took, which the prompt's speed leaves out, and how many guesses were right."""
    lines = [
        "=" * 10,
        f"Prompt: {result.prompt_tokens} tokens, {result.prompt_tps:.3f} tokens-per-sec",
        f"Generation: {result.generation_tokens} tokens, {result.generation_tps:.3f} tokens-per-sec",
        f"Peak memory: {result.peak_memory:.3f} GB",
    ]
    if result.encode_time > 0:
        lines.append(f"Pictures and video: encoded in {result.encode_time:.3f} s")
    if result.drafted_tokens > 0:
        lines.append(f"Drafts: {result.drafted_tokens} tokens, {result.accepted_tokens} right")
    return "\n".join(lines)


# Requests from arguments


def check_prompt_cache(value: Any) -> PrefixCache | None:
    """TypeError for what is none."""
    if value is None or isinstance(value, PrefixCache):
        return value
    raise TypeError(f"prompt_cache={value!r:.80}: expected a PrefixCache, which may be given to any number of calls")


def _check_processor(processor: Any) -> None:
    if isinstance(processor, Model):
        raise TypeError(
            "processor: a model was given; model and processor may be swapped: give them as load returns them, "
            "generate(model, processor, prompt)"
        )


def make_request(model: Model, prompt: Prompt, media: Mapping[Kind, Any], groups: Keywords) -> Request:
    """One prompt with its media, of each kind one or several, and its keywords, by group (see `group_keywords`)."""
    return Request(
        [prompt] if isinstance(prompt, Mapping) else prompt,
        MediaInputs(**groups["media"]).with_sources({kind: as_several(kind, given) for kind, given in media.items()}),
        sampling_params(groups["sampling"], model.generation_config),
        KVSettings.of(groups["kv"]),
        **groups["template"],
    )


def _batch_requests(
    model: Model, prompts: Sequence[Prompt], media: Mapping[Kind, Any], groups: Keywords
) -> list[Request]:
    """One request for each prompt. ValueError for lists of another length."""
    count = len(prompts)
    by_kind = [
        _one_per_row(KINDS[kind].plural, [given] if is_clip(kind, given) else given, count)
        for kind, given in media.items()
    ]
    rows = (dict(zip(media, row, strict=True)) for row in zip(*by_kind, strict=True))
    return [make_request(model, *row) for row in zip(prompts, rows, _row_groups(groups, count), strict=True)]


def _row_groups(groups: Keywords, count: int) -> list[Keywords]:
    """The keyword groups of each row."""
    rows: list[Keywords] = [groups | {group: {} for group in PER_ROW_GROUPS} for _ in range(count)]
    for group in PER_ROW_GROUPS:
        for name, value in groups[group].items():
            for row, item in zip(rows, _row_values(name, value, count), strict=True):
                if item is not None or name in NULLABLE:
                    row[group][name] = item
    for row in rows:
        row["sampling"].setdefault("logprobs", False)
    return rows


def _row_values(name: str, value: Any, count: int) -> list[Any]:
    """A keyword's value for each row: a list has one for each, anything else is for all. Where the value of one row is
    a list already, a list has one for each when it holds lists or None."""
    per_row = isinstance(value, list | tuple)
    if per_row and name in ("eos_tokens", "stop", "choices", "logits_processors", "stopping_criteria"):
        per_row = any(isinstance(item, list | tuple) or item is None for item in value)
    return _one_per_row(name, value, count) if per_row else [value] * count


def _one_per_row(name: str, values: Any, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    values = list(values) if isinstance(values, list | tuple) else [values]
    if len(values) != count:
        raise ValueError(
            f"{name}: {len(values)} given for {count} prompt{'s' * (count != 1)}; "
            "give one for each, None where there is none"
        )
    return values


def make_drafter(
    processor: Processor, draft_model: Any = None, num_draft_tokens: int | None = None, prompt_lookup: int | None = None
) -> Callable[[], Drafter] | None:
    """Makes what guesses the tokens of one row; None for no guesses."""
    if draft_model is None:
        if num_draft_tokens is not None:
            raise PromptError(f"num_draft_tokens={num_draft_tokens} does nothing without draft_model: give that too")
        return None if prompt_lookup is None else lambda: PromptLookup(prompt_lookup)
    if prompt_lookup is not None:
        raise UnsupportedError("draft_model and prompt_lookup do not go together: leave one of them out")
    draft: Model = draft_model if isinstance(draft_model, Model) else load(draft_model)[0]
    if not same_vocabulary(processor, draft.processor):
        raise UnsupportedError("draft_model: it has another vocabulary than the model; take one of the same family")
    reads_media = bool(draft.processor.placeholders)
    return lambda: DraftModel(draft, num_draft_tokens or 3, reads_media=reads_media)


# Running them


def _stream(iterator: TokenIterator, request: Request) -> Iterator[GenerationResult]:
    with iterator:
        iterator.add(request)
        for _, result in iterator:
            if result.error is not None:
                raise result.error
            yield result


def _run_batch(iterator: TokenIterator, requests: Sequence[Request]) -> tuple[list[GenerationResult], BatchStats]:
    """The whole answers, in the order of the requests, and the sums over them."""
    count = len(requests)
    texts, results = [""] * count, [GenerationResult()] * count
    bar = progress_bar("answering", "prompt", count) if count > 1 else None
    with iterator, bar or nullcontext():
        rows = {iterator.add(request): row for row, request in enumerate(requests)}
        for id, result in iterator:
            texts[rows[id]] += result.text
            if result.finish_reason is not None:
                results[rows[id]] = result
                if bar:
                    bar.update()
        stats = _batch_stats(results, iterator)
    for text, result in zip(texts, results, strict=True):
        result.text = text
    return results, stats


def _progress(callbacks: Sequence[Callable[[int, int], None]]) -> Callable[[int, int, int], None]:
    """Progress of all rows as one: prompt tokens computed, and those of all prompts that were begun."""
    rows: dict[int, tuple[int, int]] = {}

    def progress(id: int, done: int, total: int) -> None:
        rows[id] = done, total
        for callback in callbacks:
            callback(sum(done for done, _ in rows.values()), sum(total for _, total in rows.values()))

    return progress


def _batch_stats(results: Sequence[GenerationResult], iterator: TokenIterator) -> BatchStats:
    prompt_tokens = sum(result.prompt_tokens for result in results)
    generation_tokens = sum(result.generation_tokens for result in results)
    decoded = any(result.generation_tokens > 1 for result in results)  # a first token takes the prompt's time
    generation_time = iterator.generation_time if decoded else 0.0
    return BatchStats(
        prompt_tokens=prompt_tokens,
        prompt_tps=speed(prompt_tokens, iterator.prompt_time),
        prompt_time=iterator.prompt_time,
        generation_tokens=generation_tokens,
        generation_tps=speed(generation_tokens, generation_time),
        generation_time=generation_time,
        peak_memory=max((result.peak_memory for result in results), default=0.0),
        cached_tokens=sum(result.cached_tokens for result in results),
        drafted_tokens=sum(result.drafted_tokens for result in results),
        accepted_tokens=sum(result.accepted_tokens for result in results),
        encode_time=sum(result.encode_time for result in results),
    )


def _image_sizes(results: Sequence[GenerationResult]) -> list[Any]:
    """The pictures' (height, width) of each row; flat where each row has one picture."""
    if all(len(result.image_sizes) == 1 for result in results):
        return [result.image_sizes[0] for result in results]
    return [result.image_sizes for result in results]


# What a person is shown


def _print_stream(
    stream: Iterator[GenerationResult], prompt: Prompt, callbacks: list[Callable[[int, int], None]]
) -> Iterator[GenerationResult]:
    """The same stream, printed as it comes, with the prompt before and the statistics after it. callbacks: those of
    progress, which a bar joins."""
    print("=" * 10)
    print("Prompt:", _format_prompt(prompt), end="\n\n", flush=True)
    last = GenerationResult()
    with closing(PromptBar()) as bar:
        callbacks.append(bar.update)
        for last in stream:
            print(last.text, end="", flush=True)
            yield last
    print("\n" + statistics(last), flush=True)


def _format_prompt(prompt: Prompt) -> str:
    """A prompt as a person reads it: of messages the role and text, without the bytes of their pictures."""
    if isinstance(prompt, str):
        return prompt
    lines = []
    for message in chat_template.normalize(prompt):
        content = message.get("content") or ""
        parts = [part.get("text", f"<{part['type']}>") for part in content] if isinstance(content, list) else [content]
        lines.append(f"{message['role']}: {' '.join(parts)}")
    return "\n".join(lines)


def _warn_if_formatted(requests: Sequence[Request]) -> None:
    if any(isinstance(request.prompt, str) and request.enable_thinking for request in requests):
        notice(
            "enable_thinking does not change a prompt that is formatted already; "
            "apply_chat_template(processor, config, text, enable_thinking=True) formats one for it"
        )


def _warn_of_failures(results: Sequence[GenerationResult]) -> None:
    """A row that failed says so in its result, which nobody may read."""
    failed = [row for row, result in enumerate(results) if result.error is not None]
    if failed:
        more = f" (the others' are in results[{failed[1]}].error{' …' * (len(failed) > 2)})" if failed[1:] else ""
        notice(
            f"{len(failed)} of {len(results)} failed: results[{failed[0]}]: {one_line(results[failed[0]].error)}{more}"
        )
