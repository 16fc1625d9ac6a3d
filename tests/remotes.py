"""Servers on loopback for tests of what lies behind a URL: S3 by moto, HTTP, and some that refuse or never answer."""

import logging
import math
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "a-bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _serving(server: HTTPServer) -> Iterator[str]:
    """Its address, while a thread serves."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3_server(*, puts: float = math.inf) -> Iterator[str]:
    """The address of an S3 server with an empty bucket; after so many objects it refuses every further one."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    app = DomainDispatcherApplication(create_backend_app)
    left = [puts + 1]  # the bucket is the first
    turn = threading.Lock()

    def taking(environ, start):  # type: ignore[no-untyped-def]
        if environ["REQUEST_METHOD"] == "PUT":
            with turn:
                left[0] -= 1
            if left[0] < 0:
                start("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>no more</Message></Error>"]
        return app(environ, start)

    with _serving(make_server("127.0.0.1", 0, taking, threaded=True)) as address:
        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=30).close()
        yield address


@contextmanager
def refusing_server(status: int) -> Iterator[str]:
    """The address of a server that answers everything with an error."""

    class Refusing(_Quiet):
        def do_GET(self) -> None:
            self.send_error(status)

        do_HEAD = do_PUT = do_POST = do_GET

    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Refusing)) as address:
        yield address


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files, which knows no ranges."""
    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))) as address:
        yield address


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"
