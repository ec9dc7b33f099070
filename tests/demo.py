"""make demo: two polls of an emulated account, appended to demo.log as cron does, the table that a person sees, and
three questions to that log."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from emulated_aws import BATCH, HOME, EmulatedAWS

REPOSITORY = Path(__file__).parent.parent
LOG = Path(os.environ.get("DEMO_LOG", REPOSITORY / "demo.log"))
REGIONS = "--region eu-west-1 --region us-east-1 --region ap-southeast-2"


def main() -> int:
    LOG.unlink(missing_ok=True)
    with EmulatedAWS() as aws, tempfile.TemporaryDirectory() as home:
        aws.launch_fleet()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **aws.environment,
            "HOME": home,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

        def shell(command: str) -> int:
            """Show `command`, and run it as cron or a person would."""
            print(f"$ {command}", flush=True)
            command = command.replace(LOG.name, shlex.quote(str(LOG)))
            return subprocess.run(command, shell=True, cwd=REPOSITORY, env=environment, check=False).returncode

        print("An emulated AWS account runs on loopback. Two hours of its flight recorder:\n")
        web = named(aws, "web")
        next_second()
        first = shell(f"./main.py {REGIONS} >> {LOG.name} 2>&1")
        show(LOG.read_text(), web)
        print("\nMeanwhile that instance is terminated, a database is stopped, two spot instances are launched.\n")
        aws.ec2(HOME).terminate_instances(InstanceIds=[web])
        aws.ec2(HOME).stop_instances(InstanceIds=[named(aws, "orders-db")])
        aws.launch(replace(BATCH, count=2, age=timedelta(minutes=5)))
        read = LOG.stat().st_size
        next_second()
        second = shell(f"./main.py {REGIONS} >> {LOG.name} 2>&1")
        show(LOG.read_text()[read:], web)
        print("\nThe same, as a person sees it who looks in over SSH:\n")
        as_table = "" if sys.stdout.isatty() else " --format table"
        person = shell(f"./main.py {REGIONS}{as_table}")
        print("\nMonths later somebody asks the log: who had that address, what has changed, and was there a hole?\n")
        address = next(record["private_ip_address"] for record in recorded() if record.get("instance_id") == web)
        questions = [
            shell(f"./history.py --log {LOG.name}{as_table} {question}")
            for question in (f"find {address}", "changes", "coverage")
        ]
    print(f"\nBoth polls are in {LOG.name}. What was started has been stopped.")
    return max(first, second, person, *questions)


def next_second() -> None:
    """Times are whole seconds: what comes next is of a later one than what was before."""
    time.sleep(1 - time.time() % 1)


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LOG.read_text().splitlines()]


def named(aws: EmulatedAWS, name: str) -> str:
    """The id of the first instance with that name."""
    found = aws.ec2(HOME).describe_instances(Filters=[{"Name": "tag:Name", "Values": [name]}])
    return found["Reservations"][0]["Instances"][0]["InstanceId"]


def show(lines: str, instance_id: str) -> None:
    """What was appended: of the instances one, else every line."""
    records = [(json.loads(line), line) for line in lines.splitlines()]
    others = -1
    for record, line in records:
        if record.get("instance_id", instance_id) == instance_id:
            print(line)
        others += record["record"] == "instance"
    print(f"(and {others} more instances)")


if __name__ == "__main__":
    raise SystemExit(main())
