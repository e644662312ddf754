"""The Hugging Face face: `model.generate` and what code written for transformers needs around it."""
