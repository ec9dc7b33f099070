"""An AWS account whose instances come and go: a pure function of the time, and its face on HTTP.

All times are in seconds since the account began, so that a history reads the same whenever it is played.
"""

from __future__ import annotations

import math
import random
import threading
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from scripted_aws import Reply, Request, an_instance, caller_identity, ec2_error, page, sts_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REGIONS: Final = ("eu-west-1", "us-east-1")
MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

IN_VIEW: Final = 10 * MINUTE
"""How long a terminated instance is listed, at the least."""

BOOT = 15
"""Seconds from a start to running."""
SHUTDOWN = 20
"""Seconds from running to stopped or terminated."""


class Look(NamedTuple):
    """What DescribeInstances says of an instance at one moment."""

    state: str
    launched: int
    """The last start."""
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Life:
    """One instance, from its launch until it fades from view."""

    number: int
    region: str
    launched: int
    terminated: int
    in_view: int = IN_VIEW
    """How long it is listed after that. For the second half of it without its tags."""
    pauses: tuple[tuple[int, int], ...] = ()
    """From when to when it was stopped."""
    retagged: tuple[int, ...] = ()

    @cached_property
    def instance_id(self) -> str:
        return f"i-{self.number:017x}"

    @property
    def fades(self) -> int:
        return self.terminated + self.in_view

    @property
    def moments(self) -> list[int]:
        """When its look changes."""
        starts = [self.launched, *(start for _, start in self.pauses)]
        stops = [stop for stop, _ in self.pauses]
        return [
            *(moment for start in starts for moment in (start, start + BOOT)),
            *(moment for stop in stops for moment in (stop, stop + SHUTDOWN)),
            *(self.terminated - SHUTDOWN, self.terminated, self.terminated + self.in_view // 2, self.fades),
            *self.retagged,
        ]

    def look(self, moment: float) -> Look | None:
        """None where it is not in view."""
        if not self.launched <= moment < self.fades:
            return None
        started = max([self.launched, *(start for _, start in self.pauses if start <= moment)])
        stopped = next((stop for stop, start in self.pauses if stop <= moment < start), None)
        if moment >= self.terminated:
            state = "terminated"
        elif moment >= self.terminated - SHUTDOWN:
            state = "shutting-down"
        elif stopped is not None:
            state = "stopping" if moment < stopped + SHUTDOWN else "stopped"
        else:
            state = "pending" if moment < started + BOOT else "running"
        release = sum(at <= moment for at in self.retagged)
        tags = (("Name", f"job {self.number}"), ("Release", f"{release}"))
        return Look(state, started, tags if moment < self.terminated + self.in_view // 2 else ())


@dataclass(frozen=True)
class Account:
    lives: Sequence[Life]
    page_size: int = 5
    _by_hour: Mapping[tuple[str, int], list[Life]] = field(init=False, repr=False, compare=False)
    """Those in view in a region at some time of an hour, by their ids: a year of lives takes long to search."""

    def __post_init__(self) -> None:
        by_hour: defaultdict[tuple[str, int], list[Life]] = defaultdict(list)
        for life in sorted(self.lives, key=lambda life: life.instance_id):
            for hour in range(life.launched // HOUR, life.fades // HOUR + 1):
                by_hour[life.region, hour].append(life)
        object.__setattr__(self, "_by_hour", by_hour)

    def page(self, region: str, moment: float, token: str | None) -> tuple[list[tuple[Life, Look]], str | None]:
        """The instances in view at that moment, by their ids, after the one that `token` names; and the next token."""
        candidates = self._by_hour.get((region, int(moment // HOUR)), [])
        found: list[tuple[Life, Look]] = []
        for life in candidates[bisect_right(candidates, token or "", key=lambda life: life.instance_id) :]:
            if look := life.look(moment):
                if len(found) == self.page_size:
                    return found, found[-1][0].instance_id
                found.append((life, look))
        return found, None


ANSWERS = {
    "denied": ec2_error("UnauthorizedOperation", status=403),
    "refused": ec2_error("InvalidParameterValue"),
    "bad credentials": ec2_error("AuthFailure", status=401),
    "bad token": ec2_error("InvalidNextToken"),
    "foreign": Reply("<html><body>Please log in.</body></html>"),
    "unavailable": ec2_error("Unavailable", status=503),
    "hang-up": Reply(hang_up=True),
}
RETRIED = ("bad credentials", "bad token", "foreign", "unavailable", "hang-up")
"""What the poller should ask again about."""


@dataclass(frozen=True)
class Fault:
    """What a region answers in place of a page."""

    answer: str
    page: int = 1
    """Counted from the first. A region that has fewer is not at fault."""
    once: bool = False
    """Whether all is well when that page is asked for again."""

    @property
    def status(self) -> str:
        """What the region comes to."""
        if self.once and self.answer in RETRIED:
            return "ok"
        return "denied" if self.answer == "denied" else "failed"


@dataclass(frozen=True)
class Plan:
    """When the account is to be polled, and what goes wrong with it."""

    at: float
    page_seconds: float = 0
    """What each page takes. Regions take theirs side by side."""
    faults: Mapping[str, Fault] = field(default_factory=dict)
    """By region."""
    no_identity: str | None = None
    """Who is down: metadata or sts."""
    cut_off: bool = False
    """Whether the poller dies while it writes the poll line."""


class Face:
    """The account as EC2 and STS show it. The time of a region's next page is when its last one was answered, and
    the clock is never behind what a region has shown: so it matters not which region's thread comes first."""

    def __init__(self, account: Account, began: datetime, move_clock: Callable[[datetime], object]) -> None:
        self.now = 0.0
        self._account = account
        self._began = began
        self._move_clock = move_clock
        self._lock = threading.Lock()

    def begin(self, plan: Plan) -> None:
        self._plan = plan
        self._faults = dict(plan.faults)
        self._moments = dict.fromkeys(REGIONS, plan.at)
        self._pages = dict.fromkeys(REGIONS, 0)
        self._advance(plan.at)

    def answer(self, request: Request) -> Reply | str:
        region, token = request.region, request.page_token
        if token is None:
            self._pages[region] = 0
        fault = self._faults.get(region)
        if fault and fault.page == self._pages[region] + 1:
            if fault.once:
                del self._faults[region]
            return ANSWERS[fault.answer]
        seen, next_token = self._account.page(region, self._moments[region], token)
        self._pages[region] += 1
        self._moments[region] += self._plan.page_seconds
        self._advance(self._moments[region])
        return page(*(self._xml(life, look) for life, look in seen), token=next_token, per_reservation=2)

    def identify(self, request: Request) -> Reply | str:
        return sts_error("AccessDenied") if self._plan.no_identity == "sts" else caller_identity()

    def _advance(self, moment: float) -> None:
        with self._lock:
            self.now = max(self.now, moment)
            self._move_clock(self._began + timedelta(seconds=self.now))

    def _xml(self, life: Life, look: Look) -> str:
        launched = f"{self._began + timedelta(seconds=look.launched):%Y-%m-%dT%H:%M:%S.000Z}"
        return an_instance(life.instance_id, state=look.state, tags=dict(look.tags), launched=launched)


def random_account(seed: int, days: float, lives_per_day: float = 275) -> Account:
    """Jobs of seconds to an hour, some of hours, bursts of autoscaling, and a few that last for days to months."""
    chance = random.Random(f"lives {seed}")

    def between(shortest: float, longest: float) -> int:
        """As likely to be ten times as long as a tenth."""
        return round(math.exp(chance.uniform(math.log(shortest), math.log(longest))))

    def life(region: str, launched: float, lasts: int) -> Life:
        end = round(launched) + lasts
        times = sorted(chance.sample(range(round(launched) + MINUTE, end - MINUTE), 8)) if lasts > HOUR else []
        return Life(
            number=chance.getrandbits(68),
            region=region,
            launched=round(launched),
            terminated=end,
            in_view=chance.randint(IN_VIEW, 70 * MINUTE),
            pauses=tuple(zip(times[0:4:2], times[1:4:2])) if chance.random() < 0.5 else (),
            retagged=tuple(times[4:]),
        )

    def lives(region: str) -> Iterator[Life]:
        now = 0.0
        events_per_day = lives_per_day / len(REGIONS) / 1.5  # an event is about 1.5 lives
        while (now := now + chance.expovariate(events_per_day / DAY)) < days * DAY:
            kind = chance.random()
            if kind < 0.02:
                for _ in range(chance.randint(5, 50)):
                    yield life(region, now + chance.uniform(0, 2 * MINUTE), between(3 * MINUTE, 40 * MINUTE))
            elif kind < 0.023:
                yield life(region, now, between(2 * DAY, 90 * DAY))
            else:
                yield life(region, now, between(1, HOUR) if kind < 0.85 else between(HOUR, 8 * HOUR))

    return Account([life for region in REGIONS for life in lives(region)])


class Trouble(NamedTuple):
    """Something that is wrong for a while."""

    what: str
    begins: float
    ends: float
    page: int
    region: str
    page_seconds: int


TROUBLES_A_MONTH = {
    "poller": (3, 30 * MINUTE, 36 * HOUR),
    "metadata": (2, 30 * MINUTE, 6 * HOUR),
    "sts": (1, 30 * MINUTE, 3 * HOUR),
    "slow": (3, 30 * MINUTE, 3 * HOUR),
    "denied": (3, 10 * MINUTE, 8 * HOUR),
    "refused": (3, 10 * MINUTE, 8 * HOUR),
    "bad credentials": (1, 10 * MINUTE, 3 * HOUR),
    "foreign": (2, 10 * MINUTE, 3 * HOUR),
}
"""How often, and how long they last."""

GLITCHES = {"foreign": 0.01, "bad token": 0.01, "unavailable": 0.002, "hang-up": 0.002}
"""How likely a poll meets what a second attempt cures."""


def random_plans(seed: int, days: float, cadence: int) -> list[Plan]:
    """A poll every `cadence` seconds, seven minutes past. Troubles are the same for every cadence."""
    chance = random.Random(f"troubles {seed}")
    troubles: list[Trouble] = []
    for what, (a_month, shortest, longest) in TROUBLES_A_MONTH.items():
        begins = 0.0
        while (begins := begins + chance.expovariate(a_month / (30 * DAY))) < days * DAY:
            ends = begins + chance.uniform(shortest, longest)
            troubles.append(
                Trouble(what, begins, ends, chance.randint(1, 3), chance.choice(REGIONS), chance.randint(20, 300))
            )
    troubles.sort(key=lambda trouble: trouble.begins)

    plans = []
    chance = random.Random(f"polls {seed} {cadence}")
    for slot in range(round(days * DAY / cadence)):
        at = slot * cadence + 7 * MINUTE + chance.randrange(60_000) / 1000
        now = {trouble.what: trouble for trouble in troubles if trouble.begins <= at < trouble.ends}
        faults = {now[what].region: Fault(what, now[what].page) for what in ANSWERS if what in now}
        for glitch, likelihood in GLITCHES.items():
            if chance.random() < likelihood:
                faults.setdefault(chance.choice(REGIONS), Fault(glitch, chance.randint(1, 3), once=True))
        plan = Plan(
            at=at,
            page_seconds=now["slow"].page_seconds if "slow" in now else chance.choice((0.0, 0.5, 2.0)),
            faults=faults,
            no_identity=next((what for what in ("metadata", "sts") if what in now), None),
            cut_off=chance.random() < 0.005,
        )
        if "poller" not in now:
            plans.append(plan)
    return plans


def untroubled_plans(days: float, cadence: int) -> list[Plan]:
    """The same cadence, with nothing that goes wrong."""
    return [Plan(slot * cadence + 7 * MINUTE) for slot in range(round(days * DAY / cadence))]
