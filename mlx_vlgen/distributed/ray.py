"""Ray: a job's rows over actors, each with the model (`batch --ray`), and `Captioner` for `ray.data`.

`ray` is imported when it is used, so that the workers' classes need not have it.
"""

import argparse
import copy
import io
import logging
import math
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnsupportedError, VlgenError, one_line
from ..flags import MODEL_VARIABLE
from ..notices import notice, rewriting_notices
from ..results import GenerationResult
from .pool import AHEAD, Died, Ended, Loaded, Pool, Task

if TYPE_CHECKING:
    from ..batch.rows import Row

CONNECT = 5.0
"""Seconds in which the machine at ADDRESS has to answer."""

SECONDS = 0.25
"""How long a call goes on, unless half a batch has ended before."""


def open_pool(args: argparse.Namespace, keywords: Mapping[str, Any]) -> tuple[Pool, Loaded]:
    """The engine of a job with `--ray`, and what its first actor says. args: the command's."""
    pool = Pool(RayCluster(args, keywords), args.actors, AHEAD * args.max_batch_size)
    try:
        return pool, pool.wait_until_loaded()
    except BaseException:
        pool.close()
        raise


def ray_package() -> Any:
    try:
        import ray
    except ImportError:
        raise UnsupportedError('ray: this needs an extra: pip install "mlx-vlgen[ray]"') from None
    return ray


def _knock(address: str) -> None:
    """OSError where nobody listens: Ray itself may try for a quarter of an hour."""
    if "://" in address:
        raise ValueError("expected HOST:PORT, on a machine of the cluster: Ray Client is not used")
    host, _, port = address.rpartition(":")
    if host:
        if not port.isdecimal():
            raise ValueError("expected HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    elif address not in ("auto", "local"):
        raise ValueError("expected HOST:PORT, auto or local")


class RayCluster:
    """See `pool.Cluster`. Joins the cluster that is named, else the one of $RAY_ADDRESS, else starts Ray here."""

    def __init__(self, args: argparse.Namespace, keywords: Mapping[str, Any]):
        self._ray = ray_package()
        self._connected = self._connect(args.ray)
        try:
            options, per_machine = self._resources(args.actors)
        except BaseException:
            self.close()
            raise
        args = copy.copy(args)
        args.model = args.model if args.model is not None else os.environ.get(MODEL_VARIABLE) or None
        self._settings = (args, dict(keywords), str(Path.cwd()), os.environ.get("OMP_NUM_THREADS"), per_machine)
        self._actor_class = self._ray.remote(Worker).options(max_restarts=0, scheduling_strategy="SPREAD", **options)

    def _connect(self, given: str) -> bool:
        """Whether this process is connected now and was not before."""
        if self._ray.is_initialized():
            return False
        address = given or os.environ.get("RAY_ADDRESS") or "local"
        options = {"include_dashboard": False} if address == "local" else {}
        os.environ.setdefault("RAY_worker_niceness", "0")  # of Ray that is started here: else actors run at 15
        try:
            _knock(address)
            self._ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise VlgenError(
                f"ray: no cluster can be joined at {address} ({one_line(error)}): start one there with `ray start "
                "--head`, or give no ADDRESS, which starts Ray on this machine"
            ) from None
        return True

    def _resources(self, actors: int) -> tuple[dict[str, Any], int]:
        """What an actor asks of the cluster, and how many about share a machine."""
        resources = self._ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        if actors > cpus:
            notice(f"there are {actors} actors for the cluster's {cpus:g} CPUs, which they share")
        options = {"num_cpus": 1 if actors <= cpus else 0, "num_gpus": 1 / math.ceil(actors / gpus) if gpus else 0}
        machines = sum(1 for node in self._ray.nodes() if node["Alive"])
        return options, math.ceil(actors / max(1, machines))

    def start(self) -> Any:
        return self._actor_class.remote(*self._settings)

    def load(self, actor: Any) -> Any:
        return actor.load.remote()

    def answer(self, actor: Any, tasks: Sequence[Task]) -> Any:
        return actor.answer.remote(tasks)

    def wait(self, calls: list[Any], seconds: float) -> list[Any]:
        over: list[Any] = self._ray.wait(calls, num_returns=1, timeout=seconds)[0]
        return over

    def get(self, call: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(call)
        except exceptions.RayTaskError as error:
            raise VlgenError(f"an actor failed: {one_line(error.cause)}") from None
        except exceptions.RayError as error:
            said = re.findall(r"^\w*Error: .*", str(error), re.MULTILINE)
            raise Died(said[-1] if said else "its process was killed, or its machine is gone") from None

    def stop(self, actor: Any) -> None:
        self._ray.kill(actor)

    def close(self) -> None:
        if self._connected:
            self._ray.shutdown()


class Worker:
    """An actor: one engine, which holds more rows than run, so that none of its time is lost between calls.

    folder: the current one of whoever called, where relative paths begin. threads: OMP_NUM_THREADS of whoever called,
    else this machine's CPUs are divided among so many actors.
    """

    def __init__(
        self, args: argparse.Namespace, keywords: dict[str, Any], folder: str, threads: str | None, actors: int
    ):
        self._args, self._keywords, self._folder = args, keywords, folder
        # Ray has set it to 1; the BLAS reads it when it is loaded, with the model.
        os.environ["OMP_NUM_THREADS"] = threads or str(max(1, (os.cpu_count() or 1) // actors))
        self._tasks: dict[int, Task] = {}

    def load(self) -> Loaded:
        machine, said = platform.node(), list[str]()

        def keep(text: str) -> str:
            said.append(text)
            return ""

        with rewriting_notices(keep):
            try:
                if Path(self._folder).is_dir():  # else there may be URLs only
                    os.chdir(self._folder)

                from ..batch.engine import ModelEngine, config_digest
                from ..cli import load_model

                model, processor = load_model(self._args)
                size, reuse = self._args.max_batch_size, not self._args.no_reuse
                self._engine = ModelEngine(model, processor, self._keywords, size, reuse)
            except Exception as error:
                return Loaded(machine, error=one_line(error))
        return Loaded(machine, config_digest(model), self._args.model, said)

    def answer(self, tasks: Sequence[Task]) -> list[Ended]:
        """Take rows, and go on with all for a moment: those that have ended."""
        deadline, ended = time.monotonic() + SECONDS, list[Ended]()
        for task in tasks:
            try:
                self._tasks[self._engine.add(task.row, task.keywords)] = task
            except Exception as error:  # a fault of one row's request ends that row only
                ended.append(_ended(task, GenerationResult(answer="", finish_reason="error", error=error)))
        enough = max(1, self._args.max_batch_size // 2)
        while self._tasks and len(ended) < enough and time.monotonic() < deadline:
            id, result = next(iter(self._engine))
            if result.finish_reason is not None:
                ended.append(_ended(self._tasks.pop(id), result))
        return ended


def _ended(task: Task, result: GenerationResult) -> Ended:
    files = task.row.files if result.error is not None else ()
    return Ended(task.id, result, next((path for path in files if not os.path.exists(path)), None))  # noqa: PTH110


class Captioner:
    """Answers rows of `ray.data`, an engine an actor:

        dataset.map_batches(Captioner, fn_constructor_kwargs={"model": "demo"}, batch_size=128, concurrency=2)

    The columns of a batch are the fields of the batch command's tables: image (path, URL, bytes, dict of these, or
    array), images, video, audio, prompt, messages, custom_id, and keywords of single rows; others are not read. What
    comes back has the columns of the command's tables, a row for each prompt. The rows of a batch run together,
    `max_batch_size` at a time, so that batches of several times that many are fastest.

    model, adapter_path, revision, dtype, quantize: as for `load` (quantization there).
    prompt: a template, or several; default "Describe this image.". system: a first message. image_column: its name.
    seed: of rows without one, whose draws follow from it and from what is asked; rows that are alike draw alike.
    keywords: those of `generate`.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str | Sequence[str] = (),
        system: str | None = None,
        image_column: str = "image",
        max_batch_size: int = 32,
        reuse: bool = True,
        adapter_path: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        quantize: int | None = None,
        seed: int = 0,
        **keywords: Any,
    ):
        from ..batch.engine import ModelEngine
        from ..batch.rows import Asked
        from ..loading import load

        loaded, processor = load(
            model, adapter_path=adapter_path, revision=revision, dtype=dtype, quantization=quantize
        )
        self._engine = ModelEngine(loaded, processor, keywords, max_batch_size, reuse)
        self._asked = Asked([prompt] if isinstance(prompt, str) else prompt, system)
        self._keywords, self._seed, self._image_column = keywords, seed, image_column
        self._lock = threading.Lock()

    def __call__(self, batch: Any) -> Any:
        """batch: a dict of columns, a pandas DataFrame or a pyarrow Table. Returns a pyarrow Table."""
        from ..batch.rows import rows_of
        from ..batch.sinks import as_table
        from ..batch.sources import Item

        items = [Item(fields, f"row {number}", table=True) for number, fields in enumerate(self._fields(batch), 1)]
        rows = [row for item in items for row in rows_of(item, self._asked)]
        with self._lock:
            return as_table(self._answer(rows))

    def _fields(self, batch: Any) -> Iterator[dict[str, Any]]:
        if hasattr(batch, "column_names"):  # pyarrow's
            columns = {name: batch[name].to_pylist() for name in batch.column_names}
        else:
            columns = {str(name): list(batch[name]) for name in batch}
        if self._image_column in columns:
            columns["image"] = columns.pop(self._image_column)
        read = [_column(values) for values in columns.values()]
        for values in zip(*read, strict=True):
            yield {name: value for name, value in zip(columns, values, strict=True) if value is not None}

    def _answer(self, rows: Sequence["Row"]) -> list[dict[str, Any]]:
        from ..batch.job import written

        done: list[dict[str, Any]] = [{}] * len(rows)
        places: dict[int, int] = {}
        for place, row in enumerate(rows):
            seed = int(row.digest[:15], 16) ^ self._seed
            try:
                if row.error is not None:
                    raise VlgenError(row.error)
                places[self._engine.add(row, {"seed": seed, **self._keywords, **row.keywords})] = place
            except Exception as error:  # a fault of one row's request ends that row only
                done[place] = written(row, one_line(error), None)
        while places:
            id, result = next(iter(self._engine))
            if result.finish_reason is not None:
                place = places.pop(id)
                done[place] = written(rows[place], one_line(result.error) if result.error else None, result)
        return done


def _column(values: Sequence[Any]) -> list[Any]:
    """A column's fields. Whole numbers of one with holes come as floats, which NumPy and pandas make of them."""
    read = [_value(value) for value in values]
    given = [value for value in read if value is not None]
    if len(given) < len(read) and all(isinstance(value, float) and value.is_integer() for value in given):
        return [None if value is None else int(value) for value in read]
    return read


def _value(value: Any) -> Any:
    """A field of a row, of what frames have in its place."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype == object or value.ndim < 2 else _as_png(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _as_png(pixels: np.ndarray) -> bytes:
    """pixels: (height, width, channels) or (height, width), uint8."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()
