"""One file a family, or a few that share most: each has RECIPES, from a reference's name to its Recipe."""

import importlib
import pkgutil
from functools import cache

from ..recipe import Recipe


@cache
def recipes() -> dict[str, Recipe]:
    """All of them."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {name: recipe for module in modules for name, recipe in module.RECIPES.items()}
