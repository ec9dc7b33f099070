"""history.py against an oracle that was written from docs/history.md alone, over histories that are made up."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import history_oracle as oracle
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from history import GAP, History, Window

Record = dict[str, Any]

BASE = datetime(2026, 1, 1)
MINUTES = (0, 1, 5, 10, 20, 30, 60, 61, 90, 120, 150, 180, 240, 300, 420)  # of polls and of what happens
DURATIONS = (0.0, 0.0801, 4.0, 4.0, 59.0, 299.0, 1234.5678, 3000.0)
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
PUBLIC = ("54.0.0.1", "54.0.0.2", "10.0.0.1")
TAGS: tuple[dict[str, str], ...] = (
    {"Name": "web"},
    {"Name": "db", "Team": "shop"},
    {"Team": "web"},
    {"Team": "a=b", "Name": "web"},
    {},
)
VALUES = (
    *("10.0.0.1", "10.0.0.2", "10.0.0.3", "54.0.0.1", "54.0.0.2", "2001:db8::1", "i-0", "i-1", "r-0", "r-1", "ami-1"),
    *("vpc-1", "subnet-eu-west-1", "sg-1", "vol-1", "vol-2", "web", "shop", "a=b", "Name=web", "Team=a=b", "Team=web"),
)
FIELDS = (
    *(["instance_type"], ["instance_family"], ["region"], ["account", "availability_zone"], ["reservation_id"]),
    *(["public_ip_address"], ["private_ip_address", "instance_type"], ["volumes"], ["state"]),
)


def stamp(seconds: float | None) -> str | None:
    """A time as the log has it, from seconds since the base."""
    return None if seconds is None else (BASE + timedelta(seconds=int(seconds))).strftime("%Y-%m-%dT%H:%M:%SZ")


class Machine:
    """An instance as it truly is."""

    def __init__(self, chance: random.Random, account: str, region: str, number: int) -> None:
        self.account, self.region = account, region
        self.id = f"i-{number}"
        self.private = chance.choice(ADDRESSES)
        self.reservation = f"r-{number // 2}"
        self.has_first_launch = chance.random() < 0.5
        self.first_launch_late = chance.choice((0, 0, 1))
        times = sorted(
            {chance.choice(MINUTES) * 60 + chance.choice((0, 0, 3, 40)) for _ in range(chance.randint(1, 5))}
        )
        self.launched = times[0]
        self.terminated: int | None = None
        self.starts = [self.launched]
        self.stops: list[int] = []
        self.types = [chance.choice(("t3.micro", "t3.small", "m7g.large"))]
        self.publics = [chance.choice((*PUBLIC, None))]
        up = True
        for each in times[1:]:
            if chance.random() < 0.3:
                self.terminated = each
                break
            if up:
                self.stops.append(each)
            else:
                self.starts.append(each)
                self.types.append(chance.choice((self.types[-1], "t3.small")))
                self.publics.append(chance.choice(PUBLIC))
            up = not up
        self.shown_for = chance.choice((20, 600, 3000, 3600, 4000))
        self.retagged = chance.choice((30, 90, 130)) * 60
        self.tags = (chance.choice(TAGS), chance.choice(TAGS))
        self.mounted = chance.choice((60, 240)) * 60
        self.quiet = chance.random() < 0.4  # AWS gives no times of transitions

    def record(self, chance: random.Random, moment: float) -> Record | None:
        """What EC2 says of it at that moment, but for the timestamp."""
        if moment < self.launched or (self.terminated is not None and moment >= self.terminated + self.shown_for):
            return None
        starts = [each for each in self.starts if each <= moment]
        stops = [each for each in self.stops if each <= moment]
        transition: int | None = None
        if self.terminated is not None and moment >= self.terminated:
            state = "shutting-down" if moment < self.terminated + 30 else "terminated"
            transition = self.terminated
        elif len(stops) == len(starts):
            state = "stopping" if moment < stops[-1] + 30 else "stopped"
            transition = stops[-1]
        else:
            state = "pending" if moment < starts[-1] + 4 else "running"
        if chance.random() < 0.15 or self.quiet:
            transition = stops[-2 if len(stops) > 1 else -1] if stops and chance.random() < 0.4 else None
        dead = state in ("shutting-down", "terminated")
        tags = self.tags[moment >= self.retagged]
        lost = state == "terminated" or (dead and chance.random() < 0.5)
        if lost and chance.random() < 0.7:
            tags = {}
        volumes = ["vol-1", "vol-2"] if moment >= self.mounted else ["vol-1"]
        if chance.random() < 0.3:
            volumes.reverse()
        first = self.launched + self.first_launch_late if self.has_first_launch and not lost else None
        kind = self.types[len(starts) - 1]
        if len(stops) == len(starts) and len(self.types) > len(starts) and moment > stops[-1] + 600:
            kind = self.types[len(starts)]  # changed while stopped
        return {
            "account": self.account,
            "region": self.region,
            "instance_id": self.id,
            "state": state,
            "name": tags.get("Name"),
            "instance_type": kind,
            "availability_zone": f"{self.region}a",
            "launch_time": stamp(starts[-1]),
            "first_launch_time": stamp(first),
            "state_transition_reason": None if transition is None else f"User initiated ({stamp(transition)})",
            "state_transition_time": stamp(transition),
            "private_ip_address": None if lost else self.private,
            "public_ip_address": self.publics[len(starts) - 1] if state in ("pending", "running") else None,
            "ipv6_addresses": [] if lost else ["2001:db8::1"],
            "vpc_id": None if lost else "vpc-1",
            "subnet_id": None if lost else f"subnet-{self.region}",
            "security_groups": [] if lost else ["sg-1", "sg-2"],
            "image_id": "ami-1",
            "key_name": None,
            "iam_instance_profile": None,
            "architecture": "x86_64",
            "platform_details": "Linux/UNIX",
            "tenancy": "default",
            "lifecycle": "on-demand",
            "owner_id": self.account,
            "reservation_id": self.reservation,
            "volumes": [] if lost else volumes,
            "managed_by": None,
            "tags": tags,
        }


def poll_of(
    chance: random.Random, account: str, regions: list[str], machines: list[Machine], begin: int, set_back: int
) -> list[Record]:
    """The lines of one poll."""
    timestamp = stamp(begin - set_back)
    seconds = chance.choice(DURATIONS)
    lines: list[Record] = []
    counted: Counter[str] = Counter()
    asked = regions if chance.random() < 0.9 else regions[:-1]
    for region in asked:
        moment = begin + chance.choice((0.0, 0.5, 1.0)) * seconds
        status = chance.choices(("ok", "failed", "denied", "not-enabled"), (12, 2, 1, 1))[0]
        untold = chance.random() < 0.15
        there: list[Record] = []
        for machine in machines:
            if machine.account != account or machine.region != region or status not in ("ok", "failed"):
                continue
            if chance.random() < (0.05 if status == "ok" else 0.6):
                continue
            record = machine.record(chance, moment)
            if record is not None:
                if untold:
                    record.update(name=None, tags={})
                there.append({"timestamp": timestamp, "record": "instance", **record})
        number = len(there) + (chance.random() < 0.08)
        region_line = {
            "timestamp": timestamp,
            "record": "region",
            "account": account,
            "region": region,
            "status": status,
            "instances": number,
            "tagged": sum(bool(each["tags"]) for each in there),
            "pages": 1,
            "seconds": seconds / 2,
            "error": None if status == "ok" else {"code": "Unavailable", "message": "Not now"},
        }
        counted[status] += 1
        lines += there
        if chance.random() < 0.95:
            lines.append(region_line)
    if chance.random() < 0.1:
        return lines[: chance.randint(0, len(lines))]
    if chance.random() < 0.03:
        counted = Counter({"ok": 0})
    lines.append(
        {
            "timestamp": timestamp,
            "record": "poll",
            "account": account,
            "arn": f"arn:aws:sts::{account}:assumed-role/inventory/i-0",
            "user_id": "AROA:i-0",
            "complete": set(counted) <= {"ok"},
            "instances": sum(each["record"] == "instance" for each in lines),
            "states": dict(Counter(each["state"] for each in lines if each["record"] == "instance")),
            "regions": dict(counted),
            "seconds": seconds,
            "version": "0.1.0",
            "error": None,
        }
    )
    return lines


def without_identity(begin: int) -> Record:
    """The one line of a poll that did not learn which account it was for."""
    return {
        "timestamp": stamp(begin),
        "record": "poll",
        "account": None,
        "arn": None,
        "user_id": None,
        "complete": False,
        "instances": 0,
        "states": {},
        "regions": {},
        "seconds": 2.5,
        "version": "0.1.0",
        "error": {"code": None, "message": "no identity"},
    }


def made_up(chance: random.Random) -> list[Record]:
    """All records of a few polls, in the order in which they were written."""
    accounts = ["111111111111", "222222222222"][: chance.choice((1, 1, 2))]
    regions = ["eu-west-1", "us-east-1"][: chance.choice((1, 1, 2))]
    machines = [
        Machine(chance, chance.choice(accounts), chance.choice(regions), chance.choice((number, 0)))
        for number in range(chance.randint(1, 3))
    ]
    machines = list({(each.account, each.region, each.id): each for each in machines}.values())
    records: list[Record] = []
    polled: set[tuple[str, int]] = set()
    set_back_from = chance.choice((None, None, None, None, 120, 180))
    for minute in sorted(chance.choice(MINUTES) for _ in range(chance.randint(1, 8))):
        begin = minute * 60 + chance.choice((0, 0, 5))
        if chance.random() < 0.06:
            records.append(without_identity(begin))
            continue
        account = chance.choice(accounts)
        set_back = 3600 if set_back_from is not None and minute >= set_back_from else 0
        if (account, begin - set_back) in polled and chance.random() < 0.5:
            continue
        polled.add((account, begin - set_back))
        records += poll_of(chance, account, regions, machines, begin, set_back)
    if not records:
        records.append(without_identity(0))
    return records


@contextmanager
def history_of(records: list[Record], chance: random.Random) -> Iterator[History]:
    """The records, read from one or two files, in some order, a few of them twice."""
    lines = [json.dumps(each) for each in records]
    twice = chance.choice((0, 0.1, 0.5))
    lines += [each for each in lines if chance.random() < twice]
    if chance.random() < 0.3:
        chance.shuffle(lines)
    lines.insert(0, json.dumps({"timestamp": stamp(0), "record": "log", "level": "INFO", "message": "a diagnostic"}))
    half = len(lines) // 2 if chance.random() < 0.5 else len(lines)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "one.log"), Path(folder, "two.log")]
        for path, part in zip(paths, (lines[:half], lines[half:]), strict=True):
            path.write_text("".join(f"{each}\n" for each in part))
        chance.shuffle(paths)
        with History([str(each) for each in paths]) as history:
            yield history


def comparable(value: Any) -> Any:
    """A value of either side as one that can be compared and hashed."""
    if isinstance(value, float):
        return pytest.approx(value, abs=0.0011)  # answers are rounded to thousandths
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return tuple(value) if isinstance(value, list) else value


def table(rows: Iterable[oracle.Row]) -> list[oracle.Row]:
    return [tuple(comparable(each) for each in row) for row in rows]


def unordered(rows: Iterable[oracle.Row]) -> list[oracle.Row]:
    """Rows whose order is not specified, in one that rounding does not change."""
    return table(sorted(rows, key=lambda row: [str(comparable(each)) for each in row if not isinstance(each, float)]))


def a_window(chance: random.Random) -> Window:
    """No window, half a one, a moment, or one with both ends."""
    since, until = sorted(BASE + timedelta(minutes=chance.choice(MINUTES)) for _ in range(2))
    return chance.choice((Window(), Window(since), Window(None, until), Window(since, until), Window(since, since)))


def without_codes(rows: list[oracle.Row]) -> list[oracle.Row]:
    """Rows of coverage of regions that were asked, and reasons without the codes of errors."""
    return [(*row[:-1], row[-1] and re.sub(r": \w+", "", row[-1])) for row in rows if row[1] is not None]


made_up_histories = given(st.randoms(use_true_random=False))
sparingly = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@sparingly
@made_up_histories
def test_lives(chance: random.Random) -> None:
    """Begin, end and fate of every life are what the specification says, in whatever order the lines are read."""
    records = made_up(chance)
    columns = (
        "account, region, instance_id, begin_earliest, begin_latest, first_seen, last_seen, end_earliest, end_latest"
    )
    with history_of(records, chance) as history:
        answer = history.ask(f"SELECT {columns}, fate FROM lives ORDER BY ALL")
    assert answer.rows == oracle.lives(records)


@sparingly
@made_up_histories
def test_find(chance: random.Random) -> None:
    """Who had a value, and from when to when, is what the specification says, within any window."""
    records = made_up(chance)
    with history_of(records, chance) as history:
        for value in chance.sample(VALUES, 4):
            window = a_window(chance)
            answer = history.find(value, window)
            assert answer.rows == oracle.find(records, value, window.since, window.until), (value, window)


@sparingly
@made_up_histories
def test_changes(chance: random.Random) -> None:
    """What changed, of all instances and of one, is what the specification says, within any window and in its order."""
    records = made_up(chance)
    with history_of(records, chance) as history:
        for instance_id in (None, None, "i-0"):
            window = a_window(chance)
            answer = history.changes(window, instance_id)
            assert answer.rows == oracle.changes(records, window.since, window.until, instance_id), window


@sparingly
@made_up_histories
def test_hours(chance: random.Random) -> None:
    """Hours and their error are what the specification says, by fields that every sighting tells, most hours first."""
    records = made_up(chance)
    with history_of(records, chance) as history:
        for by in chance.sample(FIELDS, 3):
            window = a_window(chance)
            answer = history.hours(by, window)
            expected = oracle.hours(records, by, window.since, window.until)
            assert unordered(answer.rows) == unordered(expected), (by, window)
            assert [row[-2] for row in answer.rows] == sorted((row[-2] for row in answer.rows), reverse=True)


@sparingly
@made_up_histories
def test_hours_by_tags(chance: random.Random) -> None:
    """Hours by name and tag pass over the sightings that say nothing of tags."""
    records = made_up(chance)
    with history_of(records, chance) as history:
        for by in (["name"], ["tag:Team"], ["tag:Name", "public_ip_address"]):
            answer = history.hours(by, Window())
            assert unordered(answer.rows) == unordered(oracle.hours(records, by, None, None)), by


@sparingly
@made_up_histories
def test_at(chance: random.Random) -> None:
    """Who existed at a time, what is shown of them, and how sure that is, is what the specification says."""
    records = made_up(chance)
    known = [BASE + timedelta(minutes=each, seconds=chance.choice((0, 0, -5, 5, 40, 1800))) for each in MINUTES]
    ends = [each for row in oracle.lives(records) for each in row if isinstance(each, datetime)]
    with history_of(records, chance) as history:
        for time in (None, *chance.sample(known, 4), *ends[:4]):
            answer = history.at(time)
            assert answer.rows == oracle.at(records, time), time


@sparingly
@made_up_histories
def test_coverage(chance: random.Random) -> None:
    """Stretches that were covered, gaps, and what was instead, are what the specification says."""
    records = made_up(chance)
    gap = chance.choice((GAP, GAP, timedelta(minutes=5), timedelta(minutes=100)))
    early, late = BASE - timedelta(minutes=30), BASE + timedelta(hours=10)
    with history_of(records, chance) as history:
        for window in (Window(), Window(None, late), Window(early, late)):
            answer = without_codes(history.coverage(window, gap).rows)
            assert table(answer) == table(oracle.coverage(records, gap, window.since, window.until)), window


@sparingly
@made_up_histories
def test_coverage_within(chance: random.Random) -> None:
    """Within a window, coverage tells the stretches that overlap it, as they are without it."""
    records = made_up(chance)
    since, until = sorted(BASE + timedelta(minutes=chance.choice(MINUTES)) for _ in range(2))
    with history_of(records, chance) as history:
        answer = without_codes(history.coverage(Window(since, until), GAP).rows)
    assert table(answer) == table(oracle.coverage(records, GAP, since, until)), (since, until)
