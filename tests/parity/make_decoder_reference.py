"""Make reference/decoders.npz anew: transformers' logits of decoder_cases.py. It needs torch and transformers as
make_reference.py does, and no torchvision.

    cd tests && python -m parity.make_decoder_reference
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from .decoder_cases import CASES, FILE, VOCABULARY, DecoderCase, rules
from .layouts import read_json
from .weights import draw, projection


def make(name: str, case: DecoderCase) -> tuple[dict[str, Any], np.ndarray]:
    """config.json and shapes as transformers saves them, and (L, V) logits."""
    config = transformers.AutoConfig.for_model(**case.config)
    auto = transformers.AutoModelForCausalLM if case.features is None else transformers.AutoModelForImageTextToText
    with tempfile.TemporaryDirectory() as temporary:
        auto.from_config(config, dtype=torch.float32).save_pretrained(temporary)
        file = Path(temporary, "model.safetensors")
        shapes = {key: tensor.shape for key, tensor in load_file(file).items()}
        save_file(draw(shapes, 0, rules(name)), file, metadata={"format": "pt"})
        model = auto.from_pretrained(temporary, dtype=torch.float32, attn_implementation="eager").eval()
        inputs: dict[str, Any] = {"input_ids": torch.tensor([case.tokens])}
        if case.features is not None:
            inputs |= {"pixel_values": torch.tensor(case.drawn_pixels)}
            inputs |= {key: torch.tensor(value) for key, value in (case.more or {}).items()}
        with torch.no_grad():
            logits = model(**inputs).logits[0].numpy()
        return {"config": read_json(Path(temporary, "config.json")), "shapes": shapes}, logits


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results = {name: make(name, case) for name, case in CASES.items()}
    records = json.dumps({name: record for name, (record, _) in results.items()})  # a third of a megabyte, before zip
    arrays = {
        name: (logits.astype(np.float64) @ projection(VOCABULARY)).astype(np.float32)
        for name, (_, logits) in results.items()
    }
    np.savez_compressed(FILE, allow_pickle=False, **arrays, records=np.frombuffer(records.encode(), np.uint8))


if __name__ == "__main__":
    main()
