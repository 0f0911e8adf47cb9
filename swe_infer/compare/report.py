"""One self-contained page: figures as JSON, the long texts compressed one by one, and a script that draws them.

The page asks nothing of a network, and a content security policy with the hashes of its own script and style forbids
it. Everything that comes from runs travels as JSON or compressed bytes and is shown as text, never as markup.
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
    """Write the page.

    Args:
        prompts: put the prompts of the instances in, where their dataset is at hand; they are most of the size.

    Raises:
        OSError: ``path`` cannot be written.
    """
    runs = [one.run for one in comparison.runs]
    source = PromptSource(runs) if prompts else PromptSource([])
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
    """One element for each instance, numbered in the order that the page's data states; the page unpacks it when it
    is looked at."""
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
    """JSON that cannot end the element it stands in, whatever strings it holds."""
    return json.dumps(_whole(value), separators=(",", ":")).replace("<", "\\u003c")


def _whole(value: Any) -> Any:
    """``value`` with halves of surrogate pairs replaced: models write them, and browsers differ in what they make of
    them."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(key): _whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(inner) for inner in value]
    return value


def _hash(content: str) -> str:
    """A source expression of Content Security Policy level 2 for an inline element with this content."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
