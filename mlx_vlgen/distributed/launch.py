"""`--ranks N`: a command as several processes of this machine, watched by the one that was called.

Each rank beats on a pipe. The first that dies, or is silent for too long, is named, and all end: MLX's launcher
returns 0 whatever happens, and a rank that waits for another in a sum would wait forever.
"""

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import UnsupportedError
from ..notices import notice

if TYPE_CHECKING:
    from .shard import Group

BEAT_VARIABLE = "MLX_VLGEN_BEAT"
"""Which file descriptor a rank beats on."""

HANDED_OVER = "MLX_VLGEN_HANDED_OVER"
"""Set for a process that `--hosts` has started: one of mlx.launch's ranks."""

INTERVAL = 1.0
"""Seconds between two beats."""

SILENCE = 30.0
"""Seconds without a beat after which a rank counts as dead."""

PATIENCE = 2.0
"""Seconds that the other ranks have to end, once rank 0 has: the answer is out."""


def launched() -> bool:
    """Whether this process is a rank that `launch` started."""
    return BEAT_VARIABLE in os.environ


def join_group() -> "Group":
    """The ranks that this process belongs to, by MLX's variables; where `launch` started it, it beats from now on."""
    if launched():
        beat(int(os.environ[BEAT_VARIABLE]))
    from .._runtime import mx

    group = mx.distributed.init()
    if group.size() == 1:
        raise UnsupportedError(
            "shard: this process is no rank of several: give --ranks N, or start it by mlx.launch -n N python -m …"
        )
    if group.rank():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends, and with it the others
    elif launched():
        _silence_backend()
    return group


def _silence_backend() -> None:
    """Where a peer is lost, MLX writes ten lines on stderr beside the one that says which it was."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def beat(descriptor: int) -> None:
    """Be heard there from now on. The process ends when nobody hears it any more."""

    def run() -> None:
        while True:
            try:
                os.write(descriptor, b".")
            except OSError:
                os._exit(1)
            time.sleep(INTERVAL)

    threading.Thread(target=run, name="mlx_vlgen beat", daemon=True).start()


@dataclass
class Rank:
    """A process. beats: where it is heard; heard: when it last was; said: what it wrote on stderr, but for rank 0,
    which writes on the command's; terminated: whether it was sent SIGTERM on purpose."""

    number: int
    process: subprocess.Popen[bytes]
    beats: int
    said: Any
    heard: float = field(default_factory=time.monotonic)
    terminated: bool = False

    def end(self) -> str:
        """What became of a process that is over, for a person."""
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self.said is None:
            return f"rank {self.number} {how}"
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return f"rank {self.number} {how}{f': {lines[-1]}' if lines else ''}"


def launch(module: str, arguments: Sequence[str], count: int, silence: float = SILENCE) -> int:
    """Run `python -m module arguments` as so many ranks. Returns rank 0's exit code, or 1 where another failed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps(free_addresses(count)), encoding="utf-8")
        environment = os.environ | {"MLX_HOSTFILE": str(hosts)}
        command = [sys.executable, "-m", module, *arguments]
        ranks = [stack.enter_context(_started(number, command, environment)) for number in range(count)]
        stack.enter_context(_forwarding(ranks[0]))
        return watch(ranks, silence)


def hand_over(module: str, arguments: Sequence[str], hosts: str) -> NoReturn:
    """Become mlx.launch, which starts `python -m module arguments` on hosts: addresses by commas, or its hostfile. Its
    exit code is 0 whatever happens; each rank says which was lost."""
    beside = str(Path(sys.executable).parent)
    program = shutil.which("mlx.launch", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if program is None:
        raise UnsupportedError("--hosts: mlx.launch is not there, which comes with MLX; install mlx anew")
    flag = "--hostfile" if hosts.endswith(".json") else "--hosts"
    rank = [sys.executable, "-m", module, *arguments]
    os.execv(program, [program, flag, hosts, "--env", f"{HANDED_OVER}=1", "--", *rank])


def watch(ranks: Sequence[Rank], silence: float) -> int:
    """Wait until rank 0 is through, or any is dead; the exit code of all."""
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.beats, selectors.EVENT_READ, rank)
        now = time.monotonic()
        while True:
            for key, _ in selector.select(timeout=0.05):
                if os.read(key.fd, 4096):
                    key.data.heard = time.monotonic()
                else:
                    selector.unregister(key.fd)
                    time.sleep(0.05)  # the process is about to be over
            if ranks[0].terminated and ranks[0].process.poll() == -signal.SIGTERM:
                return 128 + signal.SIGTERM
            over = [rank for rank in ranks if rank.process.poll() is not None]
            # One that was killed is the cause of what befell the others.
            killed = [rank for rank in over if rank.process.returncode < 0]
            failed = [rank for rank in over if rank.number and rank.process.returncode]
            if killed or (failed and ranks[0] not in over):
                notice(f"error: {(killed or failed)[0].end()}; the other ranks were ended")
                return 1
            if ranks[0] in over:
                return _after_first(ranks)
            now, before = time.monotonic(), now
            for rank in ranks:  # while this process was stopped, as by Ctrl-Z, they were too
                rank.heard += max(0.0, now - before - INTERVAL)
            if silent := [rank for rank in ranks if rank not in over and now - rank.heard > silence]:
                notice(f"error: rank {silent[0].number} was silent for {silence:g} seconds; all ranks were ended")
                return 1


def _after_first(ranks: Sequence[Rank]) -> int:
    """Rank 0's exit code, once the others are over too, where it was well."""
    code: int = ranks[0].process.returncode
    deadline = time.monotonic() + (0 if code else PATIENCE)
    while time.monotonic() < deadline and any(rank.process.poll() is None for rank in ranks):
        time.sleep(0.02)
    return code


@contextmanager
def _started(number: int, command: Sequence[str], environment: dict[str, str]) -> Iterator[Rank]:
    """A rank, which is ended with this context. stdin is rank 0's."""
    beats, theirs = os.pipe()
    said = tempfile.TemporaryFile() if number else None  # noqa: SIM115  closed below
    try:
        process = subprocess.Popen(
            command,
            env=environment | {"MLX_RANK": str(number), BEAT_VARIABLE: str(theirs)},
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL if number else None,
            stderr=said,
        )
    finally:
        os.close(theirs)
    try:
        yield Rank(number, process, beats, said)
    finally:
        process.kill()
        process.wait()
        os.close(beats)
        if said is not None:
            said.close()


@contextmanager
def _forwarding(first: Rank) -> Iterator[None]:
    """Ctrl-C and SIGTERM are rank 0's, with whose exit code all end. A terminal sends Ctrl-C to it itself."""

    def interrupt(*_: object) -> None:
        if not (os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()):
            first.process.send_signal(signal.SIGINT)

    def terminate(*_: object) -> None:
        first.terminated = True
        first.process.terminate()

    before = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def free_addresses(count: int) -> list[list[str]]:
    """So many ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [[f"127.0.0.1:{one.getsockname()[1]}"] for one in sockets]
