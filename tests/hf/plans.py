"""The cases of `model.generate`: inputs and keywords, many of them made from what greedy decoding answers."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from parity.recipe import Case, user

Kind = Literal["text", "image", "batch", "texts", "one", "none"]
Keywords = dict[str, Any]

QUESTIONS = (
    "Describe this image.", "What is it?", "How many are there?", "What does it say?", "Which colour is the left one?",
    "Tell the model more.", "Describe the user.", "What differs?", "Is there a circle?", "And what else is there?",
    "Name three things.", "Where is the picture?", "Who are you?", "What can you do?", "Count them, please.",
    "Is it large?", "Why is it so?", "Read the first line.", "A café, très naïve?", "12345 + 678?", "Compare.",
    "Say it again.", "What is behind it?", "How old is it?",
)  # fmt: skip
"""A prompt whose answer has a near-tie is no test; another of these then stands in its place."""


@dataclass(frozen=True)
class Pictures:
    """Names in parity.media: of the prompt with one, and of the first and last row of the batch."""

    one: str = "plain"
    first: str = "upright"
    last: tuple[str, str] = ("plain", "upright")


def rows(kind: Kind, variant: int, pictures: Pictures) -> list[Case]:
    """The prompts of a kind; "texts" are a batch without pictures; "one" is the bos token alone and "none" no
    input at all, both without a prompt."""
    question = QUESTIONS[variant % len(QUESTIONS)]
    if kind == "text":
        return [Case(user(question))]
    if kind == "image":
        return [Case(user("image", question), [pictures.one])]
    if kind == "batch":
        others = (QUESTIONS[(variant + step) % len(QUESTIONS)] for step in (7, 16))
        return [
            Case(user("image", question), [pictures.first]),
            Case(user(next(others))),
            Case(user("image", "image", next(others)), list(pictures.last)),
        ]
    if kind == "texts":
        return [Case(user(QUESTIONS[(variant + step) % len(QUESTIONS)])) for step in (0, 1, 5)]
    return []


@dataclass(frozen=True)
class Start:
    """What keywords are made from."""

    tokens: Sequence[Sequence[int]]  # each row's greedy answer
    word: int  # a token of the first row's prompt
    width: int  # of the padded prompts
    eos: int  # the model's first end token
    beams: Sequence[int]  # ids at which some beam ends
    decode: Callable[[Sequence[int]], str]  # ids to text


@dataclass(frozen=True)
class Plan:
    """One case.

    stores: what is compared besides tokens: "scores", "logits", "hidden_states", "attentions", "transition_scores",
        or "probabilities" of the first token
    by_row: whether scores are those of each row alone, for transformers counts padding among the prompt's tokens
    """

    name: str
    kind: Kind
    keywords: Callable[[Start], Keywords]  # of `model.generate`
    stores: tuple[str, ...] = ()
    differs: bool = False  # whether tokens must not be those of greedy decoding
    assistant: str | None = None  # the family of the assistant model
    negative: Kind | None = None  # the kind of negative prompt
    by_row: bool = False


def fixed(**keywords: Any) -> Callable[[Start], Keywords]:
    return lambda start: dict(keywords)


WATERMARK = {"greenlist_ratio": 0.25, "bias": 2.5, "hashing_key": 15485863, "context_width": 1}

PROCESSORS: Mapping[str, Callable[[Start], Keywords]] = {
    "repetition": fixed(repetition_penalty=1.3),
    "encoder_repetition": fixed(encoder_repetition_penalty=1.3),
    "no_repeat_ngram": fixed(no_repeat_ngram_size=2),
    "bad_words": lambda s: {"bad_words_ids": [[s.tokens[0][2]], list(s.tokens[0][:2])]},
    "sequence_bias": lambda s: {
        "sequence_bias": [[[s.tokens[0][1]], -5.0], [list(s.tokens[0][:3:2]), 9.0], [[s.word], 2.0]]
    },
    "suppress": lambda s: {"suppress_tokens": [s.tokens[0][0], s.tokens[0][3]]},
    "begin_suppress": lambda s: {"begin_suppress_tokens": list(s.tokens[0][:2])},
    "forced_eos": lambda s: {"forced_eos_token_id": s.eos},
    "min_length": lambda s: {"min_length": s.width + 5},
    "min_new_tokens": fixed(min_new_tokens=4),
    "decay": fixed(exponential_decay_length_penalty=[2, 1.7]),
    "remove_invalid": fixed(remove_invalid_values=True),
    "renormalize": fixed(renormalize_logits=True),
    "watermark": fixed(watermarking_config=WATERMARK | {"seeding_scheme": "lefthash"}),
}
"""Every deterministic processor."""

ENDED: Mapping[str, int] = {"min_length": 1, "min_new_tokens": 2, "decay": 5}
"""Those that need an end token that the answer has: where it stands in the answer."""

ALONE: Mapping[str, Callable[[Start], Keywords]] = PROCESSORS | {
    "no_repeat_token": fixed(no_repeat_ngram_size=1),
    "watermark_self": fixed(watermarking_config=WATERMARK | {"seeding_scheme": "selfhash"}),
    "forced_other": lambda s: {"forced_eos_token_id": [s.tokens[0][0]]},
    "removed": lambda s: {"remove_invalid_values": True, "suppress_tokens": [s.tokens[0][1]]},
    "barred_words": lambda s: {"remove_invalid_values": True, "bad_words_ids": [[s.tokens[0][1]]]},
}
QUIET = {"no_repeat_ngram", "min_length", "remove_invalid", "renormalize", "forced_eos"}
"""Those that need not change tokens; their scores tell."""

PADDED = {"encoder_repetition", "no_repeat_token"}
"""Those that change the score of the padding where the prompt has some."""


def processor_cases(kinds: Sequence[Kind]) -> Iterator[Plan]:
    """Each alone: a text's tokens by the plain call, of the other kinds the scores too."""
    for kind, (name, make) in itertools.product(kinds, ALONE.items()):

        def keywords(start: Start, name: str = name, make: Callable[[Start], Keywords] = make) -> Keywords:
            ends = {"eos_token_id": start.tokens[0][ENDED[name]]} if name in ENDED else {}
            return {"max_new_tokens": 10} | ends | make(start)

        quiet = name in QUIET or name in ENDED
        stores = () if kind == "text" else ("scores",)
        padded = kind == "batch" and name in PADDED
        yield Plan(f"{name}-{kind}", kind, keywords, stores, differs=not quiet, by_row=padded)


def pair_cases() -> Iterator[Plan]:
    """All pairs, of eight tokens, with an end token that the plain answer has."""
    for first, second in itertools.combinations(PROCESSORS, 2):

        def keywords(start: Start, first: str = first, second: str = second) -> Keywords:
            both = PROCESSORS[first](start) | PROCESSORS[second](start)
            return {"max_new_tokens": 8, "eos_token_id": start.tokens[0][5]} | both

        yield Plan(f"{first}+{second}", "text", keywords, ("scores",))


def beam_cases(kinds: Sequence[Kind], every: Sequence[Kind]) -> Iterator[Plan]:
    """Beams that end at unlike steps; every combination for the kinds of `every`, of the others a few."""
    for kind in kinds:
        some = ((2, 4), (False, True), (0.5, 1.0, 2.0)) if kind in every else ((4,), (False, True), (1.0,))
        for beams, early, penalty in itertools.product(*some):
            yield _beam(f"beam{beams}-{'early' if early else 'late'}-{penalty}-{kind}", kind, beams, early, penalty)
        yield _beam(f"beam3-all-{kind}", kind, 3, False, 1.0, num_return_sequences=3)
        if kind in every:
            yield _beam(f"beam4-never-1.0-{kind}", kind, 4, "never", 1.0)
            yield Plan(f"beam2-endless-{kind}", kind, fixed(num_beams=2, max_new_tokens=6), ("transition_scores",))
    text = kinds[0]
    yield _beam(f"beam4-two-{text}", text, 4, True, -1.0, num_return_sequences=2)
    yield _beam(f"beam4-never-short-{text}", text, 4, "never", -0.5)
    yield _beam(f"beam2-scores-{text}", text, 2, False, 1.0, stores=("scores", "logits", "transition_scores"))
    yield _beam(f"beam2-repetition-{text}", text, 2, False, 1.0, repetition_penalty=1.3, no_repeat_ngram_size=2)
    yield _beam(f"beam2-min_new_tokens-{text}", text, 2, True, 1.0, min_new_tokens=6, renormalize_logits=True)
    yield _beam(f"beam2-watermark-{text}", text, 2, False, 1.0, **PROCESSORS["watermark"](Start([], 0, 0, 0, [], str)))


def _beam(
    name: str,
    kind: Kind,
    beams: int,
    early: bool | str,
    penalty: float,
    stores: tuple[str, ...] = (),
    **more: Any,
) -> Plan:
    keywords = {"num_beams": beams, "early_stopping": early, "length_penalty": penalty, "max_new_tokens": 9} | more
    return Plan(name, kind, lambda start: keywords | {"eos_token_id": list(start.beams)}, stores)


def length_cases(kinds: Sequence[Kind]) -> Iterator[Plan]:
    """Lengths, ends and what changes nothing about the answer."""
    yield Plan("no_cache-text", "text", fixed(max_new_tokens=6, use_cache=False))
    yield Plan("chunks-text", "text", fixed(max_new_tokens=6, prefill_chunk_size=5))
    for kind in kinds:
        yield Plan(f"max_length-{kind}", kind, lambda s: {"max_length": s.width + 5})
        yield Plan(f"max_time-{kind}", kind, fixed(max_new_tokens=6, max_time=1e-9))
        yield Plan(
            f"ends-{kind}",
            kind,
            lambda s: {"max_new_tokens": 8, "eos_token_id": [row[3] for row in s.tokens]},
            ("scores",),
        )
        yield Plan(
            f"pad-{kind}", kind, lambda s: {"max_new_tokens": 8, "eos_token_id": s.tokens[0][2], "pad_token_id": 7}
        )
    yield Plan("both_lengths-text", "text", lambda s: {"max_length": s.width + 5, "max_new_tokens": 3})


def stop_cases(kinds: Sequence[Kind]) -> Iterator[Plan]:
    """Strings that an answer has in the middle: one token's, and one over two tokens."""
    for kind in kinds:
        yield Plan(f"stop-{kind}", kind, lambda s: {"max_new_tokens": 10, "stop_strings": [_stop_strings(s)[0]]})
        yield Plan(
            f"stop_two-{kind}", kind, lambda s: {"max_new_tokens": 10, "stop_strings": ["@#@", _stop_strings(s)[1]]}
        )


def _stop_strings(start: Start) -> tuple[str, str]:
    """What one token says, and the end of one token with the beginning of the next; "" where none is plain text."""

    def plain(text: str) -> bool:
        return len(text) > 1 and text.isascii() and text.isprintable() and not text.startswith("<")

    answer = start.tokens[0]
    texts = [start.decode([token]) for token in answer]
    one = [text for text in texts[1:7] if plain(text)]
    two = [a[-1] + b[:2] for a, b in itertools.pairwise(texts[1:8]) if a and plain(a[-1] + b[:2])]
    return (one or [""])[0], (two or [""])[0]


def output_cases(kinds: Sequence[Kind]) -> Iterator[Plan]:
    """Everything that `return_dict_in_generate` can return."""
    for kind in kinds:
        everything = ("scores", "logits", "hidden_states", "attentions", "transition_scores")
        yield Plan(f"outputs-{kind}", kind, fixed(max_new_tokens=3, repetition_penalty=1.2), everything)


def guidance_cases(kinds: Sequence[Kind]) -> Iterator[Plan]:
    """Away from the prompt's last token alone, and from a negative prompt of text."""
    for kind in kinds:
        keywords = fixed(max_new_tokens=8, guidance_scale=1.5)
        negative: Kind = "texts" if kind == "batch" else "text"
        yield Plan(f"guidance-{kind}", kind, keywords, ("scores",), differs=True)
        yield Plan(f"guidance_negative-{kind}", kind, keywords, ("scores",), differs=True, negative=negative)
    yield Plan("guidance_below-text", "text", fixed(max_new_tokens=8, guidance_scale=0.4), negative="text")


LOOKUP = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}

SAMPLING: Mapping[str, Keywords] = {
    "instruct": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "cut": {"temperature": 1.6, "top_k": 0, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8, "repetition_penalty": 1.2},
    "cutoffs": {"temperature": 2.0, "top_k": 40, "epsilon_cutoff": 0.004, "eta_cutoff": 0.01},
    "top_h": {"temperature": 1.3, "top_k": 0, "top_h": 0.4, "renormalize_logits": True, "suppress_tokens": [65, 66]},
}


def sampling_cases(several: Kind) -> Iterator[Plan]:
    """What the first token is drawn from."""
    for kind, (name, keywords) in itertools.product(("text", "image"), SAMPLING.items()):
        sampled = {"do_sample": True, "max_new_tokens": 1, "seed": 1} | keywords
        yield Plan(f"sample-{name}-{kind}", kind, fixed(**sampled), ("probabilities",))
    sampled = {"do_sample": True, "max_new_tokens": 1, "seed": 1, "num_return_sequences": 3} | SAMPLING["instruct"]
    yield Plan(f"sample-several-{several}", several, fixed(**sampled), ("probabilities",))


def greedy_cases(tokens: int) -> Iterator[Plan]:
    for kind in ("text", "image", "batch"):
        yield Plan(f"greedy-{kind}", kind, fixed(max_new_tokens=tokens))
        yield Plan(f"lookup-{kind}", kind, fixed(max_new_tokens=tokens, **LOOKUP))


def plans(family: str) -> Iterator[Plan]:
    """The cases of a family; fewer with pictures of the built-in model, whose pictures are large."""
    kinds: Sequence[Kind] = ("text", "image", "batch")
    demo = family == "demo"
    alone: Sequence[Kind] = kinds if family == "qwen3_vl" else ("text",) if demo else ("batch",)
    yield from greedy_cases(24 if demo else 12)
    yield from beam_cases(kinds, ("text",) if demo else kinds)
    yield from sampling_cases("text" if demo else "batch")
    yield from processor_cases(alone)
    yield from guidance_cases(kinds[:2] if demo else kinds)
    yield from length_cases(("text",) if demo else ("image", "batch"))
    yield from stop_cases(("text",) if demo else ("text", "batch"))
    yield from output_cases(kinds)
    if family == "qwen3_vl":
        yield Plan("assisted-text", "text", fixed(max_new_tokens=10), assistant="qwen3")
        yield Plan("assisted-image", "image", fixed(max_new_tokens=10, num_assistant_tokens=3), assistant="qwen3")
    if family == "llava":
        yield from pair_cases()
        yield Plan("assisted-text", "text", fixed(max_new_tokens=10), assistant="llava_siglip")
        yield Plan("none", "none", fixed(max_new_tokens=8))
        yield Plan("forced_bos-one", "one", fixed(max_new_tokens=8, forced_bos_token_id=70), ("scores",))
        begin = {"forced_bos_token_id": 70, "begin_suppress_tokens": [70, 80]}
        yield Plan("forced_bos_suppress-one", "one", fixed(max_new_tokens=8, **begin), ("scores",))
