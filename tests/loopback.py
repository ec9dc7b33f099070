"""An HTTP server, on a free port of loopback unless told otherwise, for as long as a with statement."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed closes its connection as it likes; anything else is a fault of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # they are passed on


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open between requests, logs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, status: int, content_type: str, body: bytes, content_length: int | None = None) -> None:
        """Send this, claiming `content_length` where that is not the truth."""
        self.close_connection |= content_length is not None
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body) if content_length is None else content_length))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # nobody waited for it

    def log_message(self, format: str, *values: object) -> None:
        pass


class LoopbackService:
    """What serves requests with the class that `handler` gives, at `url`."""

    url: str
    address: tuple[str, int] = ("127.0.0.1", 0)

    def handler(self) -> type[Handler]:
        raise NotImplementedError

    @property
    def connections(self) -> int:
        """How many have been opened."""
        return self._server.connections

    def __enter__(self) -> Self:
        self._server = Server(self.address, self.handler())
        self.url = f"http://{self.address[0]}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
