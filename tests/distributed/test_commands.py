"""Commands over local ranks: a rank that is killed at any moment, a batch job that goes on, a chat, a server.

All are slow, or a server under load: `pytest -m "slow or load" -n 0 tests/distributed`.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli.terminal import CTRL_C, CTRL_D, CTRL_U, ENTER, Terminal
from parity import media
from server.test_load import Client, answer_of, questions
from test_launch import children, is_running

from mlx_vlgen import batch_generate, load
from mlx_vlgen._runtime import mx

ROOT = Path(__file__).parents[2]
SHAPES = media.DEMO / "pictures" / "shapes.png"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TALKATIVE = ["--regex", "[a-z ]{2000,}"]
"""No answer ends before its bound."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc says which processes are children")


@contextmanager
def started(*arguments: str, count: int = 2) -> Iterator[subprocess.Popen[str]]:
    """A command over ranks, once they all run."""
    command = [sys.executable, "-m", *arguments, "--model", "demo", "--ranks", str(count)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        until(lambda: len(children(process.pid)) == count)
        yield process
    finally:
        process.kill()
        process.wait()


def until(reached: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_load(folder: Path) -> tuple[list[str], Callable[[subprocess.Popen[str]], None]]:
    return ["mlx_vlgen.generate", "--prompt", "Hi"], lambda process: time.sleep(0.7)


def in_prefill(folder: Path) -> tuple[list[str], Callable[[subprocess.Popen[str]], None]]:
    def reached(process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        next(line for line in process.stderr if "sharding" in line)  # rank 0 has its part
        time.sleep(0.5)

    return ["mlx_vlgen.generate", "--prompt", "Hi. " * 800, "--prefill-step-size", "4"], reached


def in_decode(folder: Path) -> tuple[list[str], Callable[[subprocess.Popen[str]], None]]:
    def reached(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        process.stdout.read(5)

    return ["mlx_vlgen.generate", "--prompt", "Hi", "--max-tokens", "900", *TALKATIVE], reached


def in_a_job(folder: Path) -> tuple[list[str], Callable[[subprocess.Popen[str]], None]]:
    def reached(process: subprocess.Popen[str]) -> None:
        until(lambda: journal(folder).is_file() and len(journal(folder).read_text().splitlines()) > 3)

    return job(folder), reached


def job(folder: Path) -> list[str]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} shapes?"}) + "\n" for n in range(60)), encoding="utf-8")
    return ["mlx_vlgen.batch", str(rows), "-o", str(folder / "out.jsonl"), "--prompt", "{prompt}", "--max-tokens", "24",
            "--max-batch-size", "2", *TALKATIVE]  # fmt: skip


def journal(folder: Path) -> Path:
    return folder / "out.jsonl.journal.jsonl"


@linux
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", [in_load, in_prefill, in_decode, in_a_job])
def test_a_killed_rank_ends_all(moment: Callable[[Path], tuple], victim: int, tmp_path: Path) -> None:
    arguments, reach = moment(tmp_path)
    with started(*arguments) as process:
        reach(process)
        ranks = children(process.pid)
        os.kill(sorted(ranks)[victim], signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait(30) == 1
        print(f"{moment.__name__}, rank {victim}: ended after {time.monotonic() - killed:.2f} s")
        assert not any(map(is_running, ranks))
        assert process.stderr is not None
        said = [line for line in process.stderr.read().splitlines() if "sharding" not in line]
    assert said == [f"mlx_vlgen: error: rank {victim} was killed by SIGKILL; the other ranks were ended"]


@linux
@pytest.mark.slow
def test_a_stopped_rank_ends_all(tmp_path: Path) -> None:
    arguments, reach = in_decode(tmp_path)
    with started(*arguments) as process:
        reach(process)
        ranks = children(process.pid)
        os.kill(sorted(ranks)[1], signal.SIGSTOP)
        stopped = time.monotonic()
        threading.Thread(target=lambda: process.stdout and process.stdout.read(), daemon=True).start()
        assert process.wait(60) == 1
        assert time.monotonic() - stopped < 35 and not any(map(is_running, ranks))
        assert process.stderr is not None and "rank 1 was silent for 30 seconds" in process.stderr.read()


@linux
@pytest.mark.slow
def test_a_job_goes_on_after_each_rank_was_killed(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = [sys.executable, "-m", *job(tmp_path / "alone"), "--model", "demo"]
    subprocess.run(alone, env=ENVIRONMENT, check=True, capture_output=True)
    for victim in (1, 0):
        arguments, reach = in_a_job(tmp_path)
        with started(*arguments) as process:
            reach(process)
            os.kill(sorted(children(process.pid))[victim], signal.SIGKILL)
            assert process.wait(30) == 1
    command = [sys.executable, "-m", *job(tmp_path), "--model", "demo", "--ranks", "2"]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "alone" / "out.jsonl").read_text()


@linux
@pytest.mark.slow
def test_a_talk(tmp_path: Path) -> None:
    """Ctrl-C ends an answer, whenever it comes, and not the ranks."""
    command = [sys.executable, "-m", "mlx_vlgen.chat", "--model", "demo", "--ranks", "2", "--image", str(SHAPES)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    state = {"XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    terminal, generator = Terminal(command, ENVIRONMENT | state, tmp_path), random.Random(0)
    try:
        terminal.wait(">", 120)
        ranks = children(terminal.process.pid)
        terminal.ask("What colour is the circle?", "The circle is red.")
        for _ in range(8):
            terminal.press("Describe this image.")
            terminal.wait("\n> Describe this image.")
            terminal.press(ENTER)
            time.sleep(generator.uniform(0, 0.4))
            terminal.press(CTRL_C)
            terminal.wait(ended, 60)
            terminal.press(CTRL_U)
            terminal.ask("/clear", "all that was said is forgotten")
            terminal.ask(f"{SHAPES} What colour is the circle?", "The circle is red.")
        terminal.ask("/model other", "several ranks have one model")
        terminal.press(CTRL_D)
        assert terminal.end() == 0
        assert len(ranks) == 2 and not any(map(is_running, ranks))
    finally:
        signal.signal(signal.SIGINT, before)
        terminal.close()


def ended(show: str) -> bool:
    """Whether a chat waits for the next question: before an answer, in one or after one was interrupted."""
    return show.endswith(("again\n> Describe this image.", ")\n\n>", "lists the commands\n>"))


def seconds_of(process: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@linux
@pytest.mark.load
@pytest.mark.timeout(1800)
def test_a_server() -> None:
    """200 requests, some of which leave: the others are answered as by one process, and an idle rank costs nothing."""
    asked = questions(random.Random(0))
    model, processor = load("demo")
    expected = [
        result.answer or "" for result in batch_generate(model, processor, prompts=asked, max_tokens=12).results
    ]
    del model, processor
    mx.clear_cache()
    with started("mlx_vlgen.serve", "--port", "0") as process:
        assert process.stderr is not None
        url = next(line.split()[-1] for line in process.stderr if "answering on" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        client = Client(int(url.split(":")[2].split("/")[0]), asked, expected)
        asyncio.run(ask(client, random.Random(0)))
        print(dict(client.counts))
        assert client.counts["left"] > 20 and client.counts["right"] > 100
        time.sleep(2)
        ranks = children(process.pid)
        used = [seconds_of(rank) for rank in ranks]
        time.sleep(5)
        idle = [seconds_of(rank) - before for rank, before in zip(ranks, used, strict=True)]
        assert max(idle) < 0.25, idle
        process.terminate()
        assert process.wait(30) == 0
        assert len(ranks) == 2 and not any(map(is_running, ranks))


async def ask(client: Client, generator: random.Random, requests: int = 200, clients: int = 12) -> None:
    left = [requests]

    async def worker() -> None:
        while left[0] > 0:
            left[0] -= 1
            which, stream = generator.randrange(len(client.asked)), generator.random() < 0.6
            body = {"messages": client.asked[which], "max_tokens": 12, "stream": stream}
            reader, writer = await client.send(json.dumps(body).encode())
            if generator.random() < 0.25:
                await asyncio.sleep(generator.random() * 0.5)
                writer.close()
                client.counts["left"] += 1
                continue
            received = await reader.read()
            writer.close()
            assert received.split(b" ", 2)[1] == b"200", received
            assert answer_of(received, stream) == client.expected[which], which
            client.counts["right"] += 1

    await asyncio.gather(*(worker() for _ in range(clients)))
