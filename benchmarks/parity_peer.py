"""The parity table of mlx-vlm 0.7.10, measured beside this package's.

    python3 -m venv VENV && VENV/bin/pip install "mlx[cpu]==0.32.4" mlx-vlm==0.7.10 transformers==5.23.0
    PYTHONPATH=. python benchmarks/parity_peer.py --peer VENV/bin/python [--layouts mlx hub v5] [FAMILY ...]

benchmarks/results/parity_peer.md is what it prints with --layouts mlx.

Each reference of tests/parity is written as a checkpoint and read by both packages in float32 on the CPU with MLX's
BLAS. A figure is the largest difference of any of the prompt's logits from transformers', in parts of max(1, standard
deviation), worst of the cases of its kind; both packages' have the same meaning. "batch" counts the rows whose greedy
tokens are transformers' when they are decoded together. Clips whose own sound is heard are left out.

mlx-vlm is called as its `generate` and its server call it, and gets every chance:
- its model is judged on the ids and pixels that transformers' processor makes, in transformers' layout, and again on
  what its processor makes where its ids are transformers'; the smaller figure of the two counts;
- of the layouts (conversions for MLX, the Hub's originals) the one that it reads better counts, kind by kind;
- where it expects a size that published checkpoints have and these do not, they are edited if that helps (`publish`).
For this package, on its processor's ids, the worst layout counts. Where mlx-vlm's processor or a layout falls
short, the notes below the table say so; where only the tiny configuration shows it, they say that too. Its rows are
decoded together as its server does it, each prompt embedded by itself.

The seconds that mlx-vlm may take for one checkpoint are bounded (--limit); a family that fails or takes longer does not
stop the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_VLGEN_BLAS", "off")  # MLX's BLAS, as in the other package
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from parity import expected, media, ours
from parity.expected import Expected
from parity.layouts import LAYOUTS, Layout, write_checkpoint
from parity.published import publish
from parity.table import differences
from parity.weights import projection

from mlx_vlgen.inputs.audio_tensors import AudioTensors
from mlx_vlgen.inputs.prompt import Media, Prompt

DRIVER = Path(__file__).with_name("parity_peer_driver.py")
KINDS = ("text", "picture", "several", "video", "picture and video", "sound", "sound and more")
Arrays = dict[str, np.ndarray]
Finding = dict[str, Any]
"""One line of what the driver says."""


def kind(case: Expected) -> str:
    if case.audios:
        return "sound and more" if case.images or case.videos else "sound"
    if case.videos:
        return "picture and video" if case.images else "video"
    return ("text", "picture", "several")[min(len(case.images), 2)]


# What transformers' processors hand to its models


def transformers_inputs(processor: str, prompt: Prompt, sounds: AudioTensors) -> Arrays | None:
    """The ids (1, L) of a prompt and its pixels as the processor of that name in reference/processors lays them out;
    None where that is not written here. sounds: how the family lays out its clips of sound."""
    arrays = {"input_ids": prompt.tokens[None].astype(np.int32)}
    pictures, videos, clips = ([m for m in prompt.media if m.kind == kind] for kind in ("image", "video", "audio"))
    if (pictures or videos) and processor in NOT_LAID_OUT:
        return None
    if processor in FRAMES_ARE_PICTURES and prompt.media:
        return arrays | LAID_OUT.get(processor, _in_a_row)(prompt.media)
    if pictures:
        gridded = len(pictures[0].grid) == 3
        arrays |= LAID_OUT.get(processor, _grids if gridded else _in_a_row)(pictures)
    if processor.startswith("gemma4"):
        kinds = np.zeros_like(arrays["input_ids"])
        for medium in prompt.media:
            for start, end in medium.spans:
                kinds[:, start:end] = {"image": 1, "video": 2, "audio": 3}[medium.kind]
        arrays["mm_token_type_ids"] = kinds
    if videos:
        arrays |= LAID_OUT_CLIPS.get(processor, _grids_of_clips)(videos)
    if clips:
        arrays |= sounds.pack(clips)
        if sounds.mask == "input_features_mask":
            arrays[sounds.mask] = arrays[sounds.mask].astype(bool)  # which others turn round by ~
    return arrays


def _in_a_row(media_items: Sequence[Media]) -> Arrays:
    return {"pixel_values": np.concatenate([medium.pixels for medium in media_items])}


def _grids(media_items: Sequence[Media]) -> Arrays:
    return _in_a_row(media_items) | {"image_grid_thw": np.array([medium.grid for medium in media_items], np.int32)}


def _grids_of_clips(media_items: Sequence[Media]) -> Arrays:
    laid = {
        "pixel_values_videos": np.concatenate([medium.pixels for medium in media_items]),
        "video_grid_thw": np.array([medium.grid for medium in media_items], np.int32),
    }
    return laid | {"second_per_grid_ts": np.array([medium.seconds for medium in media_items], np.float32)}


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """As one array, zeros after the ends of the smaller ones."""
    out = np.zeros((len(parts), *np.max([part.shape for part in parts], axis=0)), parts[0].dtype)
    for row, part in zip(out, parts, strict=True):
        row[tuple(map(slice, part.shape))] = part
    return out


def _tiles(media_items: Sequence[Media]) -> Arrays:
    sizes = np.array([medium.size for medium in media_items], np.int32)
    return {"pixel_values": _stacked([medium.pixels for medium in media_items]), "image_sizes": sizes}


def _frames(media_items: Sequence[Media]) -> Arrays:
    return {"pixel_values_videos": _stacked([medium.pixels for medium in media_items])}


def _whole(media_items: Sequence[Media]) -> Arrays:
    """Pictures of several sizes, (1, 3, height, width) each."""
    sizes = np.array([medium.pixels.shape[2:] for medium in media_items], np.int32)
    return {"pixel_values": _stacked([medium.pixels[0] for medium in media_items]), "image_sizes": sizes}


def _nested(media_items: Sequence[Media]) -> Arrays:
    pixels = _in_a_row(media_items)["pixel_values"][None]
    return {"pixel_values": pixels, "pixel_attention_mask": np.ones((*pixels.shape[:2], *pixels.shape[3:]), np.int32)}


def _patches(media_items: Sequence[Media]) -> Arrays:
    """LFM2-VL: tiles of (patches, patch), then the whole picture."""
    parts, shapes = [], []
    for medium in media_items:
        tiles, side, rows, columns = medium.grid
        laid = [(side, side)] * tiles + [(rows, columns)]
        parts += np.split(medium.pixels, np.cumsum([np.prod(shape) for shape in laid])[:-1])
        shapes += laid
    masks = _stacked([np.ones(len(part), np.int32) for part in parts])
    return {
        "pixel_values": _stacked(parts),
        "pixel_attention_mask": masks,
        "spatial_shapes": np.array(shapes, np.int32),
    }


def _positions(media_items: Sequence[Media]) -> tuple[np.ndarray, np.ndarray]:
    """Gemma 4: frames of (patches, patch), and where each patch lies as (column, row), -1 where it is padding."""
    places = []
    for medium in media_items:
        rows, columns = medium.grid
        row, column = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
        places += [np.stack([column, row], axis=-1) + 1] * len(medium.pixels)
    return _stacked([frame for medium in media_items for frame in medium.pixels]), _stacked(places) - 1


def _placed(media_items: Sequence[Media]) -> Arrays:
    pixels, places = _positions(media_items)
    return {"pixel_values": pixels, "image_position_ids": places}


def _placed_clips(media_items: Sequence[Media]) -> Arrays:
    """(clips, frames, patches, …)"""
    laid = [_positions([medium]) for medium in media_items]
    pixels, places = (_stacked([part[i] for part in laid]) for i in (0, 1))
    return {"pixel_values_videos": pixels, "video_position_ids": places}


def _cut(medium: Media, side: int) -> np.ndarray:
    """Frames (n, 3, height, width) -> patches (n, rows, columns, 3, side, side)."""
    frames, colors, height, width = medium.pixels.shape
    cut = medium.pixels.reshape(frames, colors, height // side, side, width // side, side)
    return np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3, 5))


def _hunyuan(media_items: Sequence[Media]) -> Arrays:
    cut = [_cut(medium, 16) for medium in media_items]
    grids = np.array([patches.shape[:3] for patches in cut], np.int32)
    return {"pixel_values": np.concatenate([p.reshape(-1, 3 * 16 * 16) for p in cut]), "image_grid_thw": grids}


def _kimi(media_items: Sequence[Media]) -> Arrays:
    """image_grid_hws: what mlx-vlm calls the grids."""
    cut = [_cut(medium, 14) for medium in media_items]
    grids = np.array([patches.shape[:3] for patches in cut], np.int32)
    pixels = np.concatenate([patches.reshape(-1, 3, 14, 14) for patches in cut])
    return {"pixel_values": pixels, "image_grid_thw": grids, "image_grid_hws": grids[:, 1:]}


def _kimi_clips(media_items: Sequence[Media]) -> Arrays:
    """Chunks of four frames."""
    cut = [_cut(medium, 14) for medium in media_items]
    chunks = [patches[start : start + 4] for patches in cut for start in range(0, len(patches), 4)]
    grids = np.array([chunk.shape[:3] for chunk in chunks], np.int32)
    pixels = np.concatenate([patches.reshape(-1, 3, 14, 14) for patches in cut])
    return {"pixel_values_videos": pixels, "video_grid_thw": grids, "video_grid_hws": grids}


LAID_OUT: dict[str, Callable[[Sequence[Media]], Arrays]] = {
    **dict.fromkeys(("llava_next", "llava_onevision", "granite4_vision"), _tiles),
    **dict.fromkeys(("pixtral", "mistral3", "lighton_ocr"), _whole),
    **dict.fromkeys(("idefics3", "smolvlm"), _nested),
    **dict.fromkeys(("lfm2_vl", "lfm3_vl"), _patches),
    **dict.fromkeys(("gemma4", "gemma4_audio", "gemma4_unified"), _placed),
    "hunyuan_vl": _hunyuan,
    "kimi_k25": _kimi,
}
"""Others: patches with a grid of three numbers as the Qwens have it, or pictures and tiles of one size in a row."""
LAID_OUT_CLIPS: dict[str, Callable[[Sequence[Media]], Arrays]] = {
    "llava_onevision": _frames,
    **dict.fromkeys(("gemma4", "gemma4_unified"), _placed_clips),
    "kimi_k25": _kimi_clips,
}
FRAMES_ARE_PICTURES = ("smolvlm", "internvl", "internvl_qwen3")
NOT_LAID_OUT = {
    "deepseek_ocr", "deepseek_ocr2", "idefics2", "idefics2_whole", "lfm3_vl", "llama4_maverick", "minicpmv4_6",
    "minicpmv4_7", "mllama", "molmo2", "molmo2_o", "ovis2", "unlimited_ocr",
}  # fmt: skip
"""Processors whose tensors are more than what one array of a picture's pixels holds: mlx-vlm is judged on what its own
makes of these pictures."""


# Both packages on one checkpoint


def cases_of(family: str) -> list[str]:
    """But for clips whose sound is in them."""
    return [name for name in expected.record(family)["cases"] if not expected.case(family, name).hears_videos]


def batches_of(family: str) -> dict[str, list[str]]:
    batches: dict[str, list[str]] = expected.record(family)["batches"]
    return {name: rows for name, rows in batches.items() if set(rows) <= set(cases_of(family))}


def measure_ours(family: str, folder: Path) -> dict[str, str]:
    """By kind: the cell of this package."""
    loaded = ours.load(folder)
    known = expected.record(family)
    by_kind: dict[str, list[float]] = {}
    for name, worst in zip(known["cases"], differences(loaded, family), strict=True):
        if name not in cases_of(family):
            continue
        by_kind.setdefault(kind(expected.case(family, name)), []).append(worst)
    cells = {name: figure(max(differences)) for name, differences in by_kind.items()}
    right = []
    for rows in batches_of(family).values():
        cases = [expected.case(family, name) for name in rows]
        answers = ours.iterate(loaded, cases, known["new_tokens"])
        right += [row == case.tokens.tolist() for row, case in zip(answers, cases, strict=True)]
    return cells | ({"batch": f"{sum(right)} of {len(right)}"} if right else {})


def write_work(family: str, folder: Path, work: Path) -> None:
    """What the driver needs of a reference. folder: a checkpoint of it."""
    known = expected.record(family)
    loaded = ours.load(folder)
    arrays: Arrays = {}
    cases: dict[str, Any] = {}
    for name in cases_of(family):
        case = expected.case(family, name)
        prompt = ours.prepare(loaded, case.text, case)
        prompt = ours.with_pixels(prompt, ours.reference_pixels(family, case, prompt))
        inputs = transformers_inputs(known["processor"] or "", prompt, loaded[1].audio_tensors)
        arrays |= {f"{name}.input.{key}": value for key, value in (inputs or {}).items()}
        arrays[f"{name}.ids"] = case.ids.astype(np.int32)
        arrays |= {f"{name}.{key}": getattr(case, key) for key in ("last", "projected", "tokens")}
        arrays |= {f"{name}.std": np.array(case.std), "projection": projection(len(case.last))}
        arrays |= {f"media.{picture}": media.picture(picture) for picture in case.images}
        arrays |= {f"media.{clip}": media.clip(clip) for clip in case.videos}
        arrays |= {f"media.{sound}": media.sound(sound).astype(np.float32) / 32768 for sound in case.audios}
        case_media = {"images": list(case.images), "videos": list(case.videos), "audios": list(case.audios)}
        cases[name] = {"text": case.text, "fps": media.CLIP_FPS, "laid_out": inputs is not None, **case_media}
    np.savez(work / "work.npz", allow_pickle=False, **arrays)
    job = {"cases": cases, "batches": batches_of(family), "steps": known["new_tokens"]}
    (work / "work.json").write_text(json.dumps(job), encoding="utf-8")


def run_peer(python: Path, work: Path, folder: Path, limit: float) -> list[Finding]:
    """The driver's findings; where it ended early, the last one says why."""
    findings_path = work / "findings.jsonl"
    findings_path.unlink(missing_ok=True)
    command = [str(python), str(DRIVER), str(work), str(folder), str(findings_path)]
    end = ""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
        if ran.returncode:
            end = f"ends with {ran.returncode}: {(ran.stderr.strip().splitlines() or ['nothing'])[-1]}"
    except subprocess.TimeoutExpired:
        end = f"takes longer than {limit:.0f} s"
    said = findings_path.read_text(encoding="utf-8") if findings_path.exists() else ""
    lines = said.replace(str(folder), "the checkpoint").splitlines()
    return [json.loads(line) for line in lines] + ([{"end": end}] if end else [])


# The table


def figure(worst: float) -> str:
    return f"{worst:.0e}".replace("e-0", "e-") if worst < 0.01 else f"{worst:.2g}"


PUBLISHED_OTHERWISE = {
    "gemma3n": "it wants keys and values of the layers that share others', which published checkpoints hold unused",
    "gemma4_audio": "it takes 128 mel bands, as published ones have",
    "hunyuan_vl": "its processor knows the image token by its number in published checkpoints",
    "gemma4": "it takes the pad id for 0, which it is in published checkpoints; here the features' embeddings are off",
    "paligemma": "it takes a head for hidden size / heads, as it is in published checkpoints",
    "smolvlm": "it takes a head for hidden size / heads, as it is in published checkpoints",
}
"""Why mlx-vlm fails here and need not on what is published."""


class Verdict:
    """The findings of one layout, summed up."""

    def __init__(self, family: str, findings: Sequence[Finding]) -> None:
        self.family = family
        self.failure = next((f["loads"] for f in findings if f.get("loads")), "")
        self.end = next((f["end"] for f in findings if "end" in f), "")
        self.cases: dict[str, dict[str, Finding]] = {}
        self.batches: dict[str, dict[str, Finding]] = {}
        for finding in findings:
            for place, key in ((self.cases, "case"), (self.batches, "batch")):
                if key in finding:
                    place.setdefault(finding[key], {})[finding["source"]] = finding

    def worst(self) -> dict[str, float | str]:
        """By kind: the largest difference over its cases, the smaller of both sources; or why there is none."""
        out: dict[str, float | str] = {}
        for name in cases_of(self.family):
            by_source = self.cases.get(name, {})
            figures = [f["difference"] for f in by_source.values() if "difference" in f]
            here: float | str = min(figures, default=self._why(by_source))
            group = kind(expected.case(self.family, name))
            before = out.get(group, 0.0)
            if isinstance(before, float):
                out[group] = here if isinstance(here, str) else max(here, before)
        return out

    def rows(self) -> tuple[int, int] | str:
        """How many rows of how many are right, or why none is counted."""
        right = total = 0
        why = ""
        for name, rows in batches_of(self.family).items():
            total += len(rows)
            by_source = self.batches.get(name, {})
            counts = [sum(f["right"]) for f in by_source.values() if "right" in f]
            right += max(counts, default=0)
            why = why or ("" if counts else self._why(by_source))
        return why if why and not right else (right, total)

    def _why(self, by_source: dict[str, Finding]) -> str:
        if self.failure:
            return "does not load"
        findings = [by_source.get(source, {}) for source in ("reference", "processor")]
        raised = next((finding["raises"] for finding in findings if "raises" in finding), "")
        ids = findings[1].get("ids")
        return f"raises: {raised}" if raised else f"its processor: {ids}" if ids else self.end or "no answer"

    def processor(self) -> dict[str, list[str]]:
        """From what mlx-vlm's processor does differently to the names of the cases."""
        out: dict[str, list[str]] = {}
        for name, by_source in self.cases.items():
            finding = by_source.get("processor", {})
            if fault := finding.get("ids") or finding.get("raises"):
                out.setdefault(shortened(fault), []).append(name)
        return out


def shortened(text: str, length: int = 100) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= length else text[: length - 1] + "…"


def best(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The cells of the other package: by kind the best of its layouts."""
    worst = [verdict.worst() for verdict in verdicts]
    cells = {}
    for group in worst[0]:
        figures = [value for one in worst if isinstance(value := one[group], float)]
        cells[group] = figure(min(figures)) if figures else reason([one[group] for one in worst])
    if batches_of(verdicts[0].family):
        counts = [verdict.rows() for verdict in verdicts]
        pairs = [count for count in counts if isinstance(count, tuple)]
        cells["batch"] = "{} of {}".format(*max(pairs)) if pairs else reason(counts)
    return cells


def reason(cells: Sequence[Any]) -> str:
    """Why there is no figure: where one layout does not load, what the other one does."""
    return shortened(min(cells, key="does not load".__eq__), 60)


def notes(layouts: Sequence[Layout], verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What mlx-vlm does not do beyond the table."""
    for layout, verdict in zip(layouts, verdicts, strict=True):
        if verdict.failure:
            yield f'layout "{layout}" does not load: {shortened(verdict.failure)}'
        if verdict.end:
            yield f'layout "{layout}" {shortened(verdict.end)}'
        bad = {k: v for k, v in verdict.worst().items() if isinstance(v, float) and v > 1e-3}
        others = [one.worst() for one in verdicts if one is not verdict]
        best_other = {k: min((v for o in others if isinstance(v := o[k], float)), default=bad[k]) for k in bad}
        if worse := [k for k, v in bad.items() if best_other[k] < v / 10]:
            yield f'layout "{layout}" is answered otherwise: ' + ", ".join(f"{k} {figure(bad[k])}" for k in worse)
    loaded = next((verdict for verdict in verdicts if verdict.cases), None)
    if faults := loaded.processor() if loaded else {}:
        yield "its processor: " + "; ".join(f"{', '.join(names)}: {fault}" for fault, names in faults.items())
    if reason := PUBLISHED_OTHERWISE.get(verdicts[0].family):
        yield f"only here: {reason}"


def compare(family: str, layouts: Sequence[Layout], python: Path, limit: float) -> tuple[str, list[str]]:
    """Two lines of the table, and the notes."""
    this_package: dict[str, str] = {}
    verdicts = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for layout in layouts:
            folder = write_checkpoint(family, layout, work / layout)
            measured = measure_ours(family, folder)
            this_package = {k: max(cell, this_package.get(k, cell), key=_how_bad) for k, cell in measured.items()}
            write_work(family, folder, work)
            if layout != "v5":
                publish(family, folder)
            verdicts.append(Verdict(family, run_peer(python, work, folder, limit)))
    mlx_vlm = best(verdicts)
    lines = ""
    for name, cells in ((family, this_package), ("", mlx_vlm)):
        package = "this" if name else "mlx-vlm"
        lines += f"| {name} | {package} | {' | '.join(cells.get(k, '') for k in (*KINDS, 'batch'))} |\n"
    return lines, list(notes(layouts, verdicts))


def _how_bad(cell: str) -> float:
    return float(cell) if " of " not in cell else -float(cell.split()[0])


def main() -> None:
    known = [name for name in expected.families() if name != "demo"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: every one of tests/parity/reference")
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of an environment with mlx-vlm")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["mlx", "hub"])
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for mlx-vlm and one checkpoint")
    args = parser.parse_args()
    if unknown := set(args.families) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    table, remarks = "", ""
    for family in args.families or known:
        try:
            lines, family_notes = compare(family, args.layouts, args.peer, args.limit)
        except Exception as error:
            lines = f"| {family} | not measured |{' |' * 8}\n"
            family_notes = [shortened(f"{type(error).__name__}: {error}")]
        table += lines
        remarks += "".join(f"- {family}: {note}\n" for note in family_notes)
        print(lines, end="", file=sys.stderr, flush=True)
    print(
        "# mlx-vlm 0.7.10 and this package beside transformers\n\n"
        f"What benchmarks/parity_peer.py prints for the layouts {', '.join(args.layouts)}; its docstring says what the "
        "figures are.\n"
    )
    print(f"| family | package | {' | '.join((*KINDS, 'batch'))} |\n|---|---|{'---|' * 8}\n{table}\n{remarks}", end="")


if __name__ == "__main__":
    main()
