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
    words = ["<unk>", *"▁ a b ▁a ▁b ▁Hello ▁world ! ▁▁ é 図".split(" ")]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
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
        if matches := [answer.find(own) for own in stop if own in answer]:
            answer, met = answer[: min(matches)], True
            break
        shown = "".join(out[:count])
        held = answer.removeprefix(shown)
        assert shown + held == answer
        assert not held or any(own.startswith(held) for own in stop)
    assert ("".join(out), stopped) == (answer, met)


def test_stop_string_over_half_characters(load_family: Callable[[str], Any]) -> None:
    """A stop string that starts and ends inside tokens of several bytes each."""
    tokenizer = byte_level(load_family)
    tokens = tokenizer.encode("naïve 図書館 🙂 end", add_special_tokens=False)
    text = TextStream(tokenizer, ["書館 🙂"])
    assert "".join(text.add(token) for token in tokens) == "naïve 図"
    assert text.stopped and text.finish() == ""
