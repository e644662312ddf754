"""Sessions as values and as files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_vlgen.session import Journal, Session, SessionError, Turn, apply, question, read_talk, save_copy, snapshot
from mlx_vlgen.session import turn_event as turn_to_event

PART = {"type": "image", "image": "/tmp/a.png", "sha256": "00"}
TURN = Turn(question([PART], "What?"), {"role": "assistant", "content": "A circle."}, None, 0, "stop", 12)

texts = st.text(st.characters(codec="utf-8"))
turns = st.builds(
    Turn,
    st.builds(question, st.lists(st.just(PART), max_size=2), texts),
    st.builds(lambda text: {"role": "assistant", "content": text}, texts),
    st.none() | texts,
    st.integers(0, 9),
    st.sampled_from(["stop", "length", "cancelled"]),
    st.integers(0, 99),
)
events = st.one_of(
    st.builds(lambda value: {"event": "model", "value": value}, texts),
    st.builds(lambda value: {"event": "system", "value": value}, st.none() | texts),
    st.builds(lambda value: {"event": "set", "values": {"temperature": value}}, st.floats(0, 2)),
    st.just({"event": "unset", "name": "temperature"}),
    st.builds(turn_to_event, turns, st.booleans()),
    st.just({"event": "undo"}),
    st.just({"event": "clear"}),
)


def after(*events: dict[str, Any]) -> Session:
    session = Session()
    for event in events:
        session = apply(session, event)
    return session


@settings(max_examples=30)
@given(st.lists(events, max_size=8))
def test_a_talk_is_the_same_when_it_is_read_again(tmp_path_factory: pytest.TempPathFactory, events: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("talks")
    session = after(*events)
    journal = Journal(folder / "talk.jsonl", new=True)
    journal.append({"event": "talk", "version": 1})
    for event in events:
        journal.append(event)
    journal.close()
    save_copy(folder / "copy.jsonl", session)
    assert read_talk(folder / "talk.jsonl") == read_talk(folder / "copy.jsonl") == (session, 0)
    assert after(*snapshot(session)) == session


def test_whatever_is_torn_off_the_end_is_a_turn_less_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    save_copy(path, Session("demo", turns=(TURN, TURN)))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) - len(lines[-1]), len(whole), 9):
        path.write_bytes(whole[:length])
        journal = Journal(path, new=False)
        session, torn = journal.read()
        assert session.turns == (TURN,) and torn == length - len(whole) + len(lines[-1])
        journal.append(turn_to_event(TURN))
        journal.close()
        assert path.read_bytes() == whole


def test_a_turn_may_replace_the_last_one_and_ends_what_is_pending() -> None:
    session = Session(pending=(PART,))
    session = apply(session, turn_to_event(TURN))
    assert session == Session(turns=(TURN,)) and session.tokens == 12
    other = Turn(question([], "Why?"), TURN.answer)
    assert apply(session, turn_to_event(other, replaces=True)).turns == (other,)


def test_messages_are_whole_and_hold_what_was_read() -> None:
    session = Session(system="Be brief.", turns=(TURN,))
    assert session.messages(lambda part: part["sha256"].encode()) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": b"00"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A circle."},
    ]


def test_a_medium_may_become_another_or_none() -> None:
    session = Session(turns=(TURN,))
    other = {**PART, "sha256": "11"}
    event = {"event": "medium", "turn": 0, "index": 0, "part": other}
    assert apply(session, event).turns[0].media == (other,)
    left = apply(session, {**event, "part": None}).turns[0]
    assert (left.media, left.text) == ((), "What?")


def test_files_that_are_no_talk_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    talk = json.dumps({"event": "talk", "version": 1}) + "\n"
    for text, message in [
        ("", "no talk; expected a file that /save or a chat wrote"),
        ("hello\n", "line 1: no event of a talk"),
        ('{"event": "clear"}\n', "line 1: no event of a talk"),
        (talk + "\n" + talk, "line 2: no event of a talk"),
        (talk + '{"event": "turn", "turn": {"a": 1}}\n', "line 2: no event of a talk"),
        (talk + '{"event": "fly"}\n', "line 2: an event 'fly', which is not known"),
        (talk.replace("1", "2"), "line 1: written by a newer version"),
    ]:
        path.write_text(text)
        with pytest.raises(SessionError, match=message):
            read_talk(path)


def test_files_are_for_their_owner_and_for_one_process(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    journal = Journal(path, new=True)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SessionError, match="is there already"):
        Journal(path, new=True)
    with pytest.raises(SessionError, match="another chat goes on with this talk"):
        Journal(path, new=False)
    journal.close()
    with pytest.raises(SessionError, match="No such file"):
        Journal(tmp_path / "nowhere.jsonl", new=False)
