"""Servers under equal load: ours and mlx-vlm's, in turn, on one checkpoint.

    python benchmarks/serving.py CHECKPOINT --peer PYTHON [--clients 16] [--requests 48] [--rounds 3]

Each client asks one question after another and reads the streamed answer. "equal": pictures of one size; "mixed": each
of another size; "text": none. Times are to the first piece of an answer; the rate is of all answers' tokens.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
WORKLOADS = ("text", "equal", "mixed")
LOADING_SECONDS = 300


def questions(workload: str, count: int, new: int, model: str, seed: int) -> list[bytes]:
    """Bodies of requests, each with a picture."""
    rng = random.Random(seed)
    bodies = []
    for number in range(count):
        content: list[dict[str, Any]] = [{"type": "text", "text": f"{number}: describe what you see, in detail."}]
        if workload != "text":
            size = (224, 224) if workload == "equal" else (rng.randrange(128, 384), rng.randrange(128, 384))
            pixels = np.random.default_rng(seed * 1000 + number).integers(0, 255, (*size, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": new, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
        bodies.append(json.dumps(body).encode())
    return bodies


async def ask(port: int, body: bytes) -> tuple[float, int]:
    """Seconds to the first piece of the answer, and its tokens."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    await writer.drain()
    status = int((await reader.readline()).split()[1])
    first, tokens = 0.0, 0
    async for line in reader:
        if status != 200:
            raise RuntimeError(f"{status}: {line.decode(errors='replace')[:300]}")
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        said = any(choice.get("delta", {}).get("content") for choice in chunk.get("choices", ()))
        if said and not first:
            first = time.perf_counter() - begun
        if chunk.get("usage"):
            tokens = chunk["usage"].get("completion_tokens") or chunk["usage"]["output_tokens"]
    writer.close()
    return first or time.perf_counter() - begun, tokens


async def round_of(port: int, bodies: list[bytes], clients: int) -> dict[str, float]:
    waiting = list(reversed(bodies))
    answers: list[tuple[float, int]] = []

    async def client() -> None:
        while waiting:
            answers.append(await ask(port, waiting.pop()))

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    firsts = sorted(first for first, _ in answers)
    return {
        "rate": sum(tokens for _, tokens in answers) / seconds,
        "median": statistics.median(firsts),
        "p99": firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))],
        "tokens": sum(tokens for _, tokens in answers),
    }


@contextmanager
def serving(python: str, module: str, checkpoint: str) -> Iterator[int]:
    """The port of a server in another process; it has answered once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", module, "--model", checkpoint, "--host", "127.0.0.1", "--port", str(port)]
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    if module == "mlx_vlm.server":  # MLX's wheel for Linux has a slow BLAS; ours loads a fast one where there is one
        from mlx_vlgen._runtime import blas

        environment.pop("PYTHONPATH", None)
        if library := blas():
            environment["LD_PRELOAD"] = library
    else:
        command.append("--no-reuse")  # every question is another one
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LOADING_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{module} does not start") from None
                time.sleep(0.5)
        asyncio.run(ask(port, questions("equal", 1, 2, checkpoint, 7)[0]))
        yield port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with mlx-vlm")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    args = parser.parse_args()
    servers = {"ours": (sys.executable, "mlx_vlgen.serve")}
    if args.peer:
        servers["mlx-vlm"] = (args.peer, "mlx_vlm.server")
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(args.rounds):
        for name, (python, module) in servers.items():
            with serving(python, module, args.checkpoint) as port:
                for workload in args.workload:
                    bodies = questions(workload, args.requests, args.new, args.checkpoint, turn)
                    result = asyncio.run(round_of(port, bodies, args.clients))
                    found.setdefault((workload, name), []).append(result)
                    print(f"{workload}, {name}: {result}", file=sys.stderr, flush=True)
    print(f"{args.clients} clients, {args.requests} requests a round, {args.new} tokens, medians of {args.rounds}\n")
    print("| requests | server | tokens/s | ratio | first piece, median | 99% | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for (workload, name), results in found.items():
        values = {key: statistics.median(result[key] for result in results) for key in ("rate", "median", "p99")}
        rate, median, p99 = values.values()
        ours = found[workload, "ours"]
        ratios = [statistics.median(result[key] for result in ours) / values[key] for key in ("rate", "p99")]
        cells = ["", ""] if name == "ours" else [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {workload} | {name} | {rate:.1f} | {cells[0]} | {median:.2f} s | {p99:.2f} s | {cells[1]} |")


if __name__ == "__main__":
    main()
