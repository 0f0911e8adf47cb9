"""The server of budgets and rate limits as an actor of a Ray cluster, for ``ray://NAME``.

Each cluster has one actor, ``swe-infer-budget`` in the namespace ``swe_infer``, which the first run creates. It is
detached: it outlives the run, and ends with the cluster. It runs on the head node alone, where its files are
(``$XDG_STATE_HOME/swe_infer/budgets``): on another node it would begin with an empty ledger. If its process is lost,
Ray starts it again on the same node, where it continues with the same files.

Runs ask the actor for the address and token of its server once, and again if the server does not reply.
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.ray_connection import connect_to_ray, ray_error_line
from swe_infer.resources import state_home
from swe_infer.serving import host_in_url, listening, raise_file_limit, serve

_ACTOR = "swe-infer-budget"
_NAMESPACE = "swe_infer"
_HEAD = "node:__internal_head__"
"""A resource that only the head node has."""


class BudgetActor:
    """The class of the actor, which serves in a thread."""

    def __init__(self) -> None:
        import ray

        from swe_infer.api.budget_server import BudgetServer

        state = state_home()
        if state is None:
            raise ConfigError("the head node has no home directory for its budgets; set XDG_STATE_HOME there")
        folder = state / "budgets"
        folder.mkdir(parents=True, exist_ok=True)
        raise_file_limit()
        host = ray.util.get_node_ip_address()
        self._token = secrets.token_urlsafe(24)
        self._listener = listening(host, 0)
        self._url = f"http://{host_in_url(host)}:{self._listener.getsockname()[1]}"
        self._app = BudgetServer(folder, self._token, host).app()
        threading.Thread(target=self._serve, name="budgets", daemon=True).start()

    def _serve(self) -> None:
        try:
            serve(self._app, self._listener, connections=10_000)
        finally:
            os._exit(1)  # Ray starts the actor again

    def location(self) -> tuple[str, str]:
        """The server's address, and its token."""
        return self._url, self._token


def locate(key: str, timeout_s: float) -> tuple[str, str]:
    """The address and the token of the cluster's server, which is started if there is none.

    Args:
        key: the key of the configuration and its value, for messages.

    Raises:
        ConfigError: Ray is not installed, or this process is part of no cluster.
        TimeoutError: the actor did not start or reply within ``timeout_s``.
    """
    connect_to_ray(key, "auto")
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        head = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"])
        actor: Any = (
            ray.remote(BudgetActor)
            .options(
                name=_ACTOR,
                namespace=_NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False),
            )
            .remote()
        )
        url, token = ray.get(actor.location.remote(), timeout=timeout_s)
    except StopIteration:
        raise TimeoutError("the Ray cluster has no head node") from None
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError(f"no reply of Ray's actor {_ACTOR} for {timeout_s:.0f} s") from None
    except ray.exceptions.RayError as error:
        raise TimeoutError(f"no reply of Ray's actor {_ACTOR} ({ray_error_line(error)})") from error
    return str(url), str(token)
