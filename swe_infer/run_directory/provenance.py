"""``provenance.json``: what produced a run, and the sweeps that contain it.

It is not part of a run's identity. A command that resumes the run adds an entry only if something differs from all
earlier ones.
"""

from __future__ import annotations

import functools
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from swe_infer import __version__
from swe_infer.errors import ConfigError
from swe_infer.files import write_atomically
from swe_infer.run_directory import layout
from swe_infer.text import bounded_json

_MAX_BYTES = 1 << 22
_MAX_ENTRIES = 100
"""The oldest entries beyond this number are dropped; also the maximum number of tags."""

_LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "flash-attn", "datasets", "openai", "anthropic", "boto3",
    "google-auth", "tiktoken", "genai-prices", "hydra-core", "omegaconf", "wandb", "ray", "optuna", "swebench",
)  # fmt: skip
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class SweepMembership:
    """How a run appears among the runs of its sweep.

    Args:
        group: the sweep's name.
        name: what distinguishes the run; empty if nothing does.
        tags: the swept overrides, such as ``decoding.temperature=0.6``.
    """

    group: str
    name: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """The content of the file.

    Args:
        commands: an entry for each distinct origin, oldest first, see :func:`describe`.
        sweep: the first sweep that contained the run, which is its W&B group; None without one.
        sweeps: all sweeps that contained the run, the first one included.
    """

    commands: tuple[Mapping[str, Any], ...] = ()
    sweep: SweepMembership | None = None
    sweeps: tuple[SweepMembership, ...] = ()

    def with_command(self, entry: Mapping[str, Any]) -> Provenance:
        """This provenance with one more entry, unless it has an equal one."""
        if entry in self.commands:
            return self
        return replace(self, commands=(*self.commands, entry)[-_MAX_ENTRIES:])

    def with_sweep(self, sweep: SweepMembership | None) -> Provenance:
        """This provenance with one more sweep, unless the run is in a sweep of that name already."""
        if sweep is None or sweep.group in {one.group for one in self.sweeps}:
            return self
        return replace(self, sweep=self.sweep or sweep, sweeps=(*self.sweeps, sweep)[:_MAX_ENTRIES])


def describe(command: str, dataset_sha256: str | None, dataset_revision: str | None = None) -> dict[str, Any]:
    """The origin of a run that this process executes: versions, machine, command and dataset.

    Args:
        command: the command line, without secrets.
        dataset_sha256: digest of the dataset's content; None if it is unknown.
        dataset_revision: the commit of the dataset on the hub; None if it does not come from there.
    """
    revision = {} if dataset_revision is None else {"dataset_revision": dataset_revision}
    return {"command": command, "dataset_sha256": dataset_sha256, **revision, **_environment()}


def read_provenance(directory: Path) -> Provenance:
    """The provenance of a run directory, which may be untrusted; empty if it is missing or invalid."""
    try:
        found = bounded_json(layout.content(directory, layout.PROVENANCE, _MAX_BYTES) or b"{}")
        commands = tuple(entry for entry in found.get("commands") or () if isinstance(entry, dict))
        sweeps = tuple(filter(None, map(_membership, found.get("sweeps") or [found.get("sweep")])))
        return Provenance(commands[-_MAX_ENTRIES:], _membership(found.get("sweep")), sweeps[:_MAX_ENTRIES])
    except (ConfigError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Provenance()


def write_provenance(directory: Path, provenance: Provenance) -> None:
    """Writes the file.

    Raises:
        StoreError: it cannot be written.
    """
    write_atomically(directory / layout.PROVENANCE, json.dumps(asdict(provenance), indent=2) + "\n")


def record_provenance(directory: Path, entry: Mapping[str, Any], sweep: SweepMembership | None) -> Provenance:
    """Adds an entry and a sweep. Writes nothing if nothing changed.

    Raises:
        StoreError: the file cannot be written.
    """
    before = read_provenance(directory)
    now = before.with_sweep(sweep).with_command(entry)
    if now != before:
        write_provenance(directory, now)
    return now


def merged_provenance(directories: Sequence[Path]) -> Provenance:
    """The entries of several runs as one provenance, without their sweeps."""
    merged = Provenance()
    for directory in directories:
        for entry in read_provenance(directory).commands:
            merged = merged.with_command(entry)
    return merged


def _membership(node: Any) -> SweepMembership | None:
    if not isinstance(node, dict):
        return None
    return SweepMembership(str(node["group"]), str(node["name"]), tuple(map(str, node["tags"][:_MAX_ENTRIES])))


@functools.cache
def _environment() -> Mapping[str, Any]:
    return {
        "swe_infer": __version__,
        "commit": git_commit(_CHECKOUT),
        "python": platform.python_version(),
        "libraries": _library_versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "gpus": _gpus(),
    }


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(checkout: Path) -> str | None:
    """The commit of a git checkout, read from its files; None if ``checkout`` is not the root of one."""
    try:
        git = checkout / ".git"
        if git.is_file():  # a linked worktree or a submodule
            git = checkout / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = git / "commondir"
        for folder in (git, git / common.read_text().strip()) if common.is_file() else (git,):
            if (folder / name).is_file():
                return (folder / name).read_text().strip()
            if (folder / "packed-refs").is_file():
                for line in (folder / "packed-refs").read_text().splitlines():
                    commit, _, ref = line.partition(" ")
                    if ref == name:
                        return commit
    except (OSError, ValueError):
        pass
    return None


def _processor() -> str:
    """The processor's model. Not by :func:`platform.processor`, which starts a process."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.machine()


def _gpus() -> list[str]:
    """The models of this machine's NVIDIA GPUs, from the driver's files, so that torch is not needed."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")) if sys.platform == "linux" else ():
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found
