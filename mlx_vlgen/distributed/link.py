"""What rank 0 says to the others, by a socket to each: a rank that waits there costs nothing. Arrays go through MLX.

Rank 0 says through the group where it listens, and a secret that those who connect have to show.
"""

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .._runtime import mx
from .launch import launched
from .shard import Group

TIMEOUT = 30.0
"""Seconds that a rank has to connect, and to take what it is sent."""

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
        self._sockets = list(self._accept() if group.rank() == 0 else self._connect())

    def _accept(self) -> Iterator[socket.socket]:
        """On rank 0: the other ranks."""
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
                if secrets.compare_digest(_read(other, len(secret)), secret.encode()):
                    other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    missing -= 1
                    yield other
                else:
                    other.close()

    def _connect(self) -> Iterator[socket.socket]:
        """On the others: rank 0."""
        host, port, secret = json.loads(self._greet(b"").rstrip(b"\0"))
        first = socket.create_connection((host, port), TIMEOUT)
        first.sendall(secret.encode())
        first.settimeout(None)
        yield first

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
        data = json.dumps(message | {"notes": notes}).encode()
        for other in self._sockets:
            other.sendall(len(data).to_bytes(4, "little") + data)

    def receive(self) -> dict[str, Any]:
        """On the others: the next message, once it comes."""
        [first] = self._sockets
        size = int.from_bytes(_read(first, 4), "little")
        message: dict[str, Any] = json.loads(_read(first, size))
        return message

    def share(self, array: mx.array) -> mx.array:
        """Rank 0's array, where the others give zeros. It is under way: the order of sums is that of these calls."""
        shared = mx.distributed.all_sum(array, group=self._group)
        mx.async_eval(shared)
        return shared


def failure(message: str) -> RankError:
    """What is to be raised. Where a local rank was lost, the process that watches them says which, and ends this one
    while it waits here."""
    if launched():
        time.sleep(2.0)
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
            raise failure("the connection to another rank was lost")
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
