"""The structure of the package: imports run downwards only and are declared, and CI runs the README's command."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlx_vlgen"

# What a room may import of the others. Rooms that are not named here may import any.
ALLOWED = {
    "inputs": {"inputs", "errors", "notices"},
    "models": {"models", "inputs.prompt", "errors", "_mlx_lm", "_runtime"},
    "engine": {
        "engine",
        "__version__",
        "models.base",
        "models.building",
        "inputs.prompt",
        "inputs.expansions",
        "results",
        "errors",
        "notices",
        "_mlx_lm",
        "_runtime",
    },
    "hf": {
        "hf",
        "engine",
        "models",
        "inputs",
        "loading",
        "options",
        "prompt_utils",
        "results",
        "errors",
        "notices",
        "_runtime",
    },
    "errors": set(),
    "notices": set(),
    "results": set(),
    "_runtime": set(),
    "_mlx_lm": {"_runtime"},
}


def imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports when it is imported, as "engine.cache"."""
    package = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield from [whole] if node.module else [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_vlgen"):
            yield (node.module or "").removeprefix("mlx_vlgen").removeprefix(".")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "demo" not in path.parts]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room not in ALLOWED:
        return
    wrong = [name for name in imports(path) if not any(name == ok or name.startswith(ok + ".") for ok in ALLOWED[room])]
    assert not wrong


@pytest.mark.parametrize("name", ["mlx", "mlx_lm"])
def test_mlx_comes_in_by_its_own_door(name: str) -> None:
    door = {"mlx": "_runtime.py", "mlx_lm": "_mlx_lm.py"}[name]
    for path in FILES:
        assert name not in packages(path) or path.name == door, f"{path.name} imports {name}"


def packages(path: Path) -> set[str]:
    """The top-level packages that a file imports by name, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    declared = {re.split(r"[^\w-]", entry)[0].replace("-", "_") for entry in entries} | {"PIL"}  # pillow's name
    for path in PACKAGE.rglob("*.py"):
        assert packages(path) <= {*sys.stdlib_module_names, *declared}, path.name


def test_ci_runs_the_readmes_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if line.endswith("-m pytest"))
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_no_file_has_grown_past_two_rooms() -> None:
    long = {path.name: n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long
