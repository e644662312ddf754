"""Parity with transformers on tiny checkpoints whose weights are drawn by rule, in every published layout."""
