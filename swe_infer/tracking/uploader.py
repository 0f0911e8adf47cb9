"""The guest that logs finished runs to W&B from their records, see :mod:`swe_infer.tracking.guest`.

A request ``check`` asks whether the server answers and accepts the API key. Any other request has the fields of a
``start`` of :mod:`swe_infer.tracking.worker`, and is one run. The reply to it has ``number``, and ``address`` if the
server has all of the run, otherwise ``failure``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.run_directory import layout
from swe_infer.run_directory.history import totals_over_time
from swe_infer.run_directory.provenance import read_provenance
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.tracking.guest import Reply, Requests, connect, one_line
from swe_infer.tracking.state import folder_of, read_state, write_state, write_synced
from swe_infer.tracking.worker import Session

_POINTS = 500
"""Points of the history of a run."""
_IGNORED = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_MODE", "WANDB_DISABLED")
"""Environment variables that are meant for a run of this machine."""


def serve(requests: Requests, reply: Reply) -> None:
    """Answer the requests, one after the other."""
    for name in _IGNORED:
        os.environ.pop(name, None)
    for request in requests:
        if "check" in request:
            _check()
            reply(reachable=True)
            continue
        try:
            reply(number=request["number"], address=_upload(request))
        except Exception as error:  # noqa: BLE001 - the SDK may raise anything; the others are still uploaded
            reply(number=request["number"], failure=one_line(error))


def _check() -> None:
    """
    Raises:
        ConnectionError: the server does not answer, or does not accept the API key.
    """
    try:
        entity = connect().default_entity
    except Exception as error:  # noqa: BLE001 - the SDK may raise anything
        raise ConnectionError(f"W&B does not answer: {one_line(error)}") from None
    if entity is None:
        raise ConnectionError("W&B does not accept WANDB_API_KEY")


def _upload(start: Mapping[str, Any]) -> str:
    """Log a run, and wait until the server has all of it; returns its address.

    Raises:
        RuntimeError: a part of it could not be logged.
        SweInferError: the run directory cannot be read.
    """
    directory = Path(start["directory"])
    if not start["may_extend"]:
        _claim(directory, start)
    run = RunDirectory(directory)
    summary = run.latest_summary()
    if lacking := [key for key in ("instances", "samples") if key not in summary]:
        raise SweInferError(f"its summary lacks {lacking[0]}; run its command again")
    history = list(totals_over_time([directory], run.coverage(), summary, _POINTS))
    commands = read_provenance(directory).commands
    config = {**run.config(), **({"provenance": commands[-1]} if commands else {})}
    first = min((point["_time"] - point["wall_s"] for point in history[:1]), default=None)
    warnings: list[str] = []

    def collect(**message: Any) -> None:
        if "warning" in message:
            warnings.append(message["warning"])

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        # The SDK's own log of the run is not needed: the run directory is the source.
        settings = {"root_dir": folder, "x_disable_stats": True, "x_start_time": first}
        session = Session({**start, "config": config, "settings": settings}, collect)
        session.log_history(history)
        unfinished = bool(summary.get("failed") or summary.get("remaining"))
        files = [str(path.absolute()) for path in layout.result_files(directory)]
        session.finish({"summary": summary, "files": files, "exit_status": int(unfinished)})
    if warnings:
        raise RuntimeError(warnings[0])
    for log in folder_of(directory).glob("offline-run-*/run-*.wandb"):
        log.with_name(f"{log.name}.synced").touch()  # `wandb sync` would upload it again, incompletely
    write_synced(directory, session.address)
    return session.address


def _claim(directory: Path, start: Mapping[str, Any]) -> None:
    """Make the W&B run of a directory from elsewhere this user's.

    Raises:
        ConfigError: there is a W&B run with its id already, which may be another one.
    """
    options, api = start["options"], connect()
    path = f"{options['entity'] or api.default_entity}/{options['project']}/{start['run_id']}"
    try:
        api.run(path)
    except Exception as error:
        if "Could not find run" not in str(error):
            raise
    else:
        raise ConfigError(f"the W&B run {path} exists, and this user did not track it here; --wandb extends it")
    state = read_state(directory)
    if state is not None:
        write_state(directory, state.values, start["state_key"])
