"""Jobs over Ray's actors on this machine, with the built-in model: killed, interrupted, resumed, and equal to the local
command. `python -m pytest -m ray -n 0`, with the extra `ray`."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

BATCH = (sys.executable, "-m", "mlx_vlgen.batch", "--model", "demo")
QUICK = ("--max-tokens", "4", "--max-pixels", "2100")
COLOURS = ("red", "blue", "green", "yellow", "black")


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("ray")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 pictures, of which two are broken, and the local command's answers about 120 of them."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "photos").mkdir()
    for number in range(1998):
        image = Image.new("RGB", (64, 64), "white")
        shape = ImageDraw.Draw(image).ellipse if number % 2 else ImageDraw.Draw(image).rectangle
        shape((5 + number % 7, 5 + number % 13, 40 + number % 17, 40 + number % 11), fill=COLOURS[number % 5])
        image.save(folder / "photos" / f"{number:04}.png")
    for number in (17, 1200):
        (folder / "photos" / f"{number:04}x.jpg").write_bytes(b"\xff\xd8\xff torn")
    (folder / "few.txt").write_text("".join(f"photos/{number:04}.png\n" for number in range(0, 1200, 10)))
    run(folder, "few.txt", "-o", "few.jsonl")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The local command's answers about all."""
    run(folder, "photos", "-o", "photos.jsonl", "--allow-errors")
    return folder / "photos.jsonl"


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [*BATCH, *QUICK, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command says on stderr."""
    process = start(folder, *arguments)
    said = process.communicate(timeout=500)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def actors_of(process: "subprocess.Popen[str]") -> list[int]:
    """The actors' processes, which descend from a job's."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True)
    found = [line.split(None, 2) for line in listing.stdout.splitlines()]
    family = {process.pid}
    while more := {int(pid) for pid, parent, *_ in found if int(parent) in family} - family:
        family |= more
    return sorted(
        int(pid) for pid, _, *command in found if int(pid) in family and command[:1] and "ray::Worker" in command[0]
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for_rows(process: "subprocess.Popen[str]", journal: Path, count: int) -> None:
    while len(lines(journal)) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def keys(journal: Path) -> list[str]:
    return [json.loads(line)["key"] for line in lines(journal)]


@pytest.mark.parametrize("actors", [2, 4])
def test_an_actor_killed_thrice(folder: Path, whole: Path, actors: int) -> None:
    out, chance = f"killed-{actors}.jsonl", random.Random(actors)
    journal = folder / f"{out}.journal.jsonl"
    process = start(folder, "photos", "-o", out, "--allow-errors", "--ray", "--actors", str(actors))
    for rows in (100, 700, 1300):
        wait_for_rows(process, journal, rows + chance.randrange(200))
        os.kill(chance.choice(actors_of(process)), signal.SIGKILL)
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said
    assert said.count("another takes its place") == 3
    assert (folder / out).read_bytes() == whole.read_bytes()
    assert len(keys(journal)) == len(set(keys(journal))) == 2000
    assert ("share" in said) == (actors > (os.cpu_count() or 1))


def test_a_job_goes_on_with_and_without_ray(folder: Path) -> None:
    journal = folder / "on.jsonl.journal.jsonl"
    process = start(folder, "few.txt", "-o", "on.jsonl", "--ray", "--actors", "2", "--max-batch-size", "4")
    wait_for_rows(process, journal, 30)
    pids = actors_of(process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, "the same command goes on from there" in said) == (130, True), said
    assert "Traceback" not in said
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    before = len(lines(journal))
    assert before < 120
    process = start(folder, "few.txt", "-o", "on.jsonl", "--max-batch-size", "4")
    wait_for_rows(process, journal, before + 20)
    process.kill()
    process.wait()
    said = run(folder, "few.txt", "-o", "on.jsonl", "--ray")
    assert (folder / "on.jsonl").read_bytes() == (folder / "few.jsonl").read_bytes()
    assert len(keys(journal)) == len(set(keys(journal))) == 120
    assert run(folder, "few.txt", "-o", "on.jsonl", "--ray").splitlines() == ["mlx_vlgen: on.jsonl: 120 rows"]


def test_what_a_user_meets(folder: Path) -> None:
    said = run(folder, "few.txt", "-o", "no.jsonl", "--ray", "127.0.0.1:1", code=1)
    assert "no cluster can be joined at 127.0.0.1:1" in said
    assert "ray start --head" in said
    said = run(folder, "few.txt", "-o", "no.jsonl", "--ray", "--actors", "2", "--model", "./nowhere", code=1)
    assert "./nowhere does not exist" in said
    assert run(folder, "few.txt", "-o", "no.jsonl", "--actors", "2", code=1).count("\n") == 1
    said = run(folder, "few.txt", "-o", "no.jsonl", "--ray", "ray://127.0.0.1:10001", code=1)
    assert "expected HOST:PORT" in said


@pytest.fixture
def ray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import ray

    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_captioner_answers_as_the_local_command(ray: Any, folder: Path) -> None:
    from ray.data import ActorPoolStrategy, from_items, read_images

    from mlx_vlgen.distributed.ray import Captioner

    local = [json.loads(line) for line in lines(folder / "few.jsonl")]
    expected = {row["image"]: {**row.pop("usage"), **row} for row in local}
    rows = [{"image": name, "other": number} for number, name in enumerate(expected)]
    settings: Callable[[int], dict[str, Any]] = lambda size: {  # noqa: E731
        "fn_constructor_kwargs": {"model": "demo", "max_tokens": 4, "max_pixels": 2100},
        "batch_size": size,
        "compute": ActorPoolStrategy(size=2),
        "num_cpus": 0.5,  # so that two CPUs have room for what reads
    }
    os.chdir("/")  # the actors stand where Ray was started
    for size, form in ((7, "numpy"), (50, "pandas"), (1000, "pyarrow")):
        found = from_items(rows).map_batches(Captioner, batch_format=form, **settings(size)).take_all()
        assert {row["image"]: row for row in found} == expected
        assert len(found) == len(expected)
    paths = [str(folder / name) for name in list(expected)[:20]]
    found = read_images(paths, include_paths=True).map_batches(Captioner, **settings(8)).take_all()
    assert sorted(row["text"] for row in found) == sorted(expected[name]["text"] for name in list(expected)[:20])
    odd = [{"image": "photos/none.png", "custom_id": "a"}, {"prompt": "Hello", "top_k": -9}]
    found = from_items(odd).map_batches(Captioner, **settings(2)).take_all()
    assert sorted((row["error"] or "")[:24] for row in found) == [
        "photos/none.png: no such",
        "top_k=-9: expected a num",
    ]
