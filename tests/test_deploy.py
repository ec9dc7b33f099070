"""deploy.yaml on a real host: real ssh and sudo, a real cron that fires hourly, real rotation, upgrade, removal.

The host is Debian 12, see host.py; there is no Ubuntu, no systemd and no AWS in it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import host
import pytest
from emulated_aws import EmulatedAWS, Group
from host import METADATA_ADDRESS, OUR_ADDRESS, REPOSITORY, Host, inside
from instance_metadata import InstanceMetadataService
from scripted_aws import Reply, Request, ScriptedAWS, an_instance, ec2_error, page
from test_readme import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPLOY = (REPOSITORY / "deploy.yaml").read_text()
REGION, ZONE = "us-west-2", "us-west-2-lax-1a"  # a Local Zone
LOG = "var/log/inventory/inventory.log"
ONE_POLL = f'su -s /bin/sh -c "/opt/inventory/current/poll >> /{LOG} 2>&1" inventory'
FAKETIME = "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
NUMBERS = itertools.count()
BATCH_HERE = Group(REGION, "c7g.4xlarge", {"Name": "batch"})


@dataclass
class Cloud:
    """A host, and the AWS around it."""

    host: Host
    aws: EmulatedAWS

    def change(self, what: Callable[[EmulatedAWS], Any]) -> Any:
        """Change something in the account, from where it can be reached."""
        with inside(self.host.our_namespace):
            return what(self.aws)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.host.root / LOG).read_text().splitlines()]

    @property
    def polls(self) -> list[dict[str, Any]]:
        return [record for record in self.log if record["record"] == "poll"]

    def wait_for_polls(self, count: int) -> list[dict[str, Any]]:
        for _ in range(600):
            if len(self.polls) >= count:
                return self.polls
            time.sleep(0.1)
        raise AssertionError(f"{len(self.polls)} polls instead of {count}")

    def start_cron(self, *, hours_a_minute: int) -> None:
        """Start cron anew, its clock alone put to three seconds before the job's minute, and running faster."""
        minute = int((self.host.root / "etc/cron.d/inventory").read_text().splitlines()[1].split()[0])
        start = datetime(2026, 11, 22, 14, minute) - timedelta(seconds=3)
        self.host.ssh(f'pkill -x cron; {FAKETIME} NO_FAKE_STAT=1 FAKETIME="@{start} x{hours_a_minute * 60}" cron')

    def stop_cron(self) -> None:
        self.host.ssh("pkill -x cron")

    @contextmanager
    def another_ec2(self, answer: Callable[[Request], Reply | str]) -> Iterator[None]:
        """Put a scripted EC2 in the place of the emulated one."""
        settings = self.host.root / "etc/environment"
        before = settings.read_text()
        with inside(self.host.our_namespace):
            scripted = ScriptedAWS(answer, address=(OUR_ADDRESS, host.AWS_PORT + 1)).__enter__()
        try:
            settings.write_text(re.sub(r"(URL_EC2=.*):\d+", rf"\1:{host.AWS_PORT + 1}", before))
            yield
        finally:
            settings.write_text(before)
            scripted.__exit__(None, None, None)


@contextmanager
def a_cloud(image: Path, *layers: Path) -> Iterator[Cloud]:
    metadata = InstanceMetadataService(region=REGION, availability_zone=ZONE, address=(METADATA_ADDRESS, 80))
    with Host(image, layers) as machine:
        network = machine.namespace
        aws = EmulatedAWS(
            metadata,
            account=f"3{next(NUMBERS):011}",
            address=(OUR_ADDRESS, host.AWS_PORT),
            metadata_network=lambda: inside(network),
        )
        with inside(machine.our_namespace):
            aws.__enter__()
        try:
            yield Cloud(machine, aws)
        finally:
            aws.__exit__(None, None, None)


@pytest.fixture(scope="session")
def image() -> Path:
    if reason := host.missing():
        (pytest.fail if "REQUIRE_HOST" in os.environ else pytest.skip)(f"a host to deploy to {reason}")
    return host.base_image()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one deploys from: playbook, requirements, and the archive as the README packs it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("deploy.yaml", "requirements.txt"):
        shutil.copy(REPOSITORY / name, folder / name)
    subprocess.run(
        ["zip", "-rq", folder / "clustermanager.zip", "inventory_manager.py", "main.py"], cwd=REPOSITORY, check=True
    )
    return folder


@pytest.fixture(scope="session")
def deployment(image: Path, project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the playbook says on a blank host, first in check mode, and how it leaves it."""
    with a_cloud(image) as cloud:
        said = {
            "check of a blank host": cloud.host.playbook("--check", "--diff", project=project).stdout,
            "deploy": cloud.host.playbook(project=project).stdout,
            "again": cloud.host.playbook(project=project).stdout,
            "check again": cloud.host.playbook("--check", "--diff", project=project).stdout,
        }
        log = (cloud.host.root / LOG).read_text()
        layer = tmp_path_factory.mktemp("deployed")
        subprocess.run(["cp", "-a", f"{cloud.host.changes}/.", layer], check=True)
    return {"said": said, "layer": layer, "log": log}


@pytest.fixture
def deployed(image: Path, deployment: dict[str, Any]) -> Iterator[Cloud]:
    """A host as the playbook leaves it."""
    with a_cloud(image, deployment["layer"]) as cloud:
        yield cloud


@pytest.fixture
def blank(image: Path) -> Iterator[Cloud]:
    with a_cloud(image) as cloud:
        yield cloud


def changed(said: str) -> int:
    (count,) = re.findall(r"^recorder .*changed=(\d+) .*failed=0", said, re.MULTILINE)
    return int(count)


def test_deploy(deployment: dict[str, Any]) -> None:
    """--check passes on a blank host; deploying ends with the proof of one poll; the second time changes nothing."""
    said = deployment["said"]
    assert changed(said["check of a blank host"]) > 0
    assert "+region = us-west-2" not in said["check of a blank host"], "ec2metadata is not there yet"
    assert changed(said["deploy"]) > 10
    assert "recorder has just seen 0 instances of account 300000000000." in said["deploy"]
    assert changed(said["again"]) == 0
    assert changed(said["check again"]) == 0
    assert deployment["log"] == "", "the proof is not for the log"


def test_what_is_there(deployed: Cloud) -> None:
    """User, modes, settings and schedule are as the README promises."""
    root = deployed.host.root
    (user,) = [line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("inventory:")]
    assert user.endswith(":/var/lib/inventory:/usr/sbin/nologin")
    assert (root / "var/lib/inventory/.aws/config").read_text().endswith("[default]\nregion = us-west-2\n")

    schedule = (root / "etc/cron.d/inventory").read_text().splitlines()[1]
    assert re.fullmatch(rf"[1-5]?\d \* \* \* \* inventory /opt/inventory/current/poll >> /{LOG} 2>&1", schedule), (
        schedule
    )
    link = os.readlink(root / "opt/inventory/current")
    assert re.fullmatch(r"releases/[0-9a-f]{12}", link)
    release = root / "opt/inventory" / link
    assert f"/opt/inventory/{link}/venv/bin/python /opt/inventory/{link}/main.py" in (release / "poll").read_text()
    assert os.access(release / "main.py", os.X_OK)
    assert not os.access(release / "inventory_manager.py", os.X_OK) or os.geteuid() == 0
    assert {path.name for path in release.glob("*.py")} == {"main.py", "inventory_manager.py"}

    mine = deployed.host.ssh("find / -xdev -user inventory -o -xdev -group inventory | sort").stdout.split()
    assert mine == [f"/{LOG}"], "the service user owns its log and nothing else"
    assert deployed.host.ssh(f"stat -c %a:%U:%G /{LOG} /var/log/inventory").stdout.split() == [
        "640:inventory:adm",
        "755:root:root",
    ]
    writable = "find /opt/inventory /var/lib/inventory /etc/cron.d -not -type l -perm /022"
    assert deployed.host.ssh(writable).stdout == ""


def test_three_hours_of_cron(deployed: Cloud) -> None:
    """The entry fires hourly, as it stands; each poll is complete and shows what changed since the one before."""
    (first, second) = deployed.change(lambda aws: [aws.launch(BATCH_HERE)[0] for _ in range(2)])
    deployed.start_cron(hours_a_minute=5)
    deployed.wait_for_polls(1)
    deployed.change(lambda aws: aws.ec2(REGION).terminate_instances(InstanceIds=[first]))
    deployed.wait_for_polls(2)
    deployed.change(lambda aws: aws.ec2(REGION).stop_instances(InstanceIds=[second]))
    deployed.wait_for_polls(3)
    deployed.stop_cron()
    log = deployed.log
    timestamps = list(dict.fromkeys(record["timestamp"] for record in log))
    assert timestamps == sorted(timestamps)
    assert len(timestamps) == 3
    states = [
        {
            record["instance_id"]: record["state"]
            for record in log
            if (record["timestamp"], record["record"]) == (at, "instance")
        }
        for at in timestamps
    ]
    assert states == [
        {first: "running", second: "running"},
        {first: "terminated", second: "running"},
        {first: "terminated", second: "stopped"},
    ]
    assert [poll["complete"] for poll in deployed.polls] == [True] * 3


def test_failures_are_in_the_log_and_heal(deployed: Cloud) -> None:
    """No role, no metadata service, a denied call: the log says so, cron goes on, the next hour is whole again."""
    metadata = deployed.aws.metadata
    metadata.role = None
    deployed.start_cron(hours_a_minute=4)
    deployed.wait_for_polls(1)
    metadata.role = "inventory"
    metadata.__exit__(None, None, None)
    deployed.wait_for_polls(2)
    with inside(deployed.host.namespace):
        metadata.__enter__()
    with deployed.another_ec2(lambda request: ec2_error("UnauthorizedOperation", status=403)):
        deployed.wait_for_polls(3)
    polls = deployed.wait_for_polls(4)
    deployed.stop_cron()
    errors = [poll["error"] and poll["error"]["message"] for poll in polls[:4]]
    assert "this instance has no IAM role" in errors[0]
    assert f"there is no instance metadata service at http://{METADATA_ADDRESS}" in errors[1]
    assert "needs the permission ec2:DescribeInstances" in errors[2]
    assert [poll["complete"] for poll in polls[:4]] == [False, False, False, True]
    said = [record["message"] for record in deployed.log if record["record"] == "log"]
    assert any("no IAM role" in message for message in said), "standard error is in the log, too"


def test_rotation(deployed: Cloud) -> None:
    """logrotate puts the log aside, polls go on in a new one, and the one before is compressed a day later."""
    rotate = "logrotate --force /etc/logrotate.d/inventory"
    deployed.host.ssh(f"{ONE_POLL}; {rotate}; {ONE_POLL}")
    assert len(deployed.polls) == 1
    folder = (deployed.host.root / LOG).parent
    (aside,) = folder.glob("inventory.log-*")
    assert '"record": "poll"' in aside.read_text()
    assert deployed.host.ssh(f"stat -c %a:%U:%G /{LOG}").stdout.strip() == "640:inventory:adm"
    deployed.host.ssh(f"{FAKETIME} FAKETIME=+1d {rotate}; {ONE_POLL}")
    assert len(deployed.polls) == 1
    assert {path.name for path in folder.glob("inventory.log-*")} > {f"{aside.name}.gz"}


def test_overlap(deployed: Cloud) -> None:
    """While a poll is running the next is skipped, and says so in the log."""
    with deployed.another_ec2(lambda request: Reply(page(), delay=5)):
        deployed.host.ssh(f"{ONE_POLL} & sleep 2; {ONE_POLL}; code=$?; wait; [ $code -eq 75 ]")
    skipped, *others = deployed.log
    assert (skipped["record"], skipped["message"]) == ("log", "skipped: the poll before is still running")
    assert [record["record"] for record in others] == ["region", "poll"]


def test_upgrade_while_a_job_runs(deployed: Cloud, project: Path, tmp_path: Path) -> None:
    """A running job ends as it began, the next one runs the new code with the new arguments, old modules are gone."""
    slowly = True

    def answer(request: Request) -> Reply:
        number = int(request.page_token or 0)
        return Reply(page(an_instance(number), token=str(number + 1) if number < 3 else None), delay=10 * slowly)

    upgrade = tmp_path / "upgrade"
    shutil.copytree(project, upgrade)
    code = {name: (REPOSITORY / name).read_text() for name in ("inventory_manager.py", "main.py")}
    code["inventory_manager.py"] = re.sub(
        r'^__version__ = ".*"', '__version__ = "99.0"', code["inventory_manager.py"], flags=re.MULTILINE
    )
    before = os.readlink(deployed.host.root / "opt/inventory/current")
    (deployed.host.root / "opt/inventory" / before / "gone.py").write_text("")
    with zipfile.ZipFile(upgrade / "clustermanager.zip", "w") as archive:
        for name, text in code.items():
            archive.writestr(name, text)
    with deployed.another_ec2(answer):
        job = subprocess.Popen(deployed.host.by_ssh(ONE_POLL))
        time.sleep(5)
        slowly = False
        (variables,) = re.findall(r'"target=recorders (.*)"', sample("variables"))
        said = deployed.host.playbook("--extra-vars", variables, project=upgrade).stdout
        assert job.wait(timeout=120) == 0
        deployed.host.ssh(ONE_POLL)
    assert re.search(r"has just seen \d+ instances", said)
    assert "\n*/30 * * * * inventory /opt" in (deployed.host.root / "etc/cron.d/inventory").read_text()
    assert [(poll["version"], poll["complete"]) for poll in deployed.polls][1:] == [("99.0", True)]
    assert deployed.polls[0]["version"] != "99.0"
    assert (deployed.polls[0]["complete"], deployed.polls[0]["regions"]) == (True, {"ok": 1})
    assert sum(deployed.polls[1]["regions"].values()) >= 34
    assert os.readlink(deployed.host.root / "opt/inventory/current") != before
    assert not (deployed.host.root / "opt/inventory/current/gone.py").exists()


def test_asking_the_record_on_the_host(deployed: Cloud, project: Path, tmp_path: Path) -> None:
    """With history=true, and the archive that has history.py, people who may read the log can ask it there."""
    whole = tmp_path / "project"
    shutil.copytree(project, whole)
    shutil.copy(REPOSITORY / "requirements-history.txt", whole)
    with zipfile.ZipFile(whole / "clustermanager.zip", "w") as archive:
        for name in ("inventory_manager.py", "main.py", "history.py", "report.py"):
            archive.write(REPOSITORY / name, name)
    (variables,) = re.findall(r'"target=recorders (.*)"', sample("history on the host"))
    deployed.change(lambda aws: aws.launch(BATCH_HERE))
    deployed.host.playbook("--extra-vars", variables, project=whole)
    assert changed(deployed.host.playbook("--extra-vars", variables, project=whole).stdout) == 0
    deployed.host.ssh(ONE_POLL)
    (command,) = re.findall(r"^\$ (/opt/inventory/current/history) find", sample("history on the host"), re.MULTILINE)
    deployed.host.ssh("usermod --append --groups adm admin")
    (line,) = deployed.host.ssh(f"su admin -c '{command} at'").stdout.splitlines()
    seen = json.loads(line)
    assert (seen["name"], seen["region"], seen["known"]) == ("batch", REGION, "agreed")
    report = deployed.host.ssh(f"su admin -c 'cd && {command} report fleet.html && head -c 15 fleet.html'").stdout
    assert report == "<!DOCTYPE html>"
    missing = tmp_path / "missing"
    shutil.copytree(project, missing)
    refused = deployed.host.playbook("--extra-vars", variables, project=missing, check=False).stdout
    assert "There is no requirements-history.txt in" in refused


def test_other_accounts_on_the_host(deployed: Cloud, project: Path, tmp_path: Path) -> None:
    """With role_arns, cron's command records those accounts, too, and the proof counts them."""
    whole = tmp_path / "project"
    shutil.copytree(project, whole)
    with zipfile.ZipFile(whole / "clustermanager.zip", "w") as archive:
        for name in ("inventory_manager.py", "main.py", "accounts.py"):
            archive.write(REPOSITORY / name, name)
    (given,) = re.findall(r"--extra-vars '(.*)'", sample("other accounts deployed"))
    variables = json.dumps({name: value for name, value in json.loads(given).items() if name != "target"})
    said = deployed.host.playbook("--extra-vars", variables, project=whole).stdout
    assert re.search(r"has just seen \d+ instances of 2 accounts", said)
    assert changed(deployed.host.playbook("--extra-vars", variables, project=whole).stdout) == 0
    deployed.host.ssh(ONE_POLL)
    assert {poll["account"]: poll["complete"] for poll in deployed.polls} == {
        deployed.aws.account: True,
        "222222222222": True,
    }


def test_uninstall(deployed: Cloud, project: Path) -> None:
    """state=absent removes all but the log, says where that is, and does so once."""
    deployed.host.ssh(ONE_POLL)
    said = deployed.host.playbook("--extra-vars", "state=absent", project=project).stdout
    assert "The log is still there: /var/log/inventory" in said
    root = deployed.host.root
    for path in ("opt/inventory", "var/lib/inventory", "etc/cron.d/inventory", "etc/logrotate.d/inventory"):
        assert not (root / path).exists()
    assert "inventory" not in (root / "etc/passwd").read_text()
    assert len(deployed.polls) == 1
    assert changed(deployed.host.playbook("--extra-vars", "state=absent", project=project).stdout) == 0


def test_reading_over_ssh(deployed: Cloud) -> None:
    """The README's three commands: the table, how the last polls ended, every record of an address."""
    deployed.change(lambda aws: aws.launch(BATCH_HERE))
    deployed.host.ssh(f"{ONE_POLL}; logrotate --force /etc/logrotate.d/inventory; {ONE_POLL}")
    (address,) = {record["private_ip_address"] for record in deployed.log if record["record"] == "instance"}
    table, polls, records = re.findall(r"^\$ (.*)$", sample("reading"), re.MULTILINE)

    # sudo on Debian does not read /etc/environment, by which this host knows the emulated AWS
    table = table.replace("sudo", "sudo $(grep ^AWS /etc/environment)")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", deployed.host.ssh(table, terminal=True).stdout)
    assert re.search(r"batch +i-[0-9a-f]{17} +running", shown)
    assert "1 instance (1 running)" in shown

    read = "usermod --append --groups adm admin; sudo -i -u admin sh -c"
    found = deployed.host.ssh(f"{read} {shlex.quote(polls)}").stdout
    assert [json.loads(line)["complete"] for line in found.splitlines()] == [True]
    found = deployed.host.ssh(f"{read} {shlex.quote(records.replace('10.0.3.7', address))}").stdout
    assert [json.loads(line)["name"] for line in found.splitlines()] == ["batch", "batch"]


def test_the_proof_in_the_readme(deployment: dict[str, Any]) -> None:
    """The playbook's last words are the README's."""
    words = sample("proof").replace("12 instances", "0 instances").replace("123456789012", "300000000000")
    assert words in deployment["said"]["deploy"]


# What the playbook refuses


def refused(cloud: Cloud, *arguments: str, project: Path, target: str = "target=recorder") -> str:
    """The one sentence that the playbook stops with."""
    run = cloud.host.playbook(*arguments, project=project, target=target, check=False)
    assert run.returncode != 0
    (sentence,) = set(re.findall(r'"msg": "(.*?)"\n?\}', run.stdout)) or [run.stdout]
    return str(sentence).replace('\\"', '"')


def test_refusals(blank: Cloud, project: Path, tmp_path: Path) -> None:
    """What cannot work is refused with a sentence that says what to do, before anything is changed for good."""
    root = blank.host.root
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("deploy.yaml", "requirements.txt"):
        shutil.copy(project / name, empty)

    assert refused(blank, project=project, target="x=1").startswith("No hosts are named: name them with --extra-vars")
    assert "no host that matches nobody" in refused(blank, project=project, target="target=nobody")
    assert refused(blank, "--limit", "recorder", project=project).startswith("Without --limit, please")
    assert "`make clustermanager.zip` packs the archive" in refused(blank, project=empty)

    python = root / "usr/bin/python3"
    link = os.readlink(python)
    python.unlink()
    python.write_text("#!/bin/sh\necho 3.8\n")
    python.chmod(0o755)
    assert "recorder has Python 3.8: the poller needs Python 3.10 or newer" in refused(blank, project=project)
    python.unlink()
    assert "recorder has no python3" in refused(blank, project=project)
    python.symlink_to(link)

    system = root / "etc/os-release"
    real = system.read_text()
    system.unlink()
    system.write_text(real.replace('VERSION_ID="12"', 'VERSION_ID="11"').replace("bookworm", "bullseye"))
    version = root / "etc/debian_version"
    number = version.read_text()
    version.write_text("11.9\n")
    assert "recorder runs Debian 11" in refused(blank, project=project)
    system.write_text(real)
    version.write_text(number)

    blank.aws.metadata.availability_zone = "moonbase"
    assert 'its availability zone is "moonbase", and no region' in refused(blank, project=project)
    blank.aws.metadata.__exit__(None, None, None)
    assert "no instance metadata service that answers ec2metadata" in refused(blank, project=project)
    with inside(blank.host.namespace):
        blank.aws.metadata.__enter__()
    assert not (root / "opt/inventory").exists()


def test_the_proof_fails_with_the_polls_own_message(deployed: Cloud, project: Path) -> None:
    """A host without a role is deployed, and one is told what it lacks."""
    deployed.aws.metadata.role = None
    sentence = refused(deployed, project=project)
    assert sentence.startswith("recorder is deployed and will poll, but a poll just now was not complete: ")
    assert "this instance has no IAM role: attach an instance profile to it" in sentence


# What needs no host


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1a", "us-east-1"),
        ("ap-southeast-2c", "ap-southeast-2"),
        ("us-west-2-lax-1a", "us-west-2"),
        ("us-east-1-wl1-bos-wlz-1", "us-east-1"),
        ("us-gov-west-1b", "us-gov-west-1"),
        ("cn-northwest-1a", "cn-northwest-1"),
        ("us-isob-east-1a", "us-isob-east-1"),
        ("eusc-de-east-1a", "eusc-de-east-1"),
        ("unavailable", None),
        ("", None),
    ],
)
def test_region_of_a_zone(zone: str, region: str | None) -> None:
    """The playbook's expression finds the region in every form of zone name, and none where there is none."""
    (expression,) = re.findall(r"regex_search\('(.*?)'\)", DEPLOY)
    found = re.search(expression, zone)
    assert (found and found[0]) == region
