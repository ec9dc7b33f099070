"""The entry on AWS Lambda: each invocation polls one account, whose record becomes an object in S3.

The event says by which role, and for which time of the schedule; `external_id`, and `regions` or `all_regions`, may be
in it, too. Without `role_arn` the function's own account is polled.

    {"role_arn": "arn:aws:iam::222222222222:role/inventory", "time": "2026-11-22T09:00:00Z"}

The environment has BUCKET and PREFIX, and EXTERNAL_ID and REGIONS for events without: see template.yaml.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from accounts import AssumedRoles
from inventory_manager import InventoryManager, json_line

if TYPE_CHECKING:
    from inventory_manager import Poll, Record

logger = logging.getLogger(__name__)

EVENT = {"role_arn": str, "external_id": str, "regions": list, "all_regions": bool, "time": str}
"""All that an event may have, and of which type. Each may be null."""

ON_TIME = timedelta(hours=1)
"""A poll that is further from its scheduled time is not the one of that time: somebody ran an old execution again."""

SECONDS_TO_WRITE = 30
"""What a poll leaves of the function's time. S3_CONFIG keeps three attempts within it."""

S3_CONFIG = Config(connect_timeout=3, read_timeout=6, retries={"mode": "standard", "total_max_attempts": 3})


class InvalidEvent(ValueError):
    """The event does not say what to poll, and would not the next time."""


class PollIncomplete(Exception):
    """The poll is recorded, and lacks something. The next attempt may lack nothing."""


class RecordNotWritten(Exception):
    """S3 has not taken the record."""


class Context(Protocol):
    """What is used of Lambda's."""

    invoked_function_arn: str

    def get_remaining_time_in_millis(self) -> int: ...


def lambda_handler(event: Any, context: Context) -> Record:
    """Poll, write the record, and return its poll line. Raises PollIncomplete if that is not complete."""
    check(event)
    seconds = context.get_remaining_time_in_millis() / 1000 - SECONDS_TO_WRITE
    poll = make_poll(event, own_account=context.invoked_function_arn.split(":")[4], deadline=max(0.0, seconds))
    body = io.BytesIO()
    errors: list[str] = []
    with gzip.GzipFile(fileobj=body, mode="wb", mtime=0) as lines:
        for record in poll.records():
            lines.write(json_line(record).encode())
            if record["record"] != "instance" and record["error"] and record.get("status") != "not-enabled":
                errors.append(str(record["error"]))
    key = object_key(poll, time_of(event.get("time")))
    write(key, body.getvalue())
    if not poll.outcome.complete:
        raise PollIncomplete(f"{key}: {'; '.join(dict.fromkeys(errors))}")
    line: Record = json.loads(json_line(record))
    return line


def check(event: Any) -> None:
    if not isinstance(event, dict):
        raise InvalidEvent(f"the event is no object: {event!r}")
    for name, value in event.items():
        if name not in EVENT:  # role-arn, say, without which another account would be polled than was meant
            raise InvalidEvent(f"the event has {name!r}, and may have {', '.join(EVENT)} only")
        if not isinstance(value, (EVENT[name], type(None))):
            raise InvalidEvent(f"{name} is {value!r}, which is no {EVENT[name].__name__}")
    if not all(isinstance(region, str) and region for region in event.get("regions") or ()):
        raise InvalidEvent(f"regions is {event['regions']!r}, and has to be a list of names")
    if event.get("regions") and event.get("all_regions"):
        raise InvalidEvent("the event has both regions and all_regions")
    time_of(event.get("time"))


def time_of(text: str | None) -> datetime | None:
    """The scheduled time, in UTC."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if time.tzinfo:
            return time.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        pass
    raise InvalidEvent(f"time is {text!r}, and has to be like 2026-11-22T09:00:00Z")


@cache
def assumed_roles(external_id: str | None) -> AssumedRoles:
    """What the invocations of one environment share: the next account takes a quarter of the processor time."""
    return AssumedRoles(boto3.Session(), external_id=external_id)


def make_poll(event: dict[str, Any], own_account: str, deadline: float) -> Poll:
    if event.get("role_arn"):
        roles = assumed_roles(event.get("external_id") or os.environ.get("EXTERNAL_ID") or None)
        try:
            manager = roles.manager(event["role_arn"])
        except ValueError as error:
            raise InvalidEvent(f"role_arn: {error}") from error
    else:
        manager = InventoryManager(boto3.Session(), own_account)
    regions, all_regions = event.get("regions"), event.get("all_regions")
    if regions is None and all_regions is None:
        regions = [name for name in os.environ.get("REGIONS", "").split(",") if name]
        all_regions = regions == ["all"]
    return manager.poll(regions, all_regions=bool(all_regions), deadline=deadline)


def object_key(poll: Poll, scheduled: datetime | None) -> str:
    """A complete poll has the name of the time that it is of: there is one. Others have that of the second at which
    they began, and lie beside it: a worse attempt never takes a better one's place, and what it saw is kept."""
    time = scheduled if scheduled and abs(poll.timestamp - scheduled) < ON_TIME else poll.timestamp
    name = f"{time:%Y%m%dT%H%M%SZ}" if poll.outcome.complete else f"{poll.timestamp:%Y%m%dT%H%M%SZ}-incomplete"
    partition = f"account={poll.account}/date={time:%Y-%m-%d}/hour={time:%H}"
    return f"{os.environ.get('PREFIX', '')}{partition}/{name}.jsonl.gz"


def write(key: str, body: bytes) -> None:
    """Write an object that is not there yet. One that is there stays: an earlier attempt has recorded the same."""
    bucket = os.environ["BUCKET"]
    try:
        s3 = boto3.client("s3", config=S3_CONFIG)
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/gzip", IfNoneMatch="*")
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and error.response["Error"]["Code"] == "PreconditionFailed":
            logger.info("s3://%s/%s is there already", bucket, key)
            return
        raise RecordNotWritten(f"s3://{bucket}/{key}: {error}") from error
