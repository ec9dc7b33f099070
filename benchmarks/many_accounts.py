#!/usr/bin/env python3
"""Measure main.py --roles on accounts of 17 regions each, all of them on loopback, for README.md.

The endpoints have AWS's own names, behind a proxy that ends the TLS of each: so connections cost what they cost
elsewhere, trusted certificates included, which is most of what it costs to ask a region.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl

import certifi
from bench import REGIONS
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from results import MB, README, Cost, processor
from server import NOT_FOUND, STS_NAMESPACE, ec2_error, instance_metadata, region_pages, response
from tools import BENCHMARKS, REPOSITORY

BEGIN, END = "<!-- accounts: begin -->", "<!-- accounts: end -->"

HOME = "999999999999"
FIRST = 111_111_100_000
"""The first of the accounts."""

LATENCY = 0.1
"""Seconds before each answer."""

FAILING = {"role denied": 7, "region denied": 8, "throttled": 9}
"""By the remainder of the account's number, divided by 100."""


def kind_of(account: str) -> str | None:
    """How one in a hundred accounts fails, for each way to."""
    remainder = int(account) % 100
    return next((kind for kind, digit in FAILING.items() if digit == remainder and account != HOME), None)


class Server(ThreadingHTTPServer):
    """A proxy that ends the TLS itself, and answers for EC2 and STS; without TLS it is the metadata service."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext, instances: int) -> None:
        self.tls = tls
        self.pages = {region: region_pages(region, number, instances)[0] for number, region in enumerate(REGIONS)}
        self.metadata = {path: response("text/plain", body) for path, body in instance_metadata(REGIONS[0]).items()}
        self.throttled: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_CONNECT(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with self.server.lock:
            self.server.calls["connections"] += 1
            self.server.open += 1
            self.server.most_open = max(self.server.open, self.server.most_open)
        try:
            self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
            self.close_connection = False
            while not self.close_connection:
                self.handle_one_request()
            self.connection.close()
        except OSError:
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.open -= 1

    def do_PUT(self) -> None:
        self.wfile.write(self.server.metadata["api/token"])

    def do_GET(self) -> None:
        name = self.path.removeprefix("/latest/").rstrip("/")
        self.wfile.write(self.server.metadata.get(name, NOT_FOUND))

    def do_POST(self) -> None:
        parameters = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/", self.headers["Authorization"])
        assert scope, "a request that is not signed"
        key, region = scope[1], scope[2]
        account = key.removeprefix("ASIA") if key[4:].isdigit() else HOME
        action = parameters["Action"]
        self.server.calls[action] += 1
        time.sleep(LATENCY)
        if action == "AssumeRole":
            self.wfile.write(assume_role(parameters["RoleArn"]))
        elif action == "GetCallerIdentity":
            self.wfile.write(caller_identity(account))
        else:
            self.wfile.write(self.describe_instances(account, region))

    def describe_instances(self, account: str, region: str) -> bytes:
        kind = kind_of(account)
        if kind == "region denied" and region == REGIONS[3]:
            return response("text/xml", ec2_error("UnauthorizedOperation", "Denied by a policy."), "403 Forbidden")
        if kind == "throttled":
            self.server.throttled[f"{account} {region}"] += 1
            if self.server.throttled[f"{account} {region}"] <= 2:
                too_many = ec2_error("RequestLimitExceeded", "Request limit exceeded.")
                return response("text/xml", too_many, "503 Service Unavailable")
        return self.server.pages[region]

    def log_message(self, format: str, *values: object) -> None:
        pass


def assume_role(arn: str) -> bytes:
    account = arn.split(":")[4]
    if kind_of(account) == "role denied":
        body = (
            f'<ErrorResponse xmlns="{STS_NAMESPACE}"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User is '
            f"not authorized to perform: sts:AssumeRole on resource: {arn}</Message></Error></ErrorResponse>"
        )
        return response("text/xml", body, "403 Forbidden")
    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    return response(
        "text/xml",
        f'<AssumeRoleResponse xmlns="{STS_NAMESPACE}"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>AROA:x'
        f"</AssumedRoleId><Arn>arn:aws:sts::{account}:assumed-role/inventory/x</Arn></AssumedRoleUser><Credentials>"
        f"<AccessKeyId>ASIA{account}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>{'t' * 800}"
        f"</SessionToken><Expiration>{expires:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials></AssumeRoleResult>"
        "</AssumeRoleResponse>",
    )


def caller_identity(account: str) -> bytes:
    return response(
        "text/xml",
        f'<GetCallerIdentityResponse xmlns="{STS_NAMESPACE}"><GetCallerIdentityResult>'
        f"<Arn>arn:aws:sts::{account}:assumed-role/inventory/x</Arn><UserId>AROA:x</UserId><Account>{account}</Account>"
        "</GetCallerIdentityResult></GetCallerIdentityResponse>",
    )


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """TLS for all endpoints, and the file of certificates to trust: the usual ones and this."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    names = [x509.DNSName(f"{service}.{region}.amazonaws.com") for service in ("ec2", "sts") for region in REGIONS]
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = folder / "server.pem"
    pem.write_bytes(private + signed)
    trusted = folder / "trusted.pem"
    trusted.write_bytes(Path(certifi.where()).read_bytes() + signed)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    return tls, trusted


@dataclass(frozen=True)
class Run:
    cost: Cost
    kinds: Counter[str]
    """Of lines, by what they say."""
    calls: Counter[str]
    """And connections, as the server counted them."""
    most_open: int
    """Connections at a time."""


def main_py(roles: Path) -> list[str]:
    regions = [argument for region in REGIONS for argument in ("--region", region)]
    return [str(REPOSITORY / "main.py"), "--roles", str(roles), "--no-home", *regions]


def loop(roles: Path) -> list[str]:
    return [str(BENCHMARKS / "boto3_accounts_loop.py"), str(roles), *REGIONS]


def measured(command: list[str], server: Server, folder: Path, trusted: Path) -> Run:
    """What a run of `command` cost, and what it wrote."""
    url = f"http://127.0.0.1:{server.server_port}"
    log = folder / "inventory.log"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "measure.py"), "3600", str(log), sys.executable, *command],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "HTTPS_PROXY": url,
            "AWS_CA_BUNDLE": str(trusted),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
            "AWS_DEFAULT_REGION": REGIONS[0],
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    kinds: Counter[str] = Counter()
    with log.open() as lines:
        for line in lines:
            record = json.loads(line)
            kinds[record["record"]] += 1
            if record["record"] == "poll":
                kinds["complete" if record["complete"] else f"incomplete: {kind_of(record['account'])}"] += 1
    return Run(Cost(**json.loads(done.stdout)["cost"]), kinds, server.calls.copy(), server.most_open)


def row(name: str, accounts: int, run: Run) -> str:
    cost, regions = run.cost, accounts * len(REGIONS)
    figures = (
        f"{cost.wall:,.0f}",
        f"{1000 * (cost.user + cost.system) / regions:.0f}",
        f"{cost.rss / MB:.0f}",
        f"{run.calls['connections']:,}",
        f"{run.most_open}",
    )
    return f"| {name} | {accounts:,} | {regions:,} | {' | '.join(figures)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--accounts", type=int, nargs="+", default=[10, 100, 1000], help="(default: 10 100 1000)")
    parser.add_argument(
        "--instances", type=int, default=5, help="in each region of each account (default: %(default)s)"
    )
    asked = parser.parse_args()
    lines = [
        (
            f"- measured on {date.today().isoformat()}: {os.cpu_count()} cores, {processor()}, the server on one of them;"
            f" CPython {platform.python_version()}"
        ),
        f"- {LATENCY * 1000:.0f} ms before each answer; {asked.instances} instances in each region of each account",
        "",
        "| | accounts | regions | wall, s | CPU a region, ms | peak RSS, MB | connections | at a time |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tls, trusted = certificate(folder)
        roles = folder / "roles"
        for accounts, tool, command in [
            (min(asked.accounts), "a loop on boto3", loop),
            *((accounts, "main.py", main_py) for accounts in asked.accounts),
        ]:
            roles.write_text("".join(f"arn:aws:iam::{FIRST + number}:role/inventory\n" for number in range(accounts)))
            with Server(tls, asked.instances) as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                run = measured(command(roles), server, folder, trusted)
                server.shutdown()
            good = sum(kind_of(str(FIRST + number)) is None for number in range(accounts))
            throttled = sum(kind_of(str(FIRST + number)) == "throttled" for number in range(accounts))
            if tool == "main.py" and (run.kinds["poll"], run.kinds["complete"]) != (accounts, good + throttled):
                raise SystemExit(f"not what is there: {run.kinds}")
            lines.append(row(tool, accounts, run))
            print(lines[-1], flush=True)
    ended = ", ".join(f"{count} {kind}" for kind, count in sorted(run.kinds.items()) if kind.startswith("incomplete"))
    lines.insert(
        2, f"- of {accounts:,} accounts, {run.kinds['complete']} were complete, {throttled} of them throttled; {ended}"
    )
    before, rest = README.read_text().split(BEGIN)
    README.write_text("\n".join([before + BEGIN, *lines, END + rest.split(END)[1]]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
