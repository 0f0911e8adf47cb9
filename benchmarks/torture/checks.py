"""What must hold of a run directory, whatever was done to its processes, by the server's own account."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from benchmarks.torture.place import Place
from swe_infer.run_directory.records import read_records
from tests.support.api_log import Exchange, Log
from tests.support.wandb_files import read_offline_runs

__all__ = ["Findings", "check_files", "check_finished", "unrecorded", "table"]

_CENT_OF_A_CENT = Decimal("1e-9")


@dataclass
class Findings:
    """What one scenario did, and everything that was wrong.

    Args:
        lost: answers that reached a process and are in no record.
        paid_twice: answers beyond one for each sample, those not counted that were in flight at a kill.
        caps_passed: tries after which the server's bill was above the cap.
        said: what the hurt process said.
        wrong: one line for each breach of anything else.
    """

    name: str
    tries: int = 0
    kills: int = 0
    faults: int = 0
    answers: int = 0
    in_flight: int = 0
    lost: int = 0
    paid_twice: int = 0
    caps_passed: int = 0
    skipped: str | None = None
    said: str = ""
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.paid_twice or self.caps_passed or self.wrong)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


def check_files(place: Place, findings: Findings) -> None:
    """Every file of a run directory can be read as it lies there, at any moment; a torn last line may be one."""
    for path in sorted(place.run.glob("*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            findings.expect(_is_json(line), f"{path.name}, line {number} is no JSON")
    for name in ("summary.json", "config.yaml"):
        path = place.run / name
        if path.exists():
            readable = _is_json(path.read_bytes()) if name.endswith("json") else _is_yaml(path)
            findings.expect(readable, f"{name} cannot be read")


def check_finished(place: Place, findings: Findings) -> None:
    """A run that was brought to its end holds every (instance, sample) once, and its price is the server's."""
    check_files(place, findings)
    records = list(read_records(place.run / "records.jsonl"))
    lines = (place.run / "records.jsonl").read_bytes()
    findings.expect(lines.endswith(b"\n") and lines.count(b"\n") == len(records), "records.jsonl holds other lines")
    wanted = {(name, sample) for name in place.ids for sample in range(place.samples)}
    completed = Counter((r["instance_id"], r["sample"]) for r in records if r["status"] == "completed")
    findings.expect(completed.keys() == wanted, f"{len(wanted - completed.keys())} samples are missing")
    findings.expect(set(completed.values()) <= {1}, f"{max(completed.values(), default=0)} records of one sample")
    for sample in range(place.samples):
        name = "predictions.jsonl" if sample == 0 else f"predictions.sample{sample}.jsonl"
        ids = [json.loads(line)["instance_id"] for line in (place.run / name).read_text().splitlines()]
        findings.expect(sorted(ids) == sorted(place.ids), f"{name} does not hold every instance once")
    summary = json.loads((place.run / "summary.json").read_text(), parse_float=Decimal)
    findings.expect(summary["completed"] == len(wanted) and not summary["remaining"], "summary.json counts wrongly")
    _check_price(place, findings, records, summary)
    if place.tracked:
        _check_tracked(place.run, findings, len(wanted))


def unrecorded(place: Place) -> list[Exchange]:
    """The server's whole answers that no record of the run holds."""
    if place.server is None:
        return []
    recorded = _request_ids(read_records(place.run / "records.jsonl"))
    return [exchange for exchange in place.server.log.answers() if exchange.number not in recorded]


def _check_price(
    place: Place, findings: Findings, records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    costs = [record["cost_usd"] for record in records]
    findings.expect(None not in costs, "a price is unknown")
    total = sum((cost for cost in costs if cost is not None), Decimal(0))
    said = Decimal(str(summary["cost_usd"]))
    findings.expect(abs(said - total) < _CENT_OF_A_CENT, f"summary.json says ${said}, the records ${total}")
    if place.server is None:
        return
    # One request may ask for several samples, and a kill may come between their records: its bill is for all of them.
    held = Counter(number for record in records for number in _request_ids([record]))
    whole = [e for e in place.server.log.billed() if e.number in held and len(e.texts) == held[e.number]]
    numbers = {exchange.number for exchange in whole}
    recorded = sum((record["cost_usd"] or 0 for record in records if _request_ids([record]) <= numbers), Decimal(0))
    billed = Log(exchanges=whole).cost_usd()
    findings.expect(abs(recorded - billed) < _CENT_OF_A_CENT, f"the records say ${recorded}, the server ${billed}")


def _request_ids(records: Iterable[Mapping[str, Any]]) -> set[int]:
    ids = ((record.get("details") or {}).get("request_id") for record in records)
    return {int(str(identity).removeprefix("req_")) for identity in ids if identity}


def _check_tracked(run: Path, findings: Findings, completed: int) -> None:
    for log in (run / "wandb").glob("*run-*/run-*.wandb"):
        if not log.stat().st_size:
            log.unlink()  # killed before the SDK wrote a byte
    try:
        sessions = read_offline_runs(run)
    except Exception as error:  # noqa: BLE001 - whatever it is, a log is not whole
        findings.wrong.append(f"W&B: {error}")
        return
    findings.expect(bool(sessions), "W&B: no session was logged")
    if not sessions:
        return
    last = sessions[-1]
    findings.expect(last.exit_code == 0, f"W&B: the last session ended with {last.exit_code}")
    counted = last.summary.get("completed"), last.summary.get("predictions.nrows")
    findings.expect(counted == (completed, completed), f"W&B: samples and rows are {counted}, not {completed}")
    identities = {session.run["run_id"] for session in sessions if session.run}
    findings.expect(len(identities) == 1, f"W&B: the sessions are of {len(identities)} runs")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _is_yaml(path: Path) -> bool:
    try:
        return isinstance(yaml.safe_load(path.read_text()), dict)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False


def table(findings: Sequence[Findings]) -> str:
    """All figures, one scenario a line, sums at the end."""
    head = ("scenario", "tries", "kills", "faults", "answers", "in flight", "lost", "paid twice", "caps", "wrong")
    rows: list[tuple[str, ...]] = [head]
    for found in findings:
        if found.skipped:
            rows.append((found.name, "skipped:", found.skipped, *[""] * 7))
            continue
        rows.append((found.name, *map(str, _figures(found))))
    sums = [sum(column) for column in zip(*(_figures(found) for found in findings), strict=True)]
    rows.append(("all", *map(str, sums)))
    widths = [max(len(row[i]) for row in rows if row[1] != "skipped:") for i in range(len(head))]
    lines = []
    for row in rows:
        if row[1] == "skipped:":
            lines.append(f"{row[0]:{widths[0]}}  skipped: {row[2]}")
        else:
            lines.append("  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)))
    return "\n".join(lines)


def _figures(found: Findings) -> tuple[int, ...]:
    return (
        found.tries, found.kills, found.faults, found.answers, found.in_flight, found.lost, found.paid_twice,
        found.caps_passed, len(found.wrong),
    )  # fmt: skip
