"""What the server does when time, memory or the engine fail, and what it lets pass when told to."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from mlx_vlgen.engine.iterator import TokenIterator
from mlx_vlgen.server import engine, models
from mlx_vlgen.server.models import Models, Source
from mlx_vlgen.server.settings import Settings

from .serving import Loaded, Running, running

HI = [{"role": "user", "content": "Hi"}]
ENDLESS = {"messages": HI, "logit_bias": {"568": -100, "566": -100}}


def ask(server: Running, body: Any, path: str = "/v1/chat/completions") -> tuple[int, str]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_time_leniency_and_bounds(loaded: Loaded, capfd: pytest.CaptureFixture[str]) -> None:
    with running(
        {"demo": Source(lambda: loaded)}, timeout=1.5, max_tokens=3000, lenient=True, log_prompts=True
    ) as server:
        status, text = ask(server, ENDLESS | {"unheard_of": 1}, "/v1/chat/completions?beta=true")
        answer = json.loads(text)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
        assert 0 < answer["usage"]["completion_tokens"] < 3000
        assert json.loads(ask(server, HI_FOR_TWO)[1])["usage"]["completion_tokens"] == 2
        server.wait_until_idle()
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["field"] for line in logged if line["event"] == "lenient"] == [
        "?beta: not known, left out", "unheard_of: not known, left out",
    ]  # fmt: skip
    assert [line["body"] for line in logged if line["event"] == "prompt"][1] == HI_FOR_TWO


HI_FOR_TWO = {"messages": HI, "max_tokens": 2}


def test_a_fault_of_the_engine_ends_what_runs_and_nothing_else(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TokenIterator) -> None:
        monkeypatch.undo()
        raise RuntimeError("secret of the engine")

    monkeypatch.setattr(TokenIterator, "_advance", fail)
    status, text = ask(served, {"model": "demo", **HI_FOR_TWO})
    assert status == 500 and "secret" not in text
    assert ask(served, {"model": "demo", **HI_FOR_TWO})[0] == 200
    served.wait_until_idle()


def test_signs_of_life_while_a_prompt_is_computed(loaded: Loaded) -> None:
    with running({"demo": Source(lambda: loaded)}, keepalive_seconds=0.002) as server:
        body = {"messages": HI, "max_tokens": 1, "stream": True}
        assert ": keep-alive\n\n" in ask(server, body)[1]
        assert ask(server, body, "/v1/messages")[1].count("event: ping") > 1


def test_an_idle_model_makes_room_for_another(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 100
    monkeypatch.setattr(models, "memory_available", lambda: free)

    async def run() -> None:
        nonlocal free
        served = Models({name: Source(lambda: loaded, lambda: 50) for name in "abc"}, Settings())
        async with served.lease("a") as a:
            async with served.lease("b"):
                assert len(served.engines) == 2
            free = 1
            async with served.lease("c"):
                assert len(served.engines) == 2 and a in served.engines and a.alive  # of the two the idle one is gone
        await served.close()
        assert not a.alive

    asyncio.run(run())


def test_a_client_that_leaves_while_a_model_loads_does_not_end_the_loading(loaded: Loaded) -> None:
    async def run() -> None:
        served = Models({"a": Source(lambda: loaded)}, Settings())
        leaving = asyncio.ensure_future(served.lease("a").__aenter__())
        await asyncio.sleep(0)
        leaving.cancel()
        async with served.lease("a") as engine:
            assert served.engines == [engine]
        await served.close()

    asyncio.run(run())


def test_rows_that_begin_together_run_together(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is read in a moment is waited for, where nothing runs."""
    served.wait_until_idle()
    rows, both, prepare, advance = [], threading.Barrier(2), engine.Engine._prepare, TokenIterator._advance

    def read(*args: Any) -> Any:
        time.sleep(0.1 * both.wait(10))
        return prepare(*args)

    def step(self: TokenIterator) -> None:
        rows.append(len(self._rows))
        advance(self)

    monkeypatch.setattr(engine, "GATHER_SECONDS", 10.0)
    monkeypatch.setattr(engine.Engine, "_prepare", read)
    monkeypatch.setattr(TokenIterator, "_advance", step)
    with ThreadPoolExecutor(2) as pool:
        assert [status for status, _ in pool.map(partial(ask, served), [{"model": "demo", **HI_FOR_TWO}] * 2)] == [
            200
        ] * 2
    assert rows[0] == 2
