"""Rows of a job over ranks: each writes a part of the journal, which whoever opens it next takes over."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_batch_job import Echo

from mlx_vlgen.batch.job import Job
from mlx_vlgen.batch.journal import Journal
from mlx_vlgen.batch.rows import Asked
from mlx_vlgen.batch.sources import Item
from mlx_vlgen.distributed.ray import RayCluster, ray_package
from mlx_vlgen.errors import UnsupportedError, VlgenError

ITEMS = [Item({"image": f"{number}.png"}, f"item {number}") for number in range(30)]


def run(journal: Journal, **settings: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """What was asked, and the rows in the end."""
    echo = Echo()
    job = Job(journal, lambda: echo, capacity=2, **settings)
    job.run(ITEMS, Asked(["What?"]))
    return echo.asked, [] if "part" in settings else [entry["row"] for entry in job.entries()]


def test_ranks_share_a_job_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    with Journal(tmp_path / "whole") as journal:
        _, whole = run(journal)
    path, asked = tmp_path / "a [b].jsonl", Counter[str]()
    with Journal(path) as first:
        first.share()
        with Journal(path, shared=True) as second:
            for number, journal in enumerate((first, second)):
                with Journal(journal.part(number)) as part:
                    asked.update(run(journal, part=part, mine=lambda key, n=number: int(key, 16) % 3 == n)[0])
            with pytest.raises(VlgenError, match="another process runs this job"):
                Journal(path)
        first.claim()
        with pytest.raises(VlgenError, match="another process runs this job"):
            Journal(path, shared=True)
    torn = Path(f"{path}.part1").read_bytes()[:-9]
    Path(f"{path}.part1").write_bytes(torn)
    with Journal(path) as journal:
        journal.take_parts()
        again, rows = run(journal)
    assert rows == whole
    assert len(again) == 30 - len(asked) + 1  # of the third rank, which never came, and the torn line
    assert [file.name for file in tmp_path.glob("*.part*")] == []


def test_a_part_that_is_written_is_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal, Journal(journal.part(1)) as part:
        part.append({"key": "00"})
        with pytest.raises(VlgenError, match="part1: another process runs this job"):
            journal.take_parts()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r'pip install "mlx-vlgen\[ray\]"'):
        ray_package()
    with pytest.raises(UnsupportedError, match="extra"):
        RayCluster(None, {})  # type: ignore[arg-type]
