"""The built-in ear: a small model in the layout of Qwen2.5-Omni's thinker that knows some ninety spoken words, beeps
and tones, so that a machine without a network can still answer questions about a sound.

Read the files in this order: `words.py` is its vocabulary; `espeak.py` speaks; `clips.py` makes clips whose content is
known; `tasks.py` writes questions and true answers; `checkpoint.py` holds the tokenizer, the chat template and the
model's sizes; `lessons.py` turns clips and questions into arrays; `network.py` computes the losses; `train.py` says
what is trained; `evaluate.py` measures the result.
"""
