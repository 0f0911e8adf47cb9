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

from swe_infer.api.coordination import SharedDatabase
from swe_infer.errors import StoreError
from swe_infer.types import ApiModel, Prompt

logger = logging.getLogger(__name__)

_WARM_S = 270.0
"""Providers keep a prompt for five minutes after its last use; half a minute is for the way."""
_PATIENCE_S = 180.0
_BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cached_prompts (
    key BLOB PRIMARY KEY, owner TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID
"""


def prompt_key(prompt: Prompt, model: ApiModel, provider: str, base_url: str) -> bytes:
    """What a provider's cache goes by: who is asked, which model, which text."""
    parts = "\x1f".join((provider, base_url, model.name, prompt.system or "", prompt.user))
    return hashlib.blake2b(parts.encode(errors="surrogatepass"), digest_size=16).digest()


class PromptCacheIndex:
    """The account of prompts in ``path``, made where it does not exist.

    A file that cannot be used costs what it would have saved, never an answer: every prompt then counts as warm, so
    that nobody waits.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._db: SharedDatabase | None = None
        try:
            self._db = SharedDatabase(path, f"{path} (the prompt cache index)", _SCHEMA, timeout_s=_BUSY_S)
            with self._db.transaction():
                self._db.beat()
                for owner in self._db.dead_owners():
                    self._release(owner)
        except StoreError as error:
            self._give_up(error)

    def claim(self, key: bytes) -> bool | None:
        """True: this run goes ahead, and says so with :meth:`done`. False: the prompt is warm. None: another run's
        request is under way; ask again in a moment."""
        if self._db is None:
            return False
        try:
            if (verdict := self._verdict(key)) is not True:
                return verdict
            with self._db.transaction():
                if verdict := self._verdict(key):  # another run may have claimed it since
                    self._db.beat()
                    claimed = (key, self._db.owner, self._clock())
                    self._db.execute("INSERT OR REPLACE INTO cached_prompts VALUES (?, ?, ?)", claimed)
        except StoreError as error:
            self._give_up(error)
            return False
        return verdict

    def done(self, key: bytes, *, warm: bool) -> None:
        """The request that went ahead was answered (``warm``), or came to nothing."""
        if self._db is None:
            return
        try:
            if warm:
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
                    self._release(self._db.owner)
            except StoreError as error:
                logger.warning("%s", error)
            self._db.close()
            self._db = None

    def _release(self, owner: str) -> None:
        assert self._db is not None
        self._db.execute("DELETE FROM cached_prompts WHERE owner = ?", (owner,))
        self._db.remove_owner(owner)

    def _verdict(self, key: bytes) -> bool | None:
        assert self._db is not None
        rows = self._db.execute("SELECT owner, at FROM cached_prompts WHERE key = ?", (key,))
        if not rows:
            return True
        owner, at = rows[0]
        age_s = self._clock() - at
        if owner == "":
            return not 0.0 <= age_s <= _WARM_S
        return True if not 0.0 <= age_s <= _PATIENCE_S or owner in self._db.dead_owners() else None

    def _give_up(self, error: StoreError) -> None:
        logger.warning("%s; concurrent runs do not wait for each other's cached prompts", error)
        if self._db is not None:
            self._db.close()
        self._db = None
