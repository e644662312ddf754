"""A server that is killed again and again under load, and started again: `pytest -m load -n 0` with this file."""

import asyncio
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_vlgen import batch_generate
from mlx_vlgen.engine import disk

from .serving import Loaded
from .test_load import Client, answer_of, questions, unchunked

pytestmark = [pytest.mark.load, pytest.mark.timeout(600)]

KILLS, CLIENTS = 6, 8


class Server:
    """A process that leaves what it computed in `folder`."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._environment = os.environ | {"XDG_CACHE_HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlx_vlgen.serve", "--model", "demo", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self._environment, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


async def ask(client: Client, which: int) -> str:
    """The answer to a question; a client asks again until it has one."""
    body = json.dumps({"messages": client.asked[which], "max_tokens": 12, "stream": which % 2 == 0}).encode()
    while True:
        try:
            reader, writer = await client.send(body)
            received = await reader.read()
            writer.close()
            if received.split(b" ", 2)[1] == b"200":
                return answer_of(received, which % 2 == 0)
        except (AssertionError, ConnectionError, IndexError, ValueError):  # it was cut, or nobody listens
            pass
        await asyncio.sleep(0.1)


async def play(server: Server, client: Client, generator: random.Random) -> None:
    numbers = itertools.count()

    async def worker() -> None:
        while not killing.done():
            which = next(numbers) % len(client.asked)
            assert await ask(client, which) == client.expected[which], which

    async def killer() -> None:
        for _ in range(KILLS):
            await asyncio.sleep(4 + 3 * generator.random())
            await asyncio.to_thread(server.kill)
            server.start()

    killing = asyncio.create_task(killer())
    await asyncio.gather(*(worker() for _ in range(CLIENTS)))
    print(f"{next(numbers)} answers, all right, with {KILLS} kills among them")


@pytest.mark.skipif(
    sys.platform != "linux" or disk.shutil.disk_usage("/").free < disk.LEAST_FREE, reason="little room on the disk"
)
def test_clients_that_ask_again_lose_nothing(loaded: Loaded, tmp_path: Path) -> None:
    """And what is on disk is whole, whenever the server was killed."""
    asked = questions(random.Random(0))
    expected = [result.answer or "" for result in batch_generate(*loaded, prompts=asked, max_tokens=12).results]
    server = Server(tmp_path)
    try:
        client = Client(server.port, asked, expected)
        asyncio.run(play(server, client, random.Random(0)))
        reused: Any = asyncio.run(usage(client))
    finally:
        server.kill()
    assert reused["prompt_tokens_details"]["cached_tokens"] > 0
    files = [path for _, _, path in disk.Disk(tmp_path / "mlx-vlgen" / "prefixes").files() if path.name[0] != "."]
    for path in files:
        parent, key = path.stem[:16], bytes.fromhex(path.stem[17:])
        metadata = disk.mx.load(str(path), return_metadata=True)[1]
        assert metadata["parent"].startswith(parent)
        disk._read(path, bytes.fromhex(metadata["parent"]), key)
    assert files


async def usage(client: Client) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            reader, writer = await client.send(json.dumps({"messages": client.asked[-1], "max_tokens": 2}).encode())
            received = await reader.read()
            writer.close()
            return json.loads(unchunked(received.split(b"\r\n\r\n", 1)[1]))["usage"]
        except (ConnectionError, ValueError):
            await asyncio.sleep(0.1)
    raise AssertionError("no answer")
