"""model.generate, the Hugging Face face, against transformers."""
