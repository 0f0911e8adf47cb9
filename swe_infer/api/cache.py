"""The response cache: answers that later runs reuse instead of paying again.

File format: one SQLite database in write-ahead mode, ``answers.sqlite`` in a directory that any number of processes
on one machine may share. The key is a SHA-256 over everything that decides an answer, in canonical JSON; the request
itself is not stored. Refusals, truncated answers and failures are not cached.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from swe_infer.api.coordination import remedy
from swe_infer.errors import StoreError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.locks import Locks, connect
from swe_infer.providers.base import Answer, Provider
from swe_infer.types import ApiModel, Request, Usage, sample_seed

logger = logging.getLogger(__name__)

_KEEP: frozenset[str] = frozenset({"stop"})
"""Finish reasons of complete answers."""

_KNOBS = ("effort", "thinking", "verbosity")
"""Keys of the model that are not part of the keys of answers if they are not set, as in earlier versions."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)

_WITHOUT_FORMER_KEYS = 1
"""``user_version`` of a database that no earlier version created."""

_SCHEMA = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, provider TEXT NOT NULL, created REAL NOT NULL, answer TEXT NOT NULL
)"""
"""With row ids, so that answers are appended: sorted by their keys, every few of them would split a page."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One cached answer, as :meth:`ResponseCache.entries` lists it."""

    key: str
    model: str
    provider: str
    created: float
    """Seconds since the epoch."""
    characters: int


@dataclass(frozen=True, slots=True)
class CacheSize:
    """The size of a cache."""

    answers: int
    bytes_on_disk: int


def cache_key(request: Request, model: ApiModel, provider: str, *, variant: str = "") -> str:
    """The key of a request's answer.

    It includes the provider, the model, the API version, extra body fields, the messages, the sampling parameters and
    the sample's index. It does not include the address, the instance's id, the number of samples, or the transport
    (timeouts, concurrency, batch or live).

    Args:
        variant: see :attr:`swe_infer.providers.base.Provider.variant`.
    """
    return _key(_identity(request, model, provider), {"variant": variant})


def former_key(request: Request, model: ApiModel, provider: Provider) -> str:
    """The key of a request's answer in earlier versions, which contained the address."""
    variant = {"variant": provider.variant} if provider.variant else {}  # earlier versions had no variants
    return _key(_identity(request, model, provider.name), {"host": _host(provider.address), **variant})


def _identity(request: Request, model: ApiModel, provider: str) -> dict[str, Any]:
    """What :func:`cache_key` and :func:`former_key` include."""
    decoding = request.decoding
    sampling = {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_new_tokens": decoding.max_new_tokens,
        "seed": None if decoding.seed is None else sample_seed(decoding, request.instance_id, request.sample),
        "stop": list(decoding.stop),
    }
    return {
        "provider": provider,
        "model": model.name,
        "api_version": model.api_version,
        "extra_body": _plain(model.extra_body),
        **{key: value for key in _KNOBS if (value := getattr(model, key)) is not None},
        "system": _system_digest(request.prompt.system),
        "user": request.prompt.user_sha256,
        **({} if request.prompt.prefill is None else {"prefill": _digest(request.prompt.prefill)}),
        **({"messages": list(map(_digest, request.prompt.parts))} if request.prompt.turns else {}),
        **({"images": list(map(_digest, request.prompt.images))} if request.prompt.images else {}),
        "sampling": sampling,
        "sample": request.sample,
    }


def _key(identity: Mapping[str, Any], server: Mapping[str, str]) -> str:
    return hashlib.sha256(_CANONICAL.encode({**identity, **server}).encode()).hexdigest()


class ResponseCache:
    """The cache of one directory.

    Raises:
        StoreError: the directory cannot be used.
    """

    def __init__(self, directory: Path, locks: Locks = "os") -> None:
        self.path = directory / "answers.sqlite"
        self._unwritten: dict[str, tuple[str, str, str, float, str]] = {}
        """Rows by key."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._db = connect(self.path, locks, timeout_s=60.0)
            self._db.execute(f"PRAGMA journal_mode={'WAL' if locks == 'os' else 'TRUNCATE'}")
            self._db.execute("PRAGMA synchronous=NORMAL")
            if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                self._db.execute(f"PRAGMA user_version={_WITHOUT_FORMER_KEYS}")
            self._db.execute(_SCHEMA)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            self.has_former_keys = version != _WITHOUT_FORMER_KEYS
            """Whether answers may have the keys of :func:`former_key`."""
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path}: the response cache cannot be used: {error}{remedy(error)}") from error

    def keys(self, request: Request, model: ApiModel, provider: Provider) -> list[str]:
        """The keys that a request's answer may have here, the present one first."""
        former = [former_key(request, model, provider)] if self.has_former_keys else []
        return [cache_key(request, model, provider.name, variant=provider.variant), *former]

    def get(self, key: str) -> Answer | None:
        """The cached answer, or None. An unreadable row or database counts as None."""
        try:
            row = self._unwritten.get(key)
            row = row or self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            kept: dict[str, Any] = json.loads(row[-1])
            return Answer(
                text=str(kept["text"]),
                finish_reason="stop",
                usage=Usage(**kept["usage"]),
                model=kept["model"],
                request_id=kept["request_id"],
                details=kept["details"],
            )
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            logger.log(_level(), "%s: an answer cannot be read (%s) and is requested again", self.path, error)
            return None

    def put(self, key: str, answer: Answer, *, model: str, provider: str) -> bool:
        """Stores an answer with the next :meth:`write`, if it is complete and not empty, unless the key has one.
        Returns whether there is something to write. :meth:`get` finds it at once."""
        if answer.finish_reason not in _KEEP or not answer.text.strip():
            return False
        kept = {
            "text": answer.text,
            "usage": answer.usage.as_dict(),
            "model": answer.model,
            "request_id": answer.request_id,
            "details": answer.details,
        }
        row = (key, model, provider, time.time(), json.dumps(kept, ensure_ascii=True, default=str))
        self._unwritten.setdefault(key, row)
        return True

    def write(self) -> bool:
        """Writes what :meth:`put` has kept, in one transaction. Returns whether it could be written.

        An error of the database is logged; the run continues.
        """
        rows, self._unwritten = list(self._unwritten.values()), {}
        if not rows:
            return True
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            logger.log(_level(), "%s: %d answers cannot be stored: %s", self.path, len(rows), error)
            return False
        return True

    def holds(self, key: str) -> bool:
        """Whether the key has an answer."""
        return self._db.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone() is not None

    def entries(self) -> Iterator[CacheEntry]:
        """All cached answers, oldest first."""
        query = "SELECT key, model, provider, created, length(answer) FROM answers ORDER BY created, key"
        for key, model, provider, created, characters in self._db.execute(query):
            yield CacheEntry(key, model, provider, created, characters)

    def size(self) -> CacheSize:
        """Number of answers and bytes, including the write-ahead log."""
        (count,) = self._db.execute("SELECT count(*) FROM answers").fetchone()
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return CacheSize(count, sum(file.stat().st_size for file in files if file.exists()))

    def clear(self, *, model: str | None = None, older_than_s: float | None = None) -> int:
        """Removes answers (of one model; older than an age) and frees the space. Returns how many were removed."""
        before = float("inf") if older_than_s is None else time.time() - older_than_s
        cursor = self._db.execute(
            "DELETE FROM answers WHERE (? IS NULL OR model = ?) AND created <= ?", (model, model, before)
        )
        self._db.execute("VACUUM")
        return cursor.rowcount

    def close(self) -> None:
        """Writes the rest, and closes the database."""
        self.write()
        self._db.close()


def _level() -> int:
    """The log level of an error: after Ctrl-C, which ends the wait for other processes, it is expected."""
    return logging.DEBUG if INTERRUPTS.stopping else logging.WARNING


def _digest(text: str | None) -> str | None:
    """A digest instead of the text, because encoding the text as JSON is ten times slower."""
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_system_digest = functools.lru_cache(maxsize=8)(_digest)
"""Prompts share the few system parts."""


def _host(base_url: str) -> str:
    """Host, port and path of an address, without possible secrets (user, password, query)."""
    parts = urlsplit(base_url)
    return f"{parts.hostname or ''}:{parts.port or ''}{parts.path.rstrip('/')}"


def _plain(value: Any) -> Any:
    """A value with dict and list instead of other mappings and sequences."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
