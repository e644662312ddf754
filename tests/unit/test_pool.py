"""The pool's bookkeeping, with actors that answer at once and die when they are told to."""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlx_vlgen.batch.rows import Row
from mlx_vlgen.distributed.pool import AHEAD, CALLS, GIVEN_UP, STARTS, Died, Ended, Loaded, Pool, Task
from mlx_vlgen.distributed.ray import _column
from mlx_vlgen.errors import MediaError, VlgenError
from mlx_vlgen.results import GenerationResult


class Actors:
    """In the place of a cluster. deaths: how many of all calls find their actor dead. loaded: what each actor says.
    poison: a row that kills each actor that has it."""

    def __init__(
        self, deaths: float = 0.0, loaded: Sequence[Loaded] = (), poison: str = "", dies_loading: bool = False
    ):
        self._random = random.Random(7)
        self._deaths, self._loaded, self._poison, self._dies = deaths, list(loaded), poison, dies_loading
        self.started, self.running = 0, dict[int, list[Task]]()
        self.most = 0
        self.stopped = set[int]()
        self.answers = dict[str, int]()

    def start(self) -> int:
        self.started += 1
        self.running[self.started] = []
        return self.started

    def load(self, actor: int) -> tuple[int, str, int]:
        return actor, "load", 0

    def answer(self, actor: int, tasks: Sequence[Task]) -> tuple[int, str, int]:
        assert actor not in self.stopped
        self.running[actor] += tasks
        self.most = max(self.most, len(self.running[actor]))
        return actor, "answer", self._random.randrange(1 << 60)

    def wait(self, calls: list[Any], seconds: float) -> list[Any]:
        assert calls, "the pool would wait for ever"
        for actor in {call[0] for call in calls}:
            assert sum(call[0] == actor for call in calls) <= CALLS
        return [call for call in calls if self._random.random() < 0.5] or calls[:1]

    def get(self, call: tuple[int, str, int]) -> Any:
        actor, what, _ = call
        if what == "load":
            if self._dies:
                raise Died("no memory")
            return self._loaded[actor - 1] if self._loaded else Loaded("m", "c", "demo")
        tasks = self.running[actor]
        if any(task.row.name == self._poison for task in tasks) or self._random.random() < self._deaths:
            raise Died("killed")
        ended = [tasks.pop(self._random.randrange(len(tasks))) for _ in range(min(3, len(tasks)))]
        for task in ended:
            self.answers[task.row.name] = self.answers.get(task.row.name, 0) + 1
        return [Ended(task.id, GenerationResult(answer=task.row.name, finish_reason="stop")) for task in ended]

    def stop(self, actor: int) -> None:
        self.stopped.add(actor)

    def close(self) -> None:
        self.stopped.add(0)


def answers(pool: Pool, count: int) -> dict[str, GenerationResult]:
    """Of so many rows, each once."""
    names = {pool.add(Row(name=f"{number}"), {}): f"{number}" for number in range(count)}
    found = {}
    for _ in range(count):
        id, result = next(iter(pool))
        found[names.pop(id)] = result
    assert not names
    return found


@pytest.mark.parametrize("deaths", [0.0, 0.02])
def test_each_row_once_whoever_dies(deaths: float, capsys: pytest.CaptureFixture[str]) -> None:
    actors = Actors(deaths)
    pool = Pool(actors, 3, AHEAD * 8)
    assert pool.wait_until_loaded().model == "demo"
    found = answers(pool, 400)
    assert all(result.answer == name for name, result in found.items())
    assert actors.most <= AHEAD * 8
    assert (actors.started > 3) == bool(deaths) == ("another takes its place" in capsys.readouterr().err)
    pool.close()
    assert actors.stopped == set(range(actors.started + 1))


def test_a_row_that_kills_its_actors_fails_alone() -> None:
    actors = Actors(poison="17")
    found = answers(Pool(actors, 2, 8), 40)
    failed = {name for name, result in found.items() if result.error is not None}
    assert failed == {"17"}
    assert str(found["17"].error).startswith(f"{GIVEN_UP} actors died with this row")
    assert actors.started == 2 + GIVEN_UP


def test_few_rows_are_shared_out() -> None:
    actors = Actors()
    answers(Pool(actors, 4, 64), 20)
    assert actors.most <= 5


@pytest.mark.parametrize(
    ("actors", "said"),
    [
        (Actors(dies_loading=True), f"{STARTS} actors died while they loaded the model; the last one: no memory"),
        (Actors(loaded=[Loaded("mac-2", error="x/y: no such model")] * 2), "mac-2: x/y: no such model"),
        (Actors(loaded=[Loaded("mac-1", "a", "m"), Loaded("mac-2", "b", "m")]), "another model of that name"),
    ],
)
def test_actors_without_the_model_end_the_job(actors: Actors, said: str) -> None:
    pool = Pool(actors, 2, 8)
    with pytest.raises(VlgenError, match=said):
        answers(pool, 100)


def test_a_file_that_only_this_machine_has_ends_the_job(tmp_path: Any) -> None:
    (tmp_path / "a.png").touch()

    class Elsewhere(Actors):
        def get(self, call: Any) -> Any:
            value = super().get(call)
            if isinstance(value, Loaded):
                return value
            error = GenerationResult(answer="", finish_reason="error", error=MediaError("no such file"))
            return [Ended(ended.id, error, str(tmp_path / "a.png")) for ended in value]

    with pytest.raises(VlgenError, match=r"m has no file .*a\.png, which is on this machine"):
        answers(Pool(Elsewhere(), 1, 8), 2)


def test_whole_numbers_of_a_column_with_holes_stay_whole() -> None:
    """NumPy and pandas make floats of them; a column of floats stays one."""
    assert [repr(value) for value in _column([math.nan, np.float64(3.0)])] == ["None", "3"]
    assert [repr(value) for value in _column([None, 1.5, 2.0])] == ["None", "1.5", "2.0"]
    assert [repr(value) for value in _column([1.0, 2.0])] == ["1.0", "2.0"]
