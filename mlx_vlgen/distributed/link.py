"""What rank 0 says to the others, by a socket to each: a rank that waits there costs nothing. Arrays go through MLX.

Rank 0 says through the group where it listens, and a secret that those who connect have to show. Both ends beat, so
that a rank which is gone or silent is named: MLX would wait for it forever.
"""

import json
import os
import queue
import secrets
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .._runtime import mx
from ..notices import notice
from .launch import INTERVAL, SILENCE, launched
from .shard import Group

TIMEOUT = 30.0
"""Seconds that a rank has to connect."""

WAIT = 2.0
"""Seconds in which it is found out that the cause of an error is another rank, which is lost."""

GREETING = 1024
"""Bytes that say where rank 0 listens."""


class RankError(SystemExit):
    """A forward that failed on some rank: the others stand in it, and nothing more can be computed together. It is no
    fault of a row's, and so no `Exception`: it ends the process, as Ctrl-C does, and no row is answered with it."""


class Link:
    """This rank's connection. notes: operations on caches since the last forward, in order."""

    def __init__(self, group: Group):
        self._group = group
        self.notes: deque[list[Any]] = deque()
        self.numbers = count()
        self.broken = False
        self.lock = threading.Lock()
        self._thread = 0
        self._last: mx.array | None = None
        self._sending = threading.Lock()
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._over = False
        self._sockets = dict(self._accept() if group.rank() == 0 else self._connect())
        for number, other in self._sockets.items():
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            other.settimeout(SILENCE)
            threading.Thread(target=self._hear, args=(number, other), name="mlx_vlgen link", daemon=True).start()
        threading.Thread(target=self._beat, name="mlx_vlgen beat", daemon=True).start()

    def _accept(self) -> Iterator[tuple[int, socket.socket]]:
        """On rank 0: the other ranks, by number."""
        listener = _listener()
        secret = secrets.token_hex(16)
        host, port = listener.getsockname()[:2]
        self._greet(json.dumps([host, port, secret]).encode())
        with listener:
            missing = self._group.size() - 1
            while missing:
                listener.settimeout(TIMEOUT)
                other, _ = listener.accept()
                other.settimeout(TIMEOUT)
                shown = _read(other, len(secret) + 4)
                if secrets.compare_digest(shown[4:], secret.encode()):
                    missing -= 1
                    yield int.from_bytes(shown[:4], "little"), other
                else:
                    other.close()

    def _connect(self) -> Iterator[tuple[int, socket.socket]]:
        """On the others: rank 0."""
        host, port, secret = json.loads(self._greet(b"").rstrip(b"\0"))
        first = socket.create_connection((host, port), TIMEOUT)
        first.sendall(self._group.rank().to_bytes(4, "little") + secret.encode())
        yield 0, first

    def _greet(self, said: bytes) -> bytes:
        """What rank 0 says to all through the group."""
        data = self.share(mx.array(np.frombuffer(said.ljust(GREETING, b"\0"), dtype=np.uint8)))
        try:
            mx.eval(data)  # which lets this process's other threads run, however long it waits
        except RuntimeError as error:
            raise failure(f"a rank was lost: {error}") from error
        return np.array(data).tobytes()

    def begin(self) -> None:
        """Before a forward. Each thread has a stream, and sums of two of them would mix: another's are waited for."""
        if self._thread != threading.get_ident() and self._last is not None:
            mx.eval(self._last)
        self._thread = threading.get_ident()

    def launch(self, logits: mx.array, *more: Any) -> None:
        """All of a forward, whatever becomes of it: the other ranks add to each of its sums."""
        mx.async_eval(logits, *more)
        if mx.default_device().type == mx.DeviceType.cpu:
            mx.eval(logits, *more)  # nothing starts ahead there, and a lost rank is known here, not where a row is read
        self._last = logits

    def send(self, **message: Any) -> None:
        """On rank 0: a message, after the notes."""
        notes = [self.notes.popleft() for _ in range(len(self.notes))]
        self._over = "end" in message
        self._send(message | {"notes": notes})

    def _send(self, message: dict[str, Any] | None) -> None:
        data = b"" if message is None else json.dumps(message).encode()
        with self._sending:
            for other in self._sockets.values():
                other.sendall(len(data).to_bytes(4, "little") + data)

    def receive(self) -> dict[str, Any]:
        """On the others: the next message, once it comes."""
        return self._messages.get()

    def _beat(self) -> None:
        with suppress(OSError):  # who hears says that it is gone
            while not self._over:
                self._send(None)
                time.sleep(INTERVAL)

    def _hear(self, number: int, other: socket.socket) -> None:
        """All that comes from a rank."""
        quiet = 0  # intervals; one in which this process was stopped, as by Ctrl-Z, counts as one
        try:
            while not self._over:
                if not select.select([other], [], [], INTERVAL)[0]:
                    quiet += 1
                    if quiet * INTERVAL >= SILENCE:
                        self._end(f"rank {number} was silent for {SILENCE:g} seconds")
                    continue
                quiet = 0
                if size := int.from_bytes(_read(other, 4), "little"):
                    message = json.loads(_read(other, size))
                    self._over = "end" in message
                    if "lost" in message:
                        self._end(message["lost"])
                    self._messages.put(message)
        except OSError:
            self._end(f"rank {number} is gone")

    def _end(self, why: str) -> None:
        """End this process, and tell the others why. The one that watches local ranks says it before."""
        if self._over:
            return
        if self._group.rank() == 0:
            with suppress(OSError):
                self._send({"lost": why})
        if launched():
            time.sleep(WAIT)
        else:
            notice(f"error: {why}; rank {self._group.rank()} ends")
        os._exit(1)

    def share(self, array: mx.array) -> mx.array:
        """Rank 0's array, where the others give zeros. It is under way: the order of sums is that of these calls."""
        shared = mx.distributed.all_sum(array, group=self._group)
        mx.async_eval(shared)
        return shared


def failure(message: str) -> RankError:
    """What is to be raised. Where the cause is a rank that is lost, this process is ended while it waits here."""
    time.sleep(WAIT)
    return RankError(f"mlx_vlgen: error: {message}")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until this is over: what is half sent would leave the other ranks in a sum."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = list[int]()
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        signal.raise_signal(signal.SIGINT)


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := connection.recv(size - len(data))):
            raise ConnectionError("closed")
        data += part
    return bytes(data)


def _listener() -> socket.socket:
    """Where the other ranks reach this one: at the address that MLX was given for it, else at the machine's name."""
    hosts, coordinator = os.environ.get("MLX_HOSTFILE"), os.environ.get("MLX_JACCL_COORDINATOR")
    addresses = json.loads(Path(hosts).read_text(encoding="utf-8"))[0] if hosts else []
    addresses += [coordinator] if coordinator else []
    names = [address.rpartition(":")[0] for address in addresses] or [socket.gethostname()]
    family, kind, _, _, address = socket.getaddrinfo(names[0], 0, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    listener.bind(address)
    listener.listen()
    return listener
