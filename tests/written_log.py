"""Logs written by hand, record by record, as main.py would have written them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from history import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable

ACCOUNT = "123456789012"
REGION = "eu-west-1"
Record = dict[str, Any]


def instance(time: str, number: int = 1, **fields: Any) -> Record:
    """An instance line; what is not given is null, or empty, or usual."""
    usual: Record = {
        field: [] if kind.endswith("[]") else {} if field == "tags" else None for field, kind in FIELDS.items()
    }
    usual |= {"account": ACCOUNT, "region": REGION, "instance_id": f"i-{number:017x}", "state": "running"}
    usual |= {
        "instance_type": "m5.large",
        "launch_time": "2026-08-01T00:00:00Z",
        "private_ip_address": f"10.0.3.{number}",
    }
    usual |= {"first_launch_time": fields.get("launch_time", usual["launch_time"])} | fields
    return {"timestamp": time, "record": "instance"} | usual | {"name": usual["tags"].get("Name")}


def region(time: str, instances: int | None, status: str | None = "ok", **fields: Any) -> Record:
    error = None if status == "ok" else {"code": "RequestLimitExceeded", "message": "too many requests"}
    return {
        "timestamp": time,
        "record": "region",
        "account": ACCOUNT,
        "region": REGION,
        "status": status,
        "instances": instances,
        "tagged": 0,
        "pages": 1,
        "seconds": 0.5,
        "error": error,
        **fields,
    }


def poll(time: str, ok: int = 1, **fields: Any) -> Record:
    return {
        "timestamp": time,
        "record": "poll",
        "account": ACCOUNT,
        "arn": "arn:aws:sts::123456789012:assumed-role/r/i",
        "user_id": "AROAEXAMPLE:i",
        "complete": True,
        "instances": 0,
        "states": {},
        "regions": {"ok": ok},
        "seconds": 5.0,
        "version": "0.1.0",
        "error": None,
        **fields,
    }


def block(time: str, *instances: Record) -> list[Record]:
    """A complete poll of one region that saw these, whatever time they are of."""
    return [*({**each, "timestamp": time} for each in instances), region(time, len(instances)), poll(time)]


def lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
