"""The names that users of mlx-vlm import from its `utils`."""

from pathlib import Path

from .inputs.media import load_image
from .loading.checkpoint import read_config, refuse_remote_code
from .loading.hub import locate
from .models.config_dict import Config

__all__ = ["load_config", "load_image"]


def load_config(
    path_or_hf_repo: str | Path, *, revision: str | None = None, trust_remote_code: bool | None = None
) -> Config:
    """A checkpoint's configuration, as `model.config` has it.

    path_or_hf_repo: as for `load`; an id on the Hub that is not in the cache downloads the whole checkpoint.
    revision: branch, tag or commit on the Hub. Default None, the main branch.
    trust_remote_code: refused; a checkpoint's code is never run. Default None.

    LoadError as from `load`; UnsupportedError for trust_remote_code.
    """
    refuse_remote_code(trust_remote_code)
    return Config(read_config(locate(path_or_hf_repo, revision)))
