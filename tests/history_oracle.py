"""What docs/history.md says, in plain Python: slow, obvious, and independent of history.py.

Every function takes all records of a log, as parsed from its JSON lines, in any order and any number of times each.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

Record = dict[str, Any]
Row = tuple[Any, ...]
Key = tuple[str, str, str]  # account, region, instance id
Region = tuple[str, str]

RUNNING = ("pending", "running")
DEAD = ("shutting-down", "terminated")
TIMES = ("timestamp", "launch_time", "first_launch_time", "state_transition_time")
NOT_MODIFIED = (
    *TIMES,
    "record",
    "account",
    "region",
    "instance_id",
    "state",
    "state_transition_reason",
    "name",
    "tags",
)
SINGLE = (
    "instance_id",
    "private_ip_address",
    "public_ip_address",
    "vpc_id",
    "subnet_id",
    "image_id",
    "reservation_id",
    "key_name",
    "iam_instance_profile",
)
SEVERAL = ("ipv6_addresses", "security_groups", "volumes")


def time(text: str | None) -> datetime | None:
    """A time of the log, naive and UTC."""
    return None if text is None else datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """A time of the log that is always there."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Span:
    """Two columns of one end: not before the one, not after the other."""

    earliest: datetime | None
    latest: datetime | None

    @property
    def exact(self) -> bool:
        return self.earliest is not None and self.earliest == self.latest


NEVER = Span(None, None)


@dataclass
class Poll:
    """The lines of one account with one timestamp."""

    account: str | None
    begin: datetime
    end: datetime
    cut_off: bool
    statuses: dict[str, list[str]] = field(default_factory=dict)  # of the region lines, by region
    covers: set[str] = field(default_factory=set)  # regions


@dataclass(frozen=True)
class Sighting:
    """An instance line."""

    record: Record
    text: str
    begin: datetime
    end: datetime  # of its poll
    told: bool  # whether anything is said of tags

    @property
    def state(self) -> str:
        return str(self.record["state"])

    @property
    def alive(self) -> bool:
        return self.state not in DEAD

    @property
    def running(self) -> bool:
        return self.state in RUNNING

    @property
    def launch(self) -> datetime | None:
        return time(self.record["launch_time"])

    @property
    def transition(self) -> datetime | None:
        return time(self.record["state_transition_time"])

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.record["tags"])


@dataclass(frozen=True)
class Run:
    """A running period."""

    start: datetime
    end: Span
    how: str  # it ended: "stopped", with the "life", or is "open"
    until: datetime  # known to have run until then
    sightings: tuple[Sighting, ...]


@dataclass(frozen=True)
class Life:
    """All that is known of an instance."""

    key: Key
    sightings: list[Sighting]
    telling: list[Sighting]  # those that are asked for what it held and bore
    begin: Span
    end: Span
    fate: str
    runs: list[Run]

    @property
    def never_alive(self) -> bool:
        return not any(each.alive for each in self.sightings)

    @property
    def name(self) -> str | None:
        return told_last(self, self.sightings[-1]).get("Name")


def polls(records: list[Record]) -> list[Poll]:
    """Every poll, in the order of time."""
    blocks: dict[tuple[str | None, datetime], list[Record]] = {}
    for each in distinct(records):
        if each["record"] in ("poll", "region", "instance"):
            blocks.setdefault((each["account"], moment(each["timestamp"])), []).append(each)
    result = []
    for (account, begin), block in blocks.items():
        ends = [each for each in block if each["record"] == "poll"]
        regions = [each for each in block if each["record"] == "region"]
        cut_off = not ends or len(regions) > sum(sum(each["regions"].values()) for each in ends)
        lasted = timedelta(hours=1)
        if not cut_off:
            lasted = timedelta(seconds=1) + rounded_up(max(each["seconds"] for each in ends))
        poll = Poll(account, begin, begin + lasted, cut_off)
        for each in regions:
            poll.statuses.setdefault(each["region"], []).append(each["status"])
        for region, statuses in poll.statuses.items():
            there = [each for each in block if each["record"] == "instance" and each["region"] == region]
            counted = max(each["instances"] for each in regions if each["region"] == region)
            if "ok" in statuses and not cut_off and len(there) >= counted:
                poll.covers.add(region)
        result.append(poll)
    return sorted(result, key=lambda each: each.begin)


def rounded_up(seconds: float) -> timedelta:
    """Seconds as whole milliseconds."""
    return timedelta(milliseconds=math.ceil(round(seconds * 1000, 6)))


def distinct(records: list[Record]) -> list[Record]:
    """Each line once."""
    return list({json.dumps(each): each for each in records}.values())


def sightings(records: list[Record]) -> dict[Key, list[Sighting]]:
    """The instance lines of each instance, in the order of their polls, and then of their text."""
    ends = {(each.account, each.begin): each.end for each in polls(records)}
    lines = [each for each in distinct(records) if each["record"] == "instance"]
    tagged = {(each["account"], each["region"], each["timestamp"]) for each in lines if each["tags"]}
    result: dict[Key, list[Sighting]] = {}
    for each in lines:
        begin = moment(each["timestamp"])
        text = json.dumps({name: value for name, value in each.items() if name != "timestamp"})
        told = (each["account"], each["region"], each["timestamp"]) in tagged
        sighting = Sighting(each, text, begin, ends[each["account"], begin], told)
        result.setdefault((each["account"], each["region"], each["instance_id"]), []).append(sighting)
    return {key: sorted(seen, key=lambda each: (each.begin, each.text)) for key, seen in result.items()}


def histories(records: list[Record]) -> list[Life]:
    """Every life, in the order of account, region and instance id."""
    every = polls(records)
    result = []
    for key, seen in sorted(sightings(records).items()):
        own = [each for each in every if each.account == key[0]]
        fate, end = life_end(seen, key[1], own)
        telling = [each for each in seen if each.alive] or seen[:1]
        begin = life_begin(seen, [each for each in own if key[1] in each.covers])
        result.append(Life(key, seen, telling, begin, end, fate, running(seen, end)))
    return result


def life_begin(seen: list[Sighting], covering: list[Poll]) -> Span:
    """When an instance was launched."""
    first_launches = [
        min(first, each.launch or first) for each in seen if (first := time(each.record["first_launch_time"]))
    ]
    if first_launches:
        return Span(min(first_launches), min(first_launches))
    latest = min(seen[0].end, seen[0].launch or seen[0].end)
    before = [each for each in covering if each.end <= seen[0].begin]
    earliest = max(before, key=lambda each: (each.end, each.begin)).begin if before else None
    return Span(earliest if earliest and earliest <= latest else None, latest)


def life_end(seen: list[Sighting], region: str, own: list[Poll]) -> tuple[str, Span]:
    """Fate and end."""
    alive = [number for number, each in enumerate(seen) if each.alive]
    after = seen[alive[-1] + 1 :] if alive else seen
    if after:
        return "seen terminated", transition(seen[alive[-1]].begin if alive else last_start(seen), after)
    all_ended = max(each.end for each in own if each.begin <= seen[-1].begin)
    without = [each for each in own if each.begin >= all_ended and region in each.covers]
    if without:
        return "vanished unseen", Span(seen[-1].begin, min(each.end for each in without))
    for each in own:
        if each.begin > seen[-1].begin and (each.cut_off or (region in each.statuses and region not in each.covers)):
            return "not covered", NEVER
    return "present", NEVER


def last_start(seen: list[Sighting]) -> datetime | None:
    return max((each.launch for each in seen if each.launch), default=seen[0].begin)


def transition(since: datetime | None, after: list[Sighting]) -> Span:
    """When a state ended that held at one time and did not at any of these sightings."""
    until = after[0].end
    for each in after:
        given = each.transition
        if given is not None and (since is None or since <= given) and given <= until:
            return Span(given, given)
    return Span(since, until)


def running(seen: list[Sighting], end_of_life: Span) -> list[Run]:
    """The running periods of an instance."""
    starts = sorted({each.launch for each in seen if each.launch})
    result = []
    for start in starts:
        own = [each for each in seen if each.launch == start]
        runs = [number for number, each in enumerate(own) if each.running]
        after = own[runs[-1] + 1 :] if runs else own
        until = own[runs[-1]].begin if runs else start
        later = [each for each in starts if each > start]
        if after:
            # Whether it is the life that ended with it, or it stopped.
            how = "life" if not after[0].alive and not seen[-1].alive else "stopped"
            end = transition(until, after)
        elif later:
            how, end = "stopped", Span(until, later[0])
        elif end_of_life != NEVER:
            how, end = "life", end_of_life
        else:
            how, end = "open", NEVER
        result.append(Run(start, end, how, until, tuple(own)))
    return result


def lives(records: list[Record]) -> list[Row]:
    """account, region, instance_id, begin_earliest, begin_latest, first_seen, last_seen, end_earliest, end_latest, fate."""
    return [
        (
            *each.key,
            each.begin.earliest,
            each.begin.latest,
            each.sightings[0].begin,
            each.sightings[-1].begin,
            each.end.earliest,
            each.end.latest,
            each.fate,
        )
        for each in histories(records)
    ]


def overlaps(begin: datetime | None, end: datetime | None, since: datetime | None, until: datetime | None) -> bool:
    """Both ends included; what is not known is as early or as late as can be."""
    return (begin is None or until is None or begin <= until) and (end is None or since is None or end >= since)


# --- what it held ----------------------------------------------------------------------------------------------------


def fields_with(value: str, sighting: Sighting) -> set[str]:
    """The fields of a sighting that hold a value."""
    record = sighting.record
    result = {name for name in SINGLE if record[name] == value}
    result |= {name for name in SEVERAL if value in record[name]}
    result |= {f"tag:{key}" for key, its in sighting.tags.items() if value in (its, f"{key}={its}")}
    return result


def find(records: list[Record], value: str, since: datetime | None, until: datetime | None) -> list[Row]:
    """Who had a value."""
    result = []
    for life in histories(records):
        every = {name for each in life.telling for name in fields_with(value, each)}
        for name in every:
            telling = [each for each in life.telling if each.told or not name.startswith("tag:")]
            has = [name in fields_with(value, each) for each in telling]
            number = 0
            while number < len(telling):
                if not has[number]:
                    number += 1
                    continue
                first = number
                while number < len(telling) and has[number]:
                    number += 1
                begin, end = held(life, name, telling, first, number - 1)
                if overlaps(begin.earliest, end.latest, since, until):
                    seen = (telling[first].begin, telling[number - 1].begin)
                    ends = (end.earliest, end.latest, life.fate)
                    result.append((name, value, *life.key, life.name, begin.earliest, begin.latest, *seen, *ends))
    return sorted(result, key=lambda row: (row[7], row[2], row[3], row[4], row[0]))


def held(life: Life, name: str, telling: list[Sighting], first: int, last: int) -> tuple[Span, Span]:
    """From when to when an instance held what the sightings from the first to the last have."""
    end = life.end
    if last + 1 < len(telling):
        end = Span(telling[last].begin, telling[last + 1].end)
    if life.never_alive:
        return life.begin, end
    if name in ("instance_id", "private_ip_address") and first == 0:
        return life.begin, end
    before = telling[first - 1].begin if first else life.begin.earliest
    return Span(before, telling[first].end), end


# --- what changed ----------------------------------------------------------------------------------------------------


def changes(
    records: list[Record], since: datetime | None, until: datetime | None, instance_id: str | None = None
) -> list[Row]:
    """What happened; with an instance id, to that one."""
    result: list[Row] = []
    for life in histories(records):
        if instance_id is not None and life.key[2] != instance_id:
            continue
        for event, span, *modified in events(life):
            if overlaps(span.earliest, span.latest, since, until):
                what = modified or [None, None, None]
                result.append((span.earliest, span.latest, event, *life.key, life.name, *what))
        seen = life.sightings[-1].begin
        if instance_id is not None and life.end.latest is None and overlaps(seen, seen, since, until):
            result.append((seen, seen, life.fate, *life.key, life.name, None, None, None))
    return sorted(result, key=in_time)


def in_time(row: Row) -> tuple[Any, ...]:
    """The order of changes; what has no earliest time comes last among those of one latest time."""
    return (
        row[1],
        row[0] is None,
        row[0] or datetime.min,
        row[3],
        row[4],
        row[5],
        row[2],
        row[7] is None,
        row[7] or "",
    )


def events(life: Life) -> list[Any]:
    """Event and time, and for modifications field, before and after."""
    result: list[Any] = [("launched", life.begin)]
    for number, run in enumerate(life.runs):
        late = life.begin.exact and life.begin.latest and run.start - life.begin.latest > timedelta(minutes=1)
        if number > 0 or late:
            result.append(("started", Span(run.start, run.start)))
        if run.how == "stopped":
            result.append(("stopped", run.end))
    if life.fate == "seen terminated":
        result.append(("terminated", life.end))
    if life.fate == "vanished unseen":
        result.append(("vanished", life.end))
    for one, other in itertools.pairwise(life.telling):
        for name in one.record:
            if name not in NOT_MODIFIED and plain(one.record[name]) != plain(other.record[name]):
                span = Span(one.begin, other.end)
                result.append(("modified", span, name, written(one.record[name]), written(other.record[name])))
    told = [each for each in life.telling if each.told]
    for one, other in itertools.pairwise(told):
        for key in sorted({*one.tags, *other.tags}):
            if one.tags.get(key) != other.tags.get(key):
                span = Span(one.begin, other.end)
                result.append(("modified", span, f"tag:{key}", one.tags.get(key), other.tags.get(key)))
    return result


def written(value: Any) -> Any:
    """A value before or after a change: a list is its JSON, in order."""
    return json.dumps(sorted(value), separators=(",", ":")) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A value that can be compared: the order of a list is nothing."""
    return tuple(sorted(value)) if isinstance(value, list) else value


# --- hours -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a running period in which the fields are the same."""

    key: Key
    values: Row
    begin: Span
    end: Span


def by_tags(name: str) -> bool:
    return name in ("name", "tags") or name.startswith("tag:")


def parts(life: Life, run: Run, by: list[str]) -> list[Part]:
    """A running period, parted where its running sightings differ."""
    end = run.end
    if run.how == "open":
        end = Span(run.until, datetime.max if life.fate == "not covered" else run.until)
    sightings = [each for each in run.sightings if each.running]
    if any(by_tags(name) for name in by):
        sightings = [each for each in sightings if each.told] or sightings[:1]
    if not sightings:
        sightings = [run.sightings[0]]
    result: list[Part] = []
    for number, each in enumerate(sightings):
        values = tuple(value_of(life, each, name) for name in by)
        if not result:
            result.append(Part(life.key, values, Span(run.start, run.start), end))
        elif values != result[-1].values:
            between = Span(sightings[number - 1].begin, each.end)
            result[-1] = replace(result[-1], end=between)
            result.append(Part(life.key, values, between, end))
    return result


def value_of(life: Life, sighting: Sighting, name: str) -> Any:
    """A field of a sighting; of tags what was told last."""
    if not by_tags(name):
        if name == "instance_family":
            kind = sighting.record["instance_type"]
            return None if kind is None else kind.split(".")[0]
        return plain(sighting.record[name])
    tags = told_last(life, sighting)
    if name == "tags":
        return tuple(sorted(tags.items()))
    return tags.get("Name" if name == "name" else name[4:])


def told_last(life: Life, sighting: Sighting) -> dict[str, str]:
    """The tags of an instance, by the last sighting up to this one that told them."""
    order = life.sightings.index(sighting)
    told = [each for each in life.telling if each.told and life.sightings.index(each) <= order]
    return told[-1].tags if told else {}


def hours(records: list[Record], by: list[str], since: datetime | None, until: datetime | None) -> list[Row]:
    """The values of the fields, instances, hours, error; in no order."""
    every = polls(records)
    since = since if since is not None else min(each.begin for each in every)
    until = until if until is not None else max(each.begin for each in every)
    groups: dict[Row, list[Part]] = {}
    for life in histories(records):
        for run in life.runs:
            for part in parts(life, run, by):
                if length(part.begin.earliest, part.end.latest, since, until) > 0:
                    groups.setdefault(part.values, []).append(part)
    result = []
    for values, members in groups.items():
        least = sum(length(each.begin.latest, each.end.earliest, since, until) for each in members)
        most = sum(length(each.begin.earliest, each.end.latest, since, until) for each in members)
        instances = len({each.key for each in members})
        result.append((*values, instances, (least + most) / 2, (most - least) / 2))
    return result


def length(begin: datetime | None, end: datetime | None, since: datetime, until: datetime) -> float:
    """Hours from begin to end, within a window; nothing, if that is negative."""
    begin = since if begin is None else max(begin, since)
    end = until if end is None else min(end, until)
    return max((end - begin).total_seconds(), 0) / 3600


# --- coverage --------------------------------------------------------------------------------------------------------


def coverage(records: list[Record], gap: timedelta, since: datetime | None, until: datetime | None) -> list[Row]:
    """account, region, status, begin, end, polls, unseen_hours, and the reasons counted. With since, until is needed."""
    every = polls(records)
    result: list[Row] = []
    for account, region in sorted({(each.account, name) for each in every if each.account for name in each.statuses}):
        own = [each for each in every if each.account == account]
        asked = [each for each in own if region in each.statuses]
        if all(status == "not-enabled" for each in asked for status in each.statuses[region]):
            continue
        result += stretches(account, region, own, every, gap, since, until)
    return result


def counts_as_covering(poll: Poll, region: str) -> bool:
    return region in poll.covers or (not poll.cut_off and "not-enabled" in poll.statuses.get(region, []))


def stretches(
    account: str,
    region: str,
    own: list[Poll],
    every: list[Poll],
    gap: timedelta,
    since: datetime | None,
    until: datetime | None,
) -> list[Row]:
    """The stretches of one region."""
    own_and_unknown = [each for each in every if each.account in (account, None)]
    begin = min(each.begin for each in own if region in each.statuses)
    end = max(each.begin for each in own_and_unknown)
    begin = begin if since is None else min(begin, since)
    end = end if until is None else max(end, until)
    covering = [each for each in own if counts_as_covering(each, region)]
    result: list[Row] = []
    stretch: list[Poll] = []
    marks: list[Poll | None] = [None, *covering, None]  # None is the begin and the end of what is told
    for number in range(1, len(marks)):
        one, other = marks[number - 1], marks[number]
        from_ = one.begin if one else begin
        to = min(each.end for each in covering[number - 1 :]) if other else end
        if one:
            stretch.append(one)
        if to - from_ > gap and (one or other is None or begin < other.begin):
            if stretch:
                result.append(covered(account, region, stretch))
            stretch = []
            reasons = why(region, [each for each in own_and_unknown if from_ <= each.begin <= to])
            unseen = round((to - from_ - timedelta(hours=1)).total_seconds() / 3600, 3)
            result.append((account, region, "gap", from_, to, 0, max(unseen, 0), reasons))
    if stretch:
        result.append(covered(account, region, stretch))
    return [row for row in result if overlaps(row[3], row[4], since, until)]


def covered(account: str, region: str, stretch: list[Poll]) -> Row:
    return (account, region, "covered", stretch[0].begin, max(each.end for each in stretch), len(stretch), None, None)


def why(region: str, meanwhile: list[Poll]) -> str:
    """What the polls of some time were that do not cover a region."""
    result = Counter(what_of(each, region) for each in meanwhile if not counts_as_covering(each, region))
    return ", ".join(f"{number} {what}" for what, number in sorted(result.items(), key=by_number)) or "no poll"


def by_number(counted: tuple[str, int]) -> tuple[int, str]:
    return (-counted[1], counted[0])


def what_of(poll: Poll, region: str) -> str:
    """Why a poll does not cover a region."""
    statuses = poll.statuses.get(region, [])
    if poll.account is None:
        return "without identity"
    if poll.cut_off:
        return "cut off"
    if not statuses:
        return "did not ask"
    return "lacking lines" if "ok" in statuses else max(statuses)


# --- at --------------------------------------------------------------------------------------------------------------

SHOWN = ("instance_type", "availability_zone", "private_ip_address", "public_ip_address")


def at(records: list[Record], when: datetime | None) -> list[Row]:
    """Who existed at a time."""
    asked = when if when is not None else max(each.end for each in polls(records))
    result = []
    for life in histories(records):
        if life.begin.earliest is not None and life.begin.earliest > asked:
            continue
        if life.end.latest is not None and life.end.latest <= asked:
            continue
        span, known = shown(life, asked)
        record = span[0].record
        name = told_last(life, span[-1]).get("Name")
        state = None if life.never_alive else record["state"]
        values = [record[each] for each in SHOWN]
        seen = (span[0].begin, span[-1].begin)
        result.append((*life.key, name, state, *values, span[0].launch, *seen, known))
    return sorted(result, key=lambda row: (row[0], row[1], row[3] is None, row[3] or "", row[2]))


def spans(life: Life) -> list[list[Sighting]]:
    """Consecutive sightings with the same line but for its timestamp."""
    result: list[list[Sighting]] = []
    for each in life.sightings:
        if result and same(result[-1][-1], each):
            result[-1].append(each)
        else:
            result.append([each])
    return result


def same(one: Sighting, other: Sighting) -> bool:
    lines = [{name: value for name, value in each.record.items() if name != "timestamp"} for each in (one, other)]
    return json.dumps(lines[0]) == json.dumps(lines[1]) and one.told == other.told


def end_of_run(life: Life, sighting: Sighting) -> datetime | None:
    """The exact end of the running period of a sighting."""
    for run in life.runs:
        if run.start == sighting.launch and run.end.exact:
            return run.end.latest
    return None


def shown(life: Life, asked: datetime) -> tuple[list[Sighting], str]:
    """The span that is shown for a time, and how sure that is."""
    alive = [each for each in spans(life) if each[0].alive]
    if not alive:
        return spans(life)[0], "exact" if life.end.exact else "bounded"
    begun = [number for number, each in enumerate(alive) if each[0].begin <= asked]
    number = begun[-1] if begun else 0
    span = alive[number]
    if span[0].begin <= asked <= span[-1].end:
        return span, "agreed"
    if asked < span[0].begin:
        return span, "exact" if before_first(life, span[0], asked) else "bounded"
    if number + 1 == len(alive):
        if life.fate in ("present", "not covered"):
            return span, "last"
        return span, "exact" if life.end.exact else "bounded"
    return between(life, span, alive[number + 1], asked)


def before_first(life: Life, first: Sighting, asked: datetime) -> bool:
    """Whether an instance was exactly as it was first seen already before that."""
    if first.running:
        return first.launch is not None and first.launch <= asked
    stopped = end_of_run(life, first)
    return stopped is not None and stopped <= asked


def between(life: Life, span: list[Sighting], following: list[Sighting], asked: datetime) -> tuple[list[Sighting], str]:
    """What was after a span and before the next."""
    one, other = span[0], following[0]
    end = end_of_run(life, other)
    if one.launch == other.launch:
        if one.running and not other.running and end is not None:
            return (following if asked >= end else span), "exact"
        return span, "bounded"
    if one.launch is None or other.launch is None or other.launch < one.launch:
        return span, "bounded"
    if other.running and asked >= other.launch:
        return following, "exact"
    if not other.running and end is not None and asked >= end:
        return following, "exact"
    if not one.running and asked < other.launch:
        return span, "exact"
    return span, "bounded"
