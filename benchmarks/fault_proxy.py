"""A proxy on loopback in front of an object store that makes it fail in the ways stores do."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

FAULTS = ("500", "503", "slow", "trickling", "silent", "truncated", "reset")
_SLOW_SECONDS = 3.0
_PIECES, _PIECE_SECONDS = 8, 0.1
# Longer than a client waits for an answer.
_SILENT_SECONDS = 60.0
_ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "429": (429, "TooManyRequests", "Please wait."),
}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever is cut off here is meant to be."""


class FaultProxy:
    """Hands requests on to a store; `inject` makes a share of them fail.

    500, 503: the store's own error answers. slow: up to `_SLOW_SECONDS` late. trickling: the
    answer comes in pieces, with pauses. silent: no answer, before the store hears of the request
    or after it has done what it was asked. truncated: the answer breaks off halfway; the store has
    done what it was asked. reset: the connection is reset before the store hears of the request, or
    after it has answered.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.upstream = port
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._fault, self._share, self._until = "", 0.0, 0.0
        self.requests = self.injected = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def inject(self, fault: str, share: float, seconds: float) -> None:
        """Make a share of the requests fail for some seconds from now on."""
        with self._lock:
            self._fault, self._share = fault, share
            self._until = time.monotonic() + seconds

    def heal(self) -> None:
        """Let everything through again."""
        self.inject("", 0.0, 0.0)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _draw(self) -> tuple[str, float]:
        with self._lock:
            self.requests += 1
            is_hit = time.monotonic() < self._until and self._random.random() < self._share
            self.injected += is_hit
            return (self._fault if is_hit else ""), self._random.random()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault, chance = self._draw()
        if fault in _ERRORS:
            self._refuse(request, fault)
            return
        if fault == "slow":
            time.sleep(_SLOW_SECONDS * chance)
        if fault == "silent" and chance < 0.5:
            self._say_nothing(request)
            return
        if fault == "reset" and chance < 0.5:
            self._reset(request)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() != "expect"}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if fault == "silent":
            self._say_nothing(request)
            return
        if fault == "reset":
            self._reset(request)
            return
        self._pass_on(request, answer, content, fault)

    def _pass_on(
        self,
        request: BaseHTTPRequestHandler,
        answer: http.client.HTTPResponse,
        content: bytes,
        fault: str,
    ) -> None:
        is_cut = fault == "truncated"
        own = ("transfer-encoding", "connection", "content-length")
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in own]
        length = answer.getheader("Content-Length") or str(len(content))
        if is_cut and not content:
            self._reset(request)
            return
        try:
            request.send_response(answer.status, answer.reason)
            for name, value in headers:
                request.send_header(name, value)
            if answer.status != 204:
                request.send_header("Content-Length", length)
            request.end_headers()
            if fault == "trickling":
                _trickle(request, content)
            else:
                request.wfile.write(content[: len(content) // 2] if is_cut else content)
        except OSError:
            is_cut = True  # the client is gone
        if is_cut:
            request.close_connection = True

    def _say_nothing(self, request: BaseHTTPRequestHandler) -> None:
        """Keep the connection until the client gives it up, or for `_SILENT_SECONDS`."""
        request.connection.settimeout(_SILENT_SECONDS)
        with suppress(OSError):
            request.connection.recv(1)
        request.close_connection = True

    def _refuse(self, request: BaseHTTPRequestHandler, fault: str) -> None:
        status, code, message = _ERRORS[fault]
        content = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        ).encode()
        try:
            request.send_response(status)
            request.send_header("Content-Type", "application/xml")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)
        except OSError:
            request.close_connection = True

    def _reset(self, request: BaseHTTPRequestHandler) -> None:
        # Closed with data unsent and no lingering, a socket sends a reset.
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.close_connection = True
        request.connection.close()


def _trickle(request: BaseHTTPRequestHandler, content: bytes) -> None:
    size = len(content) // _PIECES + 1
    for start in range(0, len(content), size):
        time.sleep(_PIECE_SECONDS)
        request.wfile.write(content[start : start + size])
        request.wfile.flush()
