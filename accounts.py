"""Many AWS accounts: a session for each, by a role that is assumed in it, and their polls at the same time.

Which account is asked is decided by the session, so another account is another session and nothing else.
`AssumedRoles` makes those sessions, `AccountsPoll` polls them. Whoever assumes the roles needs the permission
sts:AssumeRole on them; each role needs ec2:DescribeInstances, and has to trust whoever assumes it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import BotoCoreError, NoCredentialsError
from botocore.httpsession import URLLib3Session
from botocore.utils import ensure_boolean, get_environ_proxies

from inventory_manager import (
    CLIENT_CONFIG,
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    Bounds,
    InventoryError,
    InventoryManager,
    failed_poll,
    internal_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from botocore.client import BaseClient
    from botocore.credentials import ReadOnlyCredentials
    from botocore.loaders import Loader

    from inventory_manager import Poll, Record

logger = logging.getLogger(__name__)

__all__ = ["Account", "AccountsPoll", "AssumedRoles", "account_of"]

ACCOUNTS_AT_ONCE: Final = 16
"""As many as there are regions at once: those that have one region each keep all connections busy, too."""

REGIONS_AT_ONCE: Final = 16
"""Of all accounts together. Each has a connection, and may have a page of 10 MB in its hands."""

LINES_AT_ONCE: Final = 1000
"""Records that wait for the reader."""

SESSION_NAME: Final = "ec2-flight-recorder"
"""As CloudTrail names the session in the other account."""

REMEMBERED: Final = 5
"""Seconds for which no other account asks for what the source has just failed to give."""

ROLE_ARN: Final = re.compile(r"arn:aws(-[a-z]+)*:iam::(?P<account>\d{12}):role/([\w+=,.@-]+/)*[\w+=,.@-]+", re.ASCII)

Value = TypeVar("Value")

CALLS: Final = {"ec2": {"DescribeInstances"}, "sts": {"AssumeRole", "GetCallerIdentity"}}


def account_of(role_arn: str) -> str:
    """The id of the account that the role is in. Raises ValueError if that is no role's ARN."""
    found = ROLE_ARN.fullmatch(role_arn)
    if not found:
        raise ValueError(f"{role_arn!r} is not the ARN of a role, such as arn:aws:iam::123456789012:role/inventory")
    return found["account"]


class AssumedRoles:
    """Makes the InventoryManagers of other accounts: by a role in each, which `source` assumes.

    The roles are assumed when they are needed, and anew before their credentials expire, after an hour at the latest.
    `blank_session` makes the botocore sessions that they are put into, with the settings that `source` has. All share
    what is the same for all: the region, botocore's models, the connections to AWS. Does nothing until a manager is
    asked. May be used by several threads.
    """

    def __init__(
        self,
        source: boto3.Session,
        *,
        external_id: str | None = None,
        session_name: str = SESSION_NAME,
        blank_session: Callable[[], botocore.session.Session] = botocore.session.Session,
    ) -> None:

        def credentials() -> ReadOnlyCredentials:
            found = source.get_credentials()
            if found is None:
                raise NoCredentialsError
            return found.get_frozen_credentials()

        self.region = _OneAtATime(lambda: source.region_name)
        """Gives that of the source, where STS is asked."""
        self._source_credentials = _OneAtATime(credentials)
        self._sts_lock = threading.Lock()
        self._arguments = {"RoleSessionName": session_name} | ({"ExternalId": external_id} if external_id else {})
        self._blank_session = blank_session
        self._sts_session = blank_session()
        self._models = _Models(self._sts_session.get_component("data_loader"))
        self._connections = _Connections(self._sts_session)
        self._share(self._sts_session)

    def manager(self, role_arn: str) -> InventoryManager:
        """The InventoryManager of the role's account, and of no other. Raises ValueError if that is no role's ARN."""
        account = account_of(role_arn)
        fetcher = AssumeRoleCredentialFetcher(self._sts_client, self, role_arn, extra_args=self._arguments)
        credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        botocore_session = self._blank_session()
        botocore_session.register_component("credential_provider", CredentialResolver([_Provider(credentials)]))
        botocore_session.get_component("config_store").set_config_provider("region", self.region)
        session = boto3.Session(botocore_session=botocore_session)
        self._share(botocore_session)  # not before: boto3 adds to the loader's search path, each time
        return InventoryManager(session, account)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Whoever assumes the roles, as the fetcher asks."""
        return self._source_credentials()

    def _sts_client(self, service: str, **keys: Any) -> BaseClient:
        region = self.region() or "us-east-1"
        with self._sts_lock:
            return self._sts_session.create_client(service, region_name=region, config=CLIENT_CONFIG, **keys)

    def _share(self, session: botocore.session.Session) -> None:
        session.register_component("data_loader", self._models)
        session.register("before-send", self._connections.send)  # type: ignore[arg-type]  # this one may answer


class _OneAtATime(Generic[Value]):
    """A call that many threads make, one at a time. A failure, which can take seconds, stands for all who wait."""

    def __init__(self, ask: Callable[[], Value]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._failed: tuple[float, Exception] | None = None

    def __call__(self) -> Value:
        with self._lock:
            if self._failed and time.monotonic() - self._failed[0] < REMEMBERED:
                raise self._failed[1]
            try:
                return self._ask()
            except Exception as error:
                self._failed = time.monotonic(), error
                raise

    provide = __call__
    """As botocore's configuration asks for a value when it is needed: the region may come from instance metadata."""


class _Provider(CredentialProvider):
    METHOD = "assume-role"

    def __init__(self, credentials: DeferredRefreshableCredentials) -> None:
        self._credentials = credentials

    def load(self) -> DeferredRefreshableCredentials:
        return self._credentials


class _Models:
    """botocore's loader of models, of which a client is made: without the calls that are not made. EC2 has 700, and to
    make a client with all of them takes ten times as long."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._lock = threading.Lock()
        self._models: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_service_model(self, service_name: str, type_name: str, api_version: str | None = None) -> Any:
        with self._lock:  # else all threads would load at once what is read once
            model = self._loader.load_service_model(service_name, type_name, api_version)
            if type_name != "service-2":
                return model
            if service_name not in self._models:
                operations = {name: call for name, call in model["operations"].items() if name in CALLS[service_name]}
                self._models[service_name] = {**model, "operations": operations}
            return self._models[service_name]


class _Connections:
    """The connections to AWS, which are the same for all accounts: a request has its credentials in itself.

    To open one takes 20 ms of CPU time, most of them to read the certificates that are trusted; that is longer than
    all else that it takes to ask a region that has few instances. They stay open, at most 32 to an endpoint.
    """

    def __init__(self, session: botocore.session.Session) -> None:
        certificates = session.get_config_variable("ca_bundle")
        # As botocore makes its own of them.
        self._settings: dict[str, Any] = {
            "verify": certificates if certificates is not None else os.environ.get("REQUESTS_CA_BUNDLE") or True,
            "timeout": (CONNECT_TIMEOUT, READ_TIMEOUT),
            "max_pool_connections": REGIONS_AT_ONCE + ACCOUNTS_AT_ONCE,
            "socket_options": [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
            + [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
            * ensure_boolean(session.get_scoped_config().get("tcp_keepalive", False)),
        }
        self._lock = threading.Lock()
        self._endpoints: dict[str, URLLib3Session] = {}

    def send(self, request: AWSPreparedRequest, **event: object) -> AWSResponse:
        """Handles botocore's event before-send: gives the answer, in place of the client's own connection."""
        scheme, host, *_ = urlsplit(request.url)
        with self._lock:
            if host not in self._endpoints:
                proxies = get_environ_proxies(f"{scheme}://{host}")
                self._endpoints[host] = URLLib3Session(proxies=proxies, **self._settings)
            endpoint = self._endpoints[host]
        return endpoint.send(request)


class Account(NamedTuple):
    """One that is to be polled."""

    id: str | None
    """None where only the session knows it."""
    manager: Callable[[], InventoryManager]
    """Makes it when its turn comes, so that those of a thousand accounts are not there at once."""


class AccountsPoll:
    """A poll of each of many accounts, up to 16 at a time, with its own timestamp, poll line and errors.

    The polls share one bound: 16 regions are asked at once. `deadline` is in seconds from now and for all together:
    what has not been asked by then has a poll line that says so, too.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        regions: Iterable[str] = (),
        *,
        all_regions: bool = False,
        full: bool = False,
        deadline: float | None = None,
    ) -> None:
        self.accounts = tuple(accounts)
        self._regions = tuple(regions)
        self._all_regions = all_regions
        self._full = full
        self._deadline = deadline
        self._began = time.monotonic()
        self._bounds = Bounds(regions=REGIONS_AT_ONCE)
        self._polls: set[Poll] = set()
        self._failure: InventoryError | None = None

    def cancel(self, error: InventoryError) -> None:
        """End all polls with `error`, as Poll.cancel does, those too that have not begun. May be called from any thread
        and from a signal handler."""
        self._failure = self._failure or error
        for poll in tuple(self._polls):
            poll.cancel(self._failure)

    def records(self) -> Iterator[Record]:
        """The lines of the log. Those of several accounts come mixed; of each, the poll line is the last."""
        accounts = iter(self.accounts)
        taking = threading.Lock()
        lines: Queue[Record | None] = Queue(LINES_AT_ONCE)

        def taken() -> Account | None:
            with taking:
                return next(accounts, None)

        def work() -> None:
            while account := taken():
                for record in self._poll(account):
                    lines.put(record)
            lines.put(None)

        working = 0
        try:
            for _ in range(min(ACCOUNTS_AT_ONCE, len(self.accounts))):
                try:
                    threading.Thread(target=work, name="accounts", daemon=True).start()
                except RuntimeError as error:  # no room for another: then with those that there are
                    logger.warning("%d accounts at a time: %s", working, error)
                    break
                working += 1
            while working:
                line = self._next(lines)
                if line is None:
                    working -= 1
                else:
                    yield line
            while account := taken():  # without any thread
                yield from self._poll(account)
        finally:
            if working:
                self.cancel(InventoryError("Abandoned", "nobody reads this poll any more"))
            while working:
                working -= lines.get() is None

    def _next(self, lines: Queue[Record | None]) -> Record | None:
        held_to = None if self._failure else self._deadline
        left = None if held_to is None else self._began + held_to - time.monotonic()
        try:
            if left is not None and left <= 0:
                raise Empty  # even if there is more to read
            return lines.get(timeout=left)
        except Empty:
            self.cancel(InventoryError("DeadlineExceeded", f"not done by the deadline of {held_to:g} s"))
            return lines.get()

    def _poll(self, account: Account) -> Iterator[Record]:
        """The lines of one account, the last of them its poll line, whatever happens."""
        if self._failure:
            yield failed_poll(self._failure, account.id)
            return
        try:
            poll = account.manager().poll(
                self._regions, all_regions=self._all_regions, full=self._full, bounds=self._bounds
            )
            self._polls.add(poll)
            try:
                if self._failure:  # since we looked, and whoever cancelled may not have seen this poll
                    poll.cancel(self._failure)
                yield from poll.records()
            finally:
                self._polls.discard(poll)
        except BotoCoreError as error:  # settings that make no session
            yield failed_poll(InventoryError(type(error).__name__, str(error)), account.id)
        except Exception as error:  # noqa: BLE001 - a bug, or no memory: it is this account's alone
            yield failed_poll(internal_error(error), account.id)
