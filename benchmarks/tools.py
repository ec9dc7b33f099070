"""What is measured: each tool's command line, and how many instances are in what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
VENVS = REPOSITORY / ".bench"


@dataclass(frozen=True)
class Tool:
    name: str
    venv: str
    packages: tuple[str, ...]
    """Whose versions are reported."""
    command: Callable[[Sequence[str], Path], list[str]]
    """What lists these regions, given the folder that it is run in. Its program is in the virtual environment."""
    instance_ids: Callable[[Path], Iterable[str]]
    """Of every instance in what it wrote in its folder, where standard output is OUTPUT."""
    largest: int = 20_000
    """The largest size that it is measured at."""
    many_regions: bool = True
    """Whether one run can list several regions, and within minutes."""


OUTPUT = "output"


def repeated(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def main_py(regions: Sequence[str], folder: Path) -> list[str]:
    return ["python", str(REPOSITORY / "main.py"), *repeated("--region", regions)]


def main_py_full(regions: Sequence[str], folder: Path) -> list[str]:
    return [*main_py(regions, folder), "--full"]


def boto3_loop(regions: Sequence[str], folder: Path) -> list[str]:
    return ["python", str(BENCHMARKS / "boto3_loop.py"), *regions]


def aws_cli(regions: Sequence[str], folder: Path) -> list[str]:
    return ["aws", "ec2", "describe-instances", "--output", "json", *repeated("--region", regions)]


def custodian(regions: Sequence[str], folder: Path) -> list[str]:
    policy = folder / "policy.json"
    policy.write_text(json.dumps({"policies": [{"name": "inventory", "resource": "ec2"}]}))
    # Without its cache, which a run would only write.
    options = ["--output-dir", str(folder / "out"), "--cache-period", "0"]
    return ["custodian", "run", *options, *repeated("--region", regions), str(policy)]


def ansible_inventory(regions: Sequence[str], folder: Path) -> list[str]:
    source = folder / "bench.aws_ec2.yml"
    source.write_text(json.dumps({"plugin": "amazon.aws.aws_ec2", "regions": list(regions)}))
    return ["ansible-inventory", "-i", str(source), "--list"]


def ids_of_main_py(folder: Path) -> Iterable[str]:
    with (folder / OUTPUT).open() as lines:
        records = map(json.loads, lines)
        yield from (record["instance_id"] for record in records if record["record"] == "instance")


def ids_of_boto3_loop(folder: Path) -> Iterable[str]:
    with (folder / OUTPUT).open() as lines:
        yield from (json.loads(line)["InstanceId"] for line in lines)


def ids_of_aws_cli(folder: Path) -> Iterable[str]:
    answer = json.loads((folder / OUTPUT).read_bytes())
    return (item["InstanceId"] for reservation in answer["Reservations"] for item in reservation["Instances"])


def ids_of_custodian(folder: Path) -> Iterable[str]:
    """It writes a file for each region; with one region, that is not in a folder of the region's name."""
    for resources in (folder / "out").rglob("resources.json"):
        yield from (item["InstanceId"] for item in json.loads(resources.read_bytes()))


def ids_of_ansible_inventory(folder: Path) -> Iterable[str]:
    """It marks text that it got from elsewhere, lest somebody takes it for a template."""
    inventory = json.loads((folder / OUTPUT).read_bytes())
    return (host["instance_id"]["__ansible_unsafe"] for host in inventory["_meta"]["hostvars"].values())


TOOLS = (
    Tool("main.py", "boto3", ("boto3", "botocore"), main_py, ids_of_main_py, largest=100_000),
    Tool("main.py --full", "boto3", ("boto3", "botocore"), main_py_full, ids_of_main_py, largest=100_000),
    Tool("boto3 loop", "boto3", ("boto3", "botocore"), boto3_loop, ids_of_boto3_loop, largest=100_000),
    Tool("AWS CLI", "awscli", ("awscli",), aws_cli, ids_of_aws_cli, many_regions=False),
    Tool("Cloud Custodian", "c7n", ("c7n", "boto3", "botocore"), custodian, ids_of_custodian),
    Tool(
        "Ansible aws_ec2",
        "ansible",
        ("ansible", "ansible-core", "boto3", "botocore"),
        ansible_inventory,
        ids_of_ansible_inventory,
        many_regions=False,
    ),
)
"""The first is what the others are compared with."""
