"""Jobs without a model: the journal, what is resumed, retried and refused, and what is written."""

import csv
import json
import os
import string
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mlx_vlgen.batch import sinks
from mlx_vlgen.batch import sources as batch_sources
from mlx_vlgen.batch.job import Job, Retry, open_settings
from mlx_vlgen.batch.journal import Journal
from mlx_vlgen.batch.progress import LINE_SECONDS, Progress
from mlx_vlgen.batch.rows import Asked, Row
from mlx_vlgen.batch.sinks import Sidecars
from mlx_vlgen.errors import MediaError, VlgenError
from mlx_vlgen.results import GenerationResult


class Echo:
    """In the place of a model: answers with the prompt and the seed, last rows first; a prompt that says so fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._waiting: deque[tuple[int, Row, int]] = deque()

    def add(self, row: Row, keywords: dict[str, Any]) -> int:
        if keywords.get("top_k") == -9:
            raise ValueError("top_k=-9: expected more")
        self.asked.append(row.title)
        self._waiting.append((len(self.asked), row, keywords["seed"]))
        return len(self.asked)

    def __iter__(self) -> Iterator[tuple[int, GenerationResult]]:
        id, row, seed = self._waiting.pop()
        if "fail" in (row.prompt or ""):
            yield id, GenerationResult(answer="so far", finish_reason="error", error=MediaError(f"{row.name}: is bad"))
        yield id, GenerationResult(answer=f"{row.prompt} {seed}", finish_reason="stop", generation_tokens=2)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written here need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


Run = Callable[..., tuple[Job, Echo, list[dict[str, Any]]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a job over fields of items; the job, what was asked, and the rows that it has in the end."""

    def run(items: Sequence[dict[str, Any]], **settings: Any) -> tuple[Job, Echo, list[dict[str, Any]]]:
        echo = Echo()
        with Journal(tmp_path / "journal") as journal:
            job = Job(journal, lambda: echo, capacity=2, **settings)
            found = [batch_sources.Item(fields, f"item {n}", stem="a") for n, fields in enumerate(items)]
            job.run(found, Asked(["What?", "Why?"]))
            return job, echo, [entry["row"] for entry in job.entries()]

    return run


ITEMS: list[dict[str, Any]] = [
    {"image": "a.png"},
    {"custom_id": "ü\udcff", "prompt": "fail\n"},
    {"image": "a.png", "prompt": "again"},
    {"custom_id": 10**30, "prompt": "b", "tempratur": 1},
    {"custom_id": "c", "prompt": "c", "top_k": -9},
    {"custom_id": "c", "prompt": "c"},
    {"prompt": "text"},
]


# The journal


def test_a_job_cut_at_any_byte_goes_on_to_the_same_end(run: Run, tmp_path: Path) -> None:
    _, _, rows = run(ITEMS)
    assert [row["error"] is None for row in rows] == [True, True, False, True, False, False, False, True]
    assert run(ITEMS)[2] == rows
    (tmp_path / "journal").unlink()
    _, _, whole = run(ITEMS[:3])
    text = (tmp_path / "journal").read_bytes()
    for size in range(len(text)):
        (tmp_path / "journal").write_bytes(text[:size])
        _, _, rows = run(ITEMS[:3])
        assert rows == whole
        lines = (tmp_path / "journal").read_bytes().splitlines()
        assert len(lines) == len({json.loads(line)["key"] for line in lines}) == len(whole)
    job, echo, rows = run(ITEMS[:3])
    assert (rows, echo.asked, job.failed) == (whole, [], 1)


@given(line=st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3))
def test_lines_come_back_as_they_were(line: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder, "j")) as journal:
        offsets = [journal.append(line), journal.append({"long": "x" * 10_000}), journal.append(line)]
        assert list(journal.read()) == [(offsets[0], line), (offsets[1], {"long": "x" * 10_000}), (offsets[2], line)]
        assert [journal.at(offset) for offset in offsets] == [line, {"long": "x" * 10_000}, line]


def test_damage_in_the_middle_is_told_and_a_second_process_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 2}\n')
    with Journal(path) as journal:
        with pytest.raises(VlgenError, match="line 2 is damaged"):
            list(journal.read())
        with pytest.raises(VlgenError, match="another process runs this job"):
            Journal(path)
    path.write_bytes(b'{"a": 1}\n\0\0\n\0')
    with Journal(path) as journal:
        assert [line for _, line in journal.read()] == [{"a": 1}]
    assert path.read_bytes() == b'{"a": 1}\n'


def test_lines_are_on_the_disk_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[float] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(time.monotonic()))
    with Journal(tmp_path / "journal") as journal:
        journal.append({})
        appended = time.monotonic()
        time.sleep(0.8)
        assert len(synced) == 1 and synced[0] - appended < 1


def test_a_disk_that_fails_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "journal") as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            journal.append({})
            time.sleep(0.8)
        with pytest.raises(OSError, match="No space left"):
            journal.append({})


def test_a_line_now_and_then_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.monotonic()
    progress = Progress(items=10)
    progress.start()
    progress.read(rows=2)
    progress.answered, progress.failed, progress.tokens = 4, 1, 240
    for seconds in (1, LINE_SECONDS + 1, LINE_SECONDS + 2):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        progress.show()
    expected = "mlx_vlgen: 5 of about 20 rows, 0.2 rows/s, 8 tokens/s, 1 failed, about 2 min left\n"
    assert capsys.readouterr().err == expected


# Resuming


def test_more_items_are_answered_and_the_others_left(run: Run) -> None:
    _, _, before = run(ITEMS[1:3])
    _, echo, after = run(ITEMS[:4])
    assert [before[0], before[1]["text"]] == [after[2], after[0]["text"]]  # a.png's first row was item 2's
    assert len(echo.asked) == 2


def test_failed_rows_stay_until_they_are_retried(run: Run) -> None:
    job, _, _ = run([{"custom_id": 1, "prompt": "fail"}, {"custom_id": 2, "prompt": "b"}])
    assert job.failed == 1
    items = [{"custom_id": 1, "prompt": "mended"}, {"custom_id": 2, "prompt": "b"}]
    job, echo, rows = run(items)
    assert (job.failed, job.changed, echo.asked) == (1, 1, []) and rows[0]["text"] == "so far"
    job, echo, rows = run(items, retry=Retry(failed=True))
    assert (job.failed, job.changed, echo.asked) == (0, 0, ["1"]) and rows[0]["text"].startswith("mended ")
    assert run(items)[0].failed == 0


def test_a_file_that_changed_is_told(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    items = [{"image": str(picture), "prompt": "What?"}]
    run(items)
    os.utime(picture, (1, 1))
    assert run(items)[0].changed == 0  # the same bytes
    picture.write_bytes(b"two")
    job, echo, _ = run(items)
    assert (job.changed, job.first_changed, echo.asked) == (1, str(picture), [])
    assert run(items, retry=Retry(changed=True))[1].asked == [str(picture)]
    assert run(items)[0].changed == 0


def test_rows_without_a_seed_draw_by_key_and_job(run: Run) -> None:
    _, _, rows = run([{"image": "a.png"}], seed=1)
    seeds = [row["text"].split()[-1] for row in rows]
    assert len(set(seeds)) == 2
    run([{"image": "b.png", "prompt": "x"}])
    assert run([{"prompt": "y", "seed": 3}])[2][0]["text"] == "y 3"


def test_interrupted_rows_are_not_in_the_journal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = GenerationResult(answer="half", finish_reason="cancelled")
    with monkeypatch.context() as patch:
        patch.setattr(Echo, "__iter__", lambda self: iter([(1, cancelled)]))
        with pytest.raises(KeyboardInterrupt):
            run([{"prompt": "a"}])
    assert (tmp_path / "journal").read_bytes() == b""
    assert len(run([{"prompt": "a"}])[2]) == 1


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(tmp_path / "journal") as journal:
        open_settings(out, {"model": "z"}, journal, restart=False)
        first = open_settings(out, {"model": "a", "top_k": 3}, journal, restart=False)  # nothing was answered yet
        journal.append({})
        assert open_settings(out, {"model": "a", "top_k": 3}, journal, restart=False) == first
        for settings, why in (
            ({"model": "b", "top_k": 3}, "began with --model a, and now it is b .*--restart"),
            ({"model": "a"}, "began with --top-k 3, and now it is none"),
            ({"model": "a", "top_k": 3, "seed": 1}, "began with --seed none, and now it is 1"),
        ):
            with pytest.raises(VlgenError, match=why):
                open_settings(out, settings, journal, restart=False)
        assert open_settings(out, {"model": "b"}, journal, restart=True)["settings"] == {"model": "b"}
        assert not list(journal.read())
        journal.append({})
        (tmp_path / "out.jsonl.job.json").write_text("{")
        with pytest.raises(VlgenError, match="is damaged"):
            open_settings(out, {}, journal, restart=False)
        (tmp_path / "out.jsonl.job.json").unlink()
        out.write_text("mine")
        with pytest.raises(VlgenError, match=r"is there, and .* is not"):
            open_settings(out, {}, journal, restart=False)
        assert out.read_text() == "mine"


# Outputs

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "custom_id": TEXT | st.integers() | st.none(),
            **{name: TEXT | st.none() for name in ("image", "prompt", "error")},
            "text": TEXT,
            "finish_reason": st.sampled_from(["stop", "length", "error"]),
            "usage": st.fixed_dictionaries({name: st.integers(0, 2**62) for name in sinks.USAGE}),
        }
    ),
    max_size=4,
)


@given(rows=ROWS)
def test_files_hold_what_was_written(rows: list[dict[str, Any]]) -> None:
    entries = [{"key": "0" * 32, "row": row} for row in rows]
    flat = [{**row, **row["usage"]} for row in rows]
    for row in flat:
        del row["usage"]
        row["custom_id"] = None if row["custom_id"] is None else str(row["custom_id"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out")
        sinks.write_jsonl(path, entries, "model", 0)
        assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == rows
        sinks.write_csv(path, entries)
        with open(path, encoding="utf-8", newline="") as file:
            text = [{name: "" if value is None else str(value) for name, value in row.items()} for row in flat]
            assert list(csv.DictReader(file)) == text
        sinks.write_parquet(path, entries)
        assert parquet.read_table(path).to_pylist() == flat
        assert [file.name for file in Path(folder).iterdir()] == ["out"]


def test_half_characters_in_names_are_written(tmp_path: Path) -> None:
    row = dict.fromkeys(sinks.COLUMNS) | {"image": "\udcff.png", "usage": {}}
    for write in (lambda path, entries: sinks.write_jsonl(path, entries, "m", 0), *list(sinks.FILES.values())[1:]):
        write(tmp_path / "out", [{"key": "", "row": row}])
        assert (tmp_path / "out").read_bytes()


def test_openais_lines_are_answered_in_its_format(run: Run, tmp_path: Path) -> None:
    body = {"model": "gpt", "messages": [{"role": "user", "content": "Hi"}]}
    items = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body | more}
             for n, more in enumerate([{}, {"n": 2}])]  # fmt: skip
    job, _, _ = run(items)
    with Journal(tmp_path / "journal") as journal:
        job._journal = journal
        sinks.write_jsonl(tmp_path / "out", job.entries(), "ours", 7)
    good, bad = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("r0", None, 200)
    answer = good["response"]["body"]
    assert (answer["object"], answer["model"], answer["created"]) == ("chat.completion", "ours", 7)
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"].startswith("None ")
    assert choice["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 2
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("r1", 400)
    assert "n=2" in bad["error"]["message"] and "n=2" in bad["response"]["body"]["error"]["message"]


# Sidecars


def entry(stem: str, text: str, error: str | None = None) -> dict[str, Any]:
    return {"stem": stem, "row": {"text": text, "error": error}}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("skip", "old"), ("overwrite", "x\ny\n"), ("append", "old\nx\ny\n"), ("prepend", "x\ny\nold")],
)
def test_sidecars_that_are_there(tmp_path: Path, mode: str, expected: str) -> None:
    (tmp_path / "a.txt").write_text("old")
    sidecars = Sidecars(tmp_path, mode, template="{text}!", prefix="{folder} of {name}: ")
    plain = Sidecars(tmp_path, mode)
    with Journal(tmp_path / ".journal") as journal:
        plain.write([entry("a", "x"), entry("a", "y"), entry("a", "no", "failed")], journal)
        sidecars.write([entry("sub/b", "z")], journal)
    assert (tmp_path / "a.txt").read_text() == expected
    assert (tmp_path / "sub" / "b.txt").read_text() == "sub of b: z!\n"


@pytest.mark.parametrize("mode", ["append", "prepend"])
def test_nothing_is_added_twice_however_often_it_is_killed(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [entry(name, f"text of {name}") for name in string.ascii_lowercase[:3]]
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("old\n")
    state = {"calls": 0, "deadly": 0}

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """The function, of which the process ends before or after some call."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            state["calls"] += 1
            if state["calls"] == state["deadly"]:
                raise KeyboardInterrupt
            result = real(*arguments, **keywords)
            if state["calls"] == -state["deadly"]:
                raise KeyboardInterrupt
            return result

        return call

    monkeypatch.setattr(Path, "replace", dying("replace", Path.replace))
    monkeypatch.setattr(Journal, "append", dying("append", Journal.append))
    for deadly in (1, 1, -1, 2, -2, 2, 3, -1, 0, 0):
        state.update(calls=0, deadly=deadly)
        with Journal(tmp_path / ".journal") as journal:
            try:
                Sidecars(tmp_path, mode).write(entries, journal)
            except KeyboardInterrupt:
                continue
    for name in "abc":
        added, old = f"text of {name}\n", "old\n"
        assert (tmp_path / f"{name}.txt").read_text() == (old + added if mode == "append" else added + old)


def test_a_sidecar_is_one_pictures(run: Run, tmp_path: Path) -> None:
    sidecars = Sidecars(tmp_path)
    (tmp_path / "c.txt").write_text("there")
    assert [sidecars.wants(Row(name=name, stem=name[0])) for name in ("a.png", "a.png", "c.png")] == [True, True, False]
    for row, why in ((Row(name="A.jpg", stem="A"), "is written for another picture"), (Row(), "no file name")):
        with pytest.raises(VlgenError, match=why):
            sidecars.wants(row)
    job, echo, rows = run([{"image": "a.jpg"}], wants=sidecars.wants)  # the fixture's stem is a
    assert job.failed == 2 and not echo.asked and "another picture" in rows[0]["error"]


# Many


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_no_memory_and_little_time(tmp_path: Path) -> None:
    count, sizes = 100_000, []
    with open(tmp_path / "rows.jsonl", "w") as file:
        for number in range(count):
            file.write(json.dumps({"custom_id": f"r{number}", "prompt": f"question {number} " + "x" * 100}) + "\n")

    def items() -> Iterator[batch_sources.Item]:
        for number, item in enumerate(batch_sources.read([str(tmp_path / "rows.jsonl")])):
            if number % 10_000 == 0 and sys.platform == "linux":
                sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            yield item

    for _ in range(2):  # anew, and all finished
        begun = time.perf_counter()
        with Journal(tmp_path / "journal") as journal:
            job = Job(journal, Echo, keywords={"max_tokens": 5})
            job.run(items(), Asked())
            sinks.write_csv(tmp_path / "out.csv", job.entries())
        seconds = time.perf_counter() - begun
        print(f"{count / seconds:.0f} rows/s, {(sizes[-1] - sizes[1]) / 1e6:.1f} MB more at the end")
        assert len(job.order) == count and seconds < count / 1000
        assert sizes[-1] - sizes[1] < 250 * count  # bytes: keys and places
        sizes.clear()
