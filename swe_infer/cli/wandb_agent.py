"""A run that ``wandb agent`` starts: which W&B run it is, and what it shares with the other runs of its sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.resources import state_home


@dataclass(frozen=True, slots=True)
class AgentRun:
    """What the agent says of a run.

    Args:
        run_id: of the run that the server has made; the agent's sweep waits for its metrics.
        ledger: what the runs of the sweep spend on this machine, wherever its agents were started. Elsewhere it would
            depend on an agent's working directory, and two agents would have a ``budget.sweep_max_usd`` each.
    """

    run_id: str
    ledger: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> AgentRun | None:
        """The agent's run by the variables that it sets; None for a run that no agent started.

        Raises:
            ConfigError: the run could not report to its sweep, which would go on without its results.
        """
        sweep, run_id = environment.get("WANDB_SWEEP_ID"), environment.get("WANDB_RUN_ID")
        if not sweep or not run_id:
            return None
        if not environment.get("WANDB_API_KEY"):
            raise ConfigError(
                f"WANDB_API_KEY is not in the environment: this run of the W&B sweep {sweep} could not report to it; "
                "set it before `wandb agent`"
            )
        state = state_home()
        if state is None:
            raise ConfigError(
                "the runs of a W&B sweep share what they spend in ~/.local/state, and there is no home directory; "
                "set XDG_STATE_HOME"
            )
        parts = [environment.get("WANDB_ENTITY"), environment.get("WANDB_PROJECT"), sweep]
        name = "__".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts if part)
        return cls(run_id, state / "wandb_sweeps" / f"{name}.sqlite")
