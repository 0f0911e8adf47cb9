"""Small instances with different SWE-bench prompts."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["prompt_text", "write_instances"]


def prompt_text(number: int, *, lines: int = 12) -> str:
    """A SWE-bench prompt: a system line, an issue, and one file with line numbers."""
    body = [f"def scale_{number}(value):", f"    factor = {number}"]
    body += [f"    value = value + {i}" for i in range(lines - 3)]
    body += ["    return value"]
    numbered = "\n".join(f"{n} {line}" for n, line in enumerate(body, 1))
    return (
        "You will be provided with a partial code base and an issue statement explaining a problem to resolve.\n"
        f"<issue>\nscale_{number} returns the wrong value\n</issue>\n\n<code>\n"
        f"[start of pkg/mod_{number}.py]\n{numbered}\n[end of pkg/mod_{number}.py]\n</code>\n\n"
        "Respond with a single patch file.\n"
    )


def write_instances(path: Path, count: int, *, lines: int = 12) -> Path:
    """Write ``count`` instances as JSON lines; ids are ``example__pkg-NUMBER``."""
    with path.open("w") as file:
        for number in range(count):
            row = {"instance_id": f"example__pkg-{number}", "text": prompt_text(number, lines=lines)}
            file.write(json.dumps(row) + "\n")
    return path
