"""Creates the README's pictures from real runs: the tiny Llama on the bundled instances, swept and compared.

    python -m benchmarks.pictures --chromium /usr/bin/chromium

Requires Chromium for the screenshot. Runs go to a temporary folder, pictures to ``docs/``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
SWEEP = ("-m", "experiment=temperature", "tracker=none", "decoding.n=4")
BROWSER = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1.5",
)


def call(*arguments: str) -> None:
    """Run a module of the project, with its output on ours."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def shoot(chromium: str, page: Path, picture: Path, profile: Path, size: str) -> None:
    """Take a picture of a page."""
    command = [chromium, *BROWSER, f"--user-data-dir={profile}", f"--window-size={size}", f"--screenshot={picture}"]
    subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        call("swe_infer", *SWEEP, f"output_dir={home / 'sweep'}")
        call("swe_infer.compare", str(home / "sweep"), "--html", str(home / "comparison.html"))
        shoot(options.chromium, home / "comparison.html", DOCS / "comparison.png", home / "profile", "1180,1500")
    return 0


if __name__ == "__main__":
    sys.exit(main())
