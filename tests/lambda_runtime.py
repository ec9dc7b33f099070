"""Lambda on loopback, and one address for all of AWS: for tests of lambda_function.py and template.yaml.

The handler is called by AWS's own runtime for Python, awslambdaric, in processes of its own. They ask the runtime API
that `Function` serves, as they do on Lambda. `Cloud` is the endpoint that AWS_ENDPOINT_URL names: it answers Lambda's
Invoke with a `Function`, lets a test answer what it likes in AWS's place, and passes on the rest to moto's server. A
`Reply` that hangs up is an answer of moto's that gets lost.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

from loopback import Handler, LoopbackService
from scripted_aws import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

ACCOUNT = "111111111111"
"""The function's own."""
HOME = "eu-west-1"
FUNCTION_ARN = f"arn:aws:lambda:{HOME}:{ACCOUNT}:function:inventory"


class FunctionError(Exception):
    """What the handler raised."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer)
        self.answer = answer
        self.type: str = answer["errorType"]
        self.message: str = answer["errorMessage"]


@dataclass
class Invocation:
    body: bytes
    seconds: float
    id: str = field(default_factory=lambda: str(uuid4()))
    outcome: SimpleQueue[tuple[str, Any]] = field(default_factory=SimpleQueue)


@dataclass
class Function(LoopbackService):
    """A Lambda function within a with statement. As many events are handled at a time as there are processes."""

    folder: Path
    """Of its code, where the process has its working directory."""
    environment: Mapping[str, str]
    timeout: float = 900
    processes: int = 1
    command: Sequence[str | Path] = (sys.executable, "-m", "awslambdaric", "lambda_function.lambda_handler")

    def invoke(self, event: Any, seconds: float | None = None) -> Any:
        """What the handler returns. Raises FunctionError with what it raises. It has as many `seconds` left."""
        invocation = Invocation(json.dumps(event).encode(), self.timeout if seconds is None else seconds)
        self._waiting.put(invocation)
        kind, answer = invocation.outcome.get(timeout=60)
        if kind == "error":
            raise FunctionError(answer)
        return answer

    def handler(self) -> type[Handler]:
        function = self

        class RuntimeAPI(Handler):
            """https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html"""

            def do_GET(self) -> None:
                invocation = function._waiting.get()
                if invocation is None:
                    self.close_connection = True
                    return
                function._handled[invocation.id] = invocation
                self.send_response(200)
                for name, value in {
                    "Lambda-Runtime-Aws-Request-Id": invocation.id,
                    "Lambda-Runtime-Invoked-Function-Arn": FUNCTION_ARN,
                    "Lambda-Runtime-Deadline-Ms": str(int((time.time() + invocation.seconds) * 1000)),
                    "Content-Type": "application/json",
                    "Content-Length": str(len(invocation.body)),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(invocation.body)

            def do_POST(self) -> None:
                answer = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                *_, id, kind = self.path.split("/")
                self.answer(202, "application/json", b"{}")
                if id == "init":  # the handler cannot be imported
                    while invocation := function._waiting.get():
                        invocation.outcome.put((kind, answer))
                else:
                    function._handled.pop(id).outcome.put((kind, answer))

        return RuntimeAPI

    def __enter__(self) -> Self:
        super().__enter__()
        self._waiting: SimpleQueue[Invocation | None] = SimpleQueue()
        self._handled: dict[str, Invocation] = {}
        environment = {"PATH": "", "AWS_LAMBDA_RUNTIME_API": urlsplit(self.url).netloc, **self.environment}
        self._running = [
            subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for _ in range(self.processes)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.log = ""
        for process in self._running:
            process.kill()
            self._waiting.put(None)
            self.log += process.communicate()[0].decode()
        print(self.log)  # which pytest shows if the test has failed
        super().__exit__(kind, error, traceback)


@dataclass
class Cloud(LoopbackService):
    """All of AWS at one address. `script` is called for each request, and answers those that moto shall not."""

    moto: str
    script: Callable[[Request], Reply | str | None] = lambda request: None
    function: Function | None = None
    requests: list[Request] = field(default_factory=list)

    def handler(self) -> type[Handler]:
        cloud = self

        class AnyService(Handler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.startswith("/2015-03-31/functions/"):
                    self.invoke(json.loads(body))
                    return
                request = self.read(body)
                cloud.requests.append(request)
                said = cloud.script(request)
                if said is None:
                    self.forward(body)
                    return
                reply = said if isinstance(said, Reply) else Reply(said)
                if reply.hang_up:
                    self.forward(body, answer=False)
                    self.close_connection = True
                    return
                time.sleep(reply.delay)
                self.answer(reply.status, "text/xml;charset=UTF-8", reply.body.encode())  # type: ignore[union-attr]

            do_GET = do_PUT = do_POST

            def read(self, body: bytes) -> Request:
                """S3's requests are named by their method, with the key and what is conditional as parameters."""
                scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/", self.headers["Authorization"])
                assert scope, "a request that is not signed"
                key, region, service = scope.groups()
                if service == "s3":
                    path = unquote(urlsplit(self.path).path)
                    parameters = {"path": path, "if-none-match": self.headers.get("If-None-Match", "")}
                    action = {"PUT": "PutObject", "GET": "GetObject"}[self.command]
                elif target := self.headers.get("X-Amz-Target"):
                    parameters, action = {}, target.split(".")[-1]
                else:
                    parameters = dict(parse_qsl(body.decode(), keep_blank_values=True))
                    action = parameters["Action"]
                return Request(action, region, key, self.headers.get("X-Amz-Security-Token"), parameters)

            def invoke(self, event: Any) -> None:
                assert cloud.function, "a function that is not there is invoked"
                try:
                    answer, error = cloud.function.invoke(event), {}
                except FunctionError as failure:
                    answer, error = failure.answer, {"X-Amz-Function-Error": "Unhandled"}
                self.reply(200, {"Content-Type": "application/json", **error}, json.dumps(answer).encode())

            def forward(self, body: bytes, answer: bool = True) -> None:
                connection = HTTPConnection(urlsplit(cloud.moto).netloc, timeout=60)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    said = connection.getresponse()
                    content = said.read()
                    if answer:
                        self.reply(said.status, dict(said.headers), content)
                finally:
                    connection.close()

            def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in {"connection", "content-length", "date", "server", "transfer-encoding"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return AnyService
