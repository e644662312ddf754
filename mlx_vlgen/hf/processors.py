"""What transformers does to a row's scores before a token is taken, as mlx functions of one row, in its order."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine import logits as transforms
from ..engine.logits import entropy, kth_largest, log_softmax, mask
from ..engine.params import LogitsProcessor
from .config import GenerationSettings
from .values import ids

AllowedTokens = Callable[[int, mx.array], Sequence[int]]
"""(the row's place in the batch, its tokens so far (n,)) -> ids that may come next."""

UserProcessor = Callable[[mx.array, mx.array], mx.array]
"""(tokens so far (1, n), scores (1, V)) -> scores (1, V), as transformers calls it."""

_TOP_H = 100
"""How many most likely tokens top_h considers."""


def processors(
    settings: GenerationSettings,
    *,
    prompt_length: int,
    row: int,
    padding: int = 0,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    user_processors: Sequence[UserProcessor] = (),
) -> list[LogitsProcessor]:
    """What is done whether or not tokens are drawn, guidance left out.

    prompt_length: the row's tokens, of which processors get to see all. padding: what stands before them in the
    batch; transformers counts it in max_length and min_length, and where it asks for a prompt of one token.
    """
    s, width = settings, prompt_length + padding
    chain: list[LogitsProcessor] = []
    if s.sequence_bias:
        chain.append(partial(_sequence_bias, name="sequence_bias", biases=s.sequence_bias))
    if s.encoder_repetition_penalty != 1:
        chain.append(partial(_repetition, penalty=1 / s.encoder_repetition_penalty, end=prompt_length))
    if s.repetition_penalty != 1:
        chain.append(partial(_repetition, penalty=s.repetition_penalty))
    if s.presence_penalty:
        chain.append(partial(_presence, penalty=s.presence_penalty, start=prompt_length))
    if s.no_repeat_ngram_size:
        chain.append(partial(_no_repeat, size=s.no_repeat_ngram_size))
    if s.encoder_no_repeat_ngram_size:
        chain.append(partial(_no_repeat, size=s.encoder_no_repeat_ngram_size, end=prompt_length))
    if bad := [(word, -math.inf) for word in s.bad_words_ids if len(word) > 1 or word[0] not in s.eos_token_id]:
        chain.append(partial(_sequence_bias, name="bad_words_ids", biases=bad))
    min_length = s.min_length - padding if s.min_new_tokens is None else prompt_length + s.min_new_tokens
    if min_length > prompt_length and s.eos_token_id:
        chain.append(partial(_suppressed, banned=s.eos_token_id, when=range(min_length)))
    if prefix_allowed_tokens_fn is not None:
        chain.append(partial(_allowed, allowed=partial(prefix_allowed_tokens_fn, row), beams=s.num_beams))
    if s.forced_bos_token_id is not None and width == 1:
        chosen = (s.forced_bos_token_id,)
        chain.append(partial(_forced, name="forced_bos_token_id", chosen=chosen, length=prompt_length))
    if s.forced_eos_token_id:
        last = prompt_length + s.max_tokens_after(width) - 1
        chain.append(partial(_forced, name="forced_eos_token_id", chosen=s.forced_eos_token_id, length=last))
    if s.remove_invalid_values:
        chain.append(_valid)
    if s.exponential_decay_length_penalty is not None and s.eos_token_id:
        start, factor = s.exponential_decay_length_penalty
        chain.append(partial(_urged_to_end, ends=s.eos_token_id, start=prompt_length + start, factor=factor))
    if s.suppress_tokens:
        chain.append(partial(_suppressed, banned=s.suppress_tokens))
    if s.begin_suppress_tokens:
        begin = prompt_length + (width == 1 and s.forced_bos_token_id is not None)
        chain.append(partial(_suppressed, banned=s.begin_suppress_tokens, when=range(begin, begin + 1)))
    chain += [partial(_as_batch, user=user) for user in user_processors]
    return [_float32, *chain] if chain else []


def warpers(settings: GenerationSettings, *, prompt_length: int) -> list[LogitsProcessor]:
    """What comes after `processors`: what drawing asks for, then the watermark and the normalization, which apply to
    greedy and beam search too."""
    s = settings
    chain: list[LogitsProcessor] = []
    if s.do_sample:
        # Beams need one token that goes on, even where all ends are likelier.
        min_keep = max(len(s.eos_token_id) + 1, 2) if s.num_beams > 1 else 1
        if s.temperature != 1:
            chain.append(lambda tokens, logits: logits / s.temperature)
        if s.top_h is not None:
            chain.append(partial(_top_h, share=s.top_h))
        if s.top_k > 0:
            count = max(s.top_k, min_keep)
            chain.append(lambda tokens, logits: transforms.top_k(logits, mx.array([[count]]), count))
        if s.top_p < 1:
            chain.append(lambda tokens, logits: transforms.top_p(logits, mx.array(s.top_p), min_keep))
        if s.min_p:
            share = mx.array(s.min_p)
            chain.append(lambda tokens, logits: transforms.min_p(logits, share, min_keep))
        if s.typical_p < 1:
            chain.append(lambda tokens, logits: transforms.typical_p(logits, mx.array(s.typical_p), min_keep))
        if 0 < s.epsilon_cutoff < 1:
            chain.append(partial(_epsilon, cutoff=s.epsilon_cutoff, min_keep=min_keep))
        if 0 < s.eta_cutoff < 1:
            chain.append(partial(_eta, cutoff=s.eta_cutoff, min_keep=min_keep))
    if s.watermarking_config is not None:
        chain.append(s.watermarking_config.processor(prompt_length))
    if s.renormalize_logits:
        chain.append(lambda tokens, logits: log_softmax(logits))
    return [_float32, *chain] if chain else []


def sampling_keywords(settings: GenerationSettings, *, media: bool = False) -> dict[str, Any] | None:
    """The engine's sampling parameters where they do all that the settings ask of the scores, for its rows are
    penalized and drawn together; None where a processor or warper is needed, or beams.

    media: whether the prompt has any. The engine does not count placeholders as tokens that appeared; transformers
    does.
    """
    s = settings
    if s.num_beams > 1 or (media and s.repetition_penalty != 1):
        return None
    rest = dataclasses.replace(
        s, repetition_penalty=1.0, presence_penalty=0.0, temperature=1.0, top_k=0, top_p=1.0, min_p=None, typical_p=1.0
    )
    if processors(rest, prompt_length=1, row=0) or warpers(rest, prompt_length=1):
        return None
    params: dict[str, Any] = {"temperature": 0.0, "presence_penalty": s.presence_penalty}
    if s.repetition_penalty != 1:
        params |= {"repetition_penalty": s.repetition_penalty, "repetition_context_size": None}
    if s.do_sample:
        params |= {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "typical_p": s.typical_p}
        params["min_p"] = s.min_p or 0.0
    return params


def _float32(tokens: mx.array, logits: mx.array) -> mx.array:
    return logits.astype(mx.float32)


def _as_batch(tokens: mx.array, logits: mx.array, *, user: UserProcessor) -> mx.array:
    return user(tokens[None], logits)


def _at(tokens: mx.array, logits: mx.array) -> mx.array:
    """(V,): true at these ids (n,), of which those past the vocabulary (a placeholder's, say) are nowhere."""
    size = logits.shape[-1]
    present = mx.zeros((size + 1,), dtype=mx.bool_)
    present[mx.minimum(tokens, size)] = True
    return present[:size]


def _ids(tokens: Iterable[int]) -> mx.array:
    """(n,) int32; what is negative is no id and left out."""
    return mx.array([token for token in tokens if token >= 0], dtype=mx.int32)


def _within(name: str, tokens: Sequence[int], logits: mx.array) -> None:
    if not all(0 <= token < logits.shape[-1] for token in tokens):
        raise ValueError(
            f"{name}: expected ids below {logits.shape[-1]}, the size of the vocabulary, got {max(tokens)}"
        )


def _sequence_bias(
    tokens: mx.array, logits: mx.array, *, name: str, biases: Sequence[tuple[Sequence[int], float]]
) -> mx.array:
    """Adds each bias to the last token of its sequence where the others have just come."""
    longest = max(len(sequence) for sequence, _ in biases) - 1
    tail = tuple(np.array(tokens[-longest:]).tolist()) if longest else ()
    added: dict[int, float] = {}
    for sequence, bias in biases:
        _within(name, sequence, logits)
        *before, last = sequence
        if not before or tail[-len(before) :] == tuple(before):
            added[last] = added.get(last, 0.0) + bias
    return transforms.add_biases(logits, [added])


def _repetition(tokens: mx.array, logits: mx.array, *, penalty: float, end: int | None = None) -> mx.array:
    """Of the tokens before `end`; with less than 1 it favours them."""
    return transforms.repetition_penalty(logits, _at(tokens[:end], logits), penalty)


def _presence(tokens: mx.array, logits: mx.array, *, penalty: float, start: int) -> mx.array:
    return transforms.presence_penalty(logits, _at(tokens[start:], logits), penalty)


def _no_repeat(tokens: mx.array, logits: mx.array, *, size: int, end: int | None = None) -> mx.array:
    """Forbids what would make a sequence of so many tokens that is already among those before `end`."""
    known = tokens[:end]
    starts = len(known) - size + 1
    if starts <= 0 or len(tokens) < size - 1:
        return logits
    same = mx.ones((starts,), dtype=mx.bool_)
    for offset in range(size - 1):
        same = same & (known[offset : offset + starts] == tokens[len(tokens) - size + 1 + offset])
    return mask(logits, _at(mx.where(same, known[size - 1 :], logits.shape[-1]), logits))


def _suppressed(tokens: mx.array, logits: mx.array, *, banned: Sequence[int], when: range | None = None) -> mx.array:
    """when: of how many tokens; None is always."""
    return mask(logits, _at(_ids(banned), logits)) if when is None or len(tokens) in when else logits


def _allowed(
    tokens: mx.array, logits: mx.array, *, allowed: Callable[[mx.array], Sequence[int]], beams: int
) -> mx.array:
    """Only what the user's function allows. Where nothing of it is left, all of it is alike; not so with beams, of
    which another one may go on."""
    only = ids("prefix_allowed_tokens_fn", allowed(tokens))
    if not only:
        raise ValueError("prefix_allowed_tokens_fn returned no token: expected at least one that may come next")
    _within("prefix_allowed_tokens_fn", only, logits)
    open_ = _at(_ids(only), logits)
    scores = mask(logits, ~open_)
    if beams > 1:
        return scores
    return mx.where(mx.max(scores) == -mx.inf, mask(mx.zeros_like(logits), ~open_), scores)


def _forced(tokens: mx.array, logits: mx.array, *, name: str, chosen: Sequence[int], length: int) -> mx.array:
    """These alone, and alike, where there are so many tokens."""
    if len(tokens) != length:
        return logits
    _within(name, chosen, logits)
    return mask(mx.zeros_like(logits), ~_at(_ids(chosen), logits))


def _valid(tokens: mx.array, logits: mx.array) -> mx.array:
    bound = mx.finfo(logits.dtype)
    return mx.clip(mx.where(mx.isnan(logits), 0, logits), bound.min, bound.max)


def _urged_to_end(tokens: mx.array, logits: mx.array, *, ends: Sequence[int], start: int, factor: float) -> mx.array:
    """The longer past `start`, the higher the logits of the end tokens, by the size that they have."""
    late = len(tokens) - start
    if late <= 0:
        return logits
    growth = factor**late if late * math.log2(factor) < 100 else 2.0**100  # float32 ends at 2 to the 128th
    size = mx.where(mx.isfinite(logits), mx.abs(logits), 0)
    return mx.where(_at(_ids(ends), logits), logits + size * (growth - 1), logits)


def _top_h(tokens: mx.array, logits: mx.array, *, share: float) -> mx.array:
    """The most likely tokens whose entropy reaches a share of that of all (of the first hundred).
    Source: https://arxiv.org/abs/2509.02510."""
    count = min(_TOP_H, logits.shape[-1])
    index = mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count]
    index = mx.take_along_axis(index, mx.argsort(-mx.take_along_axis(logits, index, axis=-1), axis=-1), axis=-1)
    surprise = -log_softmax(mx.take_along_axis(logits, index, axis=-1))
    likely = mx.exp(-surprise)
    reached = mx.cumsum(mx.where(likely > 0, likely * surprise, 0), axis=-1)
    remaining = (likely > 0) & ((reached <= share * entropy(surprise)) | (mx.arange(count) == 0))
    return mask(logits, ~mx.put_along_axis(mx.zeros(logits.shape, dtype=mx.bool_), index, remaining, axis=-1))


def _epsilon(tokens: mx.array, logits: mx.array, *, cutoff: float | mx.array, min_keep: int) -> mx.array:
    """Without tokens less likely than that. Source for this and the next: https://arxiv.org/abs/2210.15191."""
    return mask(
        logits,
        (mx.softmax(logits, axis=-1) < cutoff) & (logits < kth_largest(logits, mx.array([[min_keep]]), min_keep)),
    )


def _eta(tokens: mx.array, logits: mx.array, *, cutoff: float, min_keep: int) -> mx.array:
    """The same, with a lower bound where the distribution is flat."""
    flat = math.sqrt(cutoff) * mx.exp(-entropy(-log_softmax(logits)))
    return _epsilon(tokens, logits, cutoff=mx.minimum(cutoff, flat), min_keep=min_keep)
