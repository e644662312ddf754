"""Importing: every form of it, under -W error, and its cost."""

import subprocess
import sys

import pytest

import mlx_vlgen

HEAVY = ("transformers", "mlx", "mlx_lm", "numpy", "PIL", "huggingface_hub")

IMPORTS = {
    "names": "from mlx_vlgen import load, generate, stream_generate, batch_generate, apply_chat_template, "
    "GenerationResult, BatchResponse, BatchStats, TokenIterator, Request, SamplingParams, load_image, MediaInputs; "
    "assert callable(generate)",
    "star": "from mlx_vlgen import *; assert callable(generate) and callable(load_image) and __version__",
    "the module, then the function": "import mlx_vlgen.generate; assert mlx_vlgen.generate.__name__ == 'generate'; "
    "mlx_vlgen.generate.__call__; assert mlx_vlgen.batch_generate",
    "the function, then the module": "from mlx_vlgen import generate; import mlx_vlgen.generate; "
    "assert mlx_vlgen.generate is generate",
    "import_module": "import importlib, mlx_vlgen; module = importlib.import_module('mlx_vlgen.generate'); "
    "assert module.generate is mlx_vlgen.generate is not module",
    "of the module": "from mlx_vlgen.generate import generate, stream_generate, batch_generate; import mlx_vlgen; "
    "assert mlx_vlgen.generate is generate",
    "prompt_utils": "from mlx_vlgen.prompt_utils import apply_chat_template as one; "
    "from mlx_vlgen import apply_chat_template as other; assert one is other",
    "utils": "from mlx_vlgen.utils import load_config, load_image as one; from mlx_vlgen import load_image as other; "
    "assert one is other and load_config('demo').text_config.hidden_size == 192",
    "transformers' lists": "import sys; from mlx_vlgen import LogitsProcessorList, StoppingCriteriaList; "
    "assert LogitsProcessorList([3]) == [3] and not StoppingCriteriaList() and 'torch' not in sys.modules",
    "attribute": "import mlx_vlgen; assert mlx_vlgen.load and mlx_vlgen.TokenIterator",
}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


def test_every_form_of_import_works_without_a_warning() -> None:
    """One after the other in a fresh interpreter, which forgets this package before each."""
    forget = "import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.partition('.')[0] == 'mlx_vlgen']"
    ran = python(f"forms = {IMPORTS!r}\nfor name, form in forms.items():\n    {forget}; print(name); exec(form, {{}})")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout


def test_the_package_alone_imports_nothing_heavy() -> None:
    ran = python(
        "import sys, mlx_vlgen; mlx_vlgen.__version__, dir(mlx_vlgen); from mlx_vlgen.cli import generate_parser; "
        f"generate_parser('x'); print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_help_needs_no_extra_and_no_backend() -> None:
    """What `pip install` without extras gives on Linux: no backend of MLX, and none of the optional packages."""
    absent = ("mlx", "av", "pillow_heif", "llguidance", "prompt_toolkit", "pyarrow", "pypdfium2")
    ran = python(
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import mlx_vlgen\nfrom mlx_vlgen import cli\n"
        "for main in (cli.main_generate, cli.main_chat, cli.main_batch, cli.main_convert):\n"
        "    try: main(['--help'])\n"
        "    except SystemExit as end: assert not end.code"
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_dir_and_all_list_the_public_names() -> None:
    assert set(mlx_vlgen.__all__) == {*mlx_vlgen._MODULES, "__version__"}
    assert set(mlx_vlgen.__all__) <= set(dir(mlx_vlgen))
    assert all(getattr(mlx_vlgen, name) is not None for name in mlx_vlgen.__all__)
    assert mlx_vlgen.generate.__module__ == mlx_vlgen.stream_generate.__module__ == "mlx_vlgen.generate"


def test_an_unknown_attribute_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match=r"module 'mlx_vlgen' has no attribute 'genrate'"):
        mlx_vlgen.genrate  # noqa: B018
    with pytest.raises(ImportError, match="genrate"):
        from mlx_vlgen import genrate  # noqa: F401


def test_the_import_takes_at_most_a_third_of_mlx_lms() -> None:
    def seconds(module: str) -> float:
        """Of the processor, which other processes do not change."""
        return float(python(f"import time, {module}; print(time.process_time())").stdout)

    ours, theirs = seconds("mlx_vlgen"), seconds("mlx_lm")
    assert ours <= theirs / 3
