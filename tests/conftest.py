"""What every test runs under."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Programs that tests start see no terminal: pytest-xdist tells its workers one of 80 columns."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
