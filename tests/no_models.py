"""Imported first in a process that loads no model: it then does without mlx-lm and transformers, whose import takes
most of a second."""

import sys
import types


class _NoModels(types.ModuleType):
    """In the place of mlx-lm: its names are empty classes."""

    def __getattr__(self, name: str) -> type:
        return type(name, (), {})


sys.modules["mlx_vlgen._mlx_lm"] = _NoModels("mlx_vlgen._mlx_lm")
