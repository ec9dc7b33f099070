#!/usr/bin/env python3
"""Measure what history.py's questions cost over a year of hourly polls of 1,000 instances: plain, gzipped, archived."""

from __future__ import annotations

import gzip
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
from results import MB, processor
from tools import BENCHMARKS, VENVS

README = BENCHMARKS / "README.md"
BEGIN, END = "<!-- questions: begin -->", "<!-- questions: end -->"
FOLDER = VENVS / "year"
PLAIN, GZIPPED, ARCHIVE = (FOLDER / f"inventory.{suffix}" for suffix in ("log", "log.gz", "parquet"))
HISTORY = BENCHMARKS.parent / "history.py"

BEGAN = datetime(2025, 11, 1, 0, 7, 1, tzinfo=timezone.utc)
HOURS = 365 * 24
REGIONS = ("eu-west-1", "us-east-1", "ap-southeast-2")
INSTANCES = 1_000
LAUNCHED_A_DAY, RETAGGED_A_DAY, STOPPED_AT_NIGHT = 30, 5, 10
TYPES = ("m5.large", "m5.2xlarge", "m7g.large", "c7g.4xlarge", "r7g.xlarge", "t3.medium")
TEAMS = ("shop", "data", "payments", "platform")

QUESTIONS = {
    "at": "at 2026-04-05T03:00:00Z",
    "find": "find 10.0.3.7",
    "timeline": "timeline {instance}",
    "changes": "changes --since 2026-10-25",
    "hours": "hours --by tag:Team --by instance_family",
    "coverage": "coverage",
    "sql": "sql {query}",
    "report": "report {page}",
    "archive": "archive {archive}",
}
QUERY = "SELECT instance_type, count(*) AS polls FROM instances GROUP BY ALL"


class Year:
    """The log of an account in which a little happens all the time."""

    def __init__(self) -> None:
        self._chance = random.Random("a year")
        self._launched = 0
        self._running = [self._launch(BEGAN - timedelta(days=self._chance.uniform(1, 400))) for _ in range(INSTANCES)]
        self._going: list[dict[str, Any]] = []

    def _id(self, kind: str) -> str:
        return f"{kind}-{self._chance.getrandbits(68):017x}"

    def _launch(self, at: datetime) -> dict[str, Any]:
        number = self._launched
        self._launched += 1
        region, time = REGIONS[number % len(REGIONS)], f"{at:%Y-%m-%dT%H:%M:%SZ}"
        name = f"{self._chance.choice(('web', 'batch', 'db'))}-{number}"
        return {
            "record": "instance",
            "account": "123456789012",
            "region": region,
            "instance_id": self._id("i"),
            "state": "running",
            "name": name,
            "instance_type": self._chance.choice(TYPES),
            "availability_zone": f"{region}a",
            "launch_time": time,
            "first_launch_time": time,
            "state_transition_reason": None,
            "state_transition_time": None,
            "private_ip_address": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
            "public_ip_address": None,
            "ipv6_addresses": [],
            "vpc_id": "vpc-0a1b2c3d4e5f60718",
            "subnet_id": "subnet-0a1b2c3d4e5f60718",
            "security_groups": [],
            "image_id": "ami-0abcdef1234567890",
            "key_name": None,
            "iam_instance_profile": None,
            "architecture": "x86_64",
            "platform_details": "Linux/UNIX",
            "tenancy": "default",
            "lifecycle": "on-demand",
            "owner_id": "123456789012",
            "reservation_id": self._id("r"),
            "volumes": [self._id("vol")],
            "managed_by": None,
            "tags": {"Name": name, "Team": self._chance.choice(TEAMS)},
        }

    def _transition(self, instance: dict[str, Any], state: str, at: datetime) -> None:
        instance["state"] = state
        instance["state_transition_reason"] = f"User initiated ({at:%Y-%m-%d %H:%M:%S} GMT)"
        instance["state_transition_time"] = f"{at:%Y-%m-%dT%H:%M:%SZ}"

    def _live(self, now: datetime) -> None:
        """What happened in the hour before `now`."""
        self._going = []
        for _ in range(LAUNCHED_A_DAY * (now.hour + 1) // 24 - LAUNCHED_A_DAY * now.hour // 24):
            place, at = (
                self._chance.randrange(STOPPED_AT_NIGHT, INSTANCES),
                now - timedelta(minutes=self._chance.randint(1, 55)),
            )
            self._transition(self._running[place], "terminated", at)
            self._going.append({**self._running[place], "private_ip_address": None, "volumes": []})
            self._running[place] = self._launch(at)
        if now.hour < RETAGGED_A_DAY:
            instance = self._chance.choice(self._running)
            instance["tags"] = {**instance["tags"], "Team": self._chance.choice(TEAMS)}
        for instance in self._running[:STOPPED_AT_NIGHT]:
            if now.hour == 20:
                self._transition(instance, "stopped", now - timedelta(minutes=7))
            elif now.hour == 6:
                instance |= {"state": "running", "launch_time": f"{now - timedelta(minutes=7):%Y-%m-%dT%H:%M:%SZ}"}
                instance |= {"state_transition_reason": None, "state_transition_time": None}

    def polls(self) -> Iterator[str]:
        for hour in range(HOURS):
            now = BEGAN + timedelta(hours=hour)
            self._live(now)
            seen = self._running + self._going
            records: list[dict[str, Any]] = []
            for region in REGIONS:
                mine = [instance for instance in seen if instance["region"] == region]
                counts = {"instances": len(mine), "tagged": len(mine), "pages": 1}
                head = {"record": "region", "account": "123456789012", "region": region, "status": "ok"}
                records += [
                    *mine,
                    {**head, **counts, "seconds": self._chance.randrange(300, 900) / 1000, "error": None},
                ]
            records.append(
                {
                    "record": "poll",
                    "account": "123456789012",
                    "user_id": "AROAEXAMPLE:i-0f1e2d3c4b5a69788",
                    "arn": "arn:aws:sts::123456789012:assumed-role/inventory/i-0f1e2d3c4b5a69788",
                    "complete": True,
                    "instances": len(seen),
                    "states": {"running": INSTANCES, "terminated": len(self._going)},
                    "regions": {"ok": len(REGIONS)},
                    "seconds": 1.234,
                    "version": "0.1.0",
                    "error": None,
                }
            )
            stamp = f'{{"timestamp": "{now:%Y-%m-%dT%H:%M:%SZ}", '
            yield "".join(f"{stamp}{json.dumps(record)[1:]}\n" for record in records)


def written() -> None:
    """Make the logs, unless they are there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not PLAIN.exists():
        partial = PLAIN.with_suffix(".partial")
        with partial.open("w") as log:
            log.writelines(Year().polls())
        partial.rename(PLAIN)
    if not GZIPPED.exists():
        partial = GZIPPED.with_suffix(".partial")
        with PLAIN.open("rb") as log, gzip.open(partial, "wb", compresslevel=1) as out:
            shutil.copyfileobj(log, out, 1 << 20)
        partial.rename(GZIPPED)


def measured(log: Path, question: str, instance: str) -> dict[str, float]:
    """What one question costs, as a process."""
    words = {"{instance}": instance, "{query}": QUERY, "{page}": "page.html", "{archive}": str(ARCHIVE)}
    if log == ARCHIVE:
        words["{archive}"] = "again.parquet"
    arguments = [words.get(word, word) for word in question.split()]
    command = [sys.executable, str(HISTORY), "--log", str(log), "--format", "csv", *arguments]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "measure.py"), "600", os.devnull, *command],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    if result["exit_code"]:
        raise SystemExit(f"{question}: exit code {result['exit_code']}: {done.stderr}")
    cost: dict[str, float] = result["cost"]
    return cost


def main() -> int:
    written()
    with PLAIN.open() as log:
        instance = json.loads(log.readline())["instance_id"]
    subprocess.run([sys.executable, HISTORY, "--log", PLAIN, "archive", ARCHIVE], check=True)
    sizes = {log: log.stat().st_size for log in (PLAIN, GZIPPED, ARCHIVE)}
    lines = [
        (
            f"- measured on {date.today().isoformat()}: {os.cpu_count()} cores, {processor()};"
            f" CPython {platform.python_version()}, DuckDB {duckdb.__version__}; the files in the page cache"
        ),
        (
            f"- plain {sizes[PLAIN] / MB:,.0f} MB, gzipped {sizes[GZIPPED] / MB:,.0f} MB,"
            f" archive {sizes[ARCHIVE] / MB:,.1f} MB: {100 * sizes[ARCHIVE] / sizes[PLAIN]:.2f} % of plain"
        ),
        "",
        "| question | plain | | gzipped | | archive | |",
        "|---|---|---|---|---|---|---|",
        "| | wall s | MB | wall s | MB | wall s | MB |",
    ]
    for name, question in QUESTIONS.items():
        cells = []
        for log_ in (PLAIN, GZIPPED, ARCHIVE):
            cost = measured(log_, question, instance)
            cells.append(f"{cost['wall']:.1f} | {cost['rss'] / MB:,.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    before, rest = README.read_text().split(BEGIN)
    table = "\n".join(lines)
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
