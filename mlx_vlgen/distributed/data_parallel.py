"""`--data-parallel`: ranks that `mlx.launch` starts, each with the model, which answer parts of a job's rows."""

import json
from collections.abc import Callable
from typing import Any

from .._runtime import mx
from ..errors import UnsupportedError, VlgenError, one_line


class Ranks:
    """The processes of a job. number: this one's, from 0."""

    def __init__(self) -> None:
        self._group = mx.distributed.init()
        if self._group.size() == 1:
            raise UnsupportedError(
                "data_parallel: this process is no rank of several: start it by mlx.launch -n N python -m "
                "mlx_vlgen.batch …"
            )
        self.number = self._group.rank()

    def has(self, key: str) -> bool:
        """Whether this rank answers the row of a key."""
        return int(key[:15], 16) % self._group.size() == self.number

    def agree(self, do: Callable[[], Any]) -> list[Any]:
        """What it returns on each rank, values of JSON. VlgenError on all ranks where it fails on any."""
        try:
            said = {"value": do()}
        except Exception as error:
            said = {"error": one_line(error)}
        of_ranks = [json.loads(text) for text in self._gather(json.dumps(said).encode())]
        for number, other in enumerate(of_ranks):
            if "error" in other:
                raise VlgenError(f"rank {number}: {other['error']}")
        return [other["value"] for other in of_ranks]

    def _gather(self, data: bytes) -> list[bytes]:
        sizes: Any = mx.distributed.all_gather(mx.array([len(data)]), group=self._group, stream=mx.cpu).tolist()
        padded = mx.array(list(data.ljust(max(sizes), b" ")), mx.uint8)
        whole: Any = mx.distributed.all_gather(padded, group=self._group, stream=mx.cpu).tolist()
        return [bytes(whole[number * max(sizes) :][:size]) for number, size in enumerate(sizes)]
