"""A server under load: clients that ask, leave, read slowly and send rubbish. Nothing is lost, nothing stays behind.

`pytest -m load -n 0 -s tests/server/test_load.py`; LOAD_REQUESTS a round (60), LOAD_CLIENTS (16), LOAD_SEED (0).

Measured on 2 cores, 667 requests a round by 64 clients: the process's memory after round three against round two is
+0.1 MB without reuse and +0.6 MB with it, and MLX's active memory the same to the byte without reuse, +0.3 MB with it:
answers that were cut at another token leave another block.
"""

import asyncio
import base64
import io
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_vlgen import batch_generate
from mlx_vlgen.server.engine import PAUSE_SECONDS

from .serving import Loaded

REQUESTS, CLIENTS, SEED = (int(os.environ.get(f"LOAD_{name}", default)) for name, default in
                           (("REQUESTS", 60), ("CLIENTS", 16), ("SEED", 0)))  # fmt: skip
GROWTH = 5 << 20
"""Bytes that the process may grow by from the second round to the third."""

pytestmark = [pytest.mark.load, pytest.mark.timeout(1800)]


def questions(generator: random.Random) -> list[list[dict[str, Any]]]:
    """With pictures of mixed sizes, and without."""
    asked: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": text}] for text in ("Hi", "Sing.", "Who are you?")
    ]
    for _ in range(5):
        size = generator.randrange(20, 400), generator.randrange(20, 400), 3
        file = io.BytesIO()
        Image.fromarray(np.full(size, generator.randrange(256), np.uint8)).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe this image."}]
        asked.append([{"role": "user", "content": content}])
    return asked


class Client:
    """One connection a request. counts: outcomes by kind; firsts: seconds to the first byte of streams' answers."""

    def __init__(self, port: int, asked: list[Any], expected: list[str]):
        self.port, self.asked, self.expected = port, asked, expected
        self.counts: Counter[str] = Counter()
        self.firsts: list[float] = []

    async def send(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n")  # fmt: skip
        writer.write(head.encode() + body)
        await writer.drain()
        return reader, writer

    async def one(self, generator: random.Random) -> None:
        which = generator.randrange(len(self.asked))
        body = {"messages": self.asked[which], "max_tokens": 12, "stream": generator.random() < 0.6}
        kind = generator.choices(["ask", "leave", "slow", "malformed", "oversized"], [70, 12, 6, 10, 2])[0]
        data = json.dumps(body).encode()
        if kind == "malformed":
            data = mutated(data, generator)
        elif kind == "oversized":
            data = b" " * (3 << 20)
        begun = time.perf_counter()
        try:
            reader, writer = await self.send(data)
            if kind == "leave":
                await asyncio.sleep(generator.random() * 0.3)
                writer.close()
                self.counts["left"] += 1
                return
            received = await reader.read(1 if kind == "slow" else 200)
            self.firsts.append(time.perf_counter() - begun)
            if kind == "slow":
                await asyncio.sleep(0.5)
            received += await reader.read()
            writer.close()
        except ConnectionError as error:
            raise AssertionError(kind) from error
        status = int(received.split(b" ", 2)[1])
        assert status < 500 or status == 503, received
        self.counts[f"{kind} {status}"] += 1
        if kind in ("ask", "slow") and status == 200:
            assert answer_of(received, bool(body["stream"])) == self.expected[which], which
        elif kind == "oversized":
            assert status == 413


def answer_of(received: bytes, stream: bool) -> str:
    body = received.split(b"\r\n\r\n", 1)[1]
    if not stream:
        return str(json.loads(unchunked(body))["choices"][0]["message"]["content"])
    events = re.findall(r"^data: (\{.*\})$", unchunked(body).decode(), re.MULTILINE)
    assert b"[DONE]" in body
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


def unchunked(body: bytes) -> bytes:
    if body.startswith(b"{"):
        return body
    out, at = b"", 0
    while length := int(body[at : (end := body.index(b"\r\n", at))], 16):
        out += body[end + 2 : end + 2 + length]
        at = end + 4 + length
    return out


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Bytes changed, left out or doubled, most of them in the fields."""
    data = bytearray(data)
    for _ in range(generator.randrange(1, 6)):
        at = generator.choice([generator.randrange(len(data)), generator.randrange(-40, 0) % len(data)])
        match generator.randrange(3):
            case 0:
                data[at] = generator.randrange(256)
            case 1:
                del data[at : at + generator.randrange(1, 9)]
            case 2:
                data[at:at] = data[at : at + generator.randrange(1, 9)]
    return bytes(data)


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = [line.split() for line in page.read().decode().splitlines() if not line.startswith("#")]
    return {name.removeprefix("mlx_vlgen_"): float(value) for name, value in lines}


def resident(pid: int) -> int:
    """Of the process's memory: pages of files, which are resident too, come and go with the machine's load."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


async def play(client: Client, seed: int) -> None:
    left = iter(range(REQUESTS))

    async def worker() -> None:
        for number in left:
            await client.one(random.Random(seed * 1_000_003 + number))

    await asyncio.gather(*(worker() for _ in range(CLIENTS)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("reuse", [False, True], ids=["", "reuse"])
def test_load(reuse: bool, loaded: Loaded, tmp_path: Path) -> None:
    asked = questions(random.Random(SEED))
    expected = [result.answer or "" for result in batch_generate(*loaded, prompts=asked, max_tokens=12).results]
    log = (tmp_path / "log").open("w+")
    flags = ["--model", "demo", "--port", "0", "--max-queue", "200", "--max-body", "2"]
    flags += [] if reuse else ["--no-reuse"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-m", "mlx_vlgen.serve", *flags], stderr=log, env=environment)
    try:
        while not (found := re.search(r"answering on http://127.0.0.1:(\d+)", Path(log.name).read_text())):
            assert process.poll() is None
            time.sleep(0.1)
        port, memory = int(found[1]), []
        for number in range(3):
            client = Client(port, asked, expected)
            begun = time.perf_counter()
            # What a client draws is the same in every round, so that what stays behind would show.
            asyncio.run(play(client, SEED))
            seconds = time.perf_counter() - begun
            end = time.monotonic() + 60
            while (now := metrics(port))["rows_running"] + now["rows_waiting"] + now["body_bytes"]:
                assert time.monotonic() < end, now
                time.sleep(0.05)
            time.sleep(PAUSE_SECONDS + 2)  # then what lies free is given back
            memory.append((now["memory_active_bytes"], resident(process.pid)))
            slowest = np.percentile(client.firsts, 99)
            print(f"round {number + 1}: {REQUESTS} requests in {seconds:.1f} s, p99 of the first byte {slowest:.2f} s,")
            print(f"  resident {memory[-1][1] / 1e6:.1f} MB, active {memory[-1][0] / 1e6:.1f} MB,", dict(client.counts))
        errors = [line for line in Path(log.name).read_text().splitlines() if '"event": "error"' in line]
        assert not errors and "Traceback" not in Path(log.name).read_text(), errors[:1]
        if not reuse:  # what is reused stays, on purpose
            assert memory[0][0] == memory[1][0] == memory[2][0]
        assert memory[2][1] - memory[1][1] <= GROWTH, memory
    finally:
        process.terminate()
        assert process.wait(60) == 0
        log.close()
