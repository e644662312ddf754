"""Logits of transformers for all cases of a family, on other weights than the reference's.

    cd tests && ORACLE -m peer.reference_logits FAMILY WEIGHTS=FOLDER ... FILE

ORACLE: a Python with the packages that make_reference.py needs. FOLDER: a checkpoint as transformers 5 saves it. FILE
gets `CASE.ids` (L,) and `CASE.WEIGHTS.logits` (L, V).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from parity.make_reference import load_model, load_processor, model_inputs, transformers
from parity.recipes import recipes


def main(family: str, folders: dict[str, str], target: str) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    recipe = recipes()[family]
    processor = load_processor(recipe)
    inputs = {name: model_inputs(recipe, processor, [case]) for name, case in recipe.cases.items()}
    arrays = {f"{name}.ids": tensors["input_ids"][0].numpy() for name, tensors in inputs.items()}
    for weights, folder in folders.items():
        model = load_model(Path(folder))
        with torch.no_grad():
            for name, tensors in inputs.items():
                arrays[f"{name}.{weights}.logits"] = model(**tensors).logits[0].numpy()
    np.savez(target, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:-1]), sys.argv[-1])
