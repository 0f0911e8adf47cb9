"""An object store with the S3 protocol, whose objects are files: it can be killed and started again.

As a process: ``python -m tests.support.object_store FOLDER --port 9000``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from xml.sax.saxutils import escape

from tests.support.loopback import Handler, Server

KEY, SECRET = "test-access-key", "test-secret-access-key"
_CREATING = threading.Lock()
_PAGE = 100


class ObjectStore(Server):
    """A store in a thread of this process, within a ``with`` block.

    Args:
        folder: contains a folder for each bucket. An object is a file whose name is its quoted key.
        port: 0: a free one.

    Attributes:
        requests: method and path of each request.
        prefix: the credentials are for keys that begin with it.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(_Handler, port)
        self.folder = folder
        self.requests: list[tuple[str, str]] = []
        self.prefix = ""

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.url)


def environment(url: str) -> dict[str, str]:
    """The variables with which a command finds the store at a URL."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def keys_of(folder: Path, bucket: str = "bucket") -> dict[str, bytes]:
    """The objects of a bucket."""
    found = {}
    for path in (folder / bucket).iterdir():
        with suppress(FileNotFoundError):  # removed meanwhile
            if not path.name.startswith("."):
                found[urllib.parse.unquote(path.name)] = path.read_bytes()
    return found


class StoreProcess:
    """A store in a process of its own, on one port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.object_store", str(self.folder), "--port", str(self.port)]
        root = Path(__file__).resolve().parent.parent.parent
        self._process = subprocess.Popen(command, cwd=root)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}/", timeout=10).close()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the object store did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class _Handler(Handler):
    server: ObjectStore

    do_DELETE = Handler.do_GET  # noqa: N815 - the base class finds it by this name

    def respond(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        bucket, _, key = parts.path.lstrip("/").partition("/")
        key = urllib.parse.unquote(key)
        body = self._content()
        self.server.requests.append((self.command, f"{bucket}/{key}"))
        folder = self.server.folder / bucket
        if not bucket:
            self.send(200, b"<ListAllMyBucketsResult/>")
        elif f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            self._refuse(403, "InvalidAccessKeyId", "The access key does not exist")
        elif not (query.get("prefix") or key).startswith(self.server.prefix):
            self._refuse(403, "AccessDenied", "The key is not authorized")
        elif not folder.is_dir():
            self._refuse(404, "NoSuchBucket", "The specified bucket does not exist")
        elif not key:
            self._bucket(folder, query, body)
        else:
            self._object(folder / urllib.parse.quote(key, safe=""), body)

    def _content(self) -> bytes:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return raw
        content = b""
        while True:
            head, _, raw = raw.partition(b"\r\n")
            size = int(head.partition(b";")[0], 16)
            if not size:
                return content
            content, raw = content + raw[:size], raw[size + 2 :]

    def _bucket(self, folder: Path, query: Mapping[str, str], body: bytes) -> None:
        if self.command == "POST":
            keys = re.findall(rb"<Key>(.*?)</Key>", body)
            for key in keys:
                (folder / urllib.parse.quote(key.decode(), safe="")).unlink(missing_ok=True)
            deleted = "".join(f"<Deleted><Key>{key.decode()}</Key></Deleted>" for key in keys)
            self.send(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        elif "list-type" in query:
            self._list(folder, query)
        else:
            self.send(200, b"<LocationConstraint/>")

    def _list(self, folder: Path, query: Mapping[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found: dict[str, Path | None] = {}
        for path in sorted(folder.iterdir()):
            key = urllib.parse.unquote(path.name)
            if key.startswith(prefix) and not path.name.startswith("."):
                head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                found[prefix + head + mark if mark else key] = None if mark else path
        after = query.get("continuation-token", "")
        names = [name for name in sorted(found) if name > after]
        most = min(_PAGE, int(query.get("max-keys", _PAGE)))
        text = ""
        for name in names[:most]:
            file = found[name]
            if file is None:
                text += f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
                continue
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(file.stat().st_mtime))
            text += (
                f"<Contents><Key>{escape(name)}</Key><LastModified>{stamp}</LastModified>"
                f"<ETag>{_etag(file.read_bytes())}</ETag><Size>{file.stat().st_size}</Size></Contents>"
            )
        more = len(names) > most
        following = f"<NextContinuationToken>{escape(names[most - 1])}</NextContinuationToken>" if more else ""
        count = f"<KeyCount>{len(names[:most])}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        self.send(200, f"<ListBucketResult>{count}{following}{text}</ListBucketResult>".encode())

    def _object(self, path: Path, body: bytes) -> None:
        if self.command == "PUT":
            new = path.with_name(f".{threading.get_ident()}.new")
            new.write_bytes(body)
            with _CREATING:
                if self.headers.get("If-None-Match") == "*" and path.exists():
                    self._refuse(412, "PreconditionFailed", "At least one of the preconditions did not hold")
                    return
                os.replace(new, path)
            self.send(200, b"", {"ETag": _etag(body)})
        elif self.command == "DELETE":
            path.unlink(missing_ok=True)
            self.send(204)
        else:
            try:
                content = path.read_bytes()
                changed = formatdate(path.stat().st_mtime, usegmt=True)
            except FileNotFoundError:
                self._refuse(404, "NoSuchKey", "The specified key does not exist")
                return
            headers = {"ETag": _etag(content), "Last-Modified": changed}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted is not None:
                start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                content = content[start : end + 1]
            self.send(200 if wanted is None else 206, content, headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A store with a bucket named ``bucket``."""
    (folder / "bucket").mkdir(parents=True)
    with ObjectStore(folder) as store:
        yield store


def main() -> None:
    """Serves a folder until the process is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    ObjectStore(options.folder, options.port).serve_forever()


if __name__ == "__main__":
    main()
