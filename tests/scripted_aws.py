"""EC2 and STS as a test scripts them, answer by answer, over real HTTP: what moto cannot say."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from loopback import Handler, LoopbackService

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Request:
    """What was asked, as far as a script needs to know."""

    action: str
    region: str
    access_key: str
    session_token: str | None
    parameters: Mapping[str, str]

    @property
    def page_token(self) -> str | None:
        return self.parameters.get("NextToken")


@dataclass(frozen=True)
class Reply:
    body: str | bytes = ""
    status: int = 200
    delay: float = 0
    """Seconds before the first byte."""
    content_length: int | None = None
    """What the header claims, where that is not the truth."""
    hang_up: bool = False
    """Close the connection instead."""


def sts(request: Request) -> Reply | str:
    """STS as it is where nothing is the matter: every role can be assumed, credentials are of the role's account."""
    return assumed_role(request) if request.action == "AssumeRole" else caller_identity(account_asked(request))


@dataclass
class ScriptedAWS(LoopbackService):
    """`answer` is called for each DescribeInstances, `identify` for each call of STS."""

    answer: Callable[[Request], Reply | str]
    identify: Callable[[Request], Reply | str] = sts
    requests: list[Request] = field(default_factory=list)
    address: tuple[str, int] = ("127.0.0.1", 0)

    def asked(self, action: str) -> list[Request]:
        return [request for request in self.requests if request.action == action]

    def handler(self) -> type[Handler]:
        script = self

        class QueryHandler(Handler):
            def do_POST(self) -> None:
                request = self.read_request()
                script.requests.append(request)
                said = (script.answer if request.action == "DescribeInstances" else script.identify)(request)
                reply = said if isinstance(said, Reply) else Reply(said)
                time.sleep(reply.delay)
                if reply.hang_up:
                    self.close_connection = True
                    return
                body = reply.body if isinstance(reply.body, bytes) else reply.body.encode()
                self.answer(reply.status, "text/xml;charset=UTF-8", body, reply.content_length)

            def read_request(self) -> Request:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                parameters = dict(parse_qsl(body, keep_blank_values=True))
                scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/", self.headers["Authorization"])
                assert scope, "a request that is not signed"
                token = self.headers.get("X-Amz-Security-Token")
                return Request(parameters["Action"], scope[2], scope[1], token, parameters)

        return QueryHandler


def caller_identity(account: str = ACCOUNT, partition: str = "aws") -> str:
    return f"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
        <Arn>arn:{partition}:sts::{account}:assumed-role/inventory/i-0f1e2d3c4b5a69788</Arn>
        <UserId>AROAEXAMPLE:i-0f1e2d3c4b5a69788</UserId><Account>{account}</Account>
        </GetCallerIdentityResult></GetCallerIdentityResponse>"""


def assumed_role(request: Request, key: str | None = None, lifetime: float = 3600) -> str:
    """The answer to an AssumeRole: credentials with `key`, by default one with the role's account in it."""
    account = request.parameters["RoleArn"].split(":")[4]
    session = f"assumed-role/inventory/{request.parameters['RoleSessionName']}"
    expires = datetime.now(timezone.utc) + timedelta(seconds=lifetime)
    return f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
        <AssumedRoleUser><AssumedRoleId>AROAEXAMPLE:x</AssumedRoleId><Arn>arn:aws:sts::{account}:{session}</Arn>
        </AssumedRoleUser><Credentials><AccessKeyId>{key or f"ASIA{account}"}</AccessKeyId>
        <SecretAccessKey>secret-of-{account}</SecretAccessKey><SessionToken>token-of-{account}</SessionToken>
        <Expiration>{expires:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""


def account_asked(request: Request) -> str:
    """The account that the request's credentials are of, if they were given by `assumed_role`."""
    number = request.access_key.removeprefix("ASIA")[:12]
    return number if number.isdigit() else ACCOUNT


def ec2_error(code: str, message: str = "Computer says no.", status: int = 400) -> Reply:
    return Reply(
        f"<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></Errors>"
        "<RequestID>r-1</RequestID></Response>",
        status,
    )


def sts_error(code: str, message: str = "Computer says no.", status: int = 403) -> Reply:
    return Reply(
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        "<RequestId>r-1</RequestId></ErrorResponse>",
        status,
    )


def page(*instances: str, token: str | None = None, per_reservation: int = 1) -> str:
    """A DescribeInstances answer. `instances` are XML, see `an_instance`."""
    groups = [instances[start : start + per_reservation] for start in range(0, len(instances), per_reservation)]
    reservations = "".join(
        f"<item><reservationId>r-{number:017x}</reservationId><ownerId>{ACCOUNT}</ownerId><groupSet/>"
        f"<instancesSet>{''.join(group)}</instancesSet></item>"
        for number, group in enumerate(groups)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r-1</requestId>'
        f"<reservationSet>{reservations}</reservationSet>"
        f"{f'<nextToken>{token}</nextToken>' if token else ''}</DescribeInstancesResponse>"
    )


def endless() -> Callable[[Request], str]:
    """A script of pages with one instance each that never end."""
    numbers = itertools.count()

    def answer(request: Request) -> str:
        number = next(numbers)
        return page(an_instance(number), token=f"t{number}")

    return answer


def an_instance(
    instance_id: str | int = 0,
    *,
    state: str = "running",
    launched: str = "2026-11-01T08:00:00.000Z",
    tags: Mapping[str, str] | None = None,
    more: str = "",
) -> str:
    """An instance in DescribeInstances' XML. `more` is XML put into it as it is."""
    if isinstance(instance_id, int):
        instance_id = f"i-{instance_id:017x}"
    items = "".join(
        f"<item><key>{escaped(key)}</key><value>{escaped(value)}</value></item>" for key, value in (tags or {}).items()
    )
    return (
        f"<item><instanceId>{instance_id}</instanceId><imageId>ami-0abcdef1234567890</imageId>"
        f"<instanceState><code>16</code><name>{state}</name></instanceState>"
        f"<instanceType>t4g.nano</instanceType><launchTime>{launched}</launchTime>"
        f"<tagSet>{items}</tagSet>{more}</item>"
    )


def escaped(text: str) -> str:
    return escape(text, {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})
