"""Text: pieces join to what `decode` gives, and nothing of a stop string leaks."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mlx_vlgen.engine.text import Detokenizer, TextStream


def byte_level(load_family: Callable[[str], Any]) -> Any:
    return load_family("qwen3").processor.tokenizer


def with_spaces() -> Any:
    """As SentencePiece's: a word begins with a space, which the first word of a text loses."""
    vocabulary = ["<unk>", *"▁ a b ▁a ▁b ▁Hello ▁world ! ▁▁ é 図".split(" ")]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["byte_level", "with_spaces"])
def tokenizer(request: pytest.FixtureRequest, load_family: Callable[[str], Any]) -> Any:
    return byte_level(load_family) if request.param == "byte_level" else with_spaces()


def decode(tokenizer: Any, tokens: Sequence[int], skip: bool) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@given(data=st.data(), skip=st.booleans())
def test_pieces_join(tokenizer: Any, data: st.DataObject, skip: bool) -> None:
    """Any ids at all: halves of characters, invalid bytes, special tokens anywhere."""
    special = st.sampled_from(tokenizer.all_special_ids)
    ids = st.integers(0, len(tokenizer) - 1) | special
    tokens = data.draw(st.lists(ids, max_size=25))
    detokenizer = Detokenizer(tokenizer, skip)
    pieces = [detokenizer.add(token) for token in tokens]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join([*pieces, detokenizer.finish()]) == decode(tokenizer, tokens, skip)


@given(text=st.text(max_size=20))
@example("日本語 🙂👩\u200d👩\u200d👧 naïve\u0301")
def test_whole_characters(load_family: Callable[[str], Any], text: str) -> None:
    """Each piece ends with a whole character, however many tokens that takes, and is out as soon as it is one."""
    tokenizer = byte_level(load_family)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    so_far = ""
    for count, token in enumerate(tokens, 1):
        so_far += detokenizer.add(token)
        whole = decode(tokenizer, tokens[:count], False)
        assert so_far == whole if not whole.endswith("\ufffd") else whole.startswith(so_far)
    assert so_far + detokenizer.finish() == decode(tokenizer, tokens, False)


class Pieces:
    """A tokenizer whose ids stand for these strings."""

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(self.pieces[token] for token in tokens)


def stream(pieces: Sequence[str], *stop: str) -> tuple[list[str], bool]:
    """What comes out for each token, and for the end; whether a stop string was met. No token follows that."""
    text = TextStream(Pieces(*pieces), stop)
    out = []
    for token in range(len(pieces)):
        out.append(text.add(token))
        if text.stopped:
            break
    return [*out, text.finish()], text.stopped


@pytest.mark.parametrize(
    ("pieces", "stop", "out", "stopped"),
    [
        (["Hello", " world"], [], ["Hello", " world", ""], False),
        (["one END two"], ["END"], ["one ", ""], True),
        (["one E", "N", "D two"], ["END"], ["one ", "", "", ""], True),
        (["E", "N", "X"], ["END"], ["", "", "ENX", ""], False),
        (["a", "E", "N"], ["END"], ["a", "", "", "EN"], False),  # held back, and flushed
        (["aab", "aab", "aac"], ["aabaac"], ["", "aab", "", ""], True),  # a stop string begins inside another try
        (["x", "aaab"], ["aab"], ["x", "a", ""], True),
        (["ab", "cd"], ["cd", "bc"], ["a", "", ""], True),  # the earliest match wins, not the first named
        (["abcd"], ["cd", "abc"], ["", ""], True),
        (["ab", "c"], ["abc", "b"], ["a", ""], True),  # one that is complete does not wait for a longer one
        (["\n", "\n", "x"], ["\n\n"], ["", "", ""], True),
        (["日", "本", "語"], ["本語"], ["日", "", "", ""], True),
    ],
)
def test_stop_strings(pieces: list[str], stop: list[str], out: list[str], stopped: bool) -> None:
    assert stream(pieces, *stop) == (out, stopped)


texts = st.text("ab", max_size=4)


@given(st.lists(texts, max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_anywhere(pieces: list[str], stop: list[str]) -> None:
    """Against the definition: the answer ends before the earliest match in the text up to the first token that
    completes one. Until then no more is held back than may begin a stop string."""
    out, stopped = stream(pieces, *stop)
    answer, met = "", False
    for count in range(len(pieces) + 1):
        answer = "".join(pieces[:count])
        if matches := [answer.find(string) for string in stop if string in answer]:
            answer, met = answer[: min(matches)], True
            break
        shown = "".join(out[:count])
        pending = answer.removeprefix(shown)
        assert shown + pending == answer
        assert not pending or any(string.startswith(pending) for string in stop)
    assert ("".join(out), stopped) == (answer, met)


def test_stop_string_over_half_characters(load_family: Callable[[str], Any]) -> None:
    """A stop string that starts and ends inside tokens of several bytes each."""
    tokenizer = byte_level(load_family)
    tokens = tokenizer.encode("naïve 図書館 🙂 end", add_special_tokens=False)
    text = TextStream(tokenizer, ["書館 🙂"])
    assert "".join(text.add(token) for token in tokens) == "naïve 図"
    assert text.stopped and text.finish() == ""


class Counting:
    """A tokenizer, and how many tokens it decoded."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self.count = tokenizer, 0

    def decode(self, tokens: Sequence[int], **settings: Any) -> str:
        self.count += len(tokens)
        return str(self._tokenizer.decode(tokens, **settings))


def of_bytes(tokenizer: Any, *values: int) -> list[int]:
    """The tokens that stand for single bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [tokenizer.convert_tokens_to_ids(bytes_to_unicode()[value]) for value in values]


ENDLESS = {
    "first halves": (0xC3,),
    "second halves": (0x80,),
    "beginnings of four bytes": (0xF0, 0x9F, 0x98),
    "no bytes of UTF-8": (0xFF, 0xC0),
}


@pytest.mark.parametrize("name", [*ENDLESS, "skipped tokens", "a half and skipped tokens", "words"])
def test_a_token_costs_the_same_however_many_came_before(name: str, load_family: Callable[[str], Any]) -> None:
    """Counted in tokens that are decoded again. What comes out is what `decode` gives, and comes in time."""
    tokenizer = byte_level(load_family)
    special, half = tokenizer.all_special_ids[0], of_bytes(tokenizer, 0xC3)
    tokens = {
        "skipped tokens": [special] * 2000,
        "a half and skipped tokens": half + [special] * 2000 + of_bytes(tokenizer, 0xA9),
        "words": tokenizer.encode(" one two" * 1000, add_special_tokens=False),
    }.get(name) or of_bytes(tokenizer, *ENDLESS.get(name, ())) * (2000 // len(ENDLESS.get(name, (0,))))
    counting = Counting(tokenizer)
    detokenizer = Detokenizer(counting, skip_special_tokens=True)
    pieces = [detokenizer.add(token) for token in tokens]
    waits = max(map(len, "".join("|" if piece else "." for piece in pieces).split("|")))
    text = "".join([*pieces, detokenizer.finish()])
    assert text == decode(tokenizer, tokens, True)
    assert counting.count < 100 * len(tokens)
    assert waits <= 32 or "skipped" in name
    assert text.endswith("é") or not name.startswith("a half")


HALVES = (0x61, 0xC3, 0xA9, 0x80, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0xFF)


@given(data=st.data())
def test_long_runs_of_half_characters_join(load_family: Callable[[str], Any], data: st.DataObject) -> None:
    """Characters among them, and tokens that are skipped, come out as `decode` has them."""
    tokenizer = byte_level(load_family)
    kinds = [*of_bytes(tokenizer, *HALVES), tokenizer.all_special_ids[0]]
    run = st.lists(st.sampled_from(kinds), min_size=1, max_size=9)
    runs = data.draw(st.lists(st.tuples(run, st.integers(1, 30)), max_size=4))
    tokens = [token for run, times in runs for token in run * times]
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)
    pieces = [detokenizer.add(token) for token in tokens]
    assert "".join([*pieces, detokenizer.finish()]) == decode(tokenizer, tokens, True)
