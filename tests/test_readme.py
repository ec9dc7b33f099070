"""The README is a promise: its commands run, its samples are real."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from conftest import MAIN, REPOSITORY
from emulated_aws import EmulatedAWS, Group
from test_main import KEYS

import main

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Poller

README = (REPOSITORY / "README.md").read_text()


def sample(name: str) -> str:
    """The code block behind <!-- sample: name -->."""
    (text,) = re.findall(rf"<!-- sample: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    return str(text)


def table(header: str) -> list[list[str]]:
    """The rows of the table with that header, without its first two lines."""
    (rows,) = re.findall(rf"^{re.escape(header)}\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows.splitlines()]


def blurred(text: str) -> list[str]:
    """The lines of `text` without what differs from run to run, in an order of their own: regions answer in any."""
    for pattern, word in (
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(Z| UTC)?)?", "TIME"),
        (r"\b(i|r|vpc|subnet|vol)-[0-9a-f]{17}\b", r"\1-ID"),
        (r"AROA\w+", "AROA"),
        (r'"seconds": [\d.]+', '"seconds": S'),
        (r"\d\.\d s:", "S s:"),
        (r"\b\d+\.\d+\.\d+\.\d+\b", "IP"),
        (r" +", " "),
    ):
        text = re.sub(pattern, word, text)
    return sorted(text.splitlines())


def test_the_demonstration(tmp_path: Path) -> None:
    """make demo prints what the README says it prints."""
    environment = {**os.environ, "COLUMNS": "100", "DEMO_LOG": str(tmp_path / "demo.log")}
    run = subprocess.run(
        [sys.executable, REPOSITORY / "tests/demo.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert blurred(run.stdout) == blurred(sample("demo"))


def test_help() -> None:
    """The --help block is the real one."""
    run = subprocess.run(
        [sys.executable, MAIN, "--help"], env={"COLUMNS": "80"}, capture_output=True, text=True, check=True, timeout=60
    )
    assert f"$ ./main.py --help\n{run.stdout}" == sample("help")


@pytest.mark.parametrize("kind", ["instance", "region", "poll"])
def test_sample_records(kind: str, account: EmulatedAWS, poller: Poller) -> None:
    """The sample of each kind of record is one that the emulated account gives."""
    (line,) = sample(kind).splitlines()
    run = poller.run("--region", "eu-west-1", env=account.environment)
    assert set(blurred(line)) <= set(blurred(run.stdout))


TYPES: dict[str, Any] = {
    "time": lambda value: re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value),
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "list of string": lambda value: all(isinstance(each, str) for each in value),
    "null": lambda value: value is None,
}


def test_the_table_of_fields(account: EmulatedAWS, poller: Poller) -> None:
    """It names every field in the record's order, and each value has the type it says."""
    rows = table("| field | type | meaning; null when |")
    assert " ".join(name.strip("`") for name, _, _ in rows) == KEYS["instance"]
    run = poller.run("--all-regions", env=account.environment)
    for name, types, _ in rows:
        for instance in run.instances:
            value = instance[name.strip("`")]
            assert any(TYPES[kind](value) for kind in types.split(" or ") if (kind == "null") == (value is None)), name


def test_exit_codes() -> None:
    """The table of exit codes is the program's."""
    codes = [code for code, _ in table("| exit code | means |")]
    named = [main.EXIT_COMPLETE, main.EXIT_FAILED, main.EXIT_USAGE, main.EXIT_INCOMPLETE, main.EXIT_OUTPUT]
    assert codes == [*map(str, named), "128+n"]


def carry_out(name: str, aws: EmulatedAWS, instance_id: str = "") -> None:
    """Do in the emulated account what the aws commands of a sample say."""

    def value(text: str, shape: Any) -> Any:
        if text.startswith("file://"):
            return sample(text.removeprefix("file://").removesuffix(".json"))
        return dict([text.split("=")]) if shape.type_name == "structure" else text

    for line in sample(name).splitlines():
        dollar, program, service, command, *options = shlex.split(line)
        assert (dollar, program) == ("$", "aws")
        client: Any = aws.session.client(service, endpoint_url=aws.url)  # type: ignore[call-overload]  # by its name
        operation = "".join(word.capitalize() for word in command.split("-"))
        members = client.meta.service_model.operation_model(operation).input_shape.members
        request = {}
        for option, text in zip(options[::2], options[1::2], strict=True):
            member = "".join(word.capitalize() for word in option.removeprefix("--").split("-"))
            request[member] = value(text.replace("i-0f1e2d3c4b5a69788", instance_id), members[member])
        getattr(client, command.replace("-", "_"))(**request)


def test_the_role() -> None:
    """The aws commands, carried out, give an instance a role that two actions are allowed to."""
    with EmulatedAWS(account="200000000001") as aws:
        (instance_id,) = aws.launch(Group("eu-west-1", "t4g.nano", {"Name": "recorder"}))
        carry_out("role", aws, instance_id)
        found = aws.ec2().describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
        profile = found["IamInstanceProfile"]["Arn"].split("/")[-1]
        iam = aws.session.client("iam", endpoint_url=aws.url)
        (role,) = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        policy: Any = iam.get_role_policy(RoleName=role["RoleName"], PolicyName="inventory")["PolicyDocument"]
    (statement,) = policy["Statement"]
    assert statement["Effect"] == "Allow"
    assert statement["Action"] == ["ec2:DescribeInstances", "sts:GetCallerIdentity"]


def test_the_roles_of_other_accounts(poller: Poller, tmp_path: Path) -> None:
    """The aws commands, carried out, let the host's role, and it alone, assume a role that may do what its own may; the
    commands that poll by it do."""
    with EmulatedAWS(account="200000000002") as home, EmulatedAWS(account="222222222222") as other:
        carry_out("role", home, home.launch(Group("eu-west-1", "t4g.nano", {"Name": "recorder"}))[0])
        carry_out("host's role", home)
        carry_out("role in another account", other)
        home_iam = home.session.client("iam", endpoint_url=home.url)
        other_iam = other.session.client("iam", endpoint_url=other.url)
        other_role: Any = other_iam.get_role(RoleName="inventory")["Role"]
        on_top: Any = home_iam.get_role_policy(RoleName="inventory", PolicyName="other-accounts")["PolicyDocument"]
        policies = [iam.get_role_policy(RoleName="inventory", PolicyName="inventory") for iam in (home_iam, other_iam)]
        other.launch(Group("eu-west-1", "t4g.nano", {"Name": "theirs"}))
        poller.environment |= home.environment
        (tmp_path / "roles.txt").write_text(f"# theirs\n{other_role['Arn']}\n")
        polls = [
            poller.run(*shlex.split(line.replace("roles.txt", str(tmp_path / "roles.txt")))[2:])
            for line in sample("other accounts").splitlines()
        ]
    assert policies[0]["PolicyDocument"] == policies[1]["PolicyDocument"]
    (statement,) = on_top["Statement"]
    assert (statement["Action"], other_role["Arn"]) == (
        "sts:AssumeRole",
        statement["Resource"].replace("*", other.account),
    )
    (trust,) = other_role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"AWS": "arn:aws:iam::123456789012:role/inventory"}
    assert trust["Condition"] == {"StringEquals": {"sts:ExternalId": "acme"}}
    assert [run.code for run in polls] == [0, 0]
    assert [{poll["account"] for poll in run.of("poll")} for run in polls] == [
        {home.account, other.account},
        {other.account},
    ]


def python(code: str, account: EmulatedAWS, tmp_path: Path) -> str:
    """What `code` prints when it runs with keys in its environment, as Lambda and containers have them."""
    (tmp_path / "sample.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-W", "error", tmp_path / "sample.py"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "eu-west-1",
            **account.environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_library_sample(account: EmulatedAWS, tmp_path: Path) -> None:
    """It prints the account, the instances of the session's region, and how many match a filter elsewhere."""
    lines = python(sample("library"), account, tmp_path).splitlines()
    assert lines[0] == "123456789012"
    assert len(lines) == 14
    assert lines[-1] == "2"


def test_the_django_sample(account: EmulatedAWS, tmp_path: Path) -> None:
    """The view, called by Django with a request, streams the record."""
    call = """
import django
from django.conf import settings
from django.test import RequestFactory
settings.configure()
django.setup()
response = inventory(RequestFactory().get("/?region=us-east-1"))
print(b"".join(response.streaming_content).decode(), end="")
"""
    records = [json.loads(line) for line in python(sample("django") + call, account, tmp_path).splitlines()]
    assert [record["record"] for record in records] == ["instance"] * 5 + ["region", "poll"]


def test_moving_is_short() -> None:
    """It takes ten lines."""
    assert len([line for line in sample("django").splitlines() if line.strip()]) <= 10


COMMANDS_TESTED_ELSEWHERE = {
    "./main.py --help": test_help,
    "python3 -m venv .venv && .venv/bin/pip install --require-hashes -r requirements-history.txt": "test_deploy.py",
    sample("monitor").strip().removeprefix("$ "): "test_history.py",
    **dict.fromkeys(re.findall(r"^\$ (.*)$", sample("history on the host"), re.MULTILINE), "test_deploy.py"),
    "pip install .": "test_packaging.py",
    "python3 -m venv .venv && .venv/bin/pip install --require-hashes -r requirements.txt": "test_deploy.py",
    ".venv/bin/python main.py": "test_terminal.py",
    "zip -r clustermanager.zip inventory_manager.py main.py": "test_deploy.py",
    'ansible-playbook deploy.yaml --inventory hosts.ini --extra-vars "target=recorders"': "test_deploy.py",
    **dict.fromkeys(re.findall(r"^\$ (.*)$", sample("role"), re.MULTILINE), "test_the_role"),
    **dict.fromkeys(re.findall(r"^\$ (.*)$", sample("reading"), re.MULTILINE), "test_deploy.py"),
    "sam deploy --guided --capabilities CAPABILITY_IAM": "test_lambda.py, as far as it goes without AWS",
    "aws s3 cp accounts.json s3://BUCKET/accounts.json": "test_lambda.py",
    **dict.fromkeys(re.findall(r"^\$ (.*)$", sample("history of a bucket"), re.MULTILINE), "test_lambda.py"),
    sample("variables").strip().removeprefix("$ "): "test_deploy.py",
    **dict.fromkeys(re.findall(r"^\$ (ansible.*)$", sample("other accounts deployed"), re.MULTILINE), "test_deploy.py"),
    **{
        command: "test_the_roles_of_other_accounts"
        for name in ("role in another account", "host's role", "other accounts")
        for command in re.findall(r"^\$ (.*)$", sample(name), re.MULTILINE)
    },
}


def test_every_command_is_known() -> None:
    """Each command of a console block is tested by another test, or is a target that make can plan."""
    commands = re.findall(r"^\$ (.*)$", "".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL)), re.MULTILINE)
    assert {"make demo", "make test", "make check"} <= set(commands)
    for command in commands:
        if command in COMMANDS_TESTED_ELSEWHERE:
            continue
        program, *arguments = shlex.split(command)
        assert program == "make", command
        run = subprocess.run([program, "--dry-run", *arguments], cwd=REPOSITORY, capture_output=True, check=False)
        assert run.returncode == 0, command


@pytest.mark.parametrize(
    "document",
    ["README.md", *(f"docs/{name}.md" for name in ("faults", "history", "scale", "soak")), "benchmarks/README.md"],
)
def test_links_lead_somewhere(document: str) -> None:
    """Every link within the repository is to a file that it has."""
    text = (REPOSITORY / document).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (REPOSITORY / document).parent.joinpath(link).exists(), link


def test_ci_runs_the_readmes_commands() -> None:
    """What CI runs is what the README tells people to run."""
    assert {"make check", "make test"} <= set(re.findall(r"make \w+", (REPOSITORY / ".ci/run").read_text()))
