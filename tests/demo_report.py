"""make demo-report: a simulated month of the flight recorder's log, and the page that history.py makes of it."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parent.parent
PAGE: Final = Path(os.environ.get("DEMO_REPORT", REPOSITORY / "demo-report.html"))

ACCOUNT: Final = "123456789012"
HOME, AWAY = "eu-west-1", "us-east-1"
DAYS: Final = 30
OUTAGE: Final = range(11 * 24 + 9, 11 * 24 + 14)
"""The hours in which nothing polled."""
FAILING: Final = range(20 * 24 + 1, 20 * 24 + 9)
"""The hours in which the far region failed."""
ROLLOUT: Final = 17 * 24 + 10
RETAGGING: Final = (9 * 24 + 15, DAYS * 24 - 6)
RESIZING: Final = DAYS * 24 - 4
OLD_IMAGE, NEW_IMAGE = "ami-0a5c3f1e9d7b24680", "ami-0f9e8d7c6b5a43210"


def utc(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


@dataclass
class Fleet:
    """Every instance that EC2 shows, as its record; and what happens to it from hour to hour."""

    chance: random.Random
    shown: list[dict[str, Any]] = field(default_factory=list)
    gone: dict[str, datetime] = field(default_factory=dict)
    """Until when a terminated instance is shown."""
    image: str = OLD_IMAGE

    def some_id(self, prefix: str) -> str:
        return f"{prefix}-{self.chance.getrandbits(68):017x}"

    def address(self) -> str:
        return f"{self.chance.randrange(16, 32)}.{self.chance.randrange(256)}.{self.chance.randrange(1, 255)}"

    def launch(
        self, role: str, kind: str, team: str, time: datetime, *, region: str = HOME, spot: bool = False
    ) -> None:
        begun = utc(time)
        tags = {"Name": role, "Team": team} if team else {"Name": role}
        self.shown.append(
            {
                "region": region,
                "instance_id": self.some_id("i"),
                "state": "running",
                "name": role,
                "instance_type": kind,
                "availability_zone": region + self.chance.choice("abc"),
                "launch_time": begun,
                "first_launch_time": begun,
                "state_transition_reason": None,
                "state_transition_time": None,
                "private_ip_address": f"172.{self.address()}",
                "public_ip_address": f"54.{self.address()}" if role == "web" else None,
                "ipv6_addresses": [],
                "vpc_id": "vpc-999685aabc055fb6b",
                "subnet_id": "subnet-57da6c9b30cf774f6",
                "security_groups": ["sg-0d1c2b3a495867f01"],
                "image_id": self.image if role == "web" else OLD_IMAGE,
                "key_name": "ops" if role.startswith("dev") else None,
                "iam_instance_profile": f"arn:aws:iam::{ACCOUNT}:instance-profile/{role}",
                "architecture": "arm64" if "g." in kind else "x86_64",
                "platform_details": "Linux/UNIX",
                "tenancy": "default",
                "lifecycle": "spot" if spot else "on-demand",
                "owner_id": ACCOUNT,
                "reservation_id": self.some_id("r"),
                "volumes": [self.some_id("vol")],
                "managed_by": None,
                "tags": tags,
            }
        )

    def alive(self, role: str) -> list[dict[str, Any]]:
        return [each for each in self.shown if each["name"].startswith(role) and each["state"] != "terminated"]

    def end(self, instance: dict[str, Any], state: str, time: datetime) -> None:
        instance.update(
            state=state,
            state_transition_reason=f"User initiated ({time:%Y-%m-%d %H:%M:%S} GMT)",
            state_transition_time=utc(time),
            public_ip_address=None,
        )
        if state == "terminated":
            instance.update(private_ip_address=None, first_launch_time=None, vpc_id=None, subnet_id=None, volumes=[])
            self.gone[instance["instance_id"]] = time + timedelta(minutes=self.chance.randrange(55, 62))

    def start(self, instance: dict[str, Any], time: datetime) -> None:
        instance.update(
            state="running", launch_time=utc(time), state_transition_reason=None, state_transition_time=None
        )

    def begin(self, time: datetime) -> None:
        """What was there before the first poll."""
        for role, kind, team, region in (
            ("orders-db", "r7g.2xlarge", "shop", HOME),
            ("orders-db-replica", "r7g.2xlarge", "shop", AWAY),
            ("events-db", "r7g.xlarge", "data", HOME),
            ("search", "i4i.xlarge", "shop", HOME),
            ("search", "i4i.xlarge", "shop", AWAY),
            ("bastion", "t4g.nano", "", HOME),
            ("bastion", "t4g.nano", "", AWAY),
            ("ci", "c7i.2xlarge", "platform", HOME),
        ):
            self.launch(role, kind, team, time - timedelta(days=self.chance.randrange(40, 400)), region=region)
        for number in range(9):
            team = ("shop", "data", "platform")[number % 3]
            self.launch(f"dev-{number + 1}", "m7i.large", team, time - timedelta(hours=7, minutes=9 * number))

    def scale(self, wanted: int, kind: str, region: str, moment: datetime) -> None:
        web = [each for each in self.alive("web") if each["region"] == region]
        for _ in range(wanted - len(web)):
            self.launch("web", kind, "shop", self.within(moment), region=region)
        for surplus in web[: max(0, len(web) - wanted)]:
            self.end(surplus, "terminated", self.within(moment))

    def within(self, moment: datetime) -> datetime:
        """Some second of the hour before."""
        return moment - timedelta(seconds=self.chance.randrange(60, 3500))

    def live(self, hour: int, now: datetime) -> None:
        """What happens in the hour before `now`."""
        self.shown = [each for each in self.shown if self.gone.get(each["instance_id"], now) >= now]
        weekday = now.weekday() < 5
        load = max(0.0, math.sin((now.hour - 6) / 24 * 2 * math.pi)) * (1.0 if weekday else 0.6)
        if hour == ROLLOUT:
            self.image = NEW_IMAGE
        if ROLLOUT <= hour < ROLLOUT + 6:
            for old in [each for each in self.alive("web") if each["image_id"] == OLD_IMAGE][:6]:
                self.end(old, "terminated", self.within(now))
        self.scale(4 + round(14 * load) + self.chance.randrange(2), "m7g.large", HOME, now)
        self.scale(2 + round(6 * load), "c7g.large", AWAY, now)
        if now.hour == 2:
            for _ in range(self.chance.randrange(8, 20)):
                kind = self.chance.choice(("c7i.4xlarge", "c6i.4xlarge", "m6i.4xlarge", "c7a.4xlarge", "m7a.2xlarge"))
                self.launch("batch", kind, "data", self.within(now), region=self.chance.choice((HOME, AWAY)), spot=True)
        for job in self.alive("batch"):
            if self.chance.random() < 0.3:
                self.end(job, "terminated", self.within(now))
        for box in self.alive("dev"):
            if weekday and now.hour == 8 and box["state"] == "stopped":
                self.start(box, self.within(now))
            elif now.hour == 19 and box["state"] == "running" and self.chance.random() < 0.9:
                self.end(box, "stopped", self.within(now))
        if hour in RETAGGING:
            for each in self.alive("orders-db" if hour == RETAGGING[0] else "search"):
                each["tags"] = {**each["tags"], "Team": "payments", "Tier": "gold"}
        if hour == RESIZING:
            for each in [box for box in self.alive("dev") if box["state"] == "stopped"][:2] or self.alive("ci"):
                each["instance_type"] = each["instance_type"].replace("large", "xlarge")


def poll(fleet: Fleet, now: datetime, *, failing: bool) -> list[dict[str, Any]]:
    """The records of one poll."""
    head = {"timestamp": utc(now)}
    records: list[dict[str, Any]] = []
    throttled: dict[str, Any] = {"code": "RequestLimitExceeded", "message": "Request limit exceeded."}
    for region in (HOME, AWAY):
        error = throttled if failing and region == AWAY else None
        mine = [] if error else [each for each in fleet.shown if each["region"] == region]
        records += [{**head, "record": "instance", "account": ACCOUNT, **each} for each in mine]
        tagged = sum(bool(each["tags"]) for each in mine)
        told: dict[str, Any] = {
            "status": "failed" if error else "ok",
            "instances": len(mine),
            "tagged": tagged,
            "pages": 1,
        }
        told |= {"seconds": 0.31, "error": error}
        records.append({**head, "record": "region", "account": ACCOUNT, "region": region, **told})
    states = Counter(each["state"] for each in records if each["record"] == "instance")
    role = f"arn:aws:sts::{ACCOUNT}:assumed-role/inventory/i-0f1e2d3c4b5a69788"
    said = {"arn": role, "user_id": "AROA3X42LBCD5Q7ERD366:i-0f1e2d3c4b5a69788", "complete": not failing}
    said |= {"instances": sum(states.values()), "states": states}
    said |= {"regions": {"ok": 1, "failed": 1} if failing else {"ok": 2}, "seconds": 0.84}
    return [*records, {**head, "record": "poll", "account": ACCOUNT, **said, "version": "0.1.0", "error": None}]


def write_month(log: Path, end: datetime) -> None:
    """The hourly polls of the month before `end`."""
    fleet = Fleet(random.Random(2026))
    begin = end - timedelta(days=DAYS)
    fleet.begin(begin)
    with log.open("w", encoding="ascii") as lines:
        for hour in range(DAYS * 24 + 1):
            now = begin + timedelta(hours=hour)
            fleet.live(hour, now)
            if hour not in OUTAGE:
                lines.writelines(json.dumps(each) + "\n" for each in poll(fleet, now, failing=hour in FAILING))


def main() -> int:
    end = datetime.now(timezone.utc).replace(minute=0, second=4, microsecond=0)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "inventory.log"
        write_month(log, end)
        print(f"A simulated month of hourly polls, until {utc(end)}: {log.stat().st_size / 1e6:.0f} MB of log.\n")
        shown = ["./history.py", "--log", log.name, "report", PAGE.name, "--tag", "Team"]
        print(f"$ {' '.join(shown)}", flush=True)
        command = [sys.executable, "history.py", "--log", str(log), "report", str(PAGE), "--tag", "Team"]
        done = subprocess.run(command, cwd=REPOSITORY, check=False)
    if done.returncode == 0:
        print(f"\nOpen it in a browser: {PAGE.resolve().as_uri()} ({PAGE.stat().st_size / 1e3:,.0f} kB)")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
