"""A fake vLLM server, started as ``serve MODEL --port PORT …``. ``VLLM_STAND_IN`` selects its behaviour: ``dies``
while loading, ``hangs``, ``quits`` after its third answer, or ``serves``.

Like vLLM it starts a child process. It writes both pids, its arguments and every request to the folder
``VLLM_STAND_IN_NOTES``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> int:
    notes, mode = Path(os.environ["VLLM_STAND_IN_NOTES"]), os.environ["VLLM_STAND_IN"]
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (notes / "pids").write_text(f"{os.getpid()} {engine.pid}")
    (notes / "arguments.json").write_text(json.dumps(sys.argv[1:]))
    (notes / "environment.json").write_text(json.dumps(dict(os.environ)))
    print("loading the weights", flush=True)
    if mode == "dies":
        print("ValueError: the KV cache does not fit\n", file=sys.stderr)
        return 3
    if mode == "hangs":
        time.sleep(600)
    serve(int(sys.argv[sys.argv.index("--port") + 1]), notes / "requests.jsonl", 3 if mode == "quits" else None)
    return 0


def serve(port: int, log: Path, answers: int | None) -> None:
    class Handler(BaseHTTPRequestHandler):
        count = 0

        def do_GET(self) -> None:
            self.reply(200 if self.path == "/health" else 404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with log.open("a") as file:
                file.write(json.dumps({"path": self.path, **body}) + "\n")
            time.sleep(float(os.environ.get("VLLM_STAND_IN_LATENCY", "0")))
            text = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-a\n+b\n"
            kind = {"text": text} if self.path == "/v1/completions" else {"message": {"content": text}}
            usage = {"prompt_tokens": 10, "completion_tokens": 20}
            self.reply(200, {"choices": [{**kind, "finish_reason": "stop"}], "usage": usage, "model": body["model"]})
            Handler.count += 1
            if answers is not None and Handler.count >= answers:
                print("RuntimeError: the engine is dead", flush=True)
                os._exit(4)

        def reply(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Requests are logged to a file instead."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    sys.exit(main())
