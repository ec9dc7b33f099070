#!/usr/bin/env python3
"""Print a timestamped record of every EC2 instance of the AWS account that this machine belongs to.

The entry point of the hourly cron job: it makes a session from instance-metadata credentials, polls, and writes the
records to standard output, as JSON Lines or, on a terminal, as a table. Diagnostics go to standard error.
"""

from __future__ import annotations

import argparse
import errno
import gc
import io
import json
import logging
import os
import re
import select
import shutil
import signal
import stat
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from rich.text import Text

    from accounts import AccountsPoll


class Diagnostics(logging.Handler):
    """Standard error: sentences on a terminal, else JSON Lines, so that a log that takes both streams stays one."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:  # closed: descriptor 2 may be anything by now, a connection to AWS among them
            return
        traceback = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        if sys.stderr.isatty():
            sentences = [f"{record.levelname.lower()}: {record.getMessage()}", *traceback.splitlines()]
            # By way of Python's stream: the progress display draws on it, too.
            Unbreakable(sys.stderr).write("".join(f"{printable(sentence)}\n" for sentence in sentences))
        else:
            with suppress(OSError):  # there is nowhere left to say it
                at = datetime.fromtimestamp(int(record.created), timezone.utc).isoformat().replace("+00:00", "Z")
                line = {"timestamp": at, "record": "log", "level": record.levelname, "message": record.getMessage()}
                write(sys.stderr.fileno(), json.dumps(line | ({"traceback": traceback} if traceback else {})) + "\n")


class Unbreakable:
    """A stream to a terminal that may go away. That is no reason not to finish the record, nor for Python to fail at
    exit because of what it could not write there: so from then on it leads nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def report_crash(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Stands in for Python's own traceback."""
    logging.basicConfig(handlers=[Diagnostics()], force=True)
    logging.getLogger(__name__).critical("crashed: %s", kind.__name__, exc_info=(kind, error, traceback))


def write(descriptor: int, text: str) -> None:
    """Append `text` in one write, which no other process's line can split. Unbuffered: what is written is written."""
    data = text.encode()
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever shares it has made it so
            select.select([], [descriptor], [])


def printable(text: str) -> str:
    """`text` without what drives a terminal: control characters, line ends and bidi controls become escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
early_signals: list[int] = []
"""Those that came before there was a poll to cancel."""

if __name__ == "__main__":
    # A page is tens of thousands of containers, none of them garbage. Looking for some takes a third of the time if it
    # is done after every 700 new ones.
    gc.set_threshold(100_000)
    # Before the imports, which take half a second, and which a broken installation fails at.
    sys.excepthook = report_crash
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup and background jobs have it
            signal.signal(each, lambda number, frame: early_signals.append(number))

import boto3
import botocore.session
from botocore.awsrequest import AWSRequest
from botocore.credentials import CredentialResolver, InstanceMetadataProvider
from botocore.exceptions import (
    BotoCoreError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    MetadataRetrievalError,
    ProfileNotFound,
    ReadTimeoutError,
)
from botocore.httpsession import URLLib3Session
from botocore.utils import IMDSFetcher, resolve_imds_endpoint_mode

from inventory_manager import (
    InventoryError,
    InventoryManager,
    Poll,
    Record,
    __version__,
    failed_poll,
    json_line,
)

logger = logging.getLogger("main")

EXIT_COMPLETE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 3
EXIT_OUTPUT = 74
"""EX_IOERR of sysexits.h."""

DEADLINE = 50 * 60
"""Seconds. Under the hour, so that a poll that hangs is over before the next begins."""

METADATA_TIMEOUT = 2
METADATA_ATTEMPTS = 3
METADATA_PAUSE = 0.5
"""Seconds between those attempts."""

STATIC_STABILITY = timedelta(minutes=20)
"""How much longer credentials are used that the metadata service gives though they have expired, as the AWS SDKs do:
AWS accepts them while the service that renews them is down. botocore asks anew in the last quarter of an hour."""


Answer = TypeVar("Answer")


class UsageError(Exception):
    """What was asked for makes no sense."""


class Ended(Exception):
    """A signal came before there was a poll that it could end."""


class OutputError(Exception):
    """Standard output takes no more."""


class InstanceMetadata:
    """The instance metadata service, by IMDSv2 alone: the source of the credentials, and the last of the region.

    botocore's own fetcher tries once for a second and says neither what failed nor why.
    """

    def __init__(self, session: botocore.session.Session) -> None:
        endpoint = session.get_config_variable("ec2_metadata_service_endpoint")
        mode = resolve_imds_endpoint_mode(session)
        self._base_url = (
            IMDSFetcher(config={"ec2_metadata_service_endpoint": endpoint, "ec2_metadata_service_endpoint_mode": mode})
            .get_base_url()
            .rstrip("/")
        )
        # Never by a proxy: it would be told its own machine's credentials.
        self._http = URLLib3Session(timeout=METADATA_TIMEOUT, proxies={})
        self._region: str | None = None

    def provide(self) -> str:
        """The region, as botocore's configuration asks for it."""
        if self._region is None:
            self._region = self._tried(
                lambda: self._get("placement/region", r"[a-z]+(-[a-z]+)+-\d+"), MetadataRetrievalError
            )
        return self._region

    def retrieve_iam_role_credentials(self) -> dict[str, str]:
        """The credentials of the instance's role, as botocore's InstanceMetadataProvider asks for them, also again."""

        def failed(error_msg: str) -> BotoCoreError:
            return CredentialRetrievalError(provider="instance metadata", error_msg=error_msg)

        return self._tried(self._role_credentials, failed)

    def _role_credentials(self) -> dict[str, str]:
        role = self._get("iam/security-credentials/", r"[\w+=,.@-]+")
        document = self._get(f"iam/security-credentials/{role}", r"(?s).+")
        try:
            answer = json.loads(document)
            if answer.get("Code") != "Success":
                raise MetadataError(
                    f"role {role}: {answer.get('Code')}: {answer.get('Message')}. Does the role's trust policy "
                    "let ec2.amazonaws.com assume it?"
                )
            expiry = datetime.fromisoformat(answer["Expiration"].replace("Z", "+00:00"))
            now = datetime.now(timezone.utc)
            if expiry <= now:
                logger.warning("the instance metadata's credentials expired at %s and are used all the same", expiry)
                expiry = now + STATIC_STABILITY
            return {
                "role_name": role,
                "access_key": answer["AccessKeyId"],
                "secret_key": answer["SecretAccessKey"],
                "token": answer["Token"],
                "expiry_time": expiry.isoformat(),
            }
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            # not from the error: its text may be the answer, and that is a secret
            raise MetadataError(f"what is given for role {role} are no credentials ({type(error).__name__})") from None

    def _tried(self, ask: Callable[[], Answer], failed: Callable[..., BotoCoreError]) -> Answer:
        """What `ask` gives, which is asked for from the beginning where it fails: a name that was cut short on its
        way looks like a name."""
        for attempt in range(1, METADATA_ATTEMPTS + 1):
            try:
                return ask()
            except MetadataError as error:
                if attempt == METADATA_ATTEMPTS:
                    raise failed(error_msg=str(error)) from error
                time.sleep(METADATA_PAUSE)
        raise AssertionError("not reached")

    def _get(self, path: str, pattern: str) -> str:
        token = self._ask("PUT", "api/token", r"[!-~]+", {"x-aws-ec2-metadata-token-ttl-seconds": "300"})
        return self._ask("GET", f"meta-data/{path}", pattern, {"x-aws-ec2-metadata-token": token})

    def _ask(self, method: str, path: str, pattern: str, headers: dict[str, str]) -> str:
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            raise MetadataError("AWS_EC2_METADATA_DISABLED forbids it: unset that, or name a profile with --profile")
        url = f"{self._base_url}/latest/{path}"
        try:
            response = self._http.send(AWSRequest(method=method, url=url, headers=headers).prepare())
        except ReadTimeoutError:
            raise MetadataError(f"{self._base_url} does not answer within {METADATA_TIMEOUT} s") from None
        except (ConnectTimeoutError, EndpointConnectionError) as error:
            raise MetadataError(
                f"there is no instance metadata service at {self._base_url} ({type(error).__name__}). "
                "Not on EC2? Then name a profile with --profile"
            ) from error
        except BotoCoreError as error:
            raise MetadataError(str(error)) from error
        if response.status_code == 404 and path.endswith("security-credentials/"):
            raise MetadataError("this instance has no IAM role: attach an instance profile to it")
        if method == "PUT" and response.status_code != 200:
            raise MetadataError(
                f"{self._base_url} refuses an IMDSv2 token (HTTP {response.status_code}): is it enabled for this "
                "instance, and in a container, is its hop limit at least 2?"
            )
        text = str(response.text).strip()
        # botocore does not look whether a body is as long as it should be.
        whole = response.headers.get("Content-Length") in {None, str(len(response.content))}
        if response.status_code != 200 or not whole or not re.fullmatch(pattern, text):
            # not what it is: that may be a secret
            raise MetadataError(
                f"{url} answers HTTP {response.status_code} with {len(text)} characters of another form"
            )
        return text


class MetadataError(Exception):
    """The instance metadata service did not give what it was asked for."""


def blank_session(profile: str | None) -> botocore.session.Session:
    """A session with the settings of this machine, or of `profile`, and without credentials where there is none."""
    # botocore by itself knows only the second of the two variables, and takes an empty one for a region.
    names = [name for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if os.environ.get(name)]
    variables: dict[str, Any] = {"region": ("region", names, None, None)}
    if not profile:
        # No say for profiles and keys in the environment or in files: not even for a broken one.
        variables["profile"] = (None, None, None, None)
        variables["credentials_file"] = (None, None, os.devnull, None)
    return botocore.session.Session(session_vars=variables, profile=profile)


def make_session(profile: str | None, regions: Sequence[str]) -> boto3.Session:
    """A session with credentials from instance metadata and from nowhere else, renewed for as long as it is used.

    Its region: AWS_REGION, AWS_DEFAULT_REGION, ~/.aws/config, else the instance's own. With `profile`, for use away
    from EC2, credentials and region are that profile's. Raises UsageError if it, or a region, does not exist.
    """
    session = blank_session(profile)
    try:
        configured = session.get_config_variable("region")
    except ProfileNotFound as error:
        raise UsageError(f"--profile: {error}") from error
    check_regions(session, [*regions, *([configured] if configured else [])])
    if not profile:
        try:
            metadata = InstanceMetadata(session)
        except ValueError as error:
            raise UsageError(f"AWS_EC2_METADATA_SERVICE_ENDPOINT is no URL: {error}") from error
        provider = InstanceMetadataProvider(metadata)  # type: ignore[arg-type]  # has the one method that is called
        session.register_component("credential_provider", CredentialResolver([provider]))
        if not configured:
            session.get_component("config_store").set_config_provider("region", metadata)
    return boto3.Session(botocore_session=session)


def check_regions(session: botocore.session.Session, names: Iterable[str]) -> None:
    """Raise UsageError if there is no such region in any partition."""
    known = [
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    ]
    for name in names:
        if name not in known:
            from difflib import get_close_matches

            # Two letters changed places ("us-esat-1"): to difflib us-west-1 would be as near.
            anagrams = [region for region in known if sorted(region) == sorted(name)]
            nearest = (anagrams or get_close_matches(name, known, n=1, cutoff=0) or known)[0]
            raise UsageError(
                f"there is no region {name!r}: did you mean {nearest}? (A newer one needs a newer botocore.)"
            )


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")

    def print_help(self, file: object = None) -> None:
        output(self.format_help())


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="main.py", description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--region",
        action="append",
        default=[],
        help="poll this region; may be repeated (default: the configured region, else the instance's own)",
    )
    where.add_argument("--all-regions", action="store_true", help="poll every region of the partition, enabled or not")
    parser.add_argument(
        "--format",
        choices=["auto", "table", "json"],
        default="auto",
        help="auto: a table on a terminal, else JSON Lines",
    )
    parser.add_argument("--full", action="store_true", help="add to each instance all that the API says of it")
    parser.add_argument(
        "--deadline",
        type=seconds,
        default=DEADLINE,
        metavar="SECONDS",
        help=f"record as failed what has not answered by then (default: {DEADLINE})",
    )
    parser.add_argument("--profile", metavar="NAME", help="use a profile of ~/.aws in place of instance metadata")
    others = parser.add_argument_group("other accounts", "each is polled by a role in it, which this machine's assumes")
    others.add_argument(
        "--role-arn", action="append", default=[], metavar="ARN", help="poll this role's account, too; may be repeated"
    )
    others.add_argument(
        "--roles", metavar="FILE", help="the same for each line of a file; # begins a comment, - is standard input"
    )
    others.add_argument(
        "--external-id",
        type=matching(r"[\w+=,.@:/-]{2,1224}"),
        metavar="ID",
        help="what the roles ask for of those who assume them",
    )
    others.add_argument(
        "--role-session-name",
        type=matching(r"[\w+=,.@-]{2,64}"),
        metavar="NAME",
        help="what the roles' sessions are called in CloudTrail",
    )
    others.add_argument("--no-home", action="store_true", help="leave out the account of this machine")
    parser.add_argument("--verbose", action="store_true", help="say more on standard error")
    parser.add_argument("--version", action="store_true", help="say which version this is, and nothing else")
    return parser.parse_args(argv)


def matching(pattern: str) -> Callable[[str], str]:
    def value(text: str) -> str:  # which argparse calls it where it is none
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(text)
        return text

    return value


def standard_input() -> bytes:
    """All of it. Raises Ended if there is a signal before the end of it, which whoever writes it may never reach."""
    chunks: list[bytes] = []
    while True:
        if early_signals:
            raise Ended
        if select.select([0], [], [], 0.2)[0]:
            chunks.append(os.read(0, 65536))
            if not chunks[-1]:
                return b"".join(chunks)


def roles_asked(asked: argparse.Namespace) -> list[str]:
    """The ARNs of the roles, each once. Raises UsageError where they make no sense."""
    from accounts import account_of

    places = [(arn, "--role-arn") for arn in asked.role_arn]
    if asked.roles is not None:
        try:
            text = (standard_input() if asked.roles == "-" else Path(asked.roles).read_bytes()).decode("utf-8-sig")
        except (OSError, ValueError) as error:  # ValueError: not UTF-8
            raise UsageError(f"--roles: {asked.roles} cannot be read: {error}") from error
        arns = [(line.partition("#")[0].strip(), number) for number, line in enumerate(text.splitlines(), start=1)]
        in_file = [(arn, f"{asked.roles}, line {number}") for arn, number in arns if arn]
        if not in_file:  # not what anybody writes such a file for
            raise UsageError(f"--roles: {asked.roles} names no role")
        places += in_file
    by_account: dict[str, str] = {}
    for arn, place in places:
        try:
            other = by_account.setdefault(account_of(arn), arn)
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from error
        if other != arn:
            raise UsageError(f"{place}: {arn} is in the same account as {other}, and one role is enough")
    return list(by_account.values())


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise ValueError
    return value


@contextmanager
def cancelled_by_signals(poll: Poll | AccountsPoll) -> Iterator[list[signal.Signals]]:
    """Let SIGINT, SIGTERM and SIGHUP cancel the poll. Gives the list of those that came.

    One that comes again a second later kills. Sooner it is the same one: timeout(1) sends its signal twice, and so do
    terminal and shell when an SSH session ends.
    """
    received: list[signal.Signals] = []
    first = 0.0

    def cancel(number: int, frame: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            poll.cancel(InventoryError(signal.Signals(number).name, f"ended by {signal.Signals(number).name}"))
        elif time.monotonic() - first > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(signal.Signals(number))

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, cancel)
    for early in early_signals:
        cancel(early, None)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(record: Record, *, several: bool) -> None:
    """Say on standard error what of the poll went wrong, and in which of several accounts."""
    error = record.get("error")
    account = f"{record['account'] or 'the home account'}: " if several else ""
    if record["record"] == "region" and error:
        level = logging.INFO if record["status"] == "not-enabled" else logging.ERROR
        logger.log(level, "%s%s: %s: %s", account, record["region"], record["status"], error)
    elif record["record"] == "poll" and error and record["regions"].keys() <= {"ok", "not-enabled"}:
        logger.error("%s%s", account, error)


def output(text: str) -> None:
    try:
        if sys.stdout is None:  # closed: its descriptor may be anything by now
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        write(sys.stdout.fileno(), text)
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def finish_torn_line() -> None:
    """End a line that a full disk or a crash has left half written, so that no record of ours is joined to it.

    Looked at twice: another process's line is seen half written while it is on its way into the file.
    """

    def torn() -> bool:
        with open(f"/proc/self/fd/{sys.stdout.fileno()}", "rb") as log:
            return log.seek(0, os.SEEK_END) > 0 and log.seek(-1, os.SEEK_END) >= 0 and log.read(1) != b"\n"

    with suppress(OSError):  # not a file, or not ours to read
        if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode) and torn():
            time.sleep(0.1)
            if torn():
                output("\n")


@contextmanager
def progress(poll: Poll | AccountsPoll, as_table: bool) -> Iterator[Callable[[Record], None]]:
    """On a terminal, show on standard error how far the polls are, as it is told of each record."""
    if not (on_terminal(sys.stderr) and find_spec("rich")) or (on_terminal(sys.stdout) and not as_table):
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=cast("TextIO", Unbreakable(sys.stderr)))
    columns = [SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("asking who we are", total=None)
        ended: Counter[str] = Counter()

        def advance(record: Record) -> None:
            ended[record["record"]] += 1
            if isinstance(poll, Poll):
                total, done = len(poll.regions), ended["region"]
                parts = f"{done} of {total} regions"
            else:
                total, done = len(poll.accounts), ended["poll"]
                parts = f"{done:,} of {total:,} accounts, {ended['region']:,} regions"
            display.update(task, total=total, completed=done, description=f"{parts}, {ended['instance']:,} instances")

        yield advance


STATE_STYLES = {"running": "green", "stopped": "yellow", "terminated": "bright_black"}

COLUMNS: dict[str, Callable[[Record], str | None]] = {
    "name": lambda instance: instance["name"],
    "instance_id": lambda instance: instance["instance_id"],
    "state": lambda instance: instance["state"],
    "type": lambda instance: instance["instance_type"],
    "account": lambda instance: instance["account"],
    "zone": lambda instance: instance["availability_zone"] or instance["region"],
    "private_ip": lambda instance: instance["private_ip_address"] or next(iter(instance["ipv6_addresses"]), None),
    "public_ip": lambda instance: instance["public_ip_address"],
    "launched": lambda instance: instance["launch_time"] and f"{instance['launch_time']:%Y-%m-%d %H:%M}",
}
DISPENSABLE = ("launched", "public_ip", "type", "account", "zone", "private_ip", "state")
"""The columns that a narrow window goes without, first the first. A shortened address would be a wrong one."""

NAME_WIDTH = 16
"""What is left of a long name, at the least."""


def table(records: Sequence[Record]) -> str:
    """The polls for a person: a table that fits the window, where there is one, and a line that sums them up."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    instances = sorted(
        (record for record in records if record["record"] == "instance"),
        key=lambda instance: (
            instance["account"],
            instance["region"],
            instance["name"] or "",
            instance["instance_id"],
        ),
    )
    polls = [record for record in records if record["record"] == "poll"]
    cells = {
        column: [Text(printable(value(instance) or "-")) for instance in instances]
        for column, value in COLUMNS.items()
        if column != "account" or len(polls) > 1
    }
    widths = {column: max([len(column), *(text.cell_len for text in texts)]) for column, texts in cells.items()}
    window = shutil.get_terminal_size().columns if on_terminal(sys.stdout) else sum(widths.values()) + 2 * len(widths)

    def left_for_the_name() -> int:
        return window - sum(width + 2 for column, width in widths.items() if column != "name")

    for column in (column for column in DISPENSABLE if column in cells):
        if left_for_the_name() < min(widths["name"], NAME_WIDTH):
            del widths[column]
    widths["name"] = max(1, min(widths["name"], left_for_the_name()))

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, width in widths.items():
        grid.add_column(column, no_wrap=True, overflow="ellipsis", width=width)
    for row, instance in enumerate(instances):
        grid.add_row(*(cells[column][row] for column in widths), style=STATE_STYLES.get(instance["state"]))
    paper = io.StringIO()
    # With a width alone, rich takes 80 columns for a terminal that it holds to be dumb.
    console = Console(file=paper, width=window, height=25, force_terminal=on_terminal(sys.stdout))
    if instances:
        console.print(grid)
    complete = all(poll["complete"] for poll in polls)
    console.print(summary(polls), style=None if complete else "bold red", soft_wrap=not on_terminal(sys.stdout))
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().splitlines())


def summary(polls: Sequence[Record]) -> Text:
    from rich.text import Text

    def counted(count: int, noun: str) -> str:
        return f"{count:,} {noun}{'' if count == 1 else 's'}"

    def total(field: str) -> Counter[str]:
        return sum((Counter(poll[field]) for poll in polls), Counter())

    began = min(poll["timestamp"] for poll in polls)
    seconds = max((poll["timestamp"] - began).total_seconds() + poll["seconds"] for poll in polls)
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(total("states").items()))
    incomplete = sum(not poll["complete"] for poll in polls)
    of_many = f" in {incomplete:,} of {len(polls):,} accounts" if len(polls) > 1 else ""
    account = (
        f"account {printable(polls[0]['account'] or 'unknown')}" if len(polls) == 1 else f"{len(polls):,} accounts"
    )
    return Text(
        f"{began:%Y-%m-%d %H:%M:%S} UTC: {account}, {counted(total('regions').total(), 'region')}, "
        f"{counted(total('states').total(), 'instance')}{f' ({states})' if states else ''}, "
        f"{seconds:.1f} s: {f'INCOMPLETE{of_many}' if incomplete else 'complete'}"
    )


def on_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def exit_code(polls: Sequence[Record], signals: Sequence[signal.Signals]) -> int:
    if all(poll["complete"] for poll in polls):
        return EXIT_COMPLETE
    if signals:
        return 128 + signals[0]
    return EXIT_INCOMPLETE if any(poll["regions"].get("ok") for poll in polls) else EXIT_FAILED


def make_poll(asked: argparse.Namespace) -> Poll | AccountsPoll:
    session = make_session(asked.profile, asked.region)
    home = InventoryManager(session)
    how: dict[str, Any] = {"all_regions": asked.all_regions, "full": asked.full, "deadline": asked.deadline}
    if not asked.role_arn and asked.roles is None:
        only_with_roles = {
            "--external-id": asked.external_id,
            "--role-session-name": asked.role_session_name,
            "--no-home": asked.no_home,
        }
        if alone := [option for option, value in only_with_roles.items() if value]:
            raise UsageError(f"{alone[0]} is of use with --role-arn or --roles only")
        return home.poll(asked.region, **how)
    if not find_spec("accounts"):
        raise UsageError("--role-arn and --roles need accounts.py beside main.py")
    from accounts import SESSION_NAME, Account, AccountsPoll, AssumedRoles, account_of

    roles = AssumedRoles(
        session,
        external_id=asked.external_id,
        session_name=asked.role_session_name or SESSION_NAME,
        blank_session=partial(blank_session, asked.profile),
    )
    accounts = [] if asked.no_home else [Account(None, lambda: home)]
    accounts += [Account(account_of(arn), partial(roles.manager, arn)) for arn in roles_asked(asked)]
    return AccountsPoll(accounts, asked.region, **how)


def run(asked: argparse.Namespace, as_table: bool) -> int:
    poll = make_poll(asked)
    accounts = 1 if isinstance(poll, Poll) else len(poll.accounts)
    records: list[Record] = []
    polls: list[Record] = []
    with cancelled_by_signals(poll) as signals:
        try:
            with progress(poll, as_table) as advance:
                for record in poll.records():
                    if as_table:
                        records.append(record)
                    else:
                        output(json_line(record))
                    if record["record"] == "poll":
                        polls.append(record)
                    report(record, several=accounts > 1)
                    advance(record)
        except Exception:
            if len(polls) < accounts:
                raise
            logger.critical("an unforeseen error after the poll: please report it", exc_info=True)
    for account, count in Counter(poll["account"] for poll in polls).items():
        if count > 1:
            logger.warning(
                "%s is the home account, too, and was polled twice: add --no-home, or leave out its role", account
            )
    if as_table:
        output(table(records))
    return exit_code(polls, signals)


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(handlers=[Diagnostics()], force=True)
    logging.captureWarnings(True)
    # A traceback about credentials that cannot be renewed: that is an error of the poll anyway, with a message.
    logging.getLogger("botocore.credentials").addFilter(lambda record: "mandatory" not in record.getMessage())
    as_table = on_terminal(sys.stdout)  # until it is known what was asked for
    try:
        output("")  # before anything is asked: is it closed?
        finish_torn_line()
        try:
            asked = arguments(argv)
            if asked.version:
                output(f"main.py {__version__}\n")
                return EXIT_COMPLETE
            if asked.verbose:
                logger.setLevel(logging.INFO)
                logging.getLogger("inventory_manager").setLevel(logging.INFO)
            if asked.format == "table" and not find_spec("rich"):
                raise UsageError("--format table needs rich: pip install rich")
            as_table = asked.format == "table" or (
                asked.format == "auto" and as_table and find_spec("rich") is not None
            )
            return run(asked, as_table)
        except UsageError as error:
            code, failure = EXIT_USAGE, InventoryError("Usage", str(error))
            logger.error("%s", error)
        except Ended:
            name = signal.Signals(early_signals[0]).name
            code, failure = 128 + early_signals[0], InventoryError(name, f"ended by {name}")
        except BotoCoreError as error:  # settings that make no session: a config file that is none, say
            code, failure = EXIT_FAILED, InventoryError(type(error).__name__, str(error))
            logger.error("%s", error)
        except OutputError:
            raise
        except Exception as error:
            code, failure = EXIT_FAILED, InventoryError("InternalError", f"an unforeseen {type(error).__name__}")
            logger.critical("an unforeseen error: please report it", exc_info=True)
        if not as_table:
            output(json_line(failed_poll(failure)))
        return code
    except OutputError as error:
        logger.error("%s", error)
        return EXIT_OUTPUT


if __name__ == "__main__":
    exit_status = main()
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # all is said; Python, as it shuts down, would let one of them kill
    raise SystemExit(exit_status)
