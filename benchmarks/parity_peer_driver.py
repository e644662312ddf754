"""The half of parity_peer.py that runs in the other package's interpreter; it imports nothing of this one.

    python parity_peer_driver.py WORK CHECKPOINT FINDINGS

WORK holds work.json and work.npz, which parity_peer.py writes. One line of JSON for each finding goes to FINDINGS as
soon as it is known, so that a crash or the end of the time loses none of those before.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import mlx.core as mx
import numpy as np
from mlx_vlm import load
from mlx_vlm.generate.ar import BatchGenerator
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.utils import prepare_inputs, should_add_special_tokens
from PIL import Image

Inputs = dict[str, Any]
"""Keywords of the model: input_ids (1, L), attention_mask (1, L), pixel_values and more."""


class OtherIds(Exception):
    """The other package's processor makes other ids than transformers'."""


class NotLaidOut(Exception):
    """What transformers' processor makes of the case is not given."""


class Peer:
    """A checkpoint as the other package loads it, and the cases it answers."""

    def __init__(self, work: Path, cases: dict[str, Any], checkpoint: str) -> None:
        self.cases = cases
        with np.load(work / "work.npz") as file:
            self.arrays = dict(file)
        self.model, self.processor = load(checkpoint)

    def reference_inputs(self, name: str) -> Inputs:
        """What transformers' processor hands to transformers' model."""
        if not self.cases[name]["laid_out"]:
            raise NotLaidOut
        prefix = f"{name}.input."
        arrays = {
            key.removeprefix(prefix): mx.array(value) for key, value in self.arrays.items() if key.startswith(prefix)
        }
        return arrays | {"attention_mask": mx.ones_like(arrays["input_ids"])}

    def processor_inputs(self, name: str) -> Inputs:
        """What its processor makes of the formatted prompt, its pictures, clips and sounds, as `generate` calls it."""
        case = self.cases[name]
        videos = [self.arrays[f"media.{clip}"].transpose(0, 3, 1, 2) for clip in case["videos"]]  # as it decodes files
        inputs = prepare_inputs(
            self.processor,
            images=[Image.fromarray(self.arrays[f"media.{picture}"]) for picture in case["images"]] or None,
            videos=videos or None,
            audio=[self.arrays[f"media.{sound}"] for sound in case["audios"]] or None,
            prompts=case["text"],
            image_token_index=getattr(self.model.config, "image_token_index", None),
            add_special_tokens=should_add_special_tokens(self.model.config.model_type, self.processor),
            **({"fps": case["fps"]} if videos else {}),
        )
        ids = np.array(inputs["input_ids"])[0].tolist()
        expected = self.arrays[f"{name}.ids"].tolist()
        if ids != expected:
            raise OtherIds(f"{len(ids)} ids for {len(expected)}" if len(ids) != len(expected) else "other ids")
        return inputs

    def embed(self, inputs: Inputs) -> Inputs:
        """The embeddings and more that its language model takes."""
        others = beside(inputs)
        embedded = self.model.get_input_embeddings(
            inputs["input_ids"], inputs.get("pixel_values"), mask=inputs["attention_mask"], **others
        )
        return {k: v for k, v in embedded.to_dict().items() if v is not None}

    def difference(self, name: str, make_inputs: Callable[[str], Inputs]) -> dict[str, Any]:
        """Of the whole prompt's logits from transformers', the largest, in parts of max(1, standard deviation)."""
        inputs = make_inputs(name)
        others = beside(inputs) | self.embed(inputs)
        caches = make_prompt_cache(self.model.language_model)
        logits = self.model.language_model(inputs["input_ids"], cache=caches, **others).logits
        logits = np.array(logits.astype(mx.float32))[0].astype(np.float64)
        last, projected = self.arrays[f"{name}.last"], self.arrays[f"{name}.projected"]
        if len(logits) != len(projected):
            raise ValueError(f"{len(logits)} positions for {len(projected)}")
        worst = max(np.abs(logits[-1] - last).max(), np.abs(logits @ self.arrays["projection"] - projected).max())
        return {"difference": float(worst) / max(1.0, float(self.arrays[f"{name}.std"]))}

    def rows_right(self, names: list[str], make_inputs: Callable[[str], Inputs], steps: int) -> dict[str, Any]:
        """Whether each row's greedy tokens are transformers' where the rows are decoded together, each one's pictures
        read by themselves, as its server does it. A row that cannot be read is wrong and does not stop the others."""
        read: dict[str, tuple[list[int], Inputs]] = {}
        for name in names:
            try:
                inputs = make_inputs(name)
                read[name] = inputs["input_ids"][0].tolist(), self.embed(inputs)
            except Exception:
                if name == names[-1] and not read:
                    raise
        generator = BatchGenerator(self.model.language_model, self.processor)
        ids, embedded = zip(*read.values(), strict=True)
        rows = dict(zip(read, generator.insert(list(ids), steps, prompt_kwargs=list(embedded)), strict=True))
        tokens: dict[int, list[int]] = {row: [] for row in rows.values()}
        try:
            while generator.has_work:
                for response in generator.next()[1]:
                    tokens[response.uid].append(int(response.token))
        finally:
            generator.close()
        expected = {name: self.arrays[f"{name}.tokens"].tolist() for name in names}
        return {"right": [name in rows and tokens[rows[name]][: len(e)] == e for name, e in expected.items()]}

    def findings(self, batches: dict[str, list[str]], steps: int) -> Iterator[dict[str, Any]]:
        for source, make_inputs in (("reference", self.reference_inputs), ("processor", self.processor_inputs)):
            for name in self.cases:
                yield {"case": name, "source": source} | attempt(partial(self.difference, name, make_inputs))
            for name, rows in batches.items():
                yield {"batch": name, "source": source} | attempt(partial(self.rows_right, rows, make_inputs, steps))


def beside(inputs: Inputs) -> Inputs:
    """The keywords beside ids, mask and pixels."""
    return {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask", "pixel_values")}


def attempt(judge: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The judge's result, or the first line of what it raises."""
    try:
        return judge()
    except OtherIds as error:
        return {"ids": str(error)}
    except NotLaidOut:
        return {}
    except Exception as error:
        return {"raises": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def main(work: Path, checkpoint: str, findings_path: Path) -> None:
    mx.set_default_device(mx.cpu)
    job = json.loads((work / "work.json").read_text(encoding="utf-8"))
    with findings_path.open("w", encoding="utf-8") as file:

        def say(finding: dict[str, Any]) -> None:
            print(json.dumps(finding), file=file, flush=True)

        try:
            peer = Peer(work, job["cases"], checkpoint)
        except Exception as error:
            say({"loads": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})
            return
        say({"loads": ""})
        for finding in peer.findings(job["batches"], job["steps"]):
            say(finding)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
