"""Ours, mlx-vlm and transformers on the same checkpoint, in turn: one command, medians and ratios.

    python benchmarks/compare.py --preset cpu --peer PYTHON --transformers PYTHON [--json benchmarks/results/cpu.json]
    python benchmarks/compare.py --write benchmarks/results/*.json      the tables of the pages, and the chart

A checkpoint of a real shape with random weights is made, without torch; nothing is downloaded. Each engine has a
process of its own, in its Python, which stays loaded; a workload goes to ours, mlx-vlm, transformers, ours ...
`--repeat` times after one round to warm up, in which memory is measured. Ratios are ours over theirs, times and rates
alike. The floor is bytes over bandwidth or operations over the matmul rate, both measured in the run. MLX's wheel for
Linux has a slow BLAS: both engines on MLX get the library that `mlx_vlgen._runtime` finds.

Presets: cpu, float32, at most 25 minutes on two cores; gpu, the 4B shape in bfloat16 and with 4 bits, at most 8
minutes; mac, 2B, 4B and 8B with 4 bits; tiny, seconds. When the time of a preset runs out there are fewer rounds, and
the cells say so. On a machine that does other things compare ratios only.
"""

import argparse
import datetime
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import compare_report
from compare_floors import Costs, Rates, Row, floor
from compare_workloads import CHECKS, Workload, workloads

HERE = Path(__file__).parent
ANSWER_SECONDS = 600
"""An engine that takes longer for one answer is taken for stuck."""

EVERY = tuple(workloads(small=False))


@dataclass(frozen=True)
class Preset:
    """runs: (shape, bits), None for floats. names: of workloads, in the order of their importance."""

    runs: Sequence[tuple[str, int | None]]
    dtype: str
    names: Sequence[str]
    minutes: float
    small: bool = False


SHORT = ("call", "first-3", "first-512", "picture", "decode-1", "decode-8", "batch-8", "jpeg")
PRESETS = {
    "tiny": Preset([("tiny", None)], "float32", ("call", "first-3", "decode-1", "decode-8", "batch-8"), 5, True),
    "cpu": Preset([("cpu", None)], "float32",
        (*SHORT, "turn", "resume", "another", "questions", "start", "gap", "sizes-64", "first-4k", "ten", "decode-32",
         "unlike-64"),
        25, True),
    "gpu": Preset([("qwen3_vl-4b", None), ("qwen3_vl-4b", 4)], "bfloat16",
        (*SHORT, "first-16k", "turn", "questions", "ten", "gap", "decode-32", "sizes-64", "first-4k", "start",
         "unlike-64"),
        8),
    "mac": Preset([("qwen3_vl-2b", 4), ("qwen3_vl-4b", 4), ("qwen3_vl-8b", 4)], "bfloat16", EVERY, 60),
}  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Failed(Exception):
    """An engine that did not answer; its text is the reason, without folders, since results are published."""

    def __init__(self, reason: str) -> None:
        super().__init__(re.sub(r"(/[^\s/:'\"]+)+/", "", reason))


class Worker:
    """The process of one engine. It is started when it is first asked, and again after it died."""

    def __init__(self, engine: str, python: str, checkpoint: str, folder: Path, blas: str) -> None:
        self.engine, self.folder = engine, folder
        self.command = [python, str(HERE / "compare_engines.py"), engine, checkpoint, str(folder)]
        self.environment = os.environ | {"MLX_VLGEN_BLAS": blas, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self.log = folder / f"{engine}.log"
        self.process: subprocess.Popen[str] | None = None
        self.versions: dict[str, str] = {}
        self.loaded: dict[str, Any] = {}
        self.start_seconds = 0.0
        self.fresh = False
        """Loaded, and has run nothing."""

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def begin(self) -> None:
        """Start the process, and wait until its imports are done."""
        begun = time.perf_counter()
        try:
            with self.log.open("w", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    env=self.environment, start_new_session=True,  # Ctrl-C reaches this process only, which ends it
                )  # fmt: skip
        except OSError as error:
            raise Failed(f"its Python does not start: {error.strerror}") from None
        self.versions = self._read()["versions"]
        self.start_seconds = time.perf_counter() - begun

    def load(self) -> None:
        self.begin()
        self.loaded = self._read()
        self.fresh = True

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question. Failed for an error, or where the process dies."""
        if self.process is None:
            self.load()
        assert self.process and self.process.stdin
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._give_up("the process ended")
        answer = self._read()
        self.fresh = self.fresh and question["do"] != "run"
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _read(self) -> dict[str, Any]:
        assert self.process and self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_SECONDS)
        if not ready:
            self._give_up(f"no answer within {ANSWER_SECONDS} s")
        line = self.process.stdout.readline()
        if not line:
            self._give_up("the process ended")
        return json.loads(line)

    def _give_up(self, what: str) -> None:
        self.end()
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise Failed(f"{what}: {lines[-1].strip()[:200]}" if lines else what)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(BrokenPipeError):  # what was written and nobody read
                    pipe.close()  # type: ignore[union-attr]
            self.process = None


def expected_tokens(workload: Workload) -> int:
    if workload.kind in ("batch", "questions"):
        return workload.rows * workload.new
    if workload.kind == "turn":
        return 1
    return workload.new - 1 if workload.kind == "decode" else workload.new


def checked(answer: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """The answer. Failed where an engine drew more or fewer tokens than it was asked for."""
    if workload.kind != "gap" and answer["tokens"] != expected_tokens(workload):
        raise Failed(f"{answer['tokens']} tokens where {expected_tokens(workload)} were asked for")
    return answer


def figure(answer: dict[str, Any], workload: Workload) -> float:
    """Seconds, or tokens a second."""
    rate = workload.kind in compare_report.RATES
    return answer["tokens"] / answer["seconds"] if rate else answer["seconds"]


def measure_start(worker: Worker) -> float:
    """Seconds from the start of a process to the end of its imports."""
    fresh = Worker(worker.engine, worker.command[0], "-", worker.folder, worker.environment["MLX_VLGEN_BLAS"])
    with fresh:
        fresh.begin()
        return fresh.start_seconds


def alternate(workers: Sequence[Worker], workload: Workload, repeat: int, deadline: float) -> dict[str, dict[str, Any]]:
    """Each engine's figures and peaks, or the reason why it has none; the engines in turn."""
    cells: dict[str, dict[str, Any]] = {worker.engine: {"figures": []} for worker in workers}
    asked = workload.to_dict()

    def once(worker: Worker, memory: bool) -> None:
        cell = cells[worker.engine]
        if "reason" in cell:
            return
        try:
            if workload.kind == "start":
                cell["figures"].append(measure_start(worker))
                return
            if workload.kind == "call" and not worker.fresh:
                worker.end()  # the next question starts another
            answer = checked(worker.ask(do="run", workload=asked, memory=memory), workload)
            if workload.kind == "call":
                second = worker.ask(do="run", workload=asked, memory=False)
                cell["figures"].append(answer["seconds"] / second["seconds"])
                return
            if not memory:
                cell["figures"].append(figure(answer, workload))
            for name in ("peak", "resident", "prompt_tokens", "median"):
                if answer.get(name) is not None:
                    cell.setdefault(name, answer[name])
        except Failed as failure:
            cell["reason"] = str(failure)
            cell["figures"] = []

    rounds = 1 if workload.kind == "call" else repeat
    for turn in range(-1 if workload.kind not in ("start", "call") else 0, rounds):
        if turn > 0 and time.monotonic() > deadline:
            break
        for worker in workers:
            once(worker, memory=turn < 0)
    for worker in workers:
        with suppress(Failed):
            worker.ask(do="rest")  # a GPU is shared: what one keeps another may need
    return cells


def drawn_alike(workers: Sequence[Worker]) -> list[str]:
    """What to say where engines draw other tokens in a short greedy answer."""
    notes = []
    for check in CHECKS:
        drawn: dict[str, list[int]] = {}
        for worker in workers:
            try:
                answer = worker.ask(do="run", workload=check.to_dict(), memory=False)
                drawn[worker.engine] = answer["drawn"]
            except Failed as failure:
                notes.append(f"{worker.engine}, the check of a greedy answer ({check.name}): {failure}")
        for engine, tokens in drawn.items():
            pairs = zip(tokens, drawn.get("ours", tokens), strict=False)
            if other := next((i for i, (theirs, ours) in enumerate(pairs, 1) if theirs != ours), None):
                notes.append(f"{engine} draws another token than ours, greedy in float32 ({check.name}): its {other}.")
    return notes


def prepare(folder: Path, shape: str, bits: int | None, dtype: str, tokenizer: Path | None) -> tuple[Path, Path]:
    """The float checkpoint, and the one to run: the same, or its quantized copy."""
    from compare_checkpoint import make

    from mlx_vlgen.convert import convert

    say(f"making {shape}, {dtype}")
    original = make(folder / f"{shape}-{dtype}", shape, dtype, tokenizer)
    if bits is None:
        return original, original
    served = folder / f"{shape}-{dtype}-{bits}-bit"
    if not served.exists():
        say(f"converting it to {bits} bits")
        convert(original, served, quantize=True, q_bits=bits)
    return original, served


def as_rows(workload: Workload, ours: Worker) -> list[Row]:
    """What the prompts of a workload take, as our processor reads them."""

    def ask(sizes: Sequence[Any]) -> Row:
        answer = ours.ask(do="rows", workload=replace(workload, sizes=sizes).to_dict())
        return Row(answer["tokens"], answer["patches"])

    if workload.kind != "batch":
        return [ask(workload.sizes)]
    if not workload.sizes:
        return [ask([])] * workload.rows
    known = {size: ask([size]) for size in set(workload.sizes)}
    return [known[size] for size in workload.sizes]


@dataclass(frozen=True)
class Job:
    """What the command line asks for."""

    preset: str
    runs: Sequence[tuple[str, int | None]]
    dtype: str
    workloads: Sequence[Workload]
    repeat: int
    pythons: dict[str, str | None]
    tokenizer: Path | None
    minutes: float

    def measure(self, folder: Path) -> dict[str, Any]:
        """All results, as --json writes them."""
        import mlx_vlgen
        from mlx_vlgen._runtime import blas

        begun = time.monotonic()
        versions: dict[str, dict[str, str]] = {}
        runs: list[dict[str, Any]] = []
        gpu: str | None = None
        for shape, bits in self.runs:
            with ExitStack() as stack:
                original, served = prepare(folder, shape, bits, self.dtype, self.tokenizer)
                workers = []
                absent = {}
                for engine, python in self.pythons.items():
                    if python is None:
                        absent[engine] = "not given"
                    elif engine == "transformers" and bits:
                        absent[engine] = "it does not read weights quantized for MLX"
                    else:
                        worker = Worker(engine, python, str(served), folder, blas() or "off")
                        workers.append(stack.enter_context(worker))
                deadline = begun + 60 * self.minutes * (len(runs) + 1) / len(self.runs)
                once = [workload for workload in self.workloads if workload.kind != "start" or not runs]
                job = replace(self, workloads=once)
                runs.append(job.measure_run(shape, bits, original, served, workers, absent, deadline))
                versions |= {worker.engine: worker.versions for worker in workers if worker.versions}
                gpu = gpu or next((w.loaded["device_name"] for w in workers if w.loaded.get("device_name")), None)
        versions["ours"] = {"mlx-vlgen": mlx_vlgen.__version__} | versions.get("ours", {})
        return {
            "preset": self.preset, "date": datetime.date.today().isoformat(), "machine": machine() | {"gpu": gpu},
            "versions": versions, "repeat": self.repeat, "runs": runs,
        }  # fmt: skip

    def measure_run(
        self,
        shape: str,
        bits: int | None,
        original: Path,
        served: Path,
        workers: list[Worker],
        absent: dict[str, str],
        deadline: float,
    ) -> dict[str, Any]:
        """One checkpoint. absent: engines that are not asked, and why. deadline: of `time.monotonic`."""
        ours = workers[0]
        with ThreadPoolExecutor() as together:
            loads = [(worker, together.submit(worker.load)) for worker in workers]
        for worker, load in loads:
            try:
                load.result()
                say(f"{worker.engine}: loaded in {worker.loaded['load_seconds']:.1f} s")
            except Failed as failure:
                if worker is ours:
                    raise SystemExit(f"ours does not load: {failure}") from None
                absent[worker.engine] = str(failure)
                workers.remove(worker)
        computed = "float32" if ours.loaded["device"] == "cpu" else self.dtype  # what ours computes in
        rates = Rates(**ours.ask(do="rates", dtype=computed))
        costs = Costs.of(original, served, width=4 if computed == "float32" else 2)
        notes: list[str] = []
        rows = []
        for index, workload in enumerate(self.workloads):
            row: dict[str, Any] = {"name": workload.name, "title": workload.title, "kind": workload.kind}
            row |= {"floor": None, "cache": 0.0}
            now = time.monotonic()
            if now > deadline:
                row["engines"] = {worker.engine: {"figures": [], "reason": "no time was left"} for worker in workers}
            else:
                if workload.kind in ("first", "decode", "batch"):
                    with suppress(Failed):  # the engine will fail again, and say why
                        prompts = as_rows(workload, ours)
                        row["floor"] = floor(costs, rates, workload.to_dict(), prompts)
                        cached = [costs.cache(one.tokens + workload.new) for one in prompts]
                        row["cache"] = sum(cached[: workload.together])
                        if workload.apart:
                            row["apart"] = {"mlx-vlm": max(cached)}
                share = 2 * (deadline - now) / (len(self.workloads) - index)  # some take less
                row["engines"] = alternate(workers, workload, self.repeat, min(deadline, now + share))
            row["engines"] |= {engine: {"figures": [], "reason": reason} for engine, reason in absent.items()}
            lengths = {cell["prompt_tokens"] for cell in row["engines"].values() if "prompt_tokens" in cell}
            if len(lengths) > 1:
                notes.append(f"{workload.title}: prompts of {' and '.join(map(str, sorted(lengths)))} tokens")
            rows.append(row)
            say(brief(row))
        if self.dtype == "float32" and not bits:
            notes += drawn_alike(workers)
        return {
            "shape": shape, "bits": bits, "dtype": self.dtype, "notes": notes, "workloads": rows,
            "rates": {"bandwidth": rates.bandwidth, "flops": rates.flops},
        }  # fmt: skip


def brief(row: dict[str, Any]) -> str:
    """A line of progress."""
    cells = []
    for engine, cell in row["engines"].items():
        value = compare_report.median(cell)
        cells.append(f"{engine} {cell.get('reason', '')[:60] if value is None else compare_report.three(value)}")
    return f"{row['title']}: {', '.join(cells)}"


def machine() -> dict[str, Any]:
    """What ran it: no names of hosts or people."""
    cpu = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = named[0] if named else cpu
    elif sys.platform == "darwin":
        brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
        cpu = subprocess.run(brand, capture_output=True, text=True, check=False).stdout.strip() or cpu
    system = f"{platform.system()}, Python {platform.python_version()}"
    return {"cpu": cpu, "cores": os.cpu_count(), "memory": round(memory / 1e9), "system": system}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with mlx-vlm")
    parser.add_argument("--transformers", metavar="PYTHON", help="of an environment with transformers and torch")
    parser.add_argument("--shape", help="instead of the preset's: a name in compare_checkpoint.py, as gemma3-4b")
    parser.add_argument("--bits", type=int, help="quantize the text layers; with --shape")
    parser.add_argument("--workload", nargs="+", choices=EVERY, metavar="NAME", help=f"of {', '.join(EVERY)}")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--minutes", type=float, help="instead of the preset's limit")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="a real tokenizer, and its processor's files")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="where to make checkpoints, or find them")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, nargs="+", metavar="JSON", help="make the pages' tables and the chart")
    args = parser.parse_args()
    if args.bits and not args.shape:
        parser.error("--bits needs --shape")
    return args


def main() -> None:
    args = parse()
    if args.write:
        compare_report.write(args.write)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the engines are ended on the way out
    preset = PRESETS[args.preset]
    known = workloads(preset.small)
    job = Job(
        args.preset, [(args.shape, args.bits)] if args.shape else preset.runs, preset.dtype,
        [known[name] for name in args.workload or preset.names], args.repeat,
        {"ours": sys.executable, "mlx-vlm": args.peer, "transformers": args.transformers},
        args.tokenizer, args.minutes or preset.minutes,
    )  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as temporary:
            results = job.measure(args.checkpoint or Path(temporary))
    except KeyboardInterrupt:
        sys.exit(130)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(compare_report.report(results), end="")


if __name__ == "__main__":
    main()
