"""The built-in checkpoint: a small vision-language model in Qwen3-VL layout, so that a machine without a network can
still answer questions about a picture.

Read the files in this order to see how such a model is trained: `drawing.py`, `photographs.py` and `scenes.py` make
pictures whose content is known; `wording.py` and `tasks.py` write questions and true answers about them;
`checkpoint.py` holds the tokenizer, the chat template and the model's sizes; `lessons.py` turns questions and pictures
into arrays; `network.py` computes the losses; `train.py` says what is trained, which `optimizer.py` and `training.py`
do; `evaluate.py` measures the result. `sound/` is the same of a model that hears.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
AUDIO_MODEL = Path(__file__).parent / "sound" / "model"
NAMES = ("demo", "demo-audio")  # as `load` takes them

NOTICE = (
    "Using the built-in demo model: it knows simple shapes (circle, square, triangle), their colours and places, "
    "counting to six, short print, comparing two pictures and what moves in a short video. It cannot describe "
    "photographs. Choose another model with --model or $MLX_VLGEN_MODEL."
)
