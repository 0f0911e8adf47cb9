"""Which prompts a provider has in its cache, or is just putting there, for all runs that share a directory.

A provider bills a prompt in full until the first answer to it begins. So where several processes ask over the same
prompts at once, one of them goes ahead with a prompt and the others wait for it; each leads where it comes first.

File format: one SQLite database, written by short immediate transactions.

* ``prompts(key, owner, host, pid, born, at)``: a prompt by the digest of where it goes and what it says. ``owner`` is
  the run whose request is under way since ``at``, or "" where the prompt is warm since ``at`` (seconds since the
  epoch). A claim ends with its process, and after some minutes in any case: what is at stake is the price of one
  prompt, not more.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from swe_infer.api.ledger import is_dead
from swe_infer.errors import StoreError
from swe_infer.locks import born, connect
from swe_infer.types import ApiModel, Prompt

logger = logging.getLogger(__name__)

_WARM_S = 270.0
"""Providers keep a prompt for five minutes after its last use; half a minute is for the way."""
_PATIENCE_S = 180.0
_BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (
    key BLOB PRIMARY KEY, owner TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL,
    at REAL NOT NULL) WITHOUT ROWID
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
        self._path = path
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._db: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(path, "os", timeout_s=_BUSY_S)
            self._db.execute("PRAGMA synchronous=OFF")  # what a power cut loses is asked for again
            self._db.execute("PRAGMA journal_mode=TRUNCATE")
            self._db.execute(_SCHEMA)
        except (OSError, sqlite3.Error, StoreError) as error:
            self._give_up(error)

    def claim(self, key: bytes) -> bool | None:
        """True: this run goes ahead, and says so with :meth:`done`. False: the prompt is warm. None: another run's
        request is under way; ask again in a moment."""
        if self._db is None:
            return False
        try:
            if (verdict := self._verdict(key)) is not True:
                return verdict
            self._db.execute("BEGIN IMMEDIATE")  # somebody may have been quicker
            if verdict := self._verdict(key):
                mine = (key, self._owner, socket.gethostname(), os.getpid(), born(os.getpid()), self._clock())
                self._db.execute("INSERT OR REPLACE INTO prompts VALUES (?, ?, ?, ?, ?, ?)", mine)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)
            return False
        return verdict

    def done(self, key: bytes, *, warm: bool) -> None:
        """The request that went ahead was answered (``warm``), or came to nothing."""
        if self._db is None:
            return
        try:
            if warm:
                self._db.execute("UPDATE prompts SET owner = '', at = ? WHERE key = ?", (self._clock(), key))
            else:
                self._db.execute("DELETE FROM prompts WHERE key = ? AND owner = ?", (key, self._owner))
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Let go of the file, and of every claim."""
        if self._db is not None:
            try:
                self._db.execute("DELETE FROM prompts WHERE owner = ?", (self._owner,))
            except sqlite3.Error as error:
                logger.warning("%s: %s", self._path, error)
            self._db.close()
            self._db = None

    def _verdict(self, key: bytes) -> bool | None:
        assert self._db is not None
        found = self._db.execute("SELECT owner, host, pid, born, at FROM prompts WHERE key = ?", (key,))
        row: tuple[str, str, int, str, float] | None = found.fetchone()
        if row is None:
            return True
        owner, host, pid, began, at = row
        age_s = self._clock() - at
        if owner == "":
            return not 0.0 <= age_s <= _WARM_S
        if not 0.0 <= age_s <= _PATIENCE_S or is_dead(host, pid, began, at):
            return True
        return None

    def _give_up(self, error: Exception) -> None:
        logger.warning("%s: runs at the same time do not wait for each other's cached prompts: %s", self._path, error)
        if self._db is not None:
            self._db.close()
        self._db = None
