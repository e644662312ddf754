"""What a line of a chat means, without a terminal, a model or files."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen.chat_lines import (
    COMMANDS,
    Command,
    LineError,
    Question,
    complete,
    context_warning,
    is_open,
    parse_line,
    parse_setting,
    split_paths,
    status_line,
)

FILES = {"/tmp/a b.png", "/tmp/c.mp4", "/tmp/It's.jpg", "d.png", "/tmp/x.PNG", "my d.png"}


def parse(line: str) -> Command | Question:
    return parse_line(line, FILES.__contains__)


@pytest.mark.parametrize(
    ("line", "text", "media"),
    [
        ("What is it?", "What is it?", []),
        ("/tmp/a\\ b.png ", "", ["/tmp/a b.png"]),
        ("'/tmp/a b.png' What is it?", "What is it?", ["/tmp/a b.png"]),
        ('What is it? "/tmp/a b.png"', "What is it?", ["/tmp/a b.png"]),
        ("file:///tmp/a%20b.png What?", "What?", ["/tmp/a b.png"]),
        ("file://localhost/tmp/a%20b.png", "", ["/tmp/a b.png"]),
        ("/tmp/a b.png", "", ["/tmp/a b.png"]),
        ("'/tmp/It'\\''s.jpg' Who's this?", "Who's this?", ["/tmp/It's.jpg"]),
        ("/tmp/It\\'s.jpg", "", ["/tmp/It's.jpg"]),
        ("/tmp/a\\ b.png d.png /tmp/c.mp4 both?", "both?", ["/tmp/a b.png", "d.png", "/tmp/c.mp4"]),
        ("compare d.png with /tmp/x.PNG.", "compare d.png with x.PNG.", ["d.png", "/tmp/x.PNG"]),
        ("What's in d.png?", "What's in d.png?", ["d.png"]),
        ("What's in nowhere.png?", "What's in nowhere.png?", []),
        ("my d.png", "my", ["d.png"]),  # a name with a blank must be plain to be one
        ("/tmp/gone.png What?", "What?", ["/tmp/gone.png"]),  # whoever reads it says that it is gone
        ("~/gone\\ too.png", "", ["~/gone too.png"]),
        ("a/b ratio 3/4 and/or /etc/passwd", "a/b ratio 3/4 and/or /etc/passwd", []),
        ("https://example.com/d.png is a link", "https://example.com/d.png is a link", []),
        ('"""/undo d.png\nas it is"""', "/undo d.png\nas it is", []),
        ("two\n lines", "two\n lines", []),
    ],
)
def test_questions_and_the_paths_in_them(line: str, text: str, media: list[str]) -> None:
    kinds = tuple(("video" if path.endswith("mp4") else "image", path) for path in media)
    assert parse(line) == Question(text, kinds)


def test_names_of_no_file_are_told() -> None:
    action = parse("no.png or 'no.png' (https://example.com/d.png) beside d.png, /tmp/gone.png and .pngs")
    assert isinstance(action, Question) and action.missing == ("no.png", "'no.png", "(https://example.com/d.png")


def test_commands() -> None:
    assert parse("/set temperature 0.7") == Command("set", "temperature 0.7")
    assert parse(" /clear ") == Command("clear", "")
    assert parse("/image a b.png") == Command("image", "a b.png")
    with pytest.raises(LineError, match="unknown command /sytem; did you mean '/system'"):
        parse("/sytem")
    with pytest.raises(LineError, match="unknown command /tmp"):  # although there is such a folder
        parse_line("/tmp What is in it?")


@given(st.text())
def test_any_line_is_a_command_a_question_or_told(line: str) -> None:
    try:
        action = parse_line(line, FILES.__contains__)
    except LineError:
        return
    if isinstance(action, Command):
        assert action.name in COMMANDS
    elif not action.media and not line.strip().startswith('"""'):
        assert action.text == line.strip()


def test_a_long_paste_is_read_in_no_time() -> None:
    text = "a line of prose, /with/slashes 'and quotes and a.png\n" * 500
    begun = time.process_time()
    assert parse(text) == Question(text.strip())
    assert time.process_time() - begun < 3


def test_open_texts() -> None:
    assert is_open('"""a') and is_open('"""') and is_open('"""a\nb')
    assert not is_open('"""a"""') and not is_open('a """') and not is_open("")


def test_paths_of_commands() -> None:
    assert split_paths("a\\ b.png 'c d.png' file:///e%20f.png", lambda path: False) == [
        "a b.png",
        "c d.png",
        "/e f.png",
    ]
    assert split_paths("my d.png", FILES.__contains__) == ["my d.png"]
    assert split_paths("it's.png x", lambda path: False) == ["it's.png", "x"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.7", 0.7),
        ("max_tokens", "9", 9),
        ("stop", "'a b' c", ["a b", "c"]),
        ("resize_shape", "30 40", [30, 40]),
        ("enable_thinking", "on", True),
        ("include_eos", "false", False),
        ("repetition_context_size", "all", None),
        ("regex", "a b+", "a b+"),
    ],
)
def test_settings(name: str, text: str, value: object) -> None:
    assert parse_setting(name, text) == value


def test_wrong_settings_are_told() -> None:
    for name, text, message in [
        ("temprature", "1", "unknown setting 'temprature'; did you mean 'temperature'"),
        ("temperature", "warm", "temperature: 'warm' is not a number"),
        ("enable_thinking", "maybe", "enable_thinking is on or off, not 'maybe'"),
        ("grammar", "nowhere.lark", "grammar: nowhere.lark: No such file"),
    ]:
        with pytest.raises(LineError, match=message):
            parse_setting(name, text)


def test_completion(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("completion")
    (folder / "my photos").mkdir()
    (folder / "my photos" / "a b.png").touch()
    monkeypatch.chdir(folder)

    def completed(text: str) -> list[str]:
        return [text[: len(text) - length] + new for new, length, _ in complete(text)]

    assert completed("/cl") == ["/clear"]
    assert completed("/set top") == ["/set top_p", "/set top_k", "/set top_n_sigma"]
    assert completed("/thoughts o") == ["/thoughts open"]
    assert completed("/image my") == ["/image my\\ photos/"]
    assert completed("/image my\\ photos/") == ["/image my\\ photos/a\\ b.png"]
    assert completed("What is in ./my") == ["What is in ./my\\ photos/"]
    assert completed("What is my") == completed("/undo ") == []


def test_status() -> None:
    assert status_line(7, 63.46, 79, 4096) == "7 tokens · 63.5 tokens/s · context 79 of 4,096 (2%)"
    assert status_line(1, 0.0, 79, None, "cancelled") == "stopped · 1 token · context 79"
    assert status_line(1, 0.0, 1179, None, reused=1079) == "1 token · reused 1,079 · context 1,179"
    assert context_warning(79, 100) is None and context_warning(10**6, None) is None
    assert (context_warning(80, 100) or "").startswith("the context is 80% full, with room for 20 tokens: /clear")
    assert (context_warning(100, 100) or "").startswith("the context is full: ")
