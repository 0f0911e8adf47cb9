"""How many recorded answers become patches that apply, judged by the real ``git apply``, and at what cost.

    python -m benchmarks.patches ANSWERS.jsonl BASES.jsonl [--json]

``ANSWERS`` holds one answer a line: ``instance_id``, ``model_name_or_path``, ``full_output`` and, where it is known,
what another extractor made of it (``reference_patch``, ``reference_applies``). ``BASES`` holds ``instance_id`` and
``files``: path to content at the base commit. The bases serve as the files of the prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swe_infer.patches.pipeline import make_patch
from swe_infer.types import PatchResult

Files = Mapping[str, str]


def git_apply(patch: str, files: Files, *options: str) -> dict[str, str] | None:
    """What ``git apply`` makes of ``files`` in a fresh folder; None where it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        environment = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(root.parent),
        }
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content.encode("utf-8", "surrogatepass"))
        data = patch.encode("utf-8", "surrogatepass")
        command = ["git", "apply", *options, "-"]
        done = subprocess.run(command, cwd=root, input=data, capture_output=True, check=False, env=environment)
        if done.returncode:
            return None
        found = (p for p in root.rglob("*") if p.is_file())
        return {p.relative_to(root).as_posix(): p.read_bytes().decode("utf-8", "surrogatepass") for p in found}


def added_lines(patch: str) -> Counter[str]:
    """The added lines of a diff, without white space around them."""
    lines = patch.split("\n")
    headers = {n + 1 for n, line in enumerate(lines) if _is_header(lines, n)}
    added = (line[1:].strip() for n, line in enumerate(lines) if line[:1] == "+" and n not in headers)
    return Counter(text for text in added if text)


def _is_header(lines: list[str], at: int) -> bool:
    return lines[at].startswith("--- ") and lines[at + 1 : at + 2] != [] and lines[at + 1].startswith("+++ ")


@dataclass
class Tally:
    """The figures of one run."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    checkable: int = 0
    applied: int = 0
    edits: int = 0
    edits_possible: int = 0
    edits_applied: int = 0
    reference: int = 0
    reference_same: int = 0
    lenient_git: int = 0
    lenient_git_differs: list[str] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)
    foreign_lines: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)

    def add(self, answer: Mapping[str, Any], files: Files) -> None:
        started = time.perf_counter()
        result = make_patch(answer["full_output"], files)
        self.milliseconds.append((time.perf_counter() - started) * 1000)
        known = bool(files) and answer.get("reference_applies") is not None
        self.statuses["checkable" if known else "no base file", result.status] += 1
        if not known:
            return
        name = f"{answer['instance_id']} ({answer['model_name_or_path']})"
        outcome = git_apply(result.patch, files) if result.patch else None
        claims = result.status in ("applies", "repaired")
        if claims != (outcome is not None):
            self.disagreements.append(name)
        if "@@" in answer["full_output"]:
            self.checkable += 1
            self.applied += outcome is not None
            self._compare(name, answer, result, files, outcome)
        else:
            self.edits += 1
            self.edits_applied += outcome is not None
            self.edits_possible += any(path in answer["full_output"] for path in files)
        if not claims:
            self.reasons[(result.reason or "").split(": ", 1)[-1]] += 1
        self.repairs.update(result.repairs)

    def _compare(
        self, name: str, answer: Mapping[str, Any], result: PatchResult, files: Files, outcome: dict[str, str] | None
    ) -> None:
        if outcome is not None and added_lines(result.patch) - added_lines(answer["full_output"]):
            self.foreign_lines.append(name)
        if answer["reference_applies"]:
            self.reference += 1
            self.reference_same += outcome == git_apply(answer["reference_patch"], files)
            self.lenient_git += 1
            lenient = None
        else:
            lenient = git_apply(answer["reference_patch"].rstrip("\n") + "\n", files, "--recount", "-C1")
            self.lenient_git += lenient is not None
        if lenient is not None and outcome is not None and lenient != outcome:
            self.lenient_git_differs.append(name)

    def figures(self) -> Iterator[tuple[str, object]]:
        times = sorted(self.milliseconds)
        yield "answers", len(times)
        yield "answers with a hunk and base files", self.checkable
        yield "  of them applied by the reference extractor", self.reference
        yield "  of those, the same files as before", self.reference_same
        yield "  apply now (git apply)", f"{self.applied} ({self.applied / max(self.checkable, 1):.1%})"
        yield "  the reference's text under git apply --recount -C1", self.lenient_git
        yield "    other files than ours", self.lenient_git_differs or 0
        yield "answers without a hunk, with base files", self.edits
        yield "  that name a file that is given", self.edits_possible
        yield "  become patches that apply", self.edits_applied
        yield "verdicts that git apply contradicts", self.disagreements or 0
        yield "results with an added line that the answer does not have", self.foreign_lines or 0
        yield "median ms", round(statistics.median(times), 2)
        yield "worst ms", round(times[-1], 1)
        for (group, status), count in sorted(self.statuses.items()):
            yield f"{group}: {status}", count
        for what, count in self.repairs.most_common():
            yield f"repair: {what}", count
        for why, count in self.reasons.most_common(12):
            yield f"left: {why}", count


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge recorded answers with git apply.")
    parser.add_argument("answers", type=Path)
    parser.add_argument("bases", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    with arguments.bases.open(encoding="utf-8") as lines:
        bases = {row["instance_id"]: row["files"] for row in map(json.loads, lines)}
    tally = Tally()
    with arguments.answers.open(encoding="utf-8") as lines:
        for answer in map(json.loads, lines):
            tally.add(answer, bases.get(answer["instance_id"], {}))
    figures = dict(tally.figures())
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for what, value in figures.items():
        print(f"{what:62} {value}")


if __name__ == "__main__":
    main()
