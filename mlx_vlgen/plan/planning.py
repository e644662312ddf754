"""Which ways of running a model on some machines there are, how each does, which is best; what would fit, if none."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..distributed.pipeline import check
from ..errors import UnsupportedError
from ..models.base import Model
from ..notices import rewriting_notices
from .costs import Costs, costs_of, rank_costs
from .estimate import Estimate, Load, pipeline, tensor, whole
from .machines import Machines
from .picture import Picture

Build = Callable[[int | None], Model]
"""A model without weights, its text layers quantized to so many bits, or as they are."""

COUNTS = (2, 4, 8, 16, 32)
BITS = (8, 6, 5, 4, 3)
"""Of weights; fewer cost too much of a model."""

MEMORIES = (8, 16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
"""GB of memory that Macs come with."""


@dataclass(frozen=True)
class Plan:
    costs: Costs
    machines: Machines
    load: Load
    ways: Sequence[Estimate]

    @property
    def possible(self) -> list[Estimate]:
        """What fits and runs today."""
        return [way for way in self.ways if way.fits]

    @property
    def best_row(self) -> Estimate | None:
        return max(self.possible, key=lambda way: way.row_rate, default=None)

    @property
    def best_batch(self) -> Estimate | None:
        return max(self.possible, key=lambda way: way.batch_rate, default=None)


def make_plan(build: Build, machines: Machines, load: Load, bits: int | None, size: tuple[int, int]) -> Plan:
    """size: width and height of the picture."""
    model = build(bits)
    costs = costs_of(model)
    load = replace(load, picture=Picture.of(model.config, *size), pixels=size[0] * size[1])
    return Plan(costs, machines, load, list(_ways(model, costs, machines, load)))


def _ways(model: Model, costs: Costs, machines: Machines, load: Load) -> Iterator[Estimate]:
    yield whole("alone", costs, machines, load)
    if machines.count == 1:
        return
    try:
        yield tensor(rank_costs(model, costs, 0, machines.count), machines, load)
    except UnsupportedError:
        decoder = model.config["model_type"]
        yield Estimate("tensor", refused=f"{decoder} is not cut by this package yet")
    try:
        check(model, machines.count)
        yield pipeline(costs, machines, load)
    except UnsupportedError:
        few = machines.count > len(costs.layers)
        reason = f"{machines.count} machines for {len(costs.layers)} layers" if few else "its layers are not divided"
        yield Estimate("pipeline", refused=reason)
    yield whole("data", costs, machines, load)


def what_would_fit(build: Build, plan: Plan, bits: int | None, size: tuple[int, int]) -> Iterator[str]:
    """The least that would have to change, in each of three respects."""
    machines, load = plan.machines, plan.load

    def tried(more: Machines, fewer: int | None) -> Plan:
        with rewriting_notices(lambda text: ""):
            return make_plan(build, more, load, fewer, size)

    for count in (count for count in COUNTS if count > machines.count):
        if tried(more := replace(machines, count=count), bits).possible:
            yield f"{more}"
            break
    if machines.chip.memory is None and machines.chip.usable(10**9) < 10**9:  # Apple's
        needed = min(way.needed for way in plan.ways if way.refused is None)
        for memory in (memory * 10**9 for memory in MEMORIES if memory * 10**9 > machines.memory):
            if machines.chip.usable(memory) >= needed:
                yield f"{replace(machines, memory=memory)}"
                break
    for fewer in BITS if bits is None else (fewer for fewer in BITS if fewer < bits):
        try:
            fitting = tried(machines, fewer).possible
        except UnsupportedError:  # it is quantized already
            return
        if fitting:
            yield f"{machines} with its text layers at {fewer} bits (--quantize {fewer})"
            return
