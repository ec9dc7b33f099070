"""python tests/soak.py: whether polls leave anything behind; then years of an account whose instances come and go, and
what polls at each cadence record of them.

The first year is polled for real, over HTTP. What the log of the others shows is computed from the history; that it is
what the poller writes is verified for their first days.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import forget_settings
from instance_metadata import InstanceMetadataService
from scripted_aws import Reply, Request, ScriptedAWS, an_instance, ec2_error, page
from simulated_account import DAY, MINUTE, random_account, random_plans, untroubled_plans
from test_year import a_simulation, foreseen, judge, untruths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulated_account import Account, Plan

# Each is a process of its own, without the servers' memory and threads: it polls as often as it is told and prints,
# after each poll, the kilobytes that are resident (of main.py: at most); then open files and threads, or files at home.
LIBRARY = """
import gc, json, os, sys, threading
import boto3
from inventory_manager import InventoryManager, json_line

manager = InventoryManager(boto3.Session())
for _ in range(int(sys.argv[1])):
    for record in manager.poll(["eu-west-1", "us-east-1", "us-west-2"], full=True).records():
        json_line(record)
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
    gc.collect()
    with open("/proc/self/status") as status:
        (resident,) = (int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    print(json.dumps([resident, len(os.listdir("/proc/self/fd")), threading.active_count()]), flush=True)
"""
PROGRAM = """
import json, os, subprocess, sys

for _ in range(int(sys.argv[1])):
    with open(os.path.join(os.environ["HOME"], "log"), "ab") as log:
        command = [sys.executable, os.environ["MAIN"], "--region", "eu-west-1", "--region", "us-east-1"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    print(json.dumps([usage.ru_maxrss, len(os.listdir(os.environ["HOME"]))]), flush=True)
"""


def polled(program: str, polls: int) -> list[tuple[int, ...]]:
    """What `program` prints, on an account of which one region is denied."""

    def answer(request: Request) -> Reply | str:
        if request.region == "us-west-2":
            return ec2_error("UnauthorizedOperation", status=403)
        return page(*(an_instance(number, tags={"Name": "web"}) for number in range(200)))

    with ScriptedAWS(answer) as aws, InstanceMetadataService() as metadata, tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "MAIN": str(Path(__file__).parent.parent / "main.py"),
            "AWS_ENDPOINT_URL": aws.url,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
            "AWS_DEFAULT_REGION": "eu-west-1",
        }
        if program is LIBRARY:
            environment |= {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}
        run = subprocess.run(
            [sys.executable, "-c", program, str(polls)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=3600,
        )
    return [tuple(json.loads(line)) for line in run.stdout.splitlines()]


def growth(seen: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """From the end of the first quarter, when all is loaded and warm, to the end."""
    return tuple(last - first for first, last in zip(seen[len(seen) // 4], seen[-1], strict=True))


def poll_for_real(account: Account, plans: Sequence[Plan]) -> bool:
    """Whether the poller writes what is foreseen."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        forget_settings(patch, home)
        with a_simulation() as simulation:
            polls = simulation.run(account, plans, Path(home, "log"))
    return polls == list(foreseen(account, plans)) and not untruths(account, polls)


def years(seeds: Sequence[int], days: int, real_days: int, cadences: Sequence[int]) -> bool:
    """Whether nothing was lost in them, after printing a table."""
    good = True
    print(
        "| history | a poll every | polls | of them real | lived | recorded | missed, shown uncovered | silently lost "
        "| missed, had nothing gone wrong |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for seed in seeds:
        account = random_account(seed, days)
        for minutes in cadences:
            plans = random_plans(seed, days, minutes * MINUTE)
            first = (seed, minutes) == (seeds[0], cadences[0])  # is polled for real from end to end
            in_front = [plan for plan in plans if first or plan.at < real_days * DAY]
            as_foreseen = poll_for_real(account, in_front)
            verdict = judge(account, foreseen(account, plans))
            good &= as_foreseen and not verdict.lost
            untroubled = judge(account, foreseen(account, untroubled_plans(days, minutes * MINUTE)))
            print(
                f"| {seed} | {minutes} min | {len(plans):,} | {len(in_front):,} | {verdict.lived:,}"
                f" | {verdict.recorded:,} | {verdict.uncovered:,} ({verdict.uncovered / verdict.lived:.1%})"
                f" | {len(verdict.lost)} | {untroubled.uncovered / untroubled.lived:.1%} |"
                f"{'' if as_foreseen else ' THE POLLER WRITES SOMETHING ELSE'}",
                flush=True,
            )
    return good


INTRODUCTION = """# Many polls, and years of them

`make soak` writes this page anew.

Whether polls leave anything behind: at the last one, and the growth since the end of the first quarter.

| | polls | KB of memory | open files | left |
|---|---|---|---|---|"""

YEARS = """
Years of an emulated account: nine of ten of its instances live for less than 50 minutes, some for months, they come in
bursts, stop and start, and are listed for 10 to 70 minutes after their end. The poller, the metadata service, STS and
regions fail for hours again and again. Each instance is recorded, or has lived wholly where the record itself shows
that nobody looked; otherwise it would be silently lost. What is not polled for real, over HTTP, is computed; where both
are done, they agree to the last tag.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--polls", type=int, default=500, help="in one process; by main.py two fifths of that")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="one for each history")
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--real-days", type=int, default=7, help="how many of them are polled for real as well")
    parser.add_argument("--cadences", type=int, nargs="+", default=[60, 30, 15], help="minutes from poll to poll")
    asked = parser.parse_args()
    print(INTRODUCTION)
    for program, name, left in ((LIBRARY, "library", "threads"), (PROGRAM, "`main.py`", "files at home")):
        seen = polled(program, asked.polls if program is LIBRARY else asked.polls * 2 // 5)
        cells = [f"{last:,} ({grown:+,})" for last, grown in zip(seen[-1], growth(seen), strict=True)]
        if program is PROGRAM:
            cells.insert(1, "·")  # open files are gone with each process
        numbers = " | ".join(cells)
        print(f"| {name} | {len(seen)} | {numbers} {left} |", flush=True)
    print(YEARS)
    return 0 if years(asked.seeds, asked.days, asked.real_days, asked.cadences) else 1


if __name__ == "__main__":
    raise SystemExit(main())
