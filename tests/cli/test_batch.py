"""Jobs with the built-in model: as processes that are killed and interrupted, and in this process."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import mlx_vlgen
from mlx_vlgen import batch_generate, cli
from mlx_vlgen.batch import pdf
from mlx_vlgen.demo import MODEL as DEMO
from mlx_vlgen.inputs import decode

from .conftest import Completed, Outcome

pytestmark = pytest.mark.skipif(not (DEMO / "config.json").is_file(), reason="the built-in model is not there")

BATCH = (sys.executable, "-m", "mlx_vlgen.batch")
QUICK = ("--max-tokens", "4", "--max-pixels", "2100", "--max-batch-size", "8")
COLOURS = ("red", "blue", "green", "yellow", "black")

Batch = Callable[..., Outcome]


def draw(path: Path, number: int, size: int = 64) -> None:
    """A picture that differs from others in its number."""
    image = Image.new("RGB", (size, size), "white")
    shape = ImageDraw.Draw(image).ellipse if number % 2 else ImageDraw.Draw(image).rectangle
    shape((5 + number % 7, 5, 40, 40 + number % 11), fill=COLOURS[number % 5])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, one of them broken."""
    for number in range(4):
        draw(tmp_path / "photos" / ("sub" if number % 2 else "") / f"{number}.png", number)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff torn")
    return tmp_path / "photos"


@pytest.fixture
def batch(invoke: Batch, load_family: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Batch:
    """`python -m mlx_vlgen.batch` in this process, with the built-in model, which is loaded once."""
    demo = load_family("demo")
    monkeypatch.setattr(mlx_vlgen, "load", lambda name, **options: (demo.model, demo.processor), raising=False)
    monkeypatch.chdir(tmp_path)

    def batch(*arguments: str | Path, model: str = "demo") -> Outcome:
        return invoke("--model", model, *QUICK, *arguments, command=cli.main_batch)

    return batch


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Killed at any moment


def kill_and_compare(folder: Path, environment: dict[str, str], batch: Batch, kills: int, *more: str) -> None:
    """A whole run, and one that is killed so often, each time after some more rows or while it loads."""
    batch("photos", "-o", "whole.jsonl", *more)
    whole = rows_of(folder / "whole.jsonl")
    command = [*BATCH, "photos", "-o", "killed.jsonl", "--model", "demo", *QUICK, *more]
    chance, journal = random.Random(kills), folder / "killed.jsonl.journal.jsonl"
    for number in range(kills):
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE)
        wanted = chance.randrange(len(whole) * number // kills, len(whole) * (number + 1) // kills)
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < wanted):
            time.sleep(0.01)
        time.sleep(chance.random() / 10)
        process.kill()
        process.communicate()
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert rows_of(folder / "killed.jsonl") == whole
    keys = [line["key"] for line in rows_of(journal)]
    assert len(keys) == len(set(keys)) == len(whole)


def test_a_job_that_is_killed_equals_the_whole_run(environment: dict[str, str], batch: Batch, tmp_path: Path) -> None:
    for number in range(29):
        draw(tmp_path / "photos" / f"{number % 3}" / f"{number}.png", number % 10)
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    kill_and_compare(tmp_path, environment, batch, 1)
    assert len(rows_of(tmp_path / "killed.jsonl")) == 30


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [(), ("What is it?", "Which colour is it?", "Where is it?")], ids=len)
def test_a_job_of_300_pictures_killed_ten_times(
    environment: dict[str, str], batch: Batch, tmp_path: Path, prompts: tuple[str, ...]
) -> None:
    """Some broken, some huge, some equal to others; also with several prompts a picture, of which there are fewer."""
    for number in range(100 if prompts else 300):
        path = tmp_path / "photos" / f"{number % 7}" / f"{number}.png"
        draw(path, number % 240, size=2500 if number % 60 == 11 else 64)
        if number % 37 == 5:
            path.write_bytes(path.read_bytes()[: number // 2])
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    kill_and_compare(tmp_path, environment, batch, 10, *arguments)
    assert len(rows_of(tmp_path / "killed.jsonl")) == 300


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_and_the_next_run(environment: dict[str, str], run: Callable[..., Completed], tmp_path: Path) -> None:
    lines = [json.dumps({"custom_id": number, "prompt": "Hi"}) for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    command = [*BATCH, "rows.jsonl", "-o", "out.csv", "--model", "demo", *QUICK, "--max-batch-size", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out.csv.journal.jsonl"
    while not journal.exists() or not journal.read_bytes():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in error and "Traceback" not in error
    finished = rows_of(journal)
    assert 0 < len(finished) < 12 and not (tmp_path / "out.csv").exists()
    result = run(*command)
    assert result.returncode == 0 and ": 12 rows; " in result.stderr
    assert rows_of(journal)[: len(finished)] == finished
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["custom_id"] for row in csv.DictReader(file)] == [str(number) for number in range(12)]


def test_help_is_instant_and_wrong_usage_exits_2(run: Callable[..., Completed]) -> None:
    result = run(sys.executable, "-W", "error", "-X", "importtime", "-m", "mlx_vlgen.batch", "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: python -m mlx_vlgen.batch ")
    assert not any(line.endswith(("| mlx", "| numpy", "| PIL")) for line in result.stderr.splitlines())


# What comes out


def test_a_folder_into_every_format(
    batch: Batch, folder: Path, tmp_path: Path, load_family: Callable[[str], Any]
) -> None:
    names = ["0.png", "2.png", "sub/1.png", "sub/3.png"]
    demo = load_family("demo")
    texts = batch_generate(
        demo.model, demo.processor, [folder / name for name in names],
        prompts=[{"role": "user", "content": "Describe this image."}] * 4, max_tokens=4, max_pixels=2100,
    ).texts  # fmt: skip
    code, out, error = batch("photos", "-o", "out.jsonl")
    assert (code, out) == (1, "") and ": 5 rows, 1 failed (first: photos/broken.jpg: " in error
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["image"] for row in rows] == [f"photos/{name}" for name in ["0.png", "2.png", "broken.jpg", *names[2:]]]
    assert [row["text"] for row in rows if row["error"] is None] == texts
    assert rows[0]["usage"]["completion_tokens"] == 4 and rows[0]["finish_reason"] == "length"
    assert batch("photos", "-o", "out.csv", "--allow-errors")[0] == 0
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file) if not row["error"]] == texts
    assert batch("photos", "-o", "out.parquet")[0] == 1
    import pyarrow.parquet

    assert [row["text"] for row in pyarrow.parquet.read_table("out.parquet").to_pylist() if not row["error"]] == texts
    (folder / "2.txt").write_text("mine")
    code, _, error = batch("photos", "-o", "photos", "--caption-prefix", "{folder}: ")
    assert code == 1 and "1 skipped" in error
    assert [(folder / name).with_suffix(".txt").read_text() for name in names] == [
        f"photos: {texts[0]}\n", "mine", f"sub: {texts[2]}\n", f"sub: {texts[3]}\n"
    ]  # fmt: skip
    assert not [*tmp_path.rglob("*.part")]


def test_going_on_retrying_and_beginning_anew(batch: Batch, folder: Path, tmp_path: Path) -> None:
    batch("photos", "-o", "out.jsonl")
    journal = tmp_path / "out.jsonl.journal.jsonl"
    before = journal.read_bytes()
    draw(folder / "9.png", 9)
    code, _, error = batch("photos", "-o", "out.jsonl")
    assert code == 1 and ": 6 rows, 1 failed" in error
    assert "not asked again, since they failed before: 1 row; --retry-failed asks them" in error
    assert journal.read_bytes().startswith(before) and len(rows_of(journal)) == 6
    draw(folder / "broken.jpg", 5)
    code, _, error = batch("photos", "-o", "out.jsonl", "--resume")
    assert code == 1 and "(first: photos/broken.jpg); --retry-changed answers them again" in error
    assert batch("photos", "-o", "out.jsonl", "--retry-failed")[0] == 0
    assert all(row["error"] is None for row in rows_of(tmp_path / "out.jsonl"))
    code, _, error = batch("photos", "-o", "out.jsonl", "--top-k", "3")
    assert code == 1 and "began with --top-k none, and now it is 3" in error and "--restart" in error
    code, _, error = batch("photos", "-o", "out.jsonl", model="other")
    assert code == 1 and "began with --model demo, and now it is other" in error
    assert batch("photos", "-o", "out.jsonl", "--restart", "--top-k", "3")[0] == 0
    assert len(rows_of(journal)) == 6


def test_several_prompts_about_a_picture_encode_it_once(
    batch: Batch, folder: Path, tmp_path: Path, load_family: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoded = load_family("demo").model, []
    real = type(model).encode
    monkeypatch.setattr(model, "encode", lambda media: encoded.extend(media) or real(model, media))
    prompts = ("What is it?", "Which colour is it?", "How many are there?")
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert batch("photos", "-o", "out.jsonl", *arguments)[0] == 1
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows] == [*prompts] * 5 and len(encoded) == 4
    alone = batch("photos", "-o", "alone.jsonl", "--prompt", prompts[1])
    assert alone[0] == 1 and rows_of(tmp_path / "alone.jsonl") == rows[1::3]


def test_pictures_are_read_and_encoded_once_however_few_rows_run_together(
    batch: Batch,
    folder: Path,
    tmp_path: Path,
    load_family: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages of a PDF file, too, which are rendered for that."""
    Image.open(folder / "0.png").save(tmp_path / "doc.pdf", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    counts = Counter[str]()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any) -> Any:
            counts[name] += len(args[0]) if name == "encode" else 1
            return real(*args)

        monkeypatch.setattr(owner, name, counted)

    count(pdf, "_render")
    count(decode.EncodedImage, "still")
    count(load_family("demo").model, "encode")
    prompts = [word for n in range(4) for word in ("--prompt", f"How many shapes are there? {n}")]
    assert batch("doc.pdf", "photos/sub/1.png", "-o", "out.jsonl", *prompts, "--max-batch-size", "2")[0] == 0
    assert len(rows_of(tmp_path / "out.jsonl")) == 12
    assert counts == {"_render": 2, "still": 3, "encode": 3}


def test_rows_with_keywords_and_openais_lines(batch: Batch, folder: Path, tmp_path: Path) -> None:
    import base64

    uri = "data:image/png;base64," + base64.b64encode((folder / "0.png").read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "Describe this image."}]
    body = {"model": "gpt", "messages": [{"role": "user", "content": parts}], "max_tokens": 4}
    lines = [
        {"custom_id": "ours", "image": "photos/0.png"},
        {"custom_id": "longer", "image": "photos/0.png", "max_tokens": 6},
        {"custom_id": "unknown", "image": "photos/0.png", "max_token": 6},
        {"custom_id": "theirs", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "yes", "image": "photos/0.png", "prompt": "Red?", "choices": ["yes", "no"]},
        {"custom_id": "text", "prompt": "Who are you?"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, error = batch("rows.jsonl", "-o", "out.jsonl")
    assert code == 1 and "rows name the model gpt; the model of this job answers all of them" in error
    ours, longer, unknown, theirs, yes, text = rows_of(tmp_path / "out.jsonl")
    assert longer["text"].startswith(ours["text"]) and longer["usage"]["completion_tokens"] > 4
    assert unknown["error"] == "rows.jsonl, line 3: unknown keyword 'max_token'; did you mean 'max_tokens'?"
    assert theirs["response"]["body"]["choices"][0]["message"]["content"] == ours["text"]
    assert theirs["response"]["body"]["model"] == "demo" and theirs["error"] is None
    assert yes["text"] in ("yes", "no") and text["image"] is None and text["text"]


def test_what_cannot_work_is_told_before_a_model_is_loaded(
    batch: Batch, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_vlgen, "load", None)
    (tmp_path / "empty").mkdir()
    for arguments, code, why in (
        (["gone", "-o", "out.jsonl"], 1, "gone: no such file or folder"),
        (["photos", "-o", "out.json"], 1, "expected a file in .jsonl, .csv, .parquet, or a folder"),
        (["photos", "-o", "gone/out.csv"], 1, "there is no folder gone"),
        (["photos", "-o", "out.csv", "--sidecar", "append"], 1, "--sidecar is for text files beside pictures"),
        (["photos", "-o", "texts", "--caption", "{colour}"], 1, "{colour} is not known"),
        (["photos", "-o", "out.csv", "--prompt", "{colour}?"], 1, "{colour} stands for a column"),
        (["empty", "-o", "out.csv"], 1, "empty: nothing to answer there"),
        (["photos"], 2, "required: --output/-o"),
        (["photos", "-o", "out.csv", "--top-p", "2"], 2, "--top-p=2.0: expected 0 to 1"),
        (["photos", "-o", "out.csv", "--max-batch-size", "0"], 2, "expected at least 1"),
        (["photos", "-o", "out.csv", "--restart", "--resume"], 2, "not allowed with"),
    ):
        result = batch(*arguments)
        assert result[0] == code and why in result[2].replace("\n", " "), result
