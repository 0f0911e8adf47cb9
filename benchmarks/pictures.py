"""Creates the README's pictures from real runs: the tiny Llama on the bundled instances, swept and compared.

    python -m benchmarks.pictures --chromium /usr/bin/chromium

Requires Chromium for the pictures. Runs go to a temporary folder, pictures to ``docs/``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.browser import CHROMIUM, Browser

DOCS = Path(__file__).resolve().parent.parent / "docs"
SWEEP = ("-m", "experiment=temperature", "tracker=none", "decoding.n=4")
WIDTH = 1180
IS_DRAWN = "document.querySelector('#instances-table table')"
OPEN_AN_INSTANCE_THAT_DIFFERS = """(() => {
  const show = document.getElementById('show');
  show.value = 'differ';
  show.dispatchEvent(new Event('change'));
  document.querySelector('#instances-table a').click();
})()"""


def call(*arguments: str) -> None:
    """Run a module of the project, with its output on ours."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def shoot(page: Path, profile: Path, chromium: str) -> None:
    """Take pictures of the page: its beginning, and an instance on which the runs differ."""
    with Browser(profile, chromium) as browser:
        browser.open(page.as_uri(), width=WIDTH, height=1260)
        browser.wait(IS_DRAWN)
        time.sleep(1)  # the charts fit their width after the first layout
        browser.screenshot(DOCS / "comparison.png")
        browser.open(page.as_uri(), width=WIDTH, height=760)
        browser.wait(IS_DRAWN)
        browser.evaluate(OPEN_AN_INSTANCE_THAT_DIFFERS)
        browser.wait("document.getElementById('view').open")
        browser.screenshot(DOCS / "instance.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=CHROMIUM or "/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        call("swe_infer", *SWEEP, f"output_dir={home / 'sweep'}")
        call("swe_infer.compare", str(home / "sweep"), "--html", str(home / "comparison.html"))
        shoot(home / "comparison.html", home / "profile", options.chromium)
    return 0


if __name__ == "__main__":
    sys.exit(main())
