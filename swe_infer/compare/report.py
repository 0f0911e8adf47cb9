"""Writes the comparison page: figures as JSON, answers and patches compressed, and a script that renders them.

The page makes no request, and its content security policy, with the hashes of its script and style, forbids any. Data
from runs is embedded as JSON or compressed bytes and rendered as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from swe_infer.compare.analysis import Comparison, solved
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import Result, read_texts
from swe_infer.compare.prompts import PromptSource


def write_report(comparison: Comparison, path: Path, *, prompts: bool = True) -> None:
    """Writes the page.

    Args:
        prompts: include the prompts, if their dataset is available; they are most of the size.

    Raises:
        OSError: ``path`` cannot be written.
    """
    with PromptSource([one.run for one in comparison.runs] if prompts else []) as source:
        _write(comparison, path, source)


def _write(comparison: Comparison, path: Path, source: PromptSource) -> None:
    runs = [one.run for one in comparison.runs]
    data = as_json(comparison)
    data["notes"] += source.notes
    data["order"] = list(comparison.scores)
    grouped = [run.instances() for run in runs]
    data["cells"] = {
        name: [[_cell(result, comparison) for result in run.get(name, ())] for run in grouped]
        for name in comparison.scores
    }
    page = files("swe_infer.compare") / "page"
    style, script = ((page / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    head, tail = (page / "page.html").read_text(encoding="utf-8").split("<!-- data -->")
    head = (
        head.replace("/* style */", style).replace("SCRIPT_HASH", _hash(script)).replace("STYLE_HASH", _hash(style))
    )
    with path.open("w", encoding="utf-8") as file:
        file.write(head)
        file.write(f'<script type="application/json" id="data">{_json(data)}</script>\n')
        _write_details(file, comparison, source, grouped)
        file.write(tail.replace("/* script */", script))


def _write_details(
    file: IO[str], comparison: Comparison, source: PromptSource, grouped: Sequence[Mapping[str, list[Result]]]
) -> None:
    """Writes one element per instance, in the order of the page's data. The page unpacks it on demand."""
    texts = [read_texts(one.run) for one in comparison.runs]
    for number, name in enumerate(comparison.scores):
        task = source[name]
        detail = {
            "prompt": task and task.prompt,
            "gold": task and task.gold,
            "runs": [
                [asdict(of_run[name, result.sample]) for result in run.get(name, ())]
                for run, of_run in zip(grouped, texts, strict=True)
            ],
        }
        packed = base64.b64encode(zlib.compress(_json(detail).encode("ascii"), 6)).decode("ascii")
        file.write(f'<script type="text/plain" id="detail-{number}">{packed}</script>\n')


def _cell(result: Result, comparison: Comparison) -> dict[str, Any]:
    return {
        "sample": result.sample,
        "status": result.status,
        "finish": result.finish_reason,
        "patch": result.patch_status,
        "resolved": result.resolved,
        "solved": solved(result, comparison.metric),
        "in": result.usage.input_tokens,
        "out": result.usage.output_tokens,
        "cost": None if result.cost_usd is None else float(result.cost_usd),
        "latency": round(result.latency_s, 2),
        "error": result.error,
    }


def _json(value: object) -> str:
    """JSON in which no string can close the enclosing element."""
    return json.dumps(_without_lone_surrogates(value), separators=(",", ":")).replace("<", "\\u003c")


def _without_lone_surrogates(value: Any) -> Any:
    """``value`` with lone surrogates replaced: models write them, and browsers handle them differently."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_lone_surrogates(key): _without_lone_surrogates(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_lone_surrogates(inner) for inner in value]
    return value


def _hash(content: str) -> str:
    """A source expression of Content Security Policy level 2 for an inline element with this content."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
