"""main.py as cron runs it: a real process, real HTTP, its records and exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import MAIN, REPOSITORY, Poller, finished
from scripted_aws import ACCOUNT, Reply, Request, ScriptedAWS, an_instance, ec2_error, endless, page, sts_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulated_aws import EmulatedAWS
    from instance_metadata import InstanceMetadataService

    Scripts = Callable[..., ScriptedAWS]

KEYS = {
    "instance": "timestamp record account region instance_id state name instance_type availability_zone launch_time "
    "first_launch_time state_transition_reason state_transition_time private_ip_address public_ip_address "
    "ipv6_addresses vpc_id subnet_id security_groups image_id key_name iam_instance_profile architecture "
    "platform_details tenancy lifecycle owner_id reservation_id volumes managed_by tags",
    "region": "timestamp record account region status instances tagged pages seconds error",
    "poll": "timestamp record account arn user_id complete instances states regions seconds version error",
}


def everywhere_but(answers: dict[str, Reply]) -> Callable[[Request], Reply | str]:
    """A script: an instance in each always-enabled region, AuthFailure in the others, and `answers`."""

    def answer(request: Request) -> Reply | str:
        if request.region in answers:
            return answers[request.region]
        return page(an_instance(f"i-{request.region}"))

    return answer


# The record


def test_the_record(account: EmulatedAWS, poller: Poller) -> None:
    """Every line has the keys of its kind in their order, and the same timestamp: the second the poll began."""
    before = datetime.now(timezone.utc).replace(microsecond=0)
    run = poller.run("--region", "eu-west-1", "--region", "us-east-1", env=account.environment)
    after = datetime.now(timezone.utc)
    assert (run.code, run.stderr) == (0, "")
    (timestamp,) = {record["timestamp"] for record in run.records}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", timestamp)
    assert before <= datetime.fromisoformat(timestamp.replace("Z", "+00:00")) <= after
    for kind, keys in KEYS.items():
        assert {" ".join(record) for record in run.of(kind)} == {keys}
    assert run.stdout.isascii()
    kinds = [(record["record"], record.get("region")) for record in run.records]
    for region in ("eu-west-1", "us-east-1"):
        assert kinds.index(("region", region)) > max(
            at for at, kind in enumerate(kinds) if kind == ("instance", region)
        )


def test_the_emulated_account(account: EmulatedAWS, poller: Poller) -> None:
    """What is recorded is what the account has: every instance, in every state, in every region."""
    run = poller.run("--all-regions", env=account.environment)
    assert run.code == 0
    expected = {}
    for region in ("eu-west-1", "us-east-1", "ap-southeast-2"):
        for reservation in account.ec2(region).describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
                expected[instance["InstanceId"]] = (region, instance["State"]["Name"], tags)
    assert {
        instance["instance_id"]: (instance["region"], instance["state"], instance["tags"]) for instance in run.instances
    } == expected
    assert set(run.poll["states"]) == {"pending", "running", "shutting-down", "terminated", "stopping", "stopped"}
    assert run.poll["account"] == ACCOUNT
    assert run.poll["arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/inventory/{account.metadata.instance_id}"
    assert run.poll["complete"] is True
    assert run.poll["regions"] == {"ok": len(run.regions)}
    assert len(run.regions) >= 34


def test_full(account: EmulatedAWS, poller: Poller) -> None:
    """--full adds the whole item, under the API's own names, times as text."""
    run = poller.run("--full", env=account.environment)
    assert run.code == 0
    for instance in run.instances:
        assert " ".join(instance) == f"{KEYS['instance']} details"
        assert instance["details"]["InstanceId"] == instance["instance_id"]
        assert instance["details"]["LaunchTime"] == instance["launch_time"]


def test_an_empty_account(script: Scripts, poller: Poller) -> None:
    """No instances is an answer: complete, exit code 0."""
    script(lambda request: page())
    run = poller.run()
    assert run.code == 0
    assert [record["record"] for record in run.records] == ["region", "poll"]
    assert run.poll["complete"] is True
    assert run.poll["instances"] == 0


def test_2500_instances_in_odd_pages(script: Scripts, poller: Poller) -> None:
    """Three pages, many reservations, a short page, an empty one with a token, a duplicate: each instance once."""
    pages = {
        None: page(*map(an_instance, range(1000)), token="t1", per_reservation=10),
        "t1": page(token="t2"),
        "t2": page(*map(an_instance, range(1000, 1500)), token="t3"),
        "t3": page(*map(an_instance, [7, *range(1500, 2500)]), per_reservation=1001),
    }
    script(lambda request: pages[request.page_token])
    run = poller.run()
    assert run.code == 0
    assert [instance["instance_id"] for instance in run.instances] == [f"i-{number:017x}" for number in range(2500)]
    assert (run.regions["eu-west-1"]["pages"], run.regions["eu-west-1"]["instances"]) == (4, 2500)
    assert run.poll["instances"] == 2500


def test_all_tags_gone_at_once(script: Scripts, poller: Poller) -> None:
    """EC2 has left out every tag under load. Of a single poll nobody can say, so the record does not: it counts, and
    whoever reads two polls sees it."""
    polls = iter([{"Name": "a"}, {}, {"Name": "a"}])

    def answer(request: Request) -> str:
        tags = next(polls) if request.page_token is None else {}
        return page(an_instance(tags=tags), an_instance(1, tags=tags), token=None if request.page_token else "t1")

    script(answer)
    regions = [poller.run().regions["eu-west-1"] for _ in range(3)]
    assert [(region["status"], region["instances"], region["tagged"]) for region in regions] == [
        ("ok", 2, 2),
        ("ok", 2, 0),
        ("ok", 2, 2),
    ]


HOSTILE = {
    "newlines": "a\nb\rc\r\nd",
    "next line": "a\x85b\u2028c\u2029d",
    "CSI": "\x9b2J\x9b31m",
    "delete": "\x7f\x7f",
    "bidi": "\u202egnp.exe\u2066x\u2069",
    "quotes": "\"'\\{}[],:",
    "nul, as text": "\\u0000",
    "emoji": "\U0001f469\u200d\U0001f4bb",
    "a megabyte": "\n\u202e" * 250_000,
}


def test_hostile_tags(script: Scripts, poller: Poller) -> None:
    """Whatever is in a tag, a record is one line of printable ASCII, and the value is kept."""
    script(lambda request: page(an_instance(tags={"Name": HOSTILE["bidi"], **HOSTILE})))
    run = poller.run()
    assert run.code == 0
    assert run.stdout.count("\n") == 3
    assert not re.search(r"[^\n -~]", run.stdout)
    (instance,) = run.instances
    assert instance["tags"] == {"Name": HOSTILE["bidi"], **HOSTILE}
    assert instance["name"] == HOSTILE["bidi"]


# Many regions


def test_all_regions_with_every_fate(script: Scripts, poller: Poller) -> None:
    """A region that is not enabled, a denied one, one that fails and one that hangs cost the good ones nothing."""
    script(
        everywhere_but(
            {
                "me-south-1": ec2_error("AuthFailure", "AWS was not able to validate the credentials", 401),
                "ap-east-1": ec2_error("OptInRequired", status=403),
                "us-east-1": ec2_error("UnauthorizedOperation", status=403),
                "sa-east-1": Reply("<html/>"),
                "us-west-2": Reply(page(), delay=60),
            }
        )
    )
    began = time.monotonic()
    run = poller.run("--all-regions", "--deadline", "8")
    assert time.monotonic() - began < 30, "the deadline did not end it"
    assert run.code == 3
    status = {region: record["status"] for region, record in run.regions.items()}
    fates = {"me-south-1": "not-enabled", "ap-east-1": "not-enabled", "us-east-1": "denied"}
    fates |= {"sa-east-1": "failed", "us-west-2": "failed"}
    assert {region: status[region] for region in fates} == fates
    assert {status[region] for region in status.keys() - fates.keys()} == {"ok"}
    assert {instance["region"] for instance in run.instances} == status.keys() - fates.keys()
    codes = {region: run.regions[region]["error"]["code"] for region in fates}
    assert codes == {
        "me-south-1": "AuthFailure",
        "ap-east-1": "OptInRequired",
        "us-east-1": "UnauthorizedOperation",
        "sa-east-1": "MalformedResponse",
        "us-west-2": "DeadlineExceeded",
    }
    assert run.poll["complete"] is False
    assert run.poll["regions"] == {"ok": len(status) - 5, "not-enabled": 2, "denied": 1, "failed": 2}
    assert "us-east-1: denied: ec2:DescribeInstances in us-east-1" in run.said
    assert "us-west-2: failed: not done by the deadline of 8 s" in run.said
    assert "me-south-1" not in run.said


def test_regions_that_are_not_enabled_are_answers(script: Scripts, poller: Poller) -> None:
    """With nothing else wrong the poll is complete."""
    script(everywhere_but({region: ec2_error("AuthFailure", status=401) for region in ("me-south-1", "ap-east-1")}))
    run = poller.run("--region", "eu-west-1", "--region", "me-south-1", "--region", "ap-east-1")
    assert run.code == 0
    assert run.poll["complete"] is True
    assert run.poll["regions"] == {"ok": 1, "not-enabled": 2}


@pytest.mark.parametrize("home", ["eu-west-1", "me-south-1"])
def test_auth_failure_at_home(home: str, script: Scripts, poller: Poller) -> None:
    """AuthFailure in the home region is a failure, opt-in or not."""
    script(lambda request: ec2_error("AuthFailure", status=401))
    run = poller.run("--all-regions", env={"AWS_REGION": home})
    assert run.regions[home]["status"] == "failed"
    assert run.poll["complete"] is False
    assert run.code == 1, "nothing is recorded"
    assert run.poll["error"]["code"] == "AuthFailure"
    assert "refuses the credentials" in run.poll["error"]["message"]


def test_the_only_region_denied(script: Scripts, poller: Poller) -> None:
    """With no region that answered, the poll has failed, and says why and what is missing."""
    script(lambda request: ec2_error("UnauthorizedOperation", "You are not authorized.", 403))
    run = poller.run()
    assert run.code == 1
    assert run.regions["eu-west-1"]["status"] == "denied"
    assert run.poll["error"]["code"] == "UnauthorizedOperation"
    assert "needs the permission ec2:DescribeInstances" in run.poll["error"]["message"]
    assert run.said.count("needs the permission") == 1


def test_pages_before_a_failure_are_recorded(script: Scripts, poller: Poller) -> None:
    """A region that fails on its second page keeps its first, and counts it."""
    script(lambda request: Reply("", 400) if request.page_token else page(an_instance(1), an_instance(2), token="t1"))
    run = poller.run()
    assert run.code == 1
    assert len(run.instances) == 2
    assert run.regions["eu-west-1"]["status"] == "failed"
    assert (run.regions["eu-west-1"]["instances"], run.regions["eu-west-1"]["pages"]) == (2, 1)
    assert (run.poll["instances"], run.poll["states"]) == (2, {"running": 2})


# Where the region comes from


@pytest.mark.parametrize(
    ("arguments", "environment", "config", "region"),
    [
        (["--region", "us-east-1"], {"AWS_REGION": "us-east-2"}, "region = us-west-1", "us-east-1"),
        ([], {"AWS_REGION": "us-east-2", "AWS_DEFAULT_REGION": "us-west-2"}, "region = us-west-1", "us-east-2"),
        ([], {"AWS_DEFAULT_REGION": "us-west-2"}, "region = us-west-1", "us-west-2"),
        ([], {}, "region = us-west-1", "us-west-1"),
        ([], {}, "", "eu-west-1"),
        ([], {"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-west-2"}, "", "us-west-2"),
        ([], {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "", "eu-west-1"),
        ([], {"AWS_PROFILE": "other"}, "region = us-west-1\n[profile other]\nregion = us-east-1", "us-west-1"),
    ],
)
def test_region_order(
    arguments: list[str], environment: dict[str, str], config: str, region: str, script: Scripts, poller: Poller
) -> None:
    """--region, AWS_REGION, AWS_DEFAULT_REGION, ~/.aws/config, the instance's own: in this order."""
    (poller.home / ".aws").mkdir()
    (poller.home / ".aws/config").write_text(f"[default]\n{config}\n")
    aws = script(lambda request: page())
    run = poller.run(*arguments, env=environment)
    assert run.code == 0
    assert list(run.regions) == [region]
    assert aws.asked("DescribeInstances")[0].region == region


def test_no_region_at_all(script: Scripts, poller: Poller) -> None:
    """Away from EC2, a profile without a region is told how to name one."""
    (poller.home / ".aws").mkdir()
    (poller.home / ".aws/credentials").write_text("[dev]\naws_access_key_id = AKIADEV\naws_secret_access_key = s\n")
    aws = script(lambda request: page())
    run = poller.run("--profile", "dev")
    assert run.code == 1
    assert run.poll["error"]["code"] == "NoRegion"
    assert "AWS_REGION" in run.said
    assert aws.requests == []
    assert poller.run("--profile", "dev", "--region", "us-east-1").code == 0
    assert {request.access_key for request in aws.requests} == {"AKIADEV"}


# Usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--region", "us-esat-1"], "did you mean us-east-1?"),
        (["--region", "eu-west-1a"], "did you mean eu-west-1?"),
        (["--region", "us-west-2-lax-1"], "did you mean us-west-2?"),
        (["--region", "\x1b[31m\n"], "there is no region '\\x1b[31m\\n'"),
        (["--region", ""], "there is no region ''"),
        (["--region", "eu-west-1", "--all-regions"], "not allowed with argument"),
        (["--deadline", "0"], "invalid seconds value"),
        (["--deadline", "nan"], "invalid seconds value"),
        (["--deadline", "1e99"], "invalid seconds value"),
        (["--format", "xml"], "invalid choice"),
        (["--reg", "eu-west-1"], "unrecognized arguments"),
        (["eu-west-1"], "unrecognized arguments"),
        (["--profile", "nobody"], "--profile: The config profile (nobody) could not be found"),
    ],
)
def test_usage(arguments: list[str], says: str, script: Scripts, poller: Poller) -> None:
    """What makes no sense ends with 2 and one sentence before anything is asked, and the log has a poll line."""
    aws = script(lambda request: page())
    run = poller.run(*arguments)
    assert run.code == 2
    assert [record["record"] for record in run.records] == ["poll"]
    assert run.poll["error"]["code"] == "Usage"
    assert says in run.poll["error"]["message"]
    assert [log["message"] for log in run.logs] == [run.poll["error"]["message"]]
    assert aws.requests == []


def test_a_configured_region_that_does_not_exist(script: Scripts, poller: Poller) -> None:
    """A slip in the configuration is a slip, too."""
    script(lambda request: page())
    run = poller.run(env={"AWS_REGION": "eu-wset-1"})
    assert run.code == 2
    assert "did you mean eu-west-1?" in run.said


def test_a_config_file_that_is_none(script: Scripts, poller: Poller) -> None:
    """A ~/.aws/config that cannot be read is named, and ends in a poll line."""
    (poller.home / ".aws").mkdir()
    (poller.home / ".aws/config").write_bytes(b"region = eu-west-1\n[[[\n\xff")
    script(lambda request: page())
    run = poller.run()
    assert run.code == 1
    assert str(poller.home / ".aws/config") in run.poll["error"]["message"]


def test_version(poller: Poller) -> None:
    """--version says one line and asks nobody."""
    run = poller.run("--version")
    assert (run.code, run.stderr) == (0, "")
    assert re.fullmatch(r"main\.py \d+\.\d+\.\d+\n", run.stdout)


# Identity


@pytest.mark.parametrize(
    ("reply", "code", "says"),
    [
        (sts_error("ExpiredToken"), "ExpiredToken", "have expired"),
        (sts_error("InvalidClientTokenId"), "InvalidClientTokenId", "refuses the credentials"),
        (sts_error("RequestExpired"), "RequestExpired", "clock"),
        (Reply("<html/>"), "MalformedResponse", "between here and AWS"),
        (Reply("<html/>", 503), "MalformedResponse", "HTTP 503"),
        (Reply(hang_up=True), "ConnectionClosedError", "closed"),
    ],
)
def test_no_identity(reply: Reply, code: str, says: str, script: Scripts, poller: Poller) -> None:
    """Without an identity nothing else is asked, and nothing is recorded but that."""
    aws = script(lambda request: page(an_instance()), lambda request: reply)
    run = poller.run("--all-regions")
    assert run.code == 1
    assert [record["record"] for record in run.records] == ["poll"]
    assert (run.poll["account"], run.poll["complete"], run.poll["regions"]) == (None, False, {})
    assert run.poll["error"]["code"] == code
    assert says in run.poll["error"]["message"]
    assert says in run.said
    assert aws.asked("DescribeInstances") == []


# Deadline and signals


def test_a_deadline_before_the_identity(script: Scripts, poller: Poller) -> None:
    """The deadline holds from the first request on."""
    script(lambda request: page(), lambda request: Reply(delay=60))
    run = poller.run("--deadline", "2")
    assert run.code == 1
    assert run.poll["error"] == {"code": "DeadlineExceeded", "message": "not done by the deadline of 2 s"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_in_mid_poll(
    number: signal.Signals, code: int, script: Scripts, poller: Poller, tmp_path: Path
) -> None:
    """What was read is in the log whole, the poll line says that it is not all, and the exit code is the signal's."""
    script(lambda request: Reply(delay=60) if request.page_token else page(*map(an_instance, range(1000)), token="t1"))
    log = tmp_path / "log"
    with log.open("a") as file:
        process = poller.start(stdout=file)
        for _ in range(600):
            if log.read_bytes().count(b"\n") == 1000:
                break
            time.sleep(0.05)
        process.send_signal(number)
        run = finished(process)
    run.stdout = log.read_text()
    assert run.code == code
    assert len(run.instances) == 1000
    assert run.regions["eu-west-1"]["status"] == "failed"
    assert run.regions["eu-west-1"]["instances"] == 1000
    assert run.poll["complete"] is False
    assert run.poll["error"] == {"code": number.name, "message": f"ended by {number.name}"}


@pytest.mark.parametrize("pause", [0, 0.1])
def test_the_same_signal_twice(pause: float, script: Scripts, poller: Poller) -> None:
    """Terminal and shell both send SIGHUP when a session ends: the poll line is written all the same."""
    aws = script(lambda request: Reply(delay=60))
    process = poller.start()
    while not aws.asked("DescribeInstances"):
        time.sleep(0.05)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(pause)
    run = finished(process)
    assert run.code == 129
    assert run.poll["error"]["code"] == "SIGHUP"


def test_a_signal_a_second_later_kills(script: Scripts, poller: Poller) -> None:
    """While nobody takes the output the poll cannot end, but it can be ended."""
    aws = script(lambda request: page(*map(an_instance, range(1000))))
    process = poller.start()
    while not aws.asked("DescribeInstances"):
        time.sleep(0.05)
    time.sleep(3)  # until the pipe is full
    process.terminate()
    time.sleep(1.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=10) == -signal.SIGTERM


def test_a_signal_during_start_up(script: Scripts, poller: Poller) -> None:
    """As soon as main.py runs, a signal ends in a poll line."""
    script(lambda request: Reply(page(), delay=5))
    process = poller.start()
    for _ in range(1000):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            break
        time.sleep(0.01)
    process.terminate()
    run = finished(process)
    assert run.code == 143
    assert run.poll["error"]["code"] == "SIGTERM"


def test_nohup(script: Scripts, poller: Poller) -> None:
    """A signal that is ignored stays so."""
    script(lambda request: Reply(page(), delay=2))
    process = subprocess.Popen(
        ["nohup", sys.executable, MAIN],
        env=poller.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGHUP)
    run = finished(process)
    assert run.code == 0
    assert run.poll["complete"] is True


def test_a_slow_reader_is_held_to_the_deadline(script: Scripts, poller: Poller) -> None:
    """Even if there is always more to read."""
    script(endless())
    process = poller.start("--deadline", "4")
    assert process.stdout is not None
    lines = []
    while line := process.stdout.readline():
        lines.append(line)
    assert process.wait() == 1
    assert json.loads(lines[-1])["error"]["code"] == "DeadlineExceeded"


def test_a_signal_while_the_identity_is_asked(script: Scripts, poller: Poller) -> None:
    """There is a poll line, even that early."""
    asked: list[Request] = []

    def identify(request: Request) -> Reply:
        asked.append(request)
        return Reply(delay=60)

    script(lambda request: page(), identify)
    process = poller.start()
    while not asked:
        time.sleep(0.05)
    process.terminate()
    run = finished(process)
    assert run.code == 143
    assert run.poll["error"]["code"] == "SIGTERM"


# Output


def test_output_closed(script: Scripts, poller: Poller) -> None:
    """A closed standard output is exit code 74 and a sentence; no record goes into whatever has its descriptor."""
    aws = script(lambda request: page(an_instance()))
    run = poller.shell(">&-")
    assert run.code == 74
    (log,) = run.logs
    assert log["message"] == "standard output cannot be written: Bad file descriptor"
    assert aws.requests == [], "why ask, when the answer cannot be written?"


def test_error_output_closed(script: Scripts, poller: Poller) -> None:
    """Diagnostics that have nowhere to go harm nothing: the poll is recorded, the exit code stands."""
    script(lambda request: ec2_error("UnauthorizedOperation", status=403))
    run = poller.shell("2>&-")
    assert run.code == 1
    assert run.records[-1]["record"] == "poll"


def test_a_broken_pipe(script: Scripts, poller: Poller) -> None:
    """A reader that goes away is exit code 74 and a sentence, no traceback."""
    script(lambda request: page(*map(an_instance, range(1000))))
    process = poller.start()
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    run = finished(process)
    assert run.code == 74
    assert run.said == "standard output cannot be written: Broken pipe"


@pytest.mark.parametrize("arguments", [[], ["--format", "table"], ["--help"], ["--version"], ["--region", "x"]])
def test_a_full_disk(arguments: list[str], script: Scripts, poller: Poller) -> None:
    """A full disk is exit code 74 and a sentence, whatever was to be written."""
    script(lambda request: page(an_instance()))
    with open("/dev/full", "w") as full:
        run = poller.run(*arguments, stdout=full)
    assert run.code == 74
    assert run.logs[-1]["message"] == "standard output cannot be written: No space left on device"
    assert "traceback" not in run.logs[-1]


def test_six_polls_append_to_one_file(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """No line is torn, none is lost."""
    tags = {"long": "x" * 9000}
    script(lambda request: page(*(an_instance(number, tags=tags) for number in range(300))))
    log = tmp_path / "log"
    with log.open("a") as file:
        runs = [finished(process) for process in [poller.start(stdout=file) for _ in range(6)]]
    assert [run.code for run in runs] == [0] * 6
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) == 6 * 302
    assert sum(record["record"] == "poll" and record["complete"] for record in records) == 6


def test_output_that_does_not_block(script: Scripts, poller: Poller) -> None:
    """Where whoever shares the output has made it non-blocking, a slow reader costs nothing but time."""
    script(lambda request: page(*map(an_instance, range(1000))))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as file:
        process = poller.start(stdout=file)
    time.sleep(2)
    with os.fdopen(reader) as pipe:
        records = [json.loads(line) for line in pipe]
    assert process.wait(timeout=60) == 0
    assert len(records) == 1002


def test_a_torn_line_is_ended_before_a_slip_is_reported(poller: Poller, tmp_path: Path) -> None:
    """The poll line of a run that did not come to poll is not joined to it either."""
    log = tmp_path / "log"
    log.write_text('{"record": "ha')
    with log.open("a") as file:
        assert poller.run("--bogus", stdout=file).code == 2
    assert json.loads(log.read_text().splitlines()[1])["record"] == "poll"


def test_a_torn_line_is_ended_first(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """A line left half written by a full disk does not swallow this poll's first record."""
    script(lambda request: page(an_instance()))
    log = tmp_path / "log"
    log.write_text('{"record": "whole"}\n{"record": "ha')
    for _ in range(2):
        with log.open("a") as file:
            assert poller.run(stdout=file).code == 0
    lines = log.read_text().splitlines()
    assert lines[:2] == ['{"record": "whole"}', '{"record": "ha']
    assert [json.loads(line)["record"] for line in lines[2:]] == ["instance", "region", "poll"] * 2


def test_both_streams_in_one_log(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """As cron has it, `>> log 2>&1`: a file of JSON objects, whatever went wrong."""
    script(lambda request: Reply("nonsense"))
    log = tmp_path / "log"
    assert poller.shell(f"--verbose >> {log} 2>&1").code == 1
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {record["record"] for record in records} == {"log", "region", "poll"}
    assert list(records[0]) == ["timestamp", "record", "level", "message"]


def test_a_crash_is_json_too(poller: Poller, tmp_path: Path) -> None:
    """A broken installation leaves one line of JSON with the traceback, exit code 1."""
    shutil.copy(MAIN, tmp_path / "main.py")
    (tmp_path / "inventory_manager.py").write_text("import a_module_that_is_gone\n")
    run = finished(poller.start(main=tmp_path / "main.py"))
    assert run.code == 1
    (log,) = run.logs
    assert log["level"] == "CRITICAL"
    assert "a_module_that_is_gone" in log["traceback"]


# The house


def test_two_files_are_the_poller(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """inventory_manager.py and main.py, alone in a folder, poll."""
    script(lambda request: page(an_instance()))
    for name in ("inventory_manager.py", "main.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    assert finished(poller.start(main=tmp_path / "main.py")).code == 0


def test_cron_imports_nothing_for_people(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """Where both streams are no terminal, rich is not imported."""
    script(lambda request: page(an_instance()))
    run = poller.run(env={"PYTHONVERBOSE": "1"})
    assert "import 'inventory_manager'" in run.stderr
    assert "import 'rich" not in run.stderr
