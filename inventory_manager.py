"""Every EC2 instance of an AWS account, through EC2 DescribeInstances and STS GetCallerIdentity.

`InventoryManager` wraps the two calls on a boto3 session that it is given; which account is asked is decided by
that session and nothing else. `InventoryManager.instances` lists one region; `InventoryManager.poll` asks many
regions at once and says of each whether it answered in full.

All times are timezone-aware and in UTC. Every failure is an `InventoryError` with the AWS error as its cause:
an error never looks like an empty account.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, cast
from xml.parsers.expat import ParserCreate

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    InvalidConfigError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotocoreConnectionError
from botocore.model import ListShape, StructureShape
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import boto3
    from botocore.model import ServiceModel, Shape
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import (
        DescribeInstancesRequestTypeDef,
        DescribeInstancesResultTypeDef,
        InstanceTypeDef,
        ReservationTypeDef,
    )
    from mypy_boto3_sts import STSClient

__version__ = "0.1.0"

__all__ = [
    "Bounds",
    "CallerIdentity",
    "CredentialsError",
    "DeniedError",
    "Instance",
    "InventoryError",
    "InventoryManager",
    "MalformedResponseError",
    "NotEnabledError",
    "Poll",
    "PollOutcome",
    "RegionError",
    "RegionOutcome",
    "json_line",
]

logger = logging.getLogger(__name__)

PAGE_SIZE = 1000
"""Instances a page. The most DescribeInstances gives; without any, AWS calls the request "susceptible to throttling
and timeouts"."""

REGIONS_AT_ONCE = 6
"""Enough to keep a processor busy while others wait for AWS. Each may have a page of 10 MB in its hands."""

PAGES_AT_ONCE = 4
"""Pages that wait for the reader of a poll. Together with those in the regions' hands, this bounds its memory."""

CONNECT_TIMEOUT = 5
"""Seconds."""

READ_TIMEOUT = 30
"""Seconds without a byte, not for the whole answer: a poll's deadline bounds that."""

CLIENT_CONFIG = Config(
    connect_timeout=CONNECT_TIMEOUT,
    read_timeout=READ_TIMEOUT,
    # "standard" retries RequestLimitExceeded by its code; "legacy" only where it comes as HTTP 503.
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=REGIONS_AT_ONCE,  # all regions may ask the one STS at once
)

ATTEMPTS = 4
"""How often a call that failed is made where that may pass, and a pagination that went astray is begun. Beyond what
botocore does: its own attempts are over in a third of a second, throttling apart, and it makes none where an answer
cannot be understood."""

NOT_ENABLED_ATTEMPTS = 3
"""The same for a region that seems not to be enabled, as half of them are."""

UNANSWERED = 3
"""Polls in a row that a region may leave without an answer before others pass it over."""

PAUSE = 0.5
"""Seconds before the second of those attempts, doubled for each further one."""

ALWAYS_ENABLED = frozenset(
    {
        *("us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1"),
        *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3"),
        *("ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2"),
    }
)
"""The regions of partition aws that every account has. All others are opt-in, as is every region added since 2019.
https://docs.aws.amazon.com/accounts/latest/reference/manage-acct-regions.html"""

# The codes that EC2 and STS use for one meaning.
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
REFUSED_CODES = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
DENIED_CODES = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
NOT_ENABLED_CODES = frozenset({"AuthFailure", "OptInRequired"})
BAD_TOKEN_CODES = frozenset({"InvalidNextToken", "InvalidPaginationToken"})

REQUEST_ID = "requestId"

Record = dict[str, Any]
"""One line of the log as a dictionary. Times in it are `datetime`, errors `InventoryError`: see `json_line`."""

Answer = TypeVar("Answer")


class InventoryError(Exception):
    """Something that was asked of AWS was not answered in full.

    `code` is AWS's error code, or a name of the same form. `message` says what happened, where, and what to do.
    """

    status: ClassVar[str] = "failed"
    """What a region that ended with this error is recorded as."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that it can be pickled
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class CredentialsError(InventoryError):
    """There are no credentials, or AWS does not accept them."""


class RegionError(InventoryError):
    """No region was given, and the session has none."""


class DeniedError(InventoryError):
    """The credentials are good, but a policy denies the call."""

    status = "denied"


class NotEnabledError(InventoryError):
    """The credentials are good, but the account has not enabled this region. It cannot have instances there."""

    status = "not-enabled"


class MalformedResponseError(InventoryError):
    """An answer with HTTP status 200 that is not what the API promises."""


@dataclass(frozen=True)
class CallerIdentity:
    """Whom AWS takes the session for, as GetCallerIdentity says."""

    account: str
    arn: str
    user_id: str


@dataclass(frozen=True)
class Instance:
    """An EC2 instance as DescribeInstances gave it.

    The names are the API's own in snake_case, the order is the record's. What AWS does not give, or leaves empty,
    is None or an empty tuple.
    """

    RECORD: ClassVar[str] = "instance"

    region: str
    instance_id: str
    state: str
    """pending, running, shutting-down, terminated, stopping or stopped."""
    name: str | None
    """The value of the tag Name."""
    instance_type: str | None
    availability_zone: str | None
    launch_time: datetime | None
    """The last start, not the first."""
    first_launch_time: datetime | None
    """When the primary network interface was attached. None once that is gone."""
    state_transition_reason: str | None
    state_transition_time: datetime | None
    """The time inside `state_transition_reason`, where it has one."""
    private_ip_address: str | None
    public_ip_address: str | None
    ipv6_addresses: tuple[str, ...]
    vpc_id: str | None
    subnet_id: str | None
    security_groups: tuple[str, ...]
    """Ids."""
    image_id: str | None
    key_name: str | None
    iam_instance_profile: str | None
    """ARN."""
    architecture: str | None
    platform_details: str | None
    tenancy: str | None
    lifecycle: str
    """on-demand (where AWS leaves it empty), spot, scheduled or capacity-block."""
    owner_id: str | None
    """The account that owns the reservation."""
    reservation_id: str | None
    volumes: tuple[str, ...]
    """Ids."""
    managed_by: str | None
    """The principal of the AWS service that manages the instance."""
    tags: Mapping[str, str] = field(hash=False)
    details: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    """The whole item as the API gave it, under the API's own names. None unless it was asked for."""


@dataclass(frozen=True)
class RegionOutcome:
    """How the poll of one region ended."""

    RECORD: ClassVar[str] = "region"

    region: str
    status: str
    """ok, not-enabled, denied or failed."""
    instances: int
    """How many were given before the end, all of them only where `status` is ok."""
    tagged: int
    """How many of them bear any tag. Under load, EC2 has left out all tags of all instances: 0 where it was otherwise
    the poll before means that nothing was said of tags, rather than that there are none."""
    pages: int
    seconds: float
    error: InventoryError | None


@dataclass(frozen=True)
class PollOutcome:
    """How a poll ended."""

    RECORD: ClassVar[str] = "poll"

    account: str | None = None
    arn: str | None = None
    user_id: str | None = None
    complete: bool = False
    """Whether every region that was asked answered in full. A region that is not enabled has answered."""
    instances: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    regions: Mapping[str, int] = field(default_factory=dict)
    """How many regions ended with each status."""
    seconds: float = 0.0
    version: str = __version__
    error: InventoryError | None = None
    """Why the poll as a whole failed or was ended. A single region's error is in its own outcome."""


class Bounds:
    """How much is in hand at a time, in one poll or in all those that share these bounds.

    A region that does not answer takes two minutes to fail. So that it does not keep all others waiting, once three
    polls in a row have had no answer from it, it is asked by one at a time, and those that come meanwhile pass it over.
    """

    def __init__(self, regions: int = REGIONS_AT_ONCE, pages: int = PAGES_AT_ONCE) -> None:
        self.regions = threading.Semaphore(regions)
        """Those that are being asked."""
        self.pages = threading.Semaphore(pages)
        """Those that have been read, and wait for the reader of the poll."""
        self._lock = threading.Lock()
        self._asking: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()

    @contextmanager
    def asking(self, region: str) -> Iterator[None]:
        """While a poll asks this region. Raises InventoryError if it is to be passed over."""
        with self._lock:
            unanswered = self._unanswered[region]
            if unanswered >= UNANSWERED and self._asking[region]:
                raise InventoryError(
                    "RegionUnresponsive", f"{region} was not asked: the last {unanswered} polls had no answer from it"
                )
            self._asking[region] += 1
        try:
            yield
        except InventoryError as error:
            # Not what fails within seconds, and would be over as soon.
            if isinstance(error.__cause__, (ConnectTimeoutError, ReadTimeoutError)):
                with self._lock:
                    self._unanswered[region] += 1
            elif isinstance(error.__cause__, ClientError):
                self.answered(region)
            raise
        finally:
            with self._lock:
                self._asking[region] -= 1

    def answered(self, region: str) -> None:
        with self._lock:
            self._unanswered[region] = 0


class InventoryManager:
    """EC2 DescribeInstances and STS GetCallerIdentity on `session`, which stays as it was.

    Any boto3 session will do: plain, of a profile, of an assumed role. Needs the permission ec2:DescribeInstances;
    sts:GetCallerIdentity is granted to everybody. Does nothing until it is asked. May be used by several threads.

    `account` is the one that the session is meant for, where that is known: it is an error if another one answers.
    """

    def __init__(self, session: boto3.Session, account: str | None = None) -> None:
        self.account = account
        self._meant = f"{account}: " if account else ""
        self._session = session
        self._session_lock = threading.Lock()
        self._sts: STSClient | None = None
        self._readers: dict[bool, _Reader] = {}

    def caller_identity(self) -> CallerIdentity:
        """Who the session is, from STS GetCallerIdentity, which needs no permission.

        STS is asked in the session's region; without one, in us-east-1, which every account has enabled. Raises
        CredentialsError where there are no credentials, AWS refuses them, or they are those of another account than
        the one that is meant; InventoryError where STS cannot be reached.
        """
        region = self._region() or "us-east-1"
        client = self._sts_client(region)

        def ask() -> CallerIdentity:
            answer = client.get_caller_identity()
            if not (answer["Account"] and answer["Arn"] and answer["UserId"]):
                raise ValueError("an identity of nobody")
            return CallerIdentity(account=answer["Account"], arn=answer["Arn"], user_id=answer["UserId"])

        identity = self._understood(ask, "sts:GetCallerIdentity", region)
        if self.account not in {None, identity.account}:
            raise CredentialsError(
                "WrongAccount", f"account {identity.account} answers, as {identity.arn}, and not {self.account}"
            )
        return identity

    def available_regions(self) -> tuple[str, ...]:
        """All EC2 regions in the partition of the session's region, that one first, enabled or not.

        From botocore's own data, so it needs no permission and no request.
        """
        home = self._required_region()
        with self._using_session("the partition", home):
            partition = self._session.get_partition_for_region(home)
            regions = self._session.get_available_regions("ec2", partition_name=partition)
        return tuple(dict.fromkeys([home, *regions]))

    def instances(
        self,
        region: str | None = None,
        filters: Mapping[str, str | Sequence[str]] | None = None,
        *,
        full: bool = False,
    ) -> Iterator[Instance]:
        """Every instance in `region` (default: the session's), in every state, each once, a page at a time.

        Instances that AWS services manage are among them. `filters` are DescribeInstances' own, a name with a value
        or several: `{"tag:Team": "payments", "instance-state-name": ["running", "stopped"]}`. `full` keeps the
        `details` of each.

        Raises InventoryError, at once or between two pages: what came before is not the whole region then.
        """
        region = region or self._required_region()
        client = self._ec2_client(region, full)
        try:
            for page in self._pages(client, region, filters or {}, full):
                yield from page
        finally:
            client.close()

    def poll(
        self,
        regions: Iterable[str] | None = None,
        *,
        all_regions: bool = False,
        full: bool = False,
        deadline: float | None = None,
        bounds: Bounds | None = None,
    ) -> Poll:
        """A `Poll` of `regions` (default: the session's), or of all `available_regions`, up to 6 at once.

        `full` keeps the `details` of each instance. `deadline` is in seconds from now: what has not answered by then
        is recorded as failed. Without one, a server that sends a byte now and then can keep a poll for ever.
        `bounds` are for polls that run at the same time to share.
        """
        names = tuple(dict.fromkeys(regions or ()))

        def resolve() -> Sequence[str]:
            # Asked when the poll runs and not before: the session's region may come from instance metadata.
            return self.available_regions() if all_regions else names or (self._required_region(),)

        return Poll(self, resolve, full, deadline, bounds or Bounds())

    def _region(self) -> str | None:
        with self._using_session("the session's region", None):
            return self._session.region_name

    def _required_region(self) -> str:
        region = self._region()
        if not region:
            raise RegionError("NoRegion", "no region: name one, or set AWS_REGION, or a region in ~/.aws/config")
        return region

    def _ec2_client(self, region: str, full: bool) -> EC2Client:
        with self._using_session("ec2:DescribeInstances", region):
            client = self._session.client("ec2", region_name=region, config=CLIENT_CONFIG)
            if full not in self._readers:
                self._readers[full] = _Reader(client.meta.service_model, full)
        client.meta.events.register("before-parse.ec2.DescribeInstances", self._readers[full].before_parse)
        return client

    def _sts_client(self, region: str) -> STSClient:
        with self._using_session("sts:GetCallerIdentity", region):
            if self._sts is None:
                self._sts = self._session.client("sts", region_name=region, config=CLIENT_CONFIG)
            return self._sts

    @contextmanager
    def _using_session(self, action: str, region: str | None) -> Iterator[None]:
        """One thread at a time: clients are thread-safe, sessions are not."""
        try:
            with self._session_lock:
                yield
        except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: an endpoint URL that is none
            raise _translated(error, action, region) from error

    def _pages(
        self,
        client: EC2Client,
        region: str,
        filters: Mapping[str, str | Sequence[str]],
        full: bool,
        pause: Callable[[float], None] = time.sleep,
    ) -> Iterator[list[Instance]]:
        """The region's instances page by page, without those that came before: AWS promises no snapshot over pages.

        botocore's paginator would do, were it not that it goes round for ever on tokens t1, t2, t1, and takes
        an answer without Reservations for an empty one.
        """
        request: DescribeInstancesRequestTypeDef = {
            "MaxResults": PAGE_SIZE,
            # Instances that AWS services run in the account: they are billed, and hidden by default.
            "IncludeManagedResources": True,
            "Filters": [
                {"Name": name, "Values": [values] if isinstance(values, str) else list(values)}
                for name, values in filters.items()
            ],
        }

        def ask() -> tuple[list[Instance], str | None]:
            page = client.describe_instances(**request)
            return _instances(page, region, full), page.get("NextToken")

        seen: set[str] = set()
        tokens: set[str] = set()
        begun = 1
        while True:
            try:
                has_answered = begun > 1 or bool(tokens)
                instances, token = self._understood(ask, "ec2:DescribeInstances", region, has_answered, pause)
                if token in tokens:
                    raise InventoryError(
                        "RepeatedToken", f"DescribeInstances in {region} goes round: it gave the same page token twice"
                    )
            except InventoryError as error:
                if error.code not in BAD_TOKEN_CODES | {"RepeatedToken"} or begun == ATTEMPTS:
                    raise
                logger.warning("%s%s: %s; starting over", self._meant, region, error)
                pause(PAUSE * 2 ** (begun - 1))
                begun += 1
                tokens.clear()
                request.pop("NextToken", None)
                continue
            fresh = {instance.instance_id: instance for instance in instances if instance.instance_id not in seen}
            seen.update(fresh)
            yield list(fresh.values())
            if not token:
                return
            tokens.add(token)
            request["NextToken"] = token

    def _understood(
        self,
        ask: Callable[[], Answer],
        action: str,
        region: str,
        has_answered: bool = False,
        pause: Callable[[float], None] = time.sleep,
    ) -> Answer:
        """What `ask` returns, asked again where it fails in a way that may pass. Every failure is an InventoryError.

        A region that `has_answered` before is enabled.
        """
        for attempt in range(1, ATTEMPTS + 1):
            cause: Exception
            try:
                return ask()
            except (ClientError, BotoCoreError) as error:
                cause, failure = error, _translated(error, action, region)
            except (ResponseParserError, ValueError, LookupError, TypeError, AttributeError) as error:
                # What botocore's parser and our own reading stumble over where an answer is of another form. Without
                # the parser's own message, which holds the whole answer, and that may repeat the request.
                flaw = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read ({type(error).__name__})"
                cause, failure = error, _malformed(f"{action} in {region}", flaw)
            if isinstance(failure, NotEnabledError):
                failure = self._confirmed(failure, region, has_answered)
            attempts = NOT_ENABLED_ATTEMPTS if isinstance(failure, NotEnabledError) else ATTEMPTS
            if attempt >= attempts or not _may_pass(failure, cause):
                raise failure from cause
            # Of a region that is not enabled that is what is to be expected, each time.
            level = logging.INFO if isinstance(failure, NotEnabledError) else logging.WARNING
            logger.log(level, "%sattempt %d of %d: %s", self._meant, attempt, attempts, failure)
            pause(PAUSE * 2 ** (attempt - 1))
        raise AssertionError("not reached")

    def _confirmed(self, error: NotEnabledError, region: str, has_answered: bool) -> InventoryError:
        """`error` if the account really has not enabled `region`, else what else it means.

        EC2 answers dead credentials with the same code. So they must prove good now, not only when the poll began,
        and it must be a region that an account can be without.
        """
        identity = self.caller_identity()
        opt_in = identity.arn.startswith("arn:aws:") and region not in ALWAYS_ENABLED
        if opt_in and region != self._region() and not has_answered:
            return error
        return CredentialsError(
            error.code,
            f"EC2 in {region} refuses the credentials that STS accepts, in a region that is enabled: is this machine's "
            "clock right, is the account closed or not signed up for EC2?",
        )


class Poll:
    """One poll of many regions. Iterate it once: it gives every Instance, each region's RegionOutcome after that
    region's instances, and last the PollOutcome, whatever happens.

    All requests are made by threads of its own, so that the reader waits for no socket, and neither a deadline nor
    `cancel` has to. Iterating raises no InventoryError: the outcomes have them.
    """

    def __init__(
        self,
        manager: InventoryManager,
        regions: Callable[[], Sequence[str]],
        full: bool,
        deadline: float | None,
        bounds: Bounds,
    ) -> None:
        self.timestamp = datetime.now(timezone.utc).replace(microsecond=0)
        """When the poll began."""
        self.identity: CallerIdentity | None = None
        self.regions: tuple[str, ...] = ()
        """Those that are asked. Like `identity`, known before the first instance is given."""
        self.outcome = PollOutcome()
        """How the poll ended, once it has."""
        self._manager = manager
        self._resolve_regions = regions
        self._full = full
        self._deadline = deadline
        self._bounds = bounds
        self._began = time.monotonic()
        self._tallies: dict[str, _Tally] = {}
        self._states: Counter[str] = Counter()
        self._conductor = threading.Thread(target=self._conduct, name="poll", daemon=True)
        self._events: SimpleQueue[_Started | _Page | _Ended | _Cancelled] = SimpleQueue()
        self._stopped = threading.Event()

    def cancel(self, error: InventoryError) -> None:
        """End the poll with `error`: what has been read is still given, what has not been is recorded as failed.

        May be called from any thread and from a signal handler: SimpleQueue.put is reentrant by contract.
        """
        self._events.put(_Cancelled(error))

    @property
    def account(self) -> str | None:
        """The one that answered; until then, and if none did, the one that is meant, if that is known."""
        return self.identity.account if self.identity else self._manager.account

    def records(self) -> Iterator[Record]:
        """The lines of the log: what iterating gives, with the poll's timestamp and account."""
        for item in self:
            yield to_record(item, timestamp=self.timestamp, account=self.account)

    def __iter__(self) -> Iterator[Instance | RegionOutcome | PollOutcome]:
        if self._conductor.ident is not None:
            raise RuntimeError("a poll can be iterated once")
        try:
            self._conductor.start()
        except RuntimeError as error:  # no room for another thread
            self.cancel(internal_error(error))
        outcomes: list[RegionOutcome] = []
        failure: InventoryError | None = None
        try:
            while failure is None and (self.identity is None or self._tallies):
                event = self._next_event()
                if isinstance(event, _Page):
                    yield from self._counted(event)
                elif isinstance(event, _Ended):
                    outcomes.append(self._region_outcome(event.region, event.error))
                    yield outcomes[-1]
                elif isinstance(event, _Cancelled):
                    failure = event.error
                else:
                    self.identity = event.identity
                    self.regions = tuple(event.tallies)
                    self._tallies = dict(event.tallies)
            for region in tuple(self._tallies):
                outcomes.append(self._region_outcome(region, failure))
                yield outcomes[-1]
        finally:
            self._stopped.set()
            self._forget_pages()
        self.outcome = self._poll_outcome(outcomes, failure)
        yield self.outcome

    def _next_event(self) -> _Started | _Page | _Ended | _Cancelled:
        left = None if self._deadline is None else self._began + self._deadline - time.monotonic()
        try:
            if left is not None and left <= 0:
                raise Empty  # even if there is more to read: a slow reader, too, is held to the deadline
            return self._events.get(timeout=left)
        except Empty:
            return _Cancelled(InventoryError("DeadlineExceeded", f"not done by the deadline of {self._deadline:g} s"))

    def _counted(self, page: _Page) -> Iterator[Instance]:
        tally = self._tallies[page.region]
        tally.pages += 1
        try:
            for instance in page.instances:
                tally.instances += 1
                tally.tagged += bool(instance.tags)
                self._states[instance.state] += 1
                yield instance
        finally:
            self._bounds.pages.release()

    def _forget_pages(self) -> None:
        """Make room for those of other polls where nobody reads this one any more."""
        with suppress(Empty):
            while True:
                if isinstance(self._events.get_nowait(), _Page):
                    self._bounds.pages.release()

    def _region_outcome(self, region: str, error: InventoryError | None) -> RegionOutcome:
        tally = self._tallies.pop(region)
        seconds = 0.0 if tally.began is None else _seconds_since(tally.began)
        status = error.status if error else "ok"
        return RegionOutcome(region, status, tally.instances, tally.tagged, tally.pages, seconds, error)

    def _poll_outcome(self, outcomes: Sequence[RegionOutcome], failure: InventoryError | None) -> PollOutcome:
        statuses = Counter(outcome.status for outcome in outcomes)
        complete = failure is None and statuses["ok"] + statuses["not-enabled"] == len(outcomes)
        if not complete and not failure and not statuses["ok"]:  # no region is recorded in full
            failure = next(outcome.error for outcome in outcomes if outcome.status != "not-enabled")
        return PollOutcome(
            account=self.account,
            arn=self.identity.arn if self.identity else None,
            user_id=self.identity.user_id if self.identity else None,
            complete=complete,
            instances=self._states.total(),
            states=dict(sorted(self._states.items())),
            regions=dict(sorted((+statuses).items())),
            seconds=_seconds_since(self._began),
            error=failure,
        )

    def _conduct(self) -> None:
        """Find out who and where, then start a thread for each region. All clients are made here, in one thread."""
        try:
            tallies = {region: _Tally() for region in self._resolve_regions()}
            identity = self._manager.caller_identity()
            logger.info("asking EC2 in %d region(s) as %s", len(tallies), identity.arn)
            self._events.put(_Started(identity, tallies))
            for region, tally in tallies.items():
                if not self._admitted(self._bounds.regions):
                    return
                tally.began = time.monotonic()
                try:
                    client = self._manager._ec2_client(region, self._full)
                    threading.Thread(target=self._read, args=(client, region), name=region, daemon=True).start()
                except Exception as error:
                    self._bounds.regions.release()
                    if not isinstance(error, InventoryError):
                        raise
                    self._events.put(_Ended(region, error))
        except InventoryError as error:
            self.cancel(error)
        except Exception as error:  # noqa: BLE001 - a bug: without this the reader would wait for ever
            if not self._stopped.is_set():  # else the interpreter is shutting down, and starts no more threads
                self.cancel(internal_error(error))

    def _pause(self, seconds: float) -> None:
        """Wait, and let another region be asked meanwhile."""
        self._bounds.regions.release()
        time.sleep(seconds)
        self._bounds.regions.acquire()

    def _admitted(self, bound: threading.Semaphore) -> bool:
        """Whether there is room, which is waited for as long as somebody reads this poll."""
        while not self._stopped.is_set():
            if bound.acquire(timeout=1):
                return True
        return False

    def _read(self, client: EC2Client, region: str) -> None:
        try:
            with self._bounds.asking(region):
                for instances in self._manager._pages(client, region, {}, self._full, self._pause):
                    self._bounds.answered(region)
                    if not self._admitted(self._bounds.pages):
                        return
                    self._events.put(_Page(region, instances))
                    if self._stopped.is_set():
                        self._forget_pages()
                        return
            self._events.put(_Ended(region, None))
        except InventoryError as error:
            self._events.put(_Ended(region, error))
        except Exception as error:  # noqa: BLE001 - as above
            self._events.put(_Ended(region, internal_error(error)))
        finally:
            self._bounds.regions.release()
            client.close()


@dataclass
class _Tally:
    """What has been given of a region so far."""

    instances: int = 0
    tagged: int = 0
    pages: int = 0
    began: float | None = None
    """When it was first asked, on the monotonic clock."""


@dataclass(frozen=True)
class _Started:
    identity: CallerIdentity
    tallies: Mapping[str, _Tally]


@dataclass(frozen=True)
class _Page:
    region: str
    instances: Sequence[Instance]


@dataclass(frozen=True)
class _Ended:
    region: str
    error: InventoryError | None


@dataclass(frozen=True)
class _Cancelled:
    error: InventoryError


def to_record(item: Instance | RegionOutcome | PollOutcome, *, timestamp: datetime, account: str | None) -> Record:
    """`item` as a line of the log, for the poll that began at `timestamp` and asked as `account`."""
    names, values = _FIELDS[type(item)]
    record: Record = {"timestamp": timestamp, "record": item.RECORD, "account": account}
    record.update(zip(names, values(item), strict=True))
    if isinstance(item, Instance) and item.details is not None:
        record["details"] = item.details
    return record


def failed_poll(error: InventoryError, account: str | None = None) -> Record:
    """The line of a poll that did not come to ask anything."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    return to_record(PollOutcome(account=account, error=error), timestamp=now, account=account)


def _fields(kind: type[Instance | RegionOutcome | PollOutcome]) -> tuple[list[str], Callable[..., tuple[Any, ...]]]:
    """The names of a record's own fields in their order, and what takes their values."""
    names = [entry.name for entry in fields(kind) if entry.name not in {"account", "details"}]
    return names, attrgetter(*names)


_FIELDS = {kind: _fields(kind) for kind in (Instance, RegionOutcome, PollOutcome)}


def json_line(record: Record) -> str:
    """`record` as one line of ASCII JSON with its newline. No control character is left in it.

    Times become ISO 8601 in UTC, errors an object of code and message.
    """
    return _JSON.encode(record) + "\n"


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, InventoryError):
        return {"code": value.code, "message": value.message}
    raise TypeError(f"{type(value).__name__} has no place in a record")


_JSON = json.JSONEncoder(default=_json_value)


def _instances(page: DescribeInstancesResultTypeDef, region: str, full: bool) -> list[Instance]:
    return [
        _instance(item, reservation, region, full)
        for reservation in page["Reservations"]  # not there: not an answer of EC2's, though perhaps good XML
        for item in reservation["Instances"]
    ]


def _instance(item: InstanceTypeDef, reservation: ReservationTypeDef, region: str, full: bool) -> Instance:
    """The one place that knows the API's key names."""
    placement = item.get("Placement", {})
    interfaces = item.get("NetworkInterfaces", [])
    attachments = [interface.get("Attachment", {}) for interface in interfaces]
    tags = {tag["Key"]: tag.get("Value", "") for tag in item.get("Tags", [])}
    reason = item.get("StateTransitionReason")
    return Instance(
        region=region,
        instance_id=item["InstanceId"],
        state=item["State"]["Name"],
        name=tags.get("Name"),
        instance_type=item.get("InstanceType") or None,
        availability_zone=placement.get("AvailabilityZone") or None,
        launch_time=item.get("LaunchTime"),
        first_launch_time=next((each.get("AttachTime") for each in attachments if each.get("DeviceIndex") == 0), None),
        state_transition_reason=reason or None,
        state_transition_time=_transition_time(reason or ""),
        private_ip_address=item.get("PrivateIpAddress") or None,
        public_ip_address=item.get("PublicIpAddress") or None,
        ipv6_addresses=_given(
            address.get("Ipv6Address") for interface in interfaces for address in interface.get("Ipv6Addresses", [])
        ),
        vpc_id=item.get("VpcId") or None,
        subnet_id=item.get("SubnetId") or None,
        security_groups=_given(group.get("GroupId") for group in item.get("SecurityGroups", [])),
        image_id=item.get("ImageId") or None,
        key_name=item.get("KeyName") or None,
        iam_instance_profile=item.get("IamInstanceProfile", {}).get("Arn") or None,
        architecture=item.get("Architecture") or None,
        platform_details=item.get("PlatformDetails") or None,
        tenancy=placement.get("Tenancy") or None,
        lifecycle=item.get("InstanceLifecycle") or "on-demand",
        owner_id=reservation.get("OwnerId") or None,
        reservation_id=reservation.get("ReservationId") or None,
        volumes=_given(mapping.get("Ebs", {}).get("VolumeId") for mapping in item.get("BlockDeviceMappings", [])),
        managed_by=item.get("Operator", {}).get("Principal") or None,
        tags=tags,
        details=cast("Mapping[str, Any]", item) if full else None,
    )


def _given(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(value for value in values if value)


def _transition_time(reason: str) -> datetime | None:
    """The time in "User initiated (2021-10-04 14:13:33 GMT)", if there is one: some reasons have none."""
    found = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", reason)
    try:
        return datetime.fromisoformat(f"{found[1]}+00:00") if found else None
    except ValueError:  # a day that no calendar has
        return None


class _Specimen(dict[str, Any]):
    """A structure of botocore's model with a value for each member, that remembers which ones were asked for."""

    def __init__(self, shape: StructureShape) -> None:
        super().__init__((name, self._value(member)) for name, member in shape.members.items())
        self.asked: set[str] = set()

    def _value(self, shape: Shape) -> Any:
        if isinstance(shape, StructureShape):
            return _Specimen(shape)
        if isinstance(shape, ListShape):
            return [self._value(shape.member)]
        return "" if shape.type_name == "string" else 0

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


class _Element(NamedTuple):
    """What to make of an XML element."""

    key: str | None
    """Under which it is in the structure that it is in. None in a list."""
    make: Callable[..., Any]
    """dict, list, or what converts the text of a scalar."""
    children: dict[str, _Element] | None
    """By their names in the XML. None for a scalar."""


class _Reader:
    """Reads DescribeInstances' answers as botocore's parser does, to an equal result, in a fraction of the time: by
    expat, which calls back for each element, and a table of what to make of each, compiled from botocore's own model.
    Unless it is to be `full`, the table has only what an Instance is made of, which is found by making one.

    botocore's parser stays the judge: it reads whatever is not as it always is, in the model or in an answer. So what
    is not well-formed, or a number that is needed and none, ends as it would without the reader. But an element that
    comes twice is an error: botocore's parser would put XML nodes in its place.
    """

    def __init__(self, model: ServiceModel, full: bool) -> None:
        utc = parse_timestamp("1970-01-01T00:00:00Z").tzinfo
        plain = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", re.ASCII).fullmatch

        def timestamp(text: str) -> datetime:
            # What parse_timestamp makes of it, which takes a hundred times as long.
            return datetime.fromisoformat(text[:-1]).replace(tzinfo=utc) if plain(text) else parse_timestamp(text)

        scalars: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(("string", "character"), str),
            **dict.fromkeys(("integer", "long"), int),
            **dict.fromkeys(("float", "double"), float),
            "boolean": lambda text: text == "true",
            "timestamp": timestamp,
        }

        def compiled(shape: Shape, key: str | None, specimen: Any) -> _Element:
            if shape.serialization.keys() - {"name", "queryName"} or getattr(shape, "is_tagged_union", False):
                raise NotImplementedError(shape)
            if isinstance(shape, StructureShape):
                children = {
                    member.serialization.get("name", name): compiled(member, name, dict.get(specimen, name))
                    for name, member in shape.members.items()
                    if full or name in specimen.asked
                }
                return _Element(key, dict, children)
            if isinstance(shape, ListShape):
                return _Element(
                    key, list, {shape.member.serialization["name"]: compiled(shape.member, None, specimen[0])}
                )
            return _Element(key, scalars[shape.type_name], None)

        self._root: dict[str, _Element] = {}
        with suppress(Exception):  # whatever is new in the model: then every answer is left to botocore's parser
            shape = cast("StructureShape", model.operation_model("DescribeInstances").output_shape)
            specimen: Any = _Specimen(shape)
            _instances(specimen, region="", full=False)
            specimen.get("NextToken")
            answer = compiled(shape, None, specimen)
            # In each answer, though not in its shape.
            children = {**(answer.children or {}), REQUEST_ID: _Element(REQUEST_ID, str, None)}
            self._root["DescribeInstancesResponse"] = answer._replace(children=children)

    def before_parse(self, response_dict: dict[str, Any], customized_response_dict: Record, **event: object) -> None:
        """Handles botocore's event of that name, as the answer is on its way to the parser: gives the result, and
        leaves to the parser what it makes of the rest."""
        if response_dict["status_code"] != 200:
            return
        try:
            answer = self._read(response_dict["body"])
        except ResponseParserError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, botocore's parser says it better
            logger.debug("an answer is left to botocore's parser: %r", error)
            return
        request_id = answer.pop(REQUEST_ID, None)
        if not re.fullmatch(r"[\w-]*", request_id or "", re.ASCII):
            return
        said = "" if request_id is None else f"<{REQUEST_ID}>{request_id}</{REQUEST_ID}>"
        response_dict["body"] = f"<answer>{said}</answer>".encode()
        customized_response_dict.update(answer)

    def _read(self, body: bytes) -> Record:
        parser = ParserCreate("utf-8")
        parser.buffer_text = True
        answers: list[Record] = []
        # The list or structure that is being read, and those around it.
        key: str | None = None
        children: dict[str, _Element] = self._root
        value: Any = answers
        around: list[tuple[str | None, dict[str, _Element], Any]] = []
        scalar: _Element | None = None
        texts: list[str] = []
        unknown = 0  # how many elements deep in one that is not in the table

        def start(name: str, attributes: dict[str, str]) -> None:
            nonlocal key, children, value, scalar, unknown
            if unknown:
                unknown += 1
                return
            element = children.get(name)
            if scalar or element is None or (attributes and around):
                if scalar or attributes or ":" in name or isinstance(value, list):
                    raise ValueError(f"{name} is not as ever")
                unknown = 1
                return
            if element[2] is None:
                scalar = element
                texts.clear()
            else:
                around.append((key, children, value))
                key, make, children = element  # type: ignore[assignment]  # not None, as was just seen
                value = make()

        def end(name: str) -> None:
            nonlocal key, children, value, scalar, unknown
            if unknown:
                unknown -= 1
                return
            if scalar:
                made_key, make, _ = scalar
                made = make("".join(texts))
                scalar = None
            else:
                made_key, made = key, value
                key, children, value = around.pop()
            if made_key is None:
                value.append(made)
            elif made_key in value:
                raise ResponseParserError(f"{name} comes twice")
            else:
                value[made_key] = made

        def doctype(*declared: object) -> None:
            raise ValueError("a document type, and perhaps entities")

        parser.StartElementHandler = start
        parser.EndElementHandler = end
        parser.CharacterDataHandler = texts.append
        parser.StartDoctypeDeclHandler = doctype
        parser.Parse(body, True)
        return answers[0]


def _may_pass(failure: InventoryError, cause: Exception) -> bool:
    """Whether to ask again, after botocore has asked as often as it does."""
    if isinstance(cause, ClientError):
        # Credentials that are refused may be renewed, and new ones are not known everywhere at once. EC2 says no other
        # of a region that is not enabled.
        credentials = isinstance(failure, (CredentialsError, NotEnabledError))
        refused = credentials and failure.code in EXPIRED_CODES | REFUSED_CODES
        broken = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
        return refused or broken or isinstance(failure, MalformedResponseError)
    if isinstance(cause, (ConnectTimeoutError, ReadTimeoutError)):
        return False  # they have had their time
    return isinstance(cause, (BotocoreConnectionError, HTTPClientError)) or isinstance(failure, MalformedResponseError)


def _malformed(where: str, flaw: str) -> MalformedResponseError:
    return MalformedResponseError(
        "MalformedResponse", f"{where}: the answer {flaw}. Is something between here and AWS, a proxy perhaps?"
    )


CREDENTIALS_ERRORS = (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    InvalidConfigError,
    TokenRetrievalError,
)


def _translated(error: Exception, action: str, region: str | None) -> InventoryError:
    """What an error of botocore's means to a person: what happened, where, what to do."""
    where = f"{action} in {region}" if region else action
    if isinstance(error, CREDENTIALS_ERRORS):
        return CredentialsError(type(error).__name__, _clipped(str(error)))
    if not isinstance(error, ClientError):
        return InventoryError(type(error).__name__, f"{where}: {_clipped(str(error))}")

    # Another call than ours is one on the way to the credentials: AssumeRole for a profile, say.
    ours = error.operation_name == action.split(":")[-1]
    if not ours:
        where = f"no credentials: {error.operation_name}"
    code = error.response.get("Error", {}).get("Code")
    message = error.response.get("Error", {}).get("Message") or ""
    # Where they have elements in them, botocore gives dictionaries.
    if not (isinstance(code, str) and re.fullmatch(r"[\w.:-]{1,100}", code) and isinstance(message, str)):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _malformed(where, f"is HTTP {status} without an error of AWS's")
    # About a bad signature AWS repeats the signed request, session token and all.
    repeats_request = re.search("signature|credential=|security-token", message, re.IGNORECASE)
    said = f" AWS says: {_clipped(message)}" if message and not repeats_request else ""
    if not ours and error.operation_name == "AssumeRole" and code in DENIED_CODES:
        said += (
            " Does the role exist, does it trust who asks, with this external id, and may who asks sts:AssumeRole it?"
        )
    if not ours:
        return CredentialsError(code, f"{where}: AWS answers {code}.{said}")
    if code in EXPIRED_CODES:
        return CredentialsError(
            code, f"{where}: the credentials have expired, or this machine's clock is wrong (is NTP running?).{said}"
        )
    if code in NOT_ENABLED_CODES and action.startswith("ec2:"):
        return NotEnabledError(code, f"{where}: the account has not enabled this region.{said}")
    if code in REFUSED_CODES:
        return CredentialsError(
            code, f"{where}: AWS refuses the credentials: they are revoked, or this machine's clock is wrong.{said}"
        )
    if code in DENIED_CODES:
        return DeniedError(
            code,
            f"{where}: denied. The role needs the permission {action}. If it has it, a service control policy, "
            f"a permissions boundary or a VPC endpoint's policy denies it here.{said}",
        )
    return InventoryError(code, f"{where}: AWS answers {code}.{said}")


def internal_error(error: Exception) -> InventoryError:
    """What a record says of an error that nobody has thought of."""
    logger.error("an unforeseen error: please report it", exc_info=error)
    return InventoryError("InternalError", f"an unforeseen {type(error).__name__}: the log of errors has more")


def _clipped(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"


def _seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 3)
