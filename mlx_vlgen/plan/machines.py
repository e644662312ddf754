"""Chips, links, and what a person writes of machines: "2x M3 Ultra 192GB, thunderbolt".

Bandwidths of Apple's chips are those of its technical specifications (support.apple.com/specs, apple.com/newsroom).
Apple states few rates of multiplication: those of M1 to M4 are GPU cores x 128 lanes x 2 x clock, which agrees with
what it said of M1 (2.6) and M1 Max (10.4 TFLOPS); clocks: hmc-tech.com/gpu. These GPUs multiply halves no faster than
floats. An M5's cores have units for products of matrices, "over four times the peak GPU compute for AI" of an M4's: 4
times. NVIDIA's are 0.77 of dense bfloat16 on tensor cores in the data sheets of A100, H100 and H200
(nvidia.com/en-us/data-center): MLX 0.32 reached 609 of an H100's 989 TFLOPS (4096 x 4096 x 4096).
"""

import difflib
import re
from dataclasses import dataclass

from ..errors import UnsupportedError

FORM = "name=bandwidthGB/s,TFLOPS,memoryGB"
EXAMPLE = "2x M3 Ultra 192GB, thunderbolt"


@dataclass(frozen=True)
class Chip:
    """One machine's accelerator.

    bandwidth: bytes a second of its memory. flops: operations a second on halves, a multiplication and an addition
    being two. memory: bytes that it comes with; None where that varies. link: how such machines are connected, if
    nobody says.
    """

    name: str
    bandwidth: float
    flops: float
    memory: int | None
    link: str

    def usable(self, memory: int) -> int:
        """Bytes for a model of so much memory."""
        if self.name not in CHIPS:
            return memory  # as it was given
        if self.memory is not None:
            return memory * 95 // 100  # CUDA itself takes some
        # Metal's recommendedMaxWorkingSetSize, as in benchmarks/fits.py
        return memory * 2 // 3 if memory <= 36 * 10**9 else memory * 3 // 4


def _chip(name: str, gigabytes: float, tflops: float, link: str, memory: int | None = None) -> tuple[str, Chip]:
    return name, Chip(name, gigabytes * 1e9, tflops * 1e12, None if memory is None else memory * 10**9, link)


_TB4, _TB5 = "thunderbolt 4", "thunderbolt 5"

CHIPS = dict(
    (
        _chip("M1", 68.3, 2.6, _TB4),
        _chip("M1 Pro", 200, 5.3, _TB4),
        _chip("M1 Max", 400, 10.6, _TB4),
        _chip("M1 Ultra", 800, 21.2, _TB4),
        _chip("M2", 100, 3.6, _TB4),
        _chip("M2 Pro", 200, 6.8, _TB4),
        _chip("M2 Max", 400, 13.6, _TB4),
        _chip("M2 Ultra", 800, 27.2, _TB4),
        _chip("M3", 100, 3.6, _TB4),
        _chip("M3 Pro", 150, 6.4, _TB4),
        _chip("M3 Max", 400, 14.3, _TB4),
        _chip("M3 Max 30-core", 300, 10.7, _TB4),
        _chip("M3 Ultra", 819, 28.6, _TB5),
        _chip("M4", 120, 3.8, _TB4),
        _chip("M4 Pro", 273, 8.6, _TB5),
        _chip("M4 Max", 546, 17.2, _TB5),
        _chip("M4 Max 32-core", 410, 13.7, _TB5),
        _chip("M5", 153, 15.2, _TB4),
        _chip("M5 Pro", 307, 34.4, _TB5),
        _chip("M5 Max", 614, 68.8, _TB5),
        _chip("M5 Max 32-core", 460, 55.0, _TB5),
        _chip("A100 40GB", 1555, 240, "nvlink", 40),
        _chip("A100", 2039, 240, "nvlink", 80),
        _chip("H100", 3350, 760, "nvlink", 80),
        _chip("H100 PCIe", 2000, 580, "nvlink", 80),
        _chip("H200", 4800, 760, "nvlink", 141),
    )
)
"""By name; the largest GPU where a chip comes with several, unless its cores are named."""


@dataclass(frozen=True)
class Link:
    """What connects machines.

    bandwidth: bytes a second that a machine sends. latency: seconds of one message, from a result on one chip to a
    computation with it on another. mesh: each machine reaches each other one, so that a sum takes two messages; else it
    goes around a ring.
    """

    name: str
    bandwidth: float
    latency: float
    mesh: bool = False

    def sum_seconds(self, size: float, ranks: int) -> float:
        """A sum over all ranks of so many bytes, which every rank then has (all-reduce)."""
        messages = 2 if self.mesh else 2 * (ranks - 1)
        return messages * self.latency + 2 * (ranks - 1) / ranks * size / self.bandwidth

    def gather_seconds(self, size: float, ranks: int) -> float:
        """Parts of all ranks, in all so many bytes, which every rank then has (all-gather)."""
        messages = 1 if self.mesh else ranks - 1
        return messages * self.latency + (ranks - 1) / ranks * size / self.bandwidth

    def send_seconds(self, size: float) -> float:
        return self.latency + size / self.bandwidth


SHARE = 0.7
"""Of a cable's nominal rate, what a program's data get."""


def _link(name: str, gigabits: float, microseconds: float, mesh: bool = False) -> tuple[str, Link]:
    return name, Link(name, gigabits / 8 * 1e9 * SHARE, microseconds * 1e-6, mesh)


# Latencies. Thunderbolt by TCP: 300 us there and back; by RDMA (macOS 26.2, Thunderbolt 5) below 50 us: Geerling 2025,
# jeffgeerling.com/blog/2025/15-tb-vram-on-mac-studio-rdma-over-thunderbolt-5, and Apple TN3205. 30 us of these, the
# wait of GPU and CPU for each other included, explain his rate of four machines (docs/scaling.md). Ethernet: TCP over a
# switch, a guess. InfiniBand NDR and NVLink (nvidia.com): NCCL's smallest sums take 10 to 20 us. local: MLX's ring
# between processes of one machine (benchmarks/scaling.py --measure). Rates are those in the cables' names.
LINKS = dict(
    (
        _link("thunderbolt 4", 40, 150),
        _link("thunderbolt 5", 80, 150),
        _link("thunderbolt 5 rdma", 80, 30, mesh=True),
        _link("10gbe", 10, 100),
        _link("1gbe", 1, 150),
        _link("infiniband", 400, 10, mesh=True),
        _link("nvlink", 3600, 7, mesh=True),
        _link("local", 11, 75),
    )
)
"""By name. "thunderbolt" alone is the one that the chip has."""


@dataclass(frozen=True)
class Machines:
    """count: how many. memory: bytes of each."""

    count: int
    chip: Chip
    memory: int
    link: Link

    @property
    def usable(self) -> int:
        return self.chip.usable(self.memory)

    def __str__(self) -> str:
        link = f", {self.link.name}" if self.count > 1 else ""
        return f"{self.count}x {self.chip.name} {self.memory / 1e9:.0f}GB{link}"


_NUMBER = r"(\d+(?:\.\d+)?)"
_COUNT = re.compile(r"\s*(?:(\d+)\s*[x×]\s*)?(.+)", re.IGNORECASE)
_CUSTOM = re.compile(
    rf"([^=,]+)=\s*{_NUMBER}\s*(?:GB/s)?\s*,\s*{_NUMBER}\s*(?:TFLOPS)?\s*,\s*{_NUMBER}\s*(?:GB)?\s*(?:,\s*(.*))?",
    re.IGNORECASE,
)
_KNOWN = re.compile(rf"([^,=]+?)(?:\s+{_NUMBER}\s*GB)?\s*(?:,\s*([^,]*))?", re.IGNORECASE)


def parse(text: str) -> Machines:
    """Machines as a person writes them. UnsupportedError, with what is known, for what is not understood."""
    number, rest = _COUNT.fullmatch(text).groups() if text.strip() else (None, "")  # type: ignore[union-attr]
    count = int(number or 1)
    if custom := _CUSTOM.fullmatch(rest):
        name, bandwidth, tflops, memory, link = custom.groups()
        chip = Chip(name.strip(), float(bandwidth) * 1e9, float(tflops) * 1e12, None, "10gbe")
    elif known := _KNOWN.fullmatch(rest):
        name, memory, link = known.groups()
        chip, memory = _known_chip(name, memory)
    else:
        raise UnsupportedError(f'machines {text!r}: expected COUNTx CHIP MEMORY[, LINK], as "{EXAMPLE}", or {FORM}')
    size = chip.memory if memory is None else int(float(memory) * 1e9)
    if size is None:
        raise UnsupportedError(f'machines {text!r}: say how much memory each has, as "{count}x {chip.name} 64GB"')
    if not (count and size and chip.bandwidth and chip.flops):
        raise UnsupportedError(f"machines {text!r}: counts, memory, GB/s and TFLOPS must be above zero")
    return Machines(count, chip, size, _known_link(link, chip))


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "", name).lower()


def _known_chip(name: str, memory: str | None) -> tuple[Chip, str | None]:
    """By name, without regard to case and spaces; the memory may be a part of the name."""
    chips = {_plain(known): chip for known, chip in CHIPS.items()}
    for written in (f"{name}{memory}gb", name, re.sub("^apple|^nvidia", "", _plain(name))):
        if _plain(written) in chips:
            return chips[_plain(written)], memory
    near = difflib.get_close_matches(_plain(name), chips, n=1)
    hint = f" Did you mean {chips[near[0]].name}?" if near else ""
    raise UnsupportedError(
        f"machines: the chip {name!r} is not known.{hint} Known are {', '.join(CHIPS)}. Another is given as {FORM}, "
        'for instance "2x mychip=819GB/s,28TFLOPS,144GB, 10GbE"; its memory is what a model may take'
    )


def _known_link(name: str | None, chip: Chip) -> Link:
    if name is None:
        return LINKS[chip.link]
    links = {_plain(known): link for known, link in LINKS.items()}
    aliases = {
        "thunderbolt": chip.link if "thunderbolt" in chip.link else _TB5, "rdma": "thunderbolt 5 rdma",
        "thunderboltrdma": "thunderbolt 5 rdma", "tb4": _TB4, "tb5": _TB5, "ethernet": "10gbe",
    }  # fmt: skip
    written = _plain(name)
    written = _plain(aliases.get(written, written))
    if written not in links:
        raise UnsupportedError(
            f"machines: the link {name.strip()!r} is not known; known are thunderbolt, {', '.join(LINKS)}"
        )
    return links[written]
