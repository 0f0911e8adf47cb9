"""What every request is checked for, and the headers of every response.

* Only GET and HEAD: nothing can be changed.
* ``Host`` must name this server. Otherwise a page elsewhere could read it through a name that it points here (DNS
  rebinding).
* Beyond loopback, a token: in the URL once, then in a cookie, so that it stays in no history.
"""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swe_infer.serving import KnownHosts

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content Security Policy of responses that state no other."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_COOKIE_DAYS = 30


class Guard:
    """Checks requests before they reach ``app``, and adds headers to responses.

    Args:
        host: the address or name that the server listens on.
        port: distinguishes the cookies of several servers: cookies are shared among ports.
        token: required if not None.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str | None) -> None:
        self._app = app
        self._hosts = KnownHosts(host)
        self._token = None if token is None else token.encode()
        self._cookie = f"swe_infer_view_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        response = self._refusal(scope)
        await (response or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The response to a request that may not reach the application; None if it may."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("only GET and HEAD\n", 405, {"Allow": "GET, HEAD"})
        if headers.getlist("host") not in self._hosts:
            return PlainTextResponse("this server has another name; use the address that it printed\n", 421)
        return None if self._token is None else self._without_token(scope, headers, self._token)

    def _without_token(self, scope: Scope, headers: Headers, token: bytes) -> Response | None:
        """The response to a request without the cookie: a redirect that sets it, or a refusal."""
        secret = hmac.new(token, b"swe-infer-view cookie", hashlib.sha256).hexdigest()
        if any(_equal(given, secret.encode()) for given in self._cookies(headers)):
            return self._without_query(scope, secret=None)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(given.strip(), token):
            return None
        if any(name == "token" and _equal(value, token) for name, value in _query(scope)):
            return self._without_query(scope, secret)
        text = "a token is required: use the address with ?token=… that swe-infer-view printed\n"
        return PlainTextResponse(text, 401, {"WWW-Authenticate": "Bearer"})

    def _without_query(self, scope: Scope, secret: str | None) -> Response | None:
        """A redirect to the same address without the token; None if it has none."""
        query = _query(scope)
        rest = [(name, value) for name, value in query if name != "token"]
        if len(rest) == len(query):
            return None
        # A path that begins with two slashes would name another server.
        path = "/" + scope["path"].lstrip("/")
        response = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, 303)
        if secret is not None:
            response.set_cookie(
                self._cookie, secret, max_age=_COOKIE_DAYS * 86_400, httponly=True, samesite="strict", path="/"
            )
        return response

    def _cookies(self, headers: Headers) -> list[str]:
        found = []
        for line in headers.getlist("cookie"):
            try:
                morsel = SimpleCookie(line).get(self._cookie)
            except CookieError:  # of another site on this host
                continue
            found += [] if morsel is None else [morsel.value]
        return found


def _query(scope: Scope) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            scope["query_string"].decode("ascii", "replace"), keep_blank_values=True, max_num_fields=1000
        )
    except ValueError:
        return []


def _equal(given: str, expected: bytes) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected)
