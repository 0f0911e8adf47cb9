"""Resolves ``model.path`` to a directory: on disk, in the package, or a snapshot from the Hugging Face hub.

``huggingface_hub`` respects ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_TOKEN``.
"""

from __future__ import annotations

from pathlib import Path

from swe_infer.errors import CheckpointError
from swe_infer.resources import is_hub_name, resolve_path
from swe_infer.text import first_line

_CONFIGS = ["*.json", "*.model", "*.jinja", "tokenizer*"]


def config_directory(path: str, marker: str, *, key: str = "model.path") -> Path:
    """Return the directory with configuration and tokenizer files. Weights are not downloaded.

    Args:
        marker: a file that must exist in it, such as ``config.json``.
        key: the configuration key that errors name.

    Raises:
        CheckpointError: no such directory or repository exists.
    """
    return _resolve(path, marker, key, _CONFIGS)


def snapshot_directory(path: str, marker: str, *, allow_pickle: bool, key: str = "model.path") -> Path:
    """Return the directory with its weights. Pickled weights are downloaded only if allowed."""
    patterns = [*_CONFIGS, "*.safetensors", *(["*.bin"] if allow_pickle else [])]
    return _resolve(path, marker, key, patterns)


def _resolve(path: str, marker: str, key: str, patterns: list[str]) -> Path:
    directory = Path(resolve_path(path, key))
    if directory.is_dir():
        return directory
    if directory.exists():
        raise CheckpointError(f"{key}={path} is a file; give the directory that contains {marker}")
    if not is_hub_name(path):
        raise CheckpointError(f"{key}={path}: there is no such directory")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{key}={path}: there is no such directory, and the Hugging Face hub did not return it ({reason})"
        ) from error
