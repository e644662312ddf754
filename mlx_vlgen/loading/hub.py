"""Where a checkpoint is: the built-in one, a folder, the Hugging Face cache, or the Hub.

The cache is asked without any network; the Hub only when the cache has no whole copy. `HF_HOME`, `HF_HUB_OFFLINE`,
`HF_TOKEN` and `HF_ENDPOINT` mean what they mean to huggingface_hub, which does the work.
"""

import difflib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from ..demo import AUDIO_MODEL, NAMES
from ..demo import MODEL as DEMO
from ..errors import LoadError, UnreachableError, UnsupportedError
from ..inputs.processor_files import check_tokenizer
from ..notices import format_size, notice
from .checkpoint import NEEDED, broken_links, first_names, read_config, weight_files


@dataclass(frozen=True)
class _Kind:
    """What a repository must hold.

    config_file: its configuration, which is downloaded first.
    check_config: of a folder with that file; raises LoadError for one that is refused, before the rest is downloaded.
    check_complete: of a folder; raises LoadError for one that lacks something.
    """

    config_file: str
    check_config: Callable[[Path], Any]
    check_complete: Callable[[Path], Any]


def _check_checkpoint(folder: Path) -> None:
    read_config(folder)
    weight_files(folder)
    check_tokenizer(folder)


def _check_adapter(folder: Path) -> None:
    if broken := broken_links(folder):
        raise LoadError(f"{folder / broken[0]} is a link to a file that is not there.")
    if not any(folder.glob("adapter*.safetensors")):
        raise LoadError(f"{folder} holds no adapter weights (adapters.safetensors or adapter_model.safetensors).")


_CHECKPOINT = _Kind("config.json", read_config, _check_checkpoint)
_ADAPTER = _Kind("adapter_config.json", lambda folder: None, _check_adapter)

# No other formats in sub-folders, no second copy of the weights.
_NEEDED: dict[str, Any] = {
    "allow_patterns": list(NEEDED),
    "ignore_patterns": ["*/*", "consolidated*"],
}


def locate(path_or_hf_repo: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of a checkpoint, downloaded first if need be, unless `local_files_only` forbids it.

    In this order: the name of a built-in model; a folder; a whole copy in the Hugging Face cache; the Hub. LoadError,
    with what to do, when it is in none of them.
    """
    if path_or_hf_repo in NAMES:
        if not Path(path_or_hf_repo, "config.json").is_file():
            return _locate(DEMO if path_or_hf_repo == "demo" else AUDIO_MODEL, revision, _CHECKPOINT)
        notice(f'loading the folder ./{path_or_hf_repo}, not the built-in model "{path_or_hf_repo}".')
    return _locate(path_or_hf_repo, revision, _CHECKPOINT, local_files_only)


def locate_config(repo: str) -> Path:
    """config.json of a checkpoint in the cache or on the Hub, without the rest. LoadError when it cannot be had."""
    if isinstance(cached := try_to_load_from_cache(repo, "config.json"), str):
        return Path(cached)
    try:
        HfApi().model_info(repo)  # it says what is wrong, at once
        return Path(hf_hub_download(repo, "config.json"))
    except Exception as error:  # as in `_download`
        raise _explain(error, repo, None, "") from None


def locate_adapter(path_or_hf_repo: str | Path) -> Path:
    """The folder of an adapter, downloaded first if need be."""
    return _locate(path_or_hf_repo, None, _ADAPTER)


def _locate(path_or_hf_repo: str | Path, revision: str | None, kind: _Kind, local: bool = False) -> Path:
    if not isinstance(path_or_hf_repo, str | os.PathLike):
        raise TypeError(
            f"{path_or_hf_repo!r:.80} is no checkpoint: expected a folder's path or an id on the Hugging Face Hub"
        )
    if not isinstance(revision, str | None):
        raise TypeError(f"revision={revision!r:.80}: expected the name of a branch, tag or commit")
    try:
        path = Path(path_or_hf_repo).expanduser()
        is_folder, is_file = path_or_hf_repo != "" and path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # names that are too long, home folders of nobody
        raise LoadError(f"{str(path_or_hf_repo)!r:.80} cannot be opened: {error!s:.80}") from None
    if is_folder:
        if revision is not None:
            raise UnsupportedError(f"revision={revision!r} is for ids on the Hugging Face Hub, and {path} is a folder.")
        return path
    if is_file:
        advice = (
            "GGUF files are not read: choose the safetensors checkpoint of this model."
            if path.suffix == ".gguf"
            else f"Give the folder it lies in: {path.parent}"
        )
        raise LoadError(f"{path} is a file; expected a folder or an id on the Hugging Face Hub. {advice}")
    name = str(path_or_hf_repo)
    if _looks_like_a_path(path_or_hf_repo):
        nearest = _nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise LoadError(f"{name} does not exist.{nearest and f' Did you mean {path.parent / nearest}?'}")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise LoadError(
            f"{name!r} is neither a folder nor an id on the Hugging Face Hub; ids look like owner/name."
        ) from None
    folder, incomplete = _cached(name, revision, kind)
    if folder is not None:
        return folder
    if local:
        raise UnreachableError(
            f"{name} has no whole copy in the cache ({constants.HF_HUB_CACHE}), and local_files_only forbids a "
            f"download. Leave it out, or give a folder.{incomplete}{_cached_like(name)}"
        )
    return _download(name, revision, kind, incomplete)


def _looks_like_a_path(path_or_hf_repo: str | Path) -> bool:
    text = str(path_or_hf_repo)
    return isinstance(path_or_hf_repo, Path) or text.startswith((".", "~", "/")) or "\\" in text or text.count("/") > 1


def _nearest(name: str, names: list[str]) -> str:
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")


def _cached(repo: str, revision: str | None, kind: _Kind) -> tuple[Path | None, str]:
    """A whole copy in the cache, found without a network; or None, and a sentence on what an incomplete copy lacks.

    LoadError for a copy that is refused, since the Hub's would be refused too.
    """
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, **_NEEDED))
    except LocalEntryNotFoundError:
        return None, ""
    if not (folder / kind.config_file).is_file():
        return None, f" A part of it is there: {folder} holds no {kind.config_file}."
    kind.check_config(folder)
    try:
        kind.check_complete(folder)
    except LoadError as error:
        return None, f" A part of it is there: {error}"
    return folder, ""


def _download(repo: str, revision: str | None, kind: _Kind, incomplete: str) -> Path:
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        needed = list(filter_repo_objects(files, **_NEEDED))
        _check_listing(repo, list(files), needed, kind)
        config_file = hf_hub_download(repo, kind.config_file, revision=revision)
        kind.check_config(Path(config_file).parent)
        cached = {name for name in needed if isinstance(try_to_load_from_cache(repo, name, revision=info.sha), str)}
        downloads = [name for name in needed if name not in cached]
        count, size = f"{len(downloads)} file{'s' * (len(downloads) != 1)}", sum(files[name] for name in downloads)
        notice(f"downloading {repo} ({count}, {format_size(size)}) to {constants.HF_HUB_CACHE}")
        folder = Path(snapshot_download(repo, revision=revision, **_NEEDED))
    except LoadError:
        raise
    except Exception as error:  # huggingface_hub raises errors of its HTTP library, which differs by version
        raise _explain(error, repo, revision, incomplete) from None
    kind.check_complete(folder)
    return folder


def _check_listing(repo: str, files: list[str], needed: list[str], kind: _Kind) -> None:
    """LoadError for a repository that cannot be loaded, before anything is downloaded."""
    if kind.config_file in needed and any(name.endswith(".safetensors") for name in needed):
        return
    formats = {".gguf": "GGUF files", ".bin": "pickled weights", ".pt": "pickled weights", ".pth": "pickled weights"}
    others = sorted({formats[ending] for ending in formats if any(name.endswith(ending) for name in files)})
    raise LoadError(
        f"{repo} on the Hub has no {kind.config_file} with safetensors weights"
        f"{f'; it holds {first_names(others)}, which are not read' if others else ''}. "
        "Choose a repository of this model with safetensors, for instance one converted for MLX."
    )


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def _explain(error: Exception, repo: str, revision: str | None, incomplete: str) -> LoadError:
    """What went wrong at the Hub and what to do. incomplete: the sentence from `_cached`."""
    hub = constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError(
            f"{repo} has no whole copy in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids a download. "
            f"Unset it, or give a folder.{incomplete}{_cached_like(repo)}"
        )
    if isinstance(error, GatedRepoError):
        then = "Your account has no access yet" if get_token() else "Then log in with `hf auth login`, or set HF_TOKEN"
        return LoadError(f"{repo} is gated: its owner asks you to accept a licence at {hub}/{repo} first. {then}.")
    if isinstance(error, RepositoryNotFoundError):
        return LoadError(
            f"There is no model {repo} at {hub}, or it is private. Check the spelling (owner/name); for a private one "
            f"log in with `hf auth login`.{_cached_like(repo)}"
        )
    if isinstance(error, RevisionNotFoundError):
        return LoadError(
            f"{repo} has no revision {revision!r}. Its branches and tags are listed at {hub}/{repo}/tree/main."
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        return LoadError(f"The Hub refused your token for {repo} (HTTP {status}). Log in again with `hf auth login`.")
    if isinstance(error, HfHubHTTPError):
        return UnreachableError(f"The Hub at {hub} answered HTTP {status} for {repo}. Try again later.")
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return LoadError(
            f"{repo} cannot be written to {constants.HF_HUB_CACHE}: {error.strerror}. HF_HOME chooses another place."
        )
    return UnreachableError(
        f"{repo} has no whole copy in the cache ({constants.HF_HUB_CACHE}), and {hub} cannot be reached "
        f"({type(error).__name__}: {error}). Check the connection, or give a folder.{incomplete}{_cached_like(repo)}"
    )


def _cached_like(repo: str) -> str:
    """A sentence that names the cached model with the nearest id; empty when no id is near."""
    cache = Path(constants.HF_HUB_CACHE)
    folders = os.listdir(cache) if cache.is_dir() else []
    names = [name.removeprefix("models--").replace("--", "/") for name in folders if name.startswith("models--")]
    nearest = _nearest(repo, [name for name in names if name != repo])
    return nearest and f" In the cache is {nearest}."
