"""The configuration keys that differ between runs, and the labels of the runs that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from swe_infer.compare.loading import LoadedRun
from swe_infer.conf_files import parameters_at
from swe_infer.text import short_keys, shown

_DECIDING = ("model", "prompt", "context", "decoding", "dataset", "selection", "feedback", "provider", "rules")
"""Groups with keys that decide answers or which of them is submitted. Labels name keys of the first groups first."""

_MODEL_KEYS = ("model.name", "model.path", "model.peft_path")
_MODEL = "model"  # in labels: the name or path


class Configured(Protocol):
    """A run with its flattened configuration."""

    @property
    def config(self) -> Mapping[str, Any]: ...


def differing_keys(runs: Sequence[Configured]) -> list[str]:
    """Keys that differ among the runs that have a configuration; ``_target_`` only if nothing else differs."""
    configs = [run.config for run in runs if run.config]
    keys = list(dict.fromkeys(key for config in configs for key in config if not _is_ignored(key)))
    differing = [key for key in keys if len({_plain(config.get(key)) for config in configs}) > 1]
    plain = [key for key in differing if not key.endswith("_target_")]
    return plain or differing


def deciding_keys(runs: Sequence[Configured]) -> list[str]:
    """The differing keys that decide answers or which of them is submitted, in the order in which labels use them.

    A key without a value equals one with an empty value.
    """
    configs = [run.config for run in runs if run.config]
    kept = [
        key
        for key in differing_keys(runs)
        if key.partition(".")[0] in _DECIDING
        and _decides(key)
        and len({_plain(_without_empty(config.get(key))) for config in configs}) > 1
    ]
    return sorted(kept, key=lambda key: (_DECIDING.index(key.partition(".")[0]), key not in _MODEL_KEYS))


def _decides(key: str) -> bool:
    group, _, rest = key.partition(".")
    options = [parameter.option for parameter in parameters_at(f"{group}.{rest.split('.')[0]}")] if rest else []
    return all(option is None or option.effect == "answer" for option in options)


_IGNORED = frozenset(["output_dir", "upload_interval_s", "from", "sweep.name", "sweep.points"])


def _is_ignored(key: str) -> bool:
    """Whether a key cannot affect an outcome: the output directory, the tracker, labels. A point's name is shown."""
    return key in _IGNORED or key.startswith("tracker.")


def _without_empty(value: Any) -> Any:
    return None if value in ({}, [], "") else value


def _plain(value: Any) -> str:
    """A value's text for comparison. W&B stores 1.0 as 1."""
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)


def labels(runs: Sequence[LoadedRun], keys: Sequence[str]) -> list[str]:
    """A label of each run from the fewest of its differing keys, in order, that distinguish all runs, such as
    ``gpt-4o temperature=0.2``. Runs that no key distinguishes also have their directory's name."""
    chosen: list[str] = []
    found = [""] * len(runs)
    models = any(key in keys for key in _MODEL_KEYS)
    for key in [*([_MODEL] if models else []), *(key for key in keys if key not in _MODEL_KEYS[:2])]:
        candidate = [_label(run.config, [*chosen, key]) for run in runs]
        if len(set(candidate)) > len(set(found)):
            chosen.append(key)
            found = candidate
        if len(set(found)) == len(runs):
            break
    return [
        f"{label} ({run.name})" if label and found.count(label) > 1 else label or run.name
        for run, label in zip(runs, found, strict=True)
    ]


def _label(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    parts, names = [], short_keys(keys)
    for key in keys:
        value = next((config[k] for k in _MODEL_KEYS if config.get(k)), None) if key == _MODEL else config.get(key)
        if value is None:
            continue
        text = shown(value)
        if "/" in text:
            text = text.rstrip("/").rpartition("/")[2]
        parts.append(text if key == _MODEL else f"{names[key]}={text}")
    return " ".join(parts)


def repeated_runs(runs: Sequence[LoadedRun]) -> list[list[int]]:
    """Groups of two or more runs whose configurations differ at most in a seed and in keys that decide no answer."""
    keys = [key for key in deciding_keys(runs) if not key.endswith("seed")]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, run in enumerate(runs):
        if run.config:
            groups.setdefault(tuple(_plain(run.config.get(key)) for key in keys), []).append(index)
    return [group for group in groups.values() if len(group) > 1]
