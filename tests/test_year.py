"""The log of an account whose instances come and go, polled on a simulated clock while much goes wrong: every instance
is in it, or lived where the log itself shows that nobody looked."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections import defaultdict
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import time_machine
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from instance_metadata import InstanceMetadataService, RoleCredentials, some_credentials
from scripted_aws import ScriptedAWS
from simulated_account import (
    DAY,
    HOUR,
    IN_VIEW,
    MINUTE,
    REGIONS,
    Account,
    Face,
    Fault,
    Life,
    Look,
    Plan,
    random_account,
    random_plans,
)

import inventory_manager
import main
from inventory_manager import InventoryManager, json_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Polled:
    """One poll, as the log shows it."""

    timestamp: int
    ended: float
    """By then at the latest. Infinite where the poll line is missing."""
    complete: bool
    regions: dict[str, str] = field(default_factory=dict)
    """The statuses."""
    instances: dict[tuple[str, str], Look] = field(default_factory=dict)
    """By region and id."""

    def covers(self, region: str) -> bool:
        return self.regions.get(region) == "ok" and self.ended < math.inf


def read(log: Path, began: datetime) -> list[Polled]:
    """What a reader who knows nothing but the log makes of it."""

    def seconds(time: str) -> int:
        return round((datetime.fromisoformat(time.replace("Z", "+00:00")) - began).total_seconds())

    polls: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in log.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # torn
            continue
        polls[seconds(record["timestamp"])].append(record)
    return [
        Polled(
            timestamp,
            # The timestamp is the second in which the poll began, so it ended up to a second after their sum.
            ended=next((timestamp + 1 + each["seconds"] for each in records if each["record"] == "poll"), math.inf),
            complete=any(each["complete"] for each in records if each["record"] == "poll"),
            regions={each["region"]: each["status"] for each in records if each["record"] == "region"},
            instances={
                (each["region"], each["instance_id"]): Look(
                    each["state"], seconds(each["launch_time"]), tuple(each["tags"].items())
                )
                for each in records
                if each["record"] == "instance"
            },
        )
        for timestamp, records in polls.items()
    ]


def foreseen(account: Account, plans: Iterable[Plan]) -> Iterator[Polled]:
    """What the log should show, from the history alone."""
    free = -math.inf
    for plan in plans:
        if plan.at <= free:  # the one before still runs
            continue
        free = plan.at
        statuses: dict[str, str] = {}
        instances: dict[tuple[str, str], Look] = {}
        for region in () if plan.no_identity else REGIONS:
            fault = plan.faults.get(region)
            statuses[region] = "ok"
            moment, pages, token = plan.at, 0, None
            while True:
                if fault and fault.page == pages + 1:
                    statuses[region] = fault.status
                    if fault.status != "ok":
                        break
                    if fault.answer == "bad token":  # from the start again
                        pages, token = 0, None
                    fault = None
                seen, token = account.page(region, moment, token)
                for life, look in seen:
                    instances.setdefault((region, life.instance_id), look)
                pages += 1
                moment += plan.page_seconds
                free = max(free, moment)
                if not token:
                    break
        if plan.cut_off and not statuses:  # half a line is all there is
            continue
        yield Polled(
            timestamp=math.floor(plan.at),
            ended=math.inf if plan.cut_off else math.floor(plan.at) + 1 + round(free - plan.at, 3),
            complete=not plan.cut_off and set(statuses.values()) == {"ok"},
            regions=statuses,
            instances=instances,
        )


@dataclass(frozen=True)
class Verdict:
    lived: int
    recorded: int
    uncovered: int
    """How many are not recorded, and may have lived in a gap that the record shows."""
    lost: tuple[Life, ...]
    """Those that are neither."""
    invented: tuple[tuple[str, str], ...]
    """Region and id of what is recorded and never was."""


def judge(account: Account, polls: Iterable[Polled]) -> Verdict:
    """Compare a log with what was."""
    recorded: set[tuple[str, str]] = set()
    covered: dict[str, list[tuple[float, float]]] = {region: [(-math.inf, -math.inf)] for region in REGIONS}
    for poll in polls:
        recorded.update(poll.instances)
        for region in REGIONS:
            if poll.covers(region):
                covered[region].append((poll.timestamp, poll.ended))
    for looked in covered.values():
        looked.append((math.inf, math.inf))

    def in_a_gap(life: Life) -> bool:
        # Between two polls that cover, what was launched after the first began and was no longer in view when the
        # second ended may never have been there when its page was asked for.
        looked = covered[life.region]
        _, second_ended = looked[bisect_left(looked, (life.launched, -math.inf))]
        return life.terminated + IN_VIEW <= second_ended

    lives = {(life.region, life.instance_id): life for life in account.lives}
    missed = [life for key, life in lives.items() if key not in recorded]
    lost = tuple(life for life in missed if not in_a_gap(life))
    return Verdict(
        len(lives), len(recorded & lives.keys()), len(missed) - len(lost), lost, tuple(recorded - lives.keys())
    )


def untruths(account: Account, polls: Iterable[Polled]) -> list[str]:
    """What the log says of an instance that was at no time between the beginning and the end of that poll."""
    lives = {(life.region, life.instance_id): life for life in account.lives}
    found = []
    for poll in polls:
        for key, look in poll.instances.items():
            life = lives[key]
            ended = poll.ended if poll.ended < math.inf else poll.timestamp + HOUR
            moments = [poll.timestamp, *(each for each in life.moments if poll.timestamp < each <= ended)]
            if look not in map(life.look, moments):
                found.append(f"at {poll.timestamp}: {look} of {life}")
    return found


class Simulation:
    """main.py's session and one InventoryManager on real HTTP, for one account after the other.

    Each begins in a day that no earlier one has seen, so that no credentials outlive the one before.
    """

    def __init__(self, aws: ScriptedAWS, metadata: InstanceMetadataService, clock: time_machine.Traveller) -> None:
        self.began = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self._aws = aws
        self._metadata = metadata
        self._clock = clock
        self._manager = InventoryManager(main.make_session(None, []))

    def run(self, account: Account, plans: Sequence[Plan], log: Path) -> list[Polled]:
        """Poll `account` as planned, and read what the log says."""
        face = Face(account, self.began, self._clock.move_to)
        self._aws.answer, self._aws.identify = face.answer, face.identify
        self._metadata.credentials = lambda: self._credentials(plans)
        log.write_text("")
        self.face = face
        for plan in plans:
            if plan.at > face.now:  # else the poll before still runs
                face.begin(plan)
                self._metadata.overrides = {"api/token": (503, "")} if plan.no_identity == "metadata" else {}
                with log.open("a") as stdout, redirect_stdout(stdout):
                    self._poll(plan)
                self._aws.requests.clear()
                self._metadata.requests.clear()
        polls = read(log, self.began)
        self.began += timedelta(days=2 + face.now // DAY)
        return polls

    def _poll(self, plan: Plan) -> None:
        """As main.py does it, until the end or death."""
        main.finish_torn_line()
        for record in self._manager.poll(REGIONS).records():
            line = json_line(record)
            if plan.cut_off and record["record"] == "poll":
                line = line[: len(line) // 2]
            main.output(line)

    def _credentials(self, plans: Sequence[Plan]) -> RoleCredentials:
        """So short of breath that the next poll must renew them: where that fails, it fails."""
        now = self.face.now
        following = bisect_left(plans, now + 0.001, key=lambda plan: plan.at)
        lifetime = plans[following].at - now if following < len(plans) else 0
        return some_credentials(lifetime=min(lifetime + 9 * MINUTE, 6 * HOUR))


@contextmanager
def a_simulation() -> Iterator[Simulation]:
    with (
        ScriptedAWS(lambda request: "") as aws,
        InstanceMetadataService() as metadata,
        time_machine.travel(datetime(2026, 1, 1, tzinfo=timezone.utc), tick=False) as clock,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(time, "monotonic", time.time)  # time-machine leaves it as it is, and the two go together
        patch.setattr(inventory_manager, "PAUSE", 0.001)
        patch.setattr(main, "METADATA_PAUSE", 0.001)
        patch.setenv("AWS_ENDPOINT_URL", aws.url)
        patch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        yield Simulation(aws, metadata, clock)


@pytest.fixture
def simulation(_own_environment: None) -> Iterator[Simulation]:
    with a_simulation() as made:
        yield made


def some_examples(number: int) -> settings:
    """Always the same ones. Of those that fail, the shortest is shown; what in it does not matter is not looked for."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=number,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )


SLOTS = st.integers(0, 5).map(lambda slot: slot * 15 * MINUTE)
"""When there may be a poll: few, so that what lives and what asks meet often."""

PAGE_SIZES = st.integers(1, 2)


def some_lives() -> st.SearchStrategy[list[Life]]:
    """A few, that come and go while they are asked for."""
    moments = st.builds(lambda slot, later: slot + later, SLOTS, st.sampled_from([0, 1, 2, 30, 2 * MINUTE, 7 * MINUTE]))

    @st.composite
    def lives(draw: st.DrawFn) -> Life:
        launched = draw(moments)
        in_view = draw(st.sampled_from([IN_VIEW, IN_VIEW + 1, 20 * MINUTE, 70 * MINUTE]))
        terminated = max(launched + 1, draw(moments | st.just(DAY)) - in_view)
        inside = st.integers(launched, terminated)
        return Life(
            number=draw(st.integers(1, 99)),
            region=draw(st.sampled_from(REGIONS)),
            launched=launched,
            terminated=terminated,
            in_view=in_view,
            pauses=draw(st.just(()) | st.tuples(st.tuples(inside, inside).map(lambda pair: (min(pair), max(pair))))),
            retagged=draw(st.just(()) | st.tuples(inside)),
        )

    return st.lists(lives(), max_size=6, unique_by=lambda life: life.number)


def some_plans() -> st.SearchStrategy[list[Plan]]:
    """A few polls, with all that may go wrong and takes no pauses to mend."""
    pages = st.sampled_from([1, 1, 2, 3])
    lasting = st.builds(Fault, st.sampled_from(["foreign", "denied", "refused", "bad credentials"]), pages)
    passing = st.builds(Fault, st.sampled_from(["foreign", "bad token"]), pages, once=st.just(True))
    plans = st.builds(
        Plan,
        at=st.builds(lambda slot, late: slot + late, SLOTS, st.sampled_from([1, 1.9])),
        page_seconds=st.sampled_from([0, 0.25, 60, 400]),
        faults=st.dictionaries(st.sampled_from(REGIONS), lasting | passing, max_size=2),
        no_identity=st.sampled_from([None, None, None, "metadata", "sts"]),
        cut_off=st.sampled_from([False, False, False, True]),
    )
    return st.lists(plans, min_size=1, max_size=4, unique_by=lambda plan: plan.at // MINUTE).map(
        lambda plans: sorted(plans, key=lambda plan: plan.at)
    )


@some_examples(300)
@given(lives=some_lives(), page_size=PAGE_SIZES, plans=some_plans())
@example(  # the second page is asked for in the second after the timestamp's, when the second instance has just faded
    lives=[Life(1, REGIONS[0], launched=0, terminated=DAY), Life(2, REGIONS[0], launched=0, terminated=902 - IN_VIEW)],
    page_size=1,
    plans=[Plan(at=901.9, page_seconds=0.25)],
)
def test_gaps_explain_all_that_is_missing(lives: list[Life], page_size: int, plans: list[Plan]) -> None:
    """What a log lacks lived in a gap that the log shows, if the log says what it should."""
    account = Account(lives, page_size)
    assert judge(account, foreseen(account, plans)).lost == ()


def test_small_histories(simulation: Simulation, tmp_path: Path) -> None:
    """The log says what it should, loses nothing silently and tells no untruth, whatever happens."""

    @some_examples(60)
    @given(lives=some_lives(), page_size=PAGE_SIZES, plans=some_plans())
    def holds(lives: list[Life], page_size: int, plans: list[Plan]) -> None:
        account = Account(lives, page_size)
        polls = simulation.run(account, plans, tmp_path / "log")
        verdict = judge(account, polls)
        assert (verdict.lost, verdict.invented) == ((), ())
        assert untruths(account, polls) == []
        assert polls == list(foreseen(account, plans))

    holds()


def test_two_weeks(simulation: Simulation, tmp_path: Path) -> None:
    """Hourly polls of thousands of instances, through two weeks of troubles, lose nothing silently."""
    account, plans = random_account(seed=1, days=14), random_plans(seed=1, days=14, cadence=HOUR)
    polls = simulation.run(account, plans, tmp_path / "log")
    verdict = judge(account, polls)
    assert (verdict.lost, verdict.invented) == ((), ())
    assert untruths(account, polls) == []
    assert polls == list(foreseen(account, plans))

    assert verdict.recorded > verdict.uncovered > 0
    assert {status for poll in polls for status in poll.regions.values()} == {"ok", "denied", "failed"}


class LeakyAccount(Account):
    """Drops the last instance of every page."""

    def page(self, region: str, moment: float, token: str | None) -> tuple[list[tuple[Life, Look]], str | None]:
        seen, token = super().page(region, moment, token)
        return seen[:-1], token


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(lambda poll: replace(poll, regions=dict.fromkeys(REGIONS, "ok")), id="every region is ok"),
        pytest.param(lambda poll: replace(poll, ended=poll.timestamp), id="a poll takes no time"),
        pytest.param(lambda poll: replace(poll, timestamp=poll.ended), id="a poll is dated by its end"),
        pytest.param(
            lambda poll: replace(
                poll, instances={key: look for key, look in poll.instances.items() if look.state != "terminated"}
            ),
            id="terminated instances are left out",
        ),
    ],
)
def test_false_logs_are_found_out(told: Callable[[Polled], Polled]) -> None:
    """A log that says more than was asked, or less than was answered, has silent losses."""
    account = random_account(seed=2, days=30)
    plans = [replace(plan, page_seconds=100) for plan in random_plans(seed=2, days=30, cadence=HOUR)]
    polls = list(foreseen(account, plans))
    assert judge(account, polls).lost == ()
    assert judge(account, map(told, polls)).lost != ()


def test_lost_answers_are_found_out() -> None:
    """A page that lacks an instance makes for silent losses."""
    account, plans = random_account(seed=2, days=14), random_plans(seed=2, days=14, cadence=HOUR)
    assert judge(account, foreseen(LeakyAccount(account.lives), plans)).lost != ()
