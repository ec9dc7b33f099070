"""What the tests share: an environment of their own, servers on loopback, and main.py as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import boto3
import pytest
from emulated_aws import EmulatedAWS
from instance_metadata import InstanceMetadataService
from scripted_aws import Reply, Request, ScriptedAWS, sts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REPOSITORY = Path(__file__).parent.parent
MAIN = REPOSITORY / "main.py"


# Whoever runs the tests in the background may have them ignore it, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def forget_settings(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """No setting of the machine that runs the tests has a say in them."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", home)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    forget_settings(monkeypatch, str(tmp_path / "home"))


@dataclass
class Run:
    """main.py after it has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["record"] == kind]

    @property
    def instances(self) -> list[dict[str, Any]]:
        return self.of("instance")

    @property
    def regions(self) -> dict[str, dict[str, Any]]:
        return {record["region"]: record for record in self.of("region")}

    @property
    def poll(self) -> dict[str, Any]:
        """The poll line, which must be the last."""
        assert [record["record"] for record in self.records].index("poll") == len(self.records) - 1
        return self.records[-1]

    @property
    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr.splitlines()]

    @property
    def said(self) -> str:
        """The messages on standard error."""
        return "\n".join(log["message"] for log in self.logs)


@dataclass
class Poller:
    """main.py as a process, in an environment of its own."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def variables(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """All that is in the environment of the process, with `env`."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), **self.environment, **(env or {})}

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        new_session: bool = False,
        main: Path = MAIN,
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, main, *arguments],
            env=self.variables(env),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=new_session,
            text=True,
            encoding="utf-8",
        )
        self.processes.append(process)
        return process

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, stdout: int | IO[str] = subprocess.PIPE
    ) -> Run:
        return finished(self.start(*arguments, env=env, stdout=stdout))

    def shell(self, arguments: str, before: str = "") -> Run:
        """Run main.py by a shell, which understands redirections and has done `before`."""
        command = f"{before} {sys.executable} {MAIN} {arguments}"
        done = subprocess.run(
            ["sh", "-c", command], env=self.variables(), capture_output=True, text=True, timeout=60, check=False
        )
        return Run(done.returncode, done.stdout, done.stderr)


def finished(process: subprocess.Popen[str]) -> Run:
    """Wait for a process, but not for ever."""
    stdout, stderr = process.communicate(timeout=120)
    return Run(process.returncode, stdout or "", stderr or "")


@pytest.fixture
def poller(tmp_path: Path) -> Iterator[Poller]:
    poller = Poller(tmp_path / "home")
    yield poller
    for process in poller.processes:
        process.kill()
        process.communicate()


@pytest.fixture
def metadata() -> Iterator[InstanceMetadataService]:
    with InstanceMetadataService() as service:
        yield service


@pytest.fixture
def script(poller: Poller, metadata: InstanceMetadataService) -> Iterator[Callable[..., ScriptedAWS]]:
    """A function that starts a scripted AWS; `poller` then runs on an instance of it."""
    with ExitStack() as stack:

        def start(
            answer: Callable[[Request], Reply | str],
            identify: Callable[[Request], Reply | str] = sts,
        ) -> ScriptedAWS:
            aws = stack.enter_context(ScriptedAWS(answer, identify))
            poller.environment |= {
                "AWS_ENDPOINT_URL": aws.url,
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
            }
            return aws

        yield start


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Callable[..., boto3.Session]:
    """A function that gives a session with keys, for a server."""

    def make(aws: ScriptedAWS | EmulatedAWS, region: str | None = "eu-west-1") -> boto3.Session:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
        return boto3.Session("AKIAEXAMPLE", "secret", region_name=region)

    return make


@pytest.fixture(scope="session")
def account() -> Iterator[EmulatedAWS]:
    """The emulated account with its fleet. Not to be changed."""
    with EmulatedAWS() as aws:
        aws.launch_fleet()
        yield aws
