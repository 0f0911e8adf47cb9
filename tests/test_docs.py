"""Documentation and project files: links are valid, the site builds, workflows and forms match their schemas."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from swe_infer import __version__, config
from tests.support.options import composed

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".", ".github", "benchmarks", "docs", "examples", "tests")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
LINK = re.compile(r"\]\((?P<target>[^)\s#:]*)(?:#(?P<anchor>[^)\s]+))?\)")
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m tests"
SCHEMAS = {
    "vendor.github-workflows": [".github/workflows/ci.yml"],
    "custom.github-workflows-require-timeout": [".github/workflows/ci.yml"],
    "vendor.github-issue-forms": [".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/feature.yml"],
    "vendor.github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "vendor.citation-file-format": ["CITATION.cff"],
}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MkDocs generate for a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.finditer(without_code(page.read_text(encoding="utf-8"))):
        target = page.parent / link["target"] if link["target"] else page
        if not target.exists() or (link["anchor"] and link["anchor"] not in anchors(target)):
            yield f"{page.relative_to(ROOT)}: {link.group()[2:-1]}"


def test_every_link_within_the_repository_leads_somewhere() -> None:
    assert len(PAGES) > 15
    assert [link for page in PAGES for link in broken_links(page)] == []


PATH = re.compile(r"`((?:\.ci|\.github|benchmarks|conf|docs|examples|swe_infer|sweeps|tests)/[\w./-]*)`")
PLACEHOLDER = re.compile(r"/(my\w+|x)\.(py|yaml)$")


def test_every_path_that_a_page_names_exists() -> None:
    assert [
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        for path in PATH.findall(page.read_text(encoding="utf-8"))
        if not PLACEHOLDER.search(path) and not any((root / path).exists() for root in (ROOT, page.parent))
    ] == []


def test_every_page_of_docs_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"- {page.name}\n" not in navigation] == []


def test_the_set_up_is_one_command_everywhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        assert SET_UP in (ROOT / name).read_text(encoding="utf-8").splitlines(), name


@pytest.mark.parametrize(
    ("page", "command"), [("README.md", ()), ("README.md", ("model=gpt-4o",)), ("docs/api.md", ("model=gpt-4o",))]
)
def test_a_page_shows_the_name_that_its_command_gives_the_run_directory(page: str, command: tuple[str, ...]) -> None:
    cfg = composed(*command)
    experiment = config.build(cfg)
    name = config.run_name(config.with_rules(config.resolved(cfg), experiment), experiment.runner.label, "sample")
    shown = re.findall(r"outputs/(\w[\w.-]*__sample__[0-9a-f]{12})", (ROOT / page).read_text(encoding="utf-8"))
    assert {each for each in shown if each.startswith(name.partition("__")[0])} == {name}


def test_the_version_and_its_date_are_the_same_everywhere() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert [date for _, date in released] == sorted((date for _, date in released), reverse=True)
    version, date = released[0]
    assert version == __version__
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\ndate-released: {date}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_helper_of_the_tests_is_documented() -> None:
    page = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    helpers = [path.name for path in (ROOT / "tests" / "support").iterdir() if path.suffix in (".py", ".c")]
    assert [name for name in sorted(helpers) if name != "__init__.py" and f"`{name}`" not in page] == []


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")


@pytest.mark.slow
@pytest.mark.full
def test_the_notebook_runs_and_shows_its_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [set(output.get("data", ())) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("text/html" in types for types in shown) >= 4, "a run, two data frames and the comparison"
    assert sum("image/svg+xml" in types for types in shown) == 1


@pytest.mark.full
def test_workflows_forms_and_citation_fit_their_schemas() -> None:
    needs("check_jsonschema")
    checked = {name for names in SCHEMAS.values() for name in names}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml")} <= checked
    for schema, names in SCHEMAS.items():
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *names]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, result.stdout


@pytest.mark.full
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    needs("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Tokens of prompt and output together" in (tmp_path / "site" / "options" / "index.html").read_text()
