"""Write what transformers' image processors make of pictures, by the settings in processors.json, into that file.

    cd tests && python -m published.make_processors

in the environment of parity/make_reference.py. Of each picture the grid, where the family has one; else how many tiles
there are, and their sides.
"""

import json
from typing import Any

import numpy as np
from parity.make_reference import transformers

from .make_published import FOLDER, write_rows

PICTURES = ((480, 640), (1100, 1700), (60, 900))
CLASSES = {
    "qwen2_vl": "Qwen2VLImageProcessorPil", "qwen2_5_vl": "Qwen2VLImageProcessorPil",
    "qwen2_5_omni": "Qwen2VLImageProcessorPil", "qwen3_omni_moe": "Qwen2VLImageProcessorPil",
    "qwen3_vl": "Qwen2VLImageProcessorPil", "qwen3_5": "Qwen2VLImageProcessorPil",
    "glm4v": "Glm4vImageProcessorPil", "glm_ocr": "Glm46VImageProcessorPil", "gemma3": "Gemma3ImageProcessorPil",
    "paligemma": "SiglipImageProcessorPil", "mllama": "MllamaImageProcessorPil", "smolvlm": "SmolVLMImageProcessorPil",
    "idefics3": "Idefics3ImageProcessorPil", "internvl_chat": "GotOcr2ImageProcessorPil",
    "hunyuan_vl": "HunYuanVLImageProcessorPil", "minicpmv4_6": "MiniCPMV4_6ImageProcessorPil",
}  # fmt: skip


def measure(processor: Any, height: int, width: int) -> list[int]:
    made = processor(images=[np.zeros((height, width, 3), np.uint8)], return_tensors="np")
    if "image_grid_thw" in made:
        return [int(side) for side in made["image_grid_thw"][0]]
    pixels = np.asarray(made["pixel_values"])
    tiles = int(np.asarray(made["num_tiles"]).sum()) if "num_tiles" in made else int(np.prod(pixels.shape[:-3]))
    return [tiles, *map(int, pixels.shape[-2:])]


def main() -> None:
    path = FOLDER / "processors.json"
    configs = json.loads((FOLDER / "configs.json").read_text("utf-8"))
    rows = json.loads(path.read_text("utf-8"))
    for name, row in rows.items():
        kind = configs[name]["model_type"]
        settings = dict(row["settings"])
        if kind == "internvl_chat":  # config.json says how pictures are cut
            settings |= {
                "crop_to_patches": True,
                "min_patches": 1,
                "max_patches": 12,
                "size": {"height": 448, "width": 448},
            }
        processor = getattr(transformers, CLASSES[kind])(**settings)
        row["pictures"] = [[*picture, measure(processor, *picture)] for picture in PICTURES]
        print(name, row["pictures"])
    write_rows(path, rows)


if __name__ == "__main__":
    main()
