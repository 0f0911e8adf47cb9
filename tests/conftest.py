"""What every test runs under.

Collecting imports no heavy package: every worker of pytest-xdist collects all tests, and most run few of them. A test
module names such packages, and what imports them, under ``if TYPE_CHECKING:``; these imports are made in the module
before its first test is set up. Helper modules and fixtures import as usual, or within functions.
"""

from __future__ import annotations

import ast
import fcntl
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis.strategies import text

from swe_infer.text import log_once
from tests.support import commands
from tests.support.selection import ProcessWatch, is_slow, late_imports

HEAVY = {"torch", "transformers", "peft", "datasets", "pyarrow", "scipy", "openai", "anthropic", "wandb", "ray"}
NEED_TORCH = {"llama", "sample", "test_concurrent.py", "test_llama_runs.py"}
"""Folders and files whose tests import torch and transformers. They come first, so that few workers run them."""
LAST_COMPILED = Path(__file__).parent / "view" / "__pycache__"
"""Of the folder that is collected last."""
HEAVY_IMPORTS = pytest.StashKey[list[str]]()
LATE_IMPORTS_MADE = pytest.StashKey[set[str]]()
WATCH = pytest.StashKey[ProcessWatch]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out tests with processes, servers or heavy packages")
    parser.addoption(
        "--all", action="store_true", dest="full", help="also run what takes long, or needs a cluster or a browser"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Programs that tests start see no terminal (pytest-xdist tells its workers one of 80 columns), and keep their
    state in a folder of the tests. They write bytecode: else each of hundreds compiles the whole package, and each
    worker all tests."""
    for name in ("COLUMNS", "LINES", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    sys.dont_write_bytecode = False
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="state-")
    config.add_cleanup(lambda: shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True))
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist share what their parent names
        os.environ[commands.SHARED] = tempfile.mkdtemp(prefix="commands-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ[commands.SHARED], ignore_errors=True))
    settings.register_profile("tests", max_examples=100 if config.getoption("full") else 40, deadline=None)
    settings.load_profile("tests")
    config.stash[HEAVY_IMPORTS] = [f"pytest itself imports {name}" for name in sorted(HEAVY & sys.modules.keys())]
    config.stash[LATE_IMPORTS_MADE] = set()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The thousands of collected tests stay to the end: no garbage collection looks at them. In a new clone the first
    worker compiles the tests, and the others wait for what it writes: compiling takes twice as long as collecting."""
    with (Path(os.environ[commands.SHARED]) / "collecting").open("w") as lock:
        if not LAST_COMPILED.exists():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                text().validate()  # has Hypothesis write its table of characters
            except BlockingIOError:
                fcntl.flock(lock, fcntl.LOCK_SH)
        gc.disable()
        try:
            return (yield)
        finally:
            gc.freeze()
            gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    before = HEAVY & sys.modules.keys()
    report = yield
    for name in sorted(HEAVY & sys.modules.keys() - before):
        collector.config.stash[HEAVY_IMPORTS].append(f"collecting {collector.nodeid} imports {name}")
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not NEED_TORCH & {item.path.name, item.path.parent.name})
    if config.getoption("fast"):
        left_out = [item for item in items if not isinstance(item, pytest.Function) or is_slow(item)]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    elif not config.getoption("full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="runs with --all"))


@pytest.fixture(scope="session")
def sandbox() -> None:
    """For tests that run patched code where a user would: this machine gives namespaces."""
    from swe_infer.sample.sandbox import why_unavailable

    if (why := why_unavailable()) is not None:
        pytest.skip(why)


@pytest.fixture(autouse=True)
def _logged_anew() -> None:
    """Each test sees what a process logs once."""
    log_once.cache_clear()


@pytest.fixture
def heavy_imports(request: pytest.FixtureRequest) -> list[str]:
    """Which heavy packages collecting imported, and where."""
    return request.config.stash[HEAVY_IMPORTS]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make the late imports of the item's module. The tests of ``--fast`` need none."""
    watch(item.config).begin()
    if item.config.getoption("fast"):
        return
    if isinstance(item, pytest.Function) and item.module.__name__ not in item.config.stash[LATE_IMPORTS_MADE]:
        make_late_imports(item.module)
        item.config.stash[LATE_IMPORTS_MADE].add(item.module.__name__)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A test that starts a process must be known as one, or ``--fast`` fails."""
    noted = watch(item.config).noted
    if noted and isinstance(item, pytest.Function) and not is_slow(item):
        pytest.fail(f"{noted[0]}: mark this test with pytest.mark.slow", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """End the commands of a test that fails. Their open streams would be the next test's unclosed files."""
    earlier = set(commands.STARTED)
    try:
        return (yield)
    except Exception:
        for command in set(commands.STARTED) - earlier:
            command.end()
        raise


def watch(config: pytest.Config) -> ProcessWatch:
    if WATCH not in config.stash:  # the parent of pytest-xdist's workers, which runs no test, has none
        config.stash[WATCH] = ProcessWatch(forbid=config.getoption("fast"))
    return config.stash[WATCH]


def make_late_imports(module: ModuleType) -> None:
    """Garbage collection takes a fifth of the time of such imports, and finds nothing."""
    gc.disable()
    try:
        exec(compile(ast.Module(late_imports(str(module.__file__)), []), str(module.__file__), "exec"), vars(module))
    finally:
        gc.enable()
