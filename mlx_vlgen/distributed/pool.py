"""A pool of actors in the place of a job's engine: rows go out to them, results come back, and one that dies is
replaced. Knows no Ray: see `ray.py`."""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..batch.rows import Row
from ..errors import VlgenError
from ..notices import notice
from ..results import GenerationResult

AHEAD = 2
"""Rows that an actor has, for each that runs."""

CALLS = 2
"""Calls that an actor has at a time: while one runs the next one lies there, so that it never waits for rows."""

SUSPECT = 2
"""Actors that died with a row, after which it runs alone: nobody else shall suffer from it."""

GIVEN_UP = 4
"""Actors that died with a row, after which it fails."""

STARTS = 3
"""Actors in a row that died while they loaded the model, after which the job ends."""

PATIENCE = 30.0
"""Seconds without any actor, after which a person is told what may be the cause."""


class Died(Exception):
    """An actor is gone, and all that it ran."""


@dataclass(frozen=True)
class Loaded:
    """What an actor says once it has its model. config: tells models apart; model: its name; notices: those of its
    loading; error: why it has none."""

    machine: str
    config: str = ""
    model: str = ""
    notices: Sequence[str] = ()
    error: str | None = None


@dataclass(frozen=True)
class Ended:
    """A row that is finished. missing: a file of it that the actor's machine does not have."""

    id: int
    result: GenerationResult
    missing: str | None = None


@dataclass
class Task:
    """A row that is asked. deaths: of actors that had it."""

    id: int
    row: Row
    keywords: dict[str, Any]
    deaths: int = 0


class Cluster(Protocol):
    """Where actors run. A call's value is `Loaded`, or a list of `Ended`; `get` raises Died."""

    def start(self) -> Any:
        """A new actor."""

    def load(self, actor: Any) -> Any:
        """A call that loads the model."""

    def answer(self, actor: Any, tasks: Sequence[Task]) -> Any:
        """A call that takes rows, goes on with all that the actor has, and gives what has ended."""

    def wait(self, calls: list[Any], seconds: float) -> list[Any]:
        """The calls that are over, at least one unless the time passes."""

    def get(self, call: Any) -> Any: ...

    def stop(self, actor: Any) -> None: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Member:
    """An actor. calls: not over yet, in order. tasks: rows that it has. machine: None until it has loaded."""

    actor: Any
    calls: list[Any]
    tasks: dict[int, Task] = field(default_factory=dict)
    machine: str | None = None

    @property
    def closed(self) -> bool:
        """Whether it has a row that runs alone."""
        return any(task.deaths >= SUSPECT for task in self.tasks.values())


class Pool:
    """The engine of a job (see `batch.job.Engine`). size: actors. capacity: rows that each has at a time."""

    def __init__(self, cluster: Cluster, size: int, capacity: int):
        self._cluster, self._capacity = cluster, capacity
        self._members = [self._start() for _ in range(size)]
        self._queue: deque[Task] = deque()
        self._ended: deque[tuple[int, GenerationResult]] = deque()
        self._added = self._failed_starts = 0
        self._loaded: Loaded | None = None

    def wait_until_loaded(self) -> Loaded:
        """What the first actor says that has its model; the others may follow later."""
        deadline: float | None = time.monotonic() + PATIENCE
        while self._loaded is None:
            self._collect()
            if deadline is not None and time.monotonic() > deadline:
                deadline = None
                notice("no actor has the model yet: it is large, or the cluster has no free CPUs (see `ray status`)")
        return self._loaded

    def add(self, row: Row, keywords: dict[str, Any]) -> int:
        self._added += 1
        self._queue.append(Task(self._added, row, keywords))
        return self._added

    def __iter__(self) -> Iterator[tuple[int, GenerationResult]]:
        return self

    def __next__(self) -> tuple[int, GenerationResult]:
        while not self._ended:
            self._send()
            self._collect()
        return self._ended.popleft()

    def close(self) -> None:
        for member in self._members:
            self._cluster.stop(member.actor)
        self._cluster.close()

    def _start(self) -> Member:
        actor = self._cluster.start()
        return Member(actor, [self._cluster.load(actor)])

    def _send(self) -> None:
        """Give each actor its share of the rows, those with the fewest first."""
        rows = len(self._queue) + sum(len(member.tasks) for member in self._members)
        share = math.ceil(rows / len(self._members))
        for member in sorted(self._members, key=lambda member: len(member.tasks)):
            while member.machine is not None and len(member.calls) < CALLS:
                tasks = self._take(member, share)
                member.tasks |= {task.id: task for task in tasks}
                if not member.tasks:
                    break
                member.calls.append(self._cluster.answer(member.actor, tasks))

    def _take(self, member: Member, share: int) -> list[Task]:
        tasks: list[Task] = []
        room = 0 if member.closed else min(share, self._capacity) - len(member.tasks)
        while self._queue and len(tasks) < room:
            if self._queue[0].deaths >= SUSPECT:
                if member.tasks or tasks:
                    break
                room = 1
            tasks.append(self._queue.popleft())
        return tasks

    def _collect(self) -> None:
        """Wait for a call, and take what came of it."""
        calls = {call: member for member in self._members for call in member.calls}
        for call in self._cluster.wait(list(calls), 1.0):
            member = calls[call]
            if member not in self._members:  # replaced meanwhile
                continue
            try:
                value = self._cluster.get(call)
            except Died as error:
                self._replace(member, str(error))
                continue
            member.calls.remove(call)
            if isinstance(value, Loaded):
                self._join(member, value)
                continue
            for ended in value:
                self._check_file(member, ended)
                del member.tasks[ended.id]
                self._ended.append((ended.id, ended.result))

    def _join(self, member: Member, loaded: Loaded) -> None:
        if loaded.error is not None:
            raise VlgenError(f"{loaded.machine}: {loaded.error}")
        if self._loaded is None:
            self._loaded = loaded
            for text in loaded.notices:
                notice(text)
        if loaded.config != self._loaded.config:
            raise VlgenError(
                f"{loaded.machine} has another model of that name than {self._loaded.machine}: {loaded.model}, whose "
                "config.json is another one; download the same on every machine"
            )
        member.machine = loaded.machine
        self._failed_starts = 0

    def _check_file(self, member: Member, ended: Ended) -> None:
        if ended.missing is not None and Path(ended.missing).exists():
            raise VlgenError(
                f"{member.machine} has no file {ended.missing}, which is on this machine: actors read files at the "
                "path that they have here, so lay them in a folder that all machines share"
            )

    def _replace(self, member: Member, why: str) -> None:
        """Start an actor in the place of one that died, and queue its rows again, before all others."""
        self._cluster.stop(member.actor)
        if member.machine is None:
            self._failed_starts += 1
            if self._failed_starts == STARTS:
                raise VlgenError(f"{STARTS} actors died while they loaded the model; the last one: {why}")
        notice(f"an actor died, and another takes its place and its {len(member.tasks)} unfinished rows: {why}")
        for task in reversed(member.tasks.values()):
            task.deaths += 1
            if task.deaths < GIVEN_UP:
                self._queue.appendleft(task)
            else:
                error = VlgenError(f"{GIVEN_UP} actors died with this row, the last ones with this row alone: {why}")
                self._ended.append((task.id, GenerationResult(answer="", finish_reason="error", error=error)))
        self._members[self._members.index(member)] = self._start()
