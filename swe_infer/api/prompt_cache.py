"""Which prompts a provider has cached, or is about to cache, for all runs that share a directory.

A provider bills a prompt in full until the first answer to it begins. So where several processes send the same
prompts, one of them sends a prompt first and the others wait for its answer.

File format: a :class:`~swe_infer.api.coordination.SharedDatabase` with one more table:

* ``cached_prompts(key, owner, at)``: ``key`` is a digest of the provider, the model and the prompt. ``owner`` is the
  process whose request has been in flight since ``at``, or "" where the prompt has been cached since ``at`` (seconds
  since the epoch). A claim ends with its process, and after some minutes in any case: only the price of one prompt is
  at stake.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from swe_infer.api.coordination import SharedDatabase
from swe_infer.errors import StoreError
from swe_infer.types import ApiModel, Prompt

logger = logging.getLogger(__name__)

_LATENCY_S = 30.0
"""Seconds by which a prompt counts as forgotten earlier than the provider forgets it."""
_CLAIM_S = 180.0
"""Maximum seconds to wait for another run's request."""
_BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cached_prompts (
    key BLOB PRIMARY KEY, owner TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID
"""

Claim = Literal["lead", "cached", "wait"]


def prompt_key(prompt: Prompt, model: ApiModel, provider: str, base_url: str) -> bytes:
    """Digest of the address, the model and the text, which decide whether a provider has a prompt in its cache."""
    parts = "\x1f".join((provider, base_url, model.name, prompt.system or "", prompt.user, *prompt.images))
    return hashlib.blake2b(parts.encode(errors="surrogatepass"), digest_size=16).digest()


class PromptCacheIndex:
    """The index in ``path``, created if missing.

    If the file cannot be used, every prompt counts as cached, so that no run waits; only the savings are lost.

    Args:
        clock: seconds since the epoch.
        cached_s: how long the provider caches a prompt after its last use.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, *, cached_s: float = 300.0) -> None:
        self._clock = clock
        self._cached_s = cached_s - _LATENCY_S
        self._db: SharedDatabase | None = None
        try:
            self._db = SharedDatabase(path, f"{path} (the prompt cache index)", _SCHEMA, timeout_s=_BUSY_S)
            with self._db.transaction():
                self._db.beat()
                for owner in self._db.dead_owners():
                    self._remove(owner)
        except StoreError as error:
            self._give_up(error)

    def claim(self, key: bytes) -> Claim:
        """Returns ``lead`` if this run must send the prompt first and then call :meth:`release`, ``cached`` if the
        provider has the prompt, ``wait`` if another run's request is in flight."""
        if self._db is None:
            return "cached"
        try:
            claim = self._find(key)
            if claim != "lead":
                return claim
            with self._db.transaction():
                claim = self._find(key)  # another run may have claimed it since
                if claim == "lead":
                    self._db.beat()
                    row = (key, self._db.owner, self._clock())
                    self._db.execute("INSERT OR REPLACE INTO cached_prompts VALUES (?, ?, ?)", row)
        except StoreError as error:
            self._give_up(error)
            return "cached"
        return claim

    def release(self, key: bytes, *, cached: bool) -> None:
        """Ends a claim: the prompt was answered and is ``cached``, or the request failed."""
        if self._db is None:
            return
        try:
            if cached:
                self._db.execute("UPDATE cached_prompts SET owner = '', at = ? WHERE key = ?", (self._clock(), key))
            else:
                self._db.execute("DELETE FROM cached_prompts WHERE key = ? AND owner = ?", (key, self._db.owner))
        except StoreError as error:
            self._give_up(error)

    def close(self) -> None:
        """Release every claim and close the file."""
        if self._db is not None:
            try:
                with self._db.transaction():
                    self._remove(self._db.owner)
            except StoreError as error:
                logger.warning("%s", error)
            self._db.close()
            self._db = None

    def _remove(self, owner: str) -> None:
        assert self._db is not None
        self._db.execute("DELETE FROM cached_prompts WHERE owner = ?", (owner,))
        self._db.remove_owner(owner)

    def _find(self, key: bytes) -> Claim:
        assert self._db is not None
        rows = self._db.execute("SELECT owner, at FROM cached_prompts WHERE key = ?", (key,))
        if not rows:
            return "lead"
        owner, at = rows[0]
        age_s = self._clock() - at
        if owner == "":
            return "cached" if 0.0 <= age_s <= self._cached_s else "lead"
        return "lead" if not 0.0 <= age_s <= _CLAIM_S or owner in self._db.dead_owners() else "wait"

    def _give_up(self, error: StoreError) -> None:
        logger.warning("%s; concurrent runs do not wait for each other's cached prompts", error)
        if self._db is not None:
            self._db.close()
        self._db = None
