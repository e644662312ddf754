"""From a path or an id on the Hub to a model that is ready to run."""

from .loader import load

__all__ = ["load"]
