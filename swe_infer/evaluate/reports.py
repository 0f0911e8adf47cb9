"""Finished reports of the official harness, in every shape that it has had.

* ``{"resolved_ids": […], "unresolved_ids": […], "error_ids": […], "empty_patch_ids": […], …}``: schema versions 1 and
  2, of the package ``swebench`` since 2.0 and of ``sb-cli``.
* ``{"resolved": […], "generated": […], "applied": […], …}``: before that.
* ``{INSTANCE_ID: {"resolved": true, …}, …}``: the ``report.json`` of single instances, or many of them joined.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError

__all__ = ["read_report"]

Finding = tuple[bool, str | None]

_TESTS_FAIL = "tests fail"
_REASONS = {
    "unresolved_ids": _TESTS_FAIL,
    "error_ids": "the harness reports an error: the patch does not apply, or the run of the tests broke off",
    "empty_patch_ids": "no patch",
}


def read_report(path: Path) -> dict[str, Finding]:
    """``{instance_id: (resolved, reason)}`` of a report. Instances that were not submitted are left out.

    Raises:
        ConfigError: the file cannot be read, or is no report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"{path}: not JSON; a report of the swebench harness is wanted") from None
    if isinstance(report, dict):
        if isinstance(report.get("resolved_ids"), list):
            return _by_lists(report)
        if isinstance(report.get("resolved"), list):
            return _by_old_lists(report)
        if report and all(isinstance(v, dict) and isinstance(v.get("resolved"), bool) for v in report.values()):
            return {str(k): (v["resolved"], None if v["resolved"] else _why(v)) for k, v in report.items()}
    raise ConfigError(f"{path}: not a report of the swebench harness (it has no resolved_ids)")


def _by_lists(report: Mapping[str, Any]) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    for key, reason in _REASONS.items():
        found |= dict.fromkeys(_ids(report.get(key)), (False, reason))
    for instance in _ids(report.get("completed_ids")):  # schema 1 of some releases has no unresolved_ids
        found.setdefault(instance, (False, _TESTS_FAIL))
    reasons = report.get("failure_reasons") or {}
    for instance, reason in reasons.items() if isinstance(reasons, dict) else ():
        if instance in found:
            found[instance] = (False, f"{found[instance][1]} ({reason})")
    return found | dict.fromkeys(_ids(report["resolved_ids"]), (True, None))


def _by_old_lists(report: Mapping[str, Any]) -> dict[str, Finding]:
    found: dict[str, Finding] = dict.fromkeys(_ids(report.get("no_generation")), (False, "no patch"))
    found |= dict.fromkeys(_ids(report.get("generated")), (False, "the patch does not apply"))
    found |= dict.fromkeys(_ids(report.get("applied")), (False, _TESTS_FAIL))
    return found | dict.fromkeys(_ids(report["resolved"]), (True, None))


def _ids(value: Any) -> Iterable[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _why(entry: Mapping[str, Any]) -> str:
    if entry.get("patch_is_None") or entry.get("patch_exists") is False:
        return "no patch"
    if entry.get("patch_successfully_applied") is False:
        return "the patch does not apply"
    return _TESTS_FAIL
