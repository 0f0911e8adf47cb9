"""The architecture: imports go one way, heavy packages are used in few places, and imports stay fast."""

from __future__ import annotations

import ast
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.selection import starts_a_process

PACKAGE = Path(__file__).resolve().parent.parent / "swe_infer"

LEVELS = [
    {"standard_streams"},
    {"errors", "interrupts", "options"},
    {"types", "resources", "files", "redaction", "text", "locks", "progress", "instance_files"},
    {"prompt_format", "prompt_images", "conf_files", "patches", "harnesses", "serving", "ray_connection"},
    {"presets", "providers", "llama", "sample", "run_directory", "repositories"},
    {"context", "remote"},
    {"api", "data", "prompts", "tracking"},
    {"selection", "feedback"},
    {"runners", "compare", "evaluate", "runs"},
    {"config", "view", "budget"},
    {"cli"},
    {"merge", "export", "select", "python_api"},
]
"""Lowest first. A package may import from lower levels and from itself, see docs/layout.md."""

HOMES = {
    "torch": {"llama"},
    "transformers": {"llama"},
    "safetensors": {"llama"},
    "ray": {"llama", "api", "ray_connection"},
    "hydra": {"cli", "config"},
    "omegaconf": {"cli", "config"},
    "openai": {"providers"},
    "anthropic": {"providers"},
    "boto3": {"providers"},
    "botocore": {"providers"},
    "google": {"providers"},
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking"},
    "datasets": {"data"},
    "fsspec": {"remote"},
    "genai_prices": {"api"},
    "tiktoken": {"api"},
    "jinja2": {"prompts"},
    "pandas": {"python_api"},
    "starlette": {"view", "api", "serving"},
    "uvicorn": {"serving"},
}
"""The packages of ours that may import a third-party package."""


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level_of(room: str) -> int | None:
    return next((i for i, rooms in enumerate(LEVELS) if room in rooms), None)


@functools.cache
def imports(path: Path) -> list[str]:
    return list(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All below ``node``. ``ast.walk`` takes twice as long, because it visits each expression, too."""
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, block, ()):
            yield statement
            yield from statements(statement)


def modules() -> list[Path]:
    return sorted(
        p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py") or p.parent != PACKAGE
    )


def test_the_tree_in_the_docs_has_every_package_and_module() -> None:
    tree = (PACKAGE.parent / "docs" / "layout.md").read_text(encoding="utf-8").partition("hydra_plugins/")[0]
    rooms = {path.relative_to(PACKAGE).parts[0] for path in modules()}
    assert [room for room in sorted(rooms) if (room if room.endswith(".py") else f"{room}/") not in tree] == []


def test_imports_point_one_way() -> None:
    offenders = []
    for path in modules():
        room = package_of(path)
        level = level_of(room)
        assert level is not None, f"{room} is new: give it a level in this test and a line in docs/layout.md"
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "swe_infer" or len(parts) < 2 or parts[1] == room:
                continue
            other = level_of(parts[1])
            if other is not None and other >= level:
                offenders.append(f"{path.relative_to(PACKAGE)} ({room}) may not import {name}")
    assert offenders == []


def test_what_a_runner_is_depends_on_no_runner() -> None:
    """The protocol and the command line do not depend on a particular runner."""
    known = {"base.py": {"llama", "api"}, "concurrent.py": {"llama", "api"}, "run.py": {"llama", "api"}}
    paths = [(PACKAGE / "runners" / name, rooms) for name, rooms in known.items()]
    paths += [(path, {"llama"}) for path in (PACKAGE / "cli").glob("*.py")]
    assert [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, rooms in paths
        for name in imports(path)
        if (name.split(".")[:1] == ["swe_infer"] and name.split(".")[1:2] and name.split(".")[1] in rooms)
        or name in ("swe_infer.runners.llama", "swe_infer.runners.api")
    ] == []


ROOT = PACKAGE.parent


def test_a_file_of_a_run_is_named_in_its_package_alone() -> None:
    name = re.compile(r"\b(records\.jsonl|summary\.json|config\.yaml|evaluation\.jsonl|predictions\S*\.jsonl)")
    found = {path for path in modules() if name.search(path.read_text(encoding="utf-8"))}
    assert {package_of(path) for path in found} == {"run_directory"}, found


def test_capabilities_are_declared_and_frozen_objects_stay_so() -> None:
    probing = re.compile(r"\bhasattr\(|object\.__setattr__|\bruntime_checkable\b")
    assert [path for path in modules() if probing.search(path.read_text(encoding="utf-8"))] == []


def imported_modules(package: Path) -> dict[str, set[str]]:
    """The imports of each module of a package, including those in functions and for type checking."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in package.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    paths.pop("swe_infer", None)  # its names are imported when they are used
    return {name: {other for other in imports(path) if other in paths} for name, path in paths.items()}


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that import each other, directly or indirectly."""

    @functools.cache
    def reached(name: str) -> set[str]:
        found: set[str] = set()
        new = set(graph[name])
        while new:
            found |= new
            new = set().union(*(graph[other] for other in new)) - found
        return found

    found = {name: {other for other in reached(name) if name in reached(other)} for name in graph}
    return [set(group) for group in {frozenset(group) for group in found.values() if group}]


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    for package in ("swe_infer", "benchmarks", "tests"):
        assert cycles(imported_modules(ROOT / package)) == []


def test_a_heavy_package_is_named_in_its_room_alone() -> None:
    assert [
        f"{path.relative_to(PACKAGE)} imports {name}, which belongs to {homes}"
        for path in modules()
        for name in imports(path)
        if (homes := HOMES.get(name.partition(".")[0])) and package_of(path) not in homes
    ] == []


def test_building_a_run_imports_no_heavy_package() -> None:
    code = (
        "import sys; from swe_infer.cli import run; import swe_infer.runners.api, swe_infer.runners.llama;"
        f"print([m for m in {sorted(HOMES)!r} if m not in ('hydra', 'omegaconf') and m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_collecting_imports_no_heavy_package(heavy_imports: list[str]) -> None:
    assert heavy_imports == [], "import it under TYPE_CHECKING: see tests/conftest.py"


CLOCKS = {"time.time", "time.monotonic", "time.perf_counter", "time.process_time", "time.thread_time"}
TESTS = Path(__file__).resolve().parent


def reads_a_clock(node: ast.AST, names: set[str]) -> bool:
    """Whether a value is a time, a sum or difference with one, or a variable with such a value."""
    if isinstance(node, ast.BinOp):
        return reads_a_clock(node.left, names) or reads_a_clock(node.right, names)
    return ast.unparse(node).removesuffix("()") in CLOCKS or (isinstance(node, ast.Name) and node.id in names)


def timed_assertions(path: Path) -> Iterator[str]:
    """Assertions on durations, except deadlines of tests that may hang."""
    source = path.read_text(encoding="utf-8")
    if not any(clock in source for clock in CLOCKS):
        return
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = list(ast.walk(function))
        clocks: set[str] = set()
        spans: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Assign) and reads_a_clock(node.value, clocks):
                targets = [name for target in node.targets for name in ast.walk(target)]
                names = {name.id for name in targets if isinstance(name, ast.Name)}
                clocks |= names
                spans |= names if is_difference(node.value) else set()
        for node in nodes:
            if not isinstance(node, ast.Assert):
                continue
            for part in ast.walk(node.test):
                span = isinstance(part, ast.Name) and part.id in spans
                if span or (is_difference(part) and reads_a_clock(part, clocks)):
                    yield f"{path.relative_to(TESTS)}:{node.lineno}"


def is_difference(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)


def test_no_test_asserts_how_long_something_took() -> None:
    offenders = [found for path in sorted(TESTS.rglob("*.py")) for found in timed_assertions(path)]
    assert offenders == [], "count calls, requests or lines (tests/support/steps.py), or measure it in benchmarks/"


def test_the_table_of_untrusted_input_names_tests_that_are_there() -> None:
    table = (PACKAGE.parent / "docs" / "untrusted_input.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`?([a-z_]+/test_\w+\.py)", table))
    functions = set(re.findall(r"::(test_\w+)`", table))
    assert len(files) > 10
    assert [name for name in files if not (TESTS / name).is_file()] == []
    defined = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert sorted(functions - defined) == []


def test_fast_leaves_out_tests_that_start_a_process_in_a_module_that_they_call() -> None:
    from tests.data import test_issue
    from tests.patches import test_extract
    from tests.torture import test_crashes

    assert starts_a_process(test_crashes.test_killed_runs_lose_only_requests_in_flight)
    assert starts_a_process(test_issue.test_failure_is_one_line), "its server's base class is one of http.server"
    functions = [value for name, value in vars(test_extract).items() if name.startswith("test_")]
    assert functions
    assert not any(map(starts_a_process, functions))


def test_a_command_of_a_failed_test_ends_with_it(tmp_path: Path) -> None:
    from tests.conftest import pytest_runtest_call

    sleep = ("-c", "import time; time.sleep(600)")
    earlier = commands.start(*sleep, cwd=tmp_path, env=os.environ)
    call = pytest_runtest_call()
    next(call)
    started = commands.start(*sleep, cwd=tmp_path, env=os.environ)
    with pytest.raises(AssertionError):
        call.throw(AssertionError())
    assert started.stdout.closed
    assert started.stderr.closed
    assert started.wait(60) == -signal.SIGKILL
    assert earlier.poll() is None
    earlier.end()


@pytest.mark.full
def test_what_macos_lacks_is_used_in_the_kernels_alone(tmp_path: Path) -> None:
    """mypy knows which names of the standard library a system has."""
    command = [sys.executable, "-m", "mypy", "--platform", "darwin", f"--cache-dir={tmp_path}", "swe_infer"]
    found = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    places = [line.partition(":")[0] for line in found.stdout.splitlines() if "Module has no attribute" in line]
    assert "checked" in found.stdout, found.stdout
    assert set(places) == {"swe_infer/llama/native/build.py"}
