"""The built-in checkpoint: a small vision-language model in Qwen3-VL layout, so that a machine without a network can
still read a picture. `tasks.py` says what it was taught; `train.py` makes it."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"

NOTICE = (
    "Using the built-in demo model: it knows simple shapes (circle, square, triangle), their colours and places, "
    "counting to six, short print, comparing two pictures and what moves in a short video. It cannot describe "
    "photographs. Choose another model with --model or $MLX_VLGEN_MODEL."
)
