"""SWE-bench inference as a config-driven experiment: prompts in, patches out.

The names in ``__all__`` are the Python API, see ``docs/python.md``::

    import swe_infer as si

    run = si.run(["model=gpt-4o", "dataset.limit=10", "budget.max_usd=1"])
    si.compare_runs(si.load_runs("outputs"))

Importing this package starts nothing and imports nothing else: each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swe_infer.errors import ConfigError, SweInferError
    from swe_infer.python_api import (
        Estimate,
        PatchResult,
        Plot,
        Run,
        RunComparison,
        compare_runs,
        estimate,
        load_runs,
        make_patch,
        run,
        runs_df,
        samples_df,
    )

__version__ = "0.2.0"

__all__ = [
    "run",
    "estimate",
    "load_runs",
    "samples_df",
    "runs_df",
    "compare_runs",
    "make_patch",
    "Run",
    "RunComparison",
    "Plot",
    "PatchResult",
    "Estimate",
    "SweInferError",
    "ConfigError",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{'errors' if name.endswith('Error') else 'python_api'}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
