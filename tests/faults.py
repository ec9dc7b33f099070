"""Every fault at every joint: what goes wrong between main.py and what it touches, played to it over real sockets.

`make faults` plays them all and writes the table of outcomes to docs/faults.md.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from instance_metadata import InstanceMetadataService
from loopback import Handler, LoopbackService
from scripted_aws import Request, ScriptedAWS, an_instance, ec2_error, page, sts_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

REPOSITORY = Path(__file__).parent.parent
DOCUMENT = REPOSITORY / "docs/faults.md"

TOKEN, REGION, ROLE, CREDENTIALS = METADATA = (
    "metadata token",
    "metadata region",
    "metadata role",
    "metadata credentials",
)
IDENTITY = "GetCallerIdentity"
FIRST, MIDDLE, LAST = PAGES = ("first page", "middle page", "last page")
AWS = (IDENTITY, *PAGES)
JOINTS = (*METADATA, *AWS)

ASKED_BEFORE = {TOKEN: 2, REGION: 1, ROLE: 3, CREDENTIALS: 5, IDENTITY: 6, FIRST: 7, MIDDLE: 8, LAST: 9}
"""How many requests a poll of one region has made when it comes to a joint. Each metadata value has a token first: TOKEN
stands for the second, when the process surely runs."""

HOME = "eu-west-1"
"""The region of the metadata service."""

REGIONS = {"us-east-1": FIRST, "ap-east-1": MIDDLE, "us-west-1": LAST, "us-west-2": None}
"""Where the page joints are played in one poll: a region for each, an opt-in one among them, and one that is left in
peace."""


@dataclass
class Exchange:
    """A request that a fault answers in place of the real answer, `body`."""

    handler: Handler
    joint: str
    body: bytes
    passes: bool

    def say(self, body: bytes | str, status: int = 200) -> None:
        Handler.answer(self.handler, status, "text/plain", body.encode() if isinstance(body, str) else body)

    def say_raw(self, text: bytes) -> None:
        """`text` is the whole answer, headers and all; then the connection is closed."""
        self.handler.close_connection = True
        with suppress(OSError):
            self.handler.wfile.write(text)

    def headed(self, body: bytes, *headers: str) -> bytes:
        return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: text/xml", *headers, "", ""]).encode() + body

    @property
    def half(self) -> bytes:
        return self.body[: len(self.body) // 2]


def no_answer(exchange: Exchange) -> None:
    exchange.handler.close_connection = True
    with suppress(OSError):
        exchange.handler.connection.recv(1)  # returns when the client gives up


def drip(exchange: Exchange) -> None:
    """A byte a second, headers too. No time-out for a read ever sees that."""
    text = exchange.headed(exchange.body, f"Content-Length: {len(exchange.body)}")
    for position in range(3 if exchange.passes else len(text)):
        exchange.say_raw(text[position : position + 1])
        time.sleep(1)
    exchange.say_raw(text[3:])


def truncated_length(exchange: Exchange) -> None:
    exchange.say_raw(exchange.headed(exchange.half, f"Content-Length: {len(exchange.body)}"))


def reset(exchange: Exchange) -> None:
    truncated_length(exchange)
    exchange.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.2)  # until the half is read, which a reset would take back
    os.close(exchange.handler.connection.detach())  # before the server says a polite good-bye


def truncated_chunked(exchange: Exchange) -> None:
    chunk = f"{len(exchange.half):x}\r\n".encode() + exchange.half + b"\r\n"
    exchange.say_raw(exchange.headed(chunk, "Transfer-Encoding: chunked"))


def truncated_close(exchange: Exchange) -> None:
    exchange.say_raw(exchange.headed(exchange.half, "Connection: close"))


HTML = "<html><head><title>Sign in</title></head><body><p>Welcome to the guest network<br></body></html>"
FOREIGN_XML = '<?xml version="1.0"?><note xmlns="https://example.com/"><to>whom it may concern</to></note>'
STATUSES = (400, 401, 403, 429, 500, 503)


def error(code: str, status: int) -> Callable[[Exchange], None]:
    """The error as the service that is asked words it."""

    def play(exchange: Exchange) -> None:
        reply = (sts_error if exchange.joint == IDENTITY else ec2_error)(code, status=status)
        exchange.say(reply.body, status)

    return play


def says(body: str, status: int = 200) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.say(body, status)


def replaced(pattern: str, by: str) -> Callable[[Exchange], None]:
    def play(exchange: Exchange) -> None:
        body, count = re.subn(pattern, by, exchange.body.decode(), flags=re.DOTALL)
        assert count, f"nothing to replace at {exchange.joint}"
        exchange.say(body)

    return play


def token_again(exchange: Exchange) -> None:
    """At the last page, which has none, this makes t1, t2, t1, ..."""
    exchange.say(re.sub("(<nextToken>.*)?</Desc", "<nextToken>t1</nextToken></Desc", exchange.body.decode()))


def fifty_megabytes(exchange: Exchange) -> None:
    """White space makes it as large as it is; for two seconds there is always something to read."""
    white_space = b" " * 2_500_000
    exchange.say_raw(exchange.headed(exchange.body, f"Content-Length: {len(exchange.body) + 20 * len(white_space)}"))
    for _ in range(20):
        exchange.say_raw(white_space)
        time.sleep(0.1)


@dataclass(frozen=True)
class Fault:
    name: str
    play: Callable[[Exchange], None] | None = None
    """None: there is no connection to play it on, see `listener`."""
    at: Collection[str] = JOINTS
    listener: str = "serves"
    """serves, refuses, hangs, or is unreachable, which is played only where an address is asked first."""
    tries: int = 2
    """How many it spoils where it passes."""
    passes: str = "complete"
    """What is recorded where it passes: "complete", or the status of the region."""
    stays: str = "failed"
    deadline: int = 60
    """Seconds that the poll has where it stays."""


FAULTS = (
    Fault("connection refused", listener="refuses"),
    Fault("network unreachable", listener="is unreachable", at=(TOKEN, IDENTITY, FIRST)),
    Fault("connection hangs", listener="hangs"),
    Fault("no answer", no_answer, tries=1, deadline=20),
    Fault("a byte a second", drip, tries=1, deadline=20),
    Fault("reset in mid-body", reset),
    Fault("truncated, with Content-Length", truncated_length),
    Fault("truncated, chunked", truncated_chunked),
    Fault("truncated, until close", truncated_close),
    Fault("200, empty", says("")),
    Fault("200, HTML", says(HTML)),
    Fault("200, foreign XML", says(FOREIGN_XML), at=AWS),
    Fault("200, invalid XML", replaced("</", "<"), at=AWS),
    Fault("200, 50 MB, slow but steady", fifty_megabytes, stays="complete"),
    Fault("a bad integer", replaced("<deviceIndex>0<", "<deviceIndex>zero<"), at=PAGES),
    Fault("a bad date", replaced("<attachTime>2026-", "<attachTime>soon-"), at=PAGES),
    Fault("a bad date of expiry", replaced('"Expiration": "', '"Expiration": "soon'), at=[CREDENTIALS]),
    Fault("an element missing", replaced("<(reservationSet|Account)>.*</\\1>", ""), at=AWS),
    Fault("a key missing", replaced('"Token": "[^"]*", ', ""), at=[CREDENTIALS]),
    Fault("Code: Failed", replaced('"Success"', '"Failed"'), at=[CREDENTIALS]),
    *(Fault(f"{status}, plain text", says("Computer says no.", status)) for status in STATUSES),
    *(Fault(f"{status}, HTML", says(HTML, status), at=AWS) for status in STATUSES),
    Fault("400, InvalidParameterValue", error("InvalidParameterValue", 400), at=AWS, passes="failed"),
    Fault("401, AuthFailure", error("AuthFailure", 401), at=AWS),
    Fault("403, UnauthorizedOperation", error("UnauthorizedOperation", 403), at=PAGES, passes="denied", stays="denied"),
    Fault("403, InvalidClientTokenId", error("InvalidClientTokenId", 403), at=[IDENTITY]),
    Fault("429, Throttling", error("Throttling", 429), at=AWS),
    Fault("500, InternalError", error("InternalError", 500), at=AWS),
    Fault("503, Unavailable", error("Unavailable", 503), at=AWS),
    Fault("400, RequestLimitExceeded", error("RequestLimitExceeded", 400), at=AWS),
    Fault("503, RequestLimitExceeded", error("RequestLimitExceeded", 503), at=AWS),
    Fault("400, RequestExpired", error("RequestExpired", 400), at=AWS),
    Fault("400, ExpiredToken", error("ExpiredToken", 400), at=AWS),
    Fault("400, InvalidPaginationToken", error("InvalidPaginationToken", 400), at=PAGES),
    Fault("a page token that came before", token_again, at=(MIDDLE, LAST)),
)


SECRETS = ("secret-of-ASIAMETADATA", "token-of-ASIAMETADATA", "Signature=")

FLEET = {
    region: [[f"i-{region}-{joint.split()[0]}-{number}" for number in range(3)] for joint in PAGES]
    for region in (HOME, *REGIONS)
}
"""The ids of the instances of each region's three pages."""


def honest_page(request: Request) -> str:
    number = {None: 0, "t1": 1, "t2": 2}[request.page_token]
    ids = FLEET[request.region][number]
    token = None if number == 2 else f"t{number + 1}"
    more = (
        "<networkInterfaceSet><item><attachment><deviceIndex>0</deviceIndex>"
        "<attachTime>2026-11-01T08:00:00.000Z</attachTime></attachment></item></networkInterfaceSet>"
    )
    return page(*(an_instance(each, tags={"Name": each}, more=more) for each in ids), token=token)


class FaultyAWS(LoopbackService):
    """Instance metadata, STS and EC2 behind one socket. `fault` is played at the joint that `joints` gives for the
    region that is asked (None: where no region's instances are)."""

    def __init__(self, fault: Fault, joints: Mapping[str | None, str | None], passes: bool) -> None:
        # An address of its own: nobody else can get the port while it is closed.
        self.address = ("127.{}.{}.{}".format(*(secrets.randbelow(254) + 1 for _ in range(3))), 0)
        self.fault = fault
        self.joints = joints
        self.passes = passes
        self.tries: Counter[str] = Counter()
        self.answered = 0
        self._restored: threading.Timer | None = None
        self._deaf = ExitStack()

    def __enter__(self) -> Self:
        super().__enter__()
        self.address = (self.address[0], int(self.url.split(":")[-1]))
        self.cut_where_due()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._restored:
            self._restored.join()
        self._deaf.close()
        super().__exit__(kind, error, traceback)

    def handler(self) -> type[Handler]:
        faulty = self
        metadata: Any = InstanceMetadataService().handler()
        query: Any = ScriptedAWS(honest_page).handler()

        class FaultyHandler(metadata, query):  # type: ignore[misc]  # classes that are made at run time
            def read_request(self) -> Request:
                self.asked = cast("Request", super().read_request())
                return self.asked

            def answer(self, status: int, content_type: str, body: bytes, content_length: int | None = None) -> None:
                region, joint = self.joint()
                faulty.answered += 1
                self.close_connection = faulty.cut_where_due()
                if faulty.fault.play and faulty.joints.get(region) == joint:
                    faulty.tries[joint] += 1
                    if not faulty.passes or faulty.tries[joint] <= faulty.fault.tries:
                        faulty.fault.play(Exchange(self, joint, body, faulty.passes))
                        return
                super().answer(status, content_type, body, content_length)

            def joint(self) -> tuple[str | None, str]:
                if self.command != "POST":
                    name = self.path.rstrip("/").rsplit("/", 1)[-1]
                    return None, {"token": TOKEN, "region": REGION, "security-credentials": ROLE}.get(name, CREDENTIALS)
                if self.asked.action == IDENTITY:
                    return None, IDENTITY
                return self.asked.region, {None: FIRST, "t1": MIDDLE, "t2": LAST}[self.asked.page_token]

        return FaultyHandler

    def cut_where_due(self) -> bool:
        """Take the listener away if that is the fault and its joint is what is asked next."""
        (joint, *others) = self.joints.values()
        due = self.fault.listener in {"refuses", "hangs"} and self.answered == ASKED_BEFORE[str(joint)]
        if due:
            self.tries[str(joint)] += 1
            assert not others, "all that is asked of one listener, it is asked in a row"
            super().__exit__(None, None, None)
            if self.fault.listener == "hangs":
                # Its queue has room for one connection, which is never accepted: to others it is dead.
                deaf = self._deaf.enter_context(socket.create_server(self.address, backlog=0))
                self._deaf.enter_context(socket.create_connection(deaf.getsockname()))
            if self.passes:
                self._restored = threading.Timer(0.4, self._restore)
                self._restored.start()
        return due

    def _restore(self) -> None:
        self._deaf.close()
        super().__enter__()

    @property
    def environment(self) -> dict[str, str]:
        names = {
            TOKEN: "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            IDENTITY: "AWS_ENDPOINT_URL_STS",
            FIRST: "AWS_ENDPOINT_URL_EC2",
        }
        variables = dict.fromkeys(names.values(), self.url)
        if self.fault.listener == "is unreachable":
            (joint,) = map(str, self.joints.values())
            self.tries[joint] += 1
            variables[names[joint]] = "http://255.255.255.255"
        return variables


@dataclass(frozen=True)
class Play:
    """A fault, played in one run of main.py."""

    fault: Fault
    joints: Mapping[str | None, str | None]
    passes: bool

    def __str__(self) -> str:
        joints = ", ".join(joint for joint in self.joints.values() if joint)
        return f"{self.fault.name} at {joints}, which {'passes' if self.passes else 'stays'}"

    @property
    def regions(self) -> Sequence[str]:
        return [HOME] if len(self.joints) == 1 else [region for region in self.joints if region]


def plays(joints: Iterable[str]) -> list[Play]:
    """All that there is to play at `joints`."""
    found = []
    for fault, passes in itertools.product(FAULTS, (True, False)):
        at = [joint for joint in joints if joint in fault.at]
        if passes and fault.listener == "is unreachable":
            continue  # an address does not come nearer
        if fault.play and set(PAGES) & set(at):
            found.append(
                Play(fault, {region: joint for region, joint in REGIONS.items() if joint in {*at, None}}, passes)
            )
            at = [joint for joint in at if joint not in PAGES]
        found += [Play(fault, {HOME if joint in PAGES else None: joint}, passes) for joint in at]
    return found


@dataclass
class Outcome:
    """What main.py made of a play."""

    play: Play
    statuses: dict[str | None, str]
    """By joint (None: where nothing was played): complete, or what the record says instead."""
    flaws: list[str]
    """What is wrong with the record, in words."""
    log: str


def perform(play: Play) -> Outcome:
    with tempfile.TemporaryDirectory() as home, FaultyAWS(play.fault, play.joints, play.passes) as aws:
        log = Path(home) / "inventory.log"
        # One region is the instance's own, which is what is polled where none is named.
        named = play.regions if len(play.joints) > 1 else []
        regions = [argument for region in named for argument in ("--region", region)]
        deadline = play.fault.deadline if not play.passes else 60
        with log.open("ab") as both:
            process = subprocess.run(
                [sys.executable, REPOSITORY / "main.py", "--deadline", str(deadline), *regions],
                env={"PATH": os.environ["PATH"], "HOME": home, **aws.environment},
                stdin=subprocess.DEVNULL,
                stdout=both,
                stderr=both,
                check=False,
                timeout=deadline + 30,
            )
        outcome = judge(play, process.returncode, log.read_text())
        outcome.flaws += [f"{joint} was never played" for joint in outcome.statuses if joint and not aws.tries[joint]]
        return outcome


def judge(play: Play, code: int, log: str) -> Outcome:
    """Whether the log is whole, and says what was delivered and what was not."""
    records: list[dict[str, Any]] = []
    flaws = [f"a secret is told: {secret}" for secret in SECRETS if secret in log]
    for line in log.splitlines(keepends=True):
        if line.startswith("{") and line.endswith("}\n"):
            records.append(json.loads(line))
        else:
            flaws.append(f"not a whole line: {line!r}")
    records = [record for record in records if record["record"] != "log"]
    kinds = [record["record"] for record in records]
    if kinds.count("poll") != 1 or kinds[-1] != "poll":
        return Outcome(play, {}, [*flaws, f"no poll line at the end: {kinds}"], log)
    poll = records[-1]
    regions = {record["region"]: record for record in records if record["record"] == "region"}
    statuses = {}
    for region in play.regions:
        joint = play.joints[region if region in play.joints else None]
        recorded = [record for record in records if record["record"] == "instance" and record["region"] == region]
        before = PAGES.index(joint) if joint in PAGES else 0
        status = regions[region]["status"] if region in regions else poll["error"] and "failed"
        if status == "ok":
            before = len(PAGES)
            status = "complete"
        statuses[joint] = status
        names = {record["instance_id"]: record["tags"] for record in recorded}
        told = {each: {"Name": each} for page in FLEET[region] for each in page}
        if len(names) != len(recorded) or not names.items() <= told.items():
            flaws.append(f"{region}: recorded what was not said: {names}")
        if missing := {each for page in FLEET[region][:before] for each in page} - names.keys():
            flaws.append(f"{region}: {status}, and without {missing}")
        if region in regions and regions[region]["instances"] != len(recorded):
            flaws.append(f"{region}: {len(recorded)} instances, of which it says: {regions[region]}")
        if region in regions and bool(regions[region]["error"]) != (status != "complete"):
            flaws.append(f"{region}: {status}, with the error {regions[region]['error']}")
    for joint, status in statuses.items():
        expected = "complete" if joint is None else play.fault.passes if play.passes else play.fault.stays
        if status != expected:
            flaws.append(f"{joint}: {status}, not {expected}")
    if poll["complete"] != (set(statuses.values()) == {"complete"}):
        flaws.append(f"complete is {poll['complete']} where the regions are {statuses}")
    expected_code = 0 if poll["complete"] else 3 if "complete" in statuses.values() else 1
    if code != expected_code:
        flaws.append(f"exit code {code}, not {expected_code}")
    return Outcome(play, statuses, flaws, log)


def performed(joints: Iterable[str], at_once: int = 12) -> list[Outcome]:
    """All that there is to play at `joints`, the slow ones first. Most of them wait most of the time."""
    ordered = sorted(plays(joints), key=lambda play: play.fault.tries)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(perform, ordered))


INTRODUCTION = """# What is recorded when something fails

Each fault is played at each joint to `main.py` as a process, over real sockets, twice: so that it goes away after one
or two tries, and so that it stays. A cell is what is recorded of the region then, or of the poll where no region is
reached: where it passes / where it stays, or one word for both. `·` is where it cannot happen.

`complete` has every instance. `failed` and `denied` have those of the pages before, say why, and the exit code is 1 or
3. Never is anything recorded that was not said, a line torn, or a credential told. `make faults` writes this page anew;
the tests play the same and compare.

What goes wrong with the output (closed, open for reading only, a full disk, one that fills up in mid-poll) is exit code
74 and a sentence. The next poll that can write is complete, and no line of it is joined to one that was cut off.

"""


def rendered(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as a table in Markdown, faults by joints."""
    found: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for outcome in sorted(outcomes, key=lambda outcome: not outcome.play.passes):
        for joint, status in outcome.statuses.items():
            found[outcome.play.fault.name, joint].append(status)
    rows = [
        [fault.name, *(" / ".join(dict.fromkeys(found[fault.name, joint])) or "·" for joint in JOINTS)]
        for fault in FAULTS
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in [["", *JOINTS], ["---"] * (len(JOINTS) + 1), *rows])


if __name__ == "__main__":
    all_outcomes = performed(JOINTS)
    for outcome in all_outcomes:
        for flaw in outcome.flaws:
            print(f"{outcome.play}: {flaw}", file=sys.stderr)
    if any(outcome.flaws for outcome in all_outcomes):
        raise SystemExit(1)
    table = rendered(all_outcomes)
    print(table, end="")
    DOCUMENT.write_text(INTRODUCTION + table)
