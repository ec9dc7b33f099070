#!/usr/bin/env python3
"""Measure main.py and other tools that list EC2 instances side by side, on a server on loopback."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from results import RESULTS, Cost, Row, markdown, save, update_readme, versions
from tools import BENCHMARKS, OUTPUT, TOOLS, VENVS, Tool

REGIONS = (
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1"),
    *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3"),
    *("ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2"),
)
"""Those that every account has."""

LATENCY = 0.15
"""Seconds before a page, about what DescribeInstances takes for a full one at its quickest."""

TIMEOUT = 900
"""Seconds for one run of one tool."""


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    instances: int
    """In each region."""
    repetitions: int
    regions: tuple[str, ...] = REGIONS[:1]
    latency: float = 0

    def measures(self, tool: Tool) -> bool:
        return self.instances <= tool.largest and (tool.many_regions or len(self.regions) == 1)


CASES = (
    Case("0", "no instances", 0, 7),
    Case("1000", "1,000 instances", 1_000, 5),
    Case("20000", "20,000 instances", 20_000, 2),
    Case("100000", "100,000 instances", 100_000, 2),
    Case("1-region", "1,000 instances, 150 ms a page", 1_000, 5, latency=LATENCY),
    Case("17-regions", "17 regions of 1,000 instances, 150 ms a page", 1_000, 2, REGIONS, LATENCY),
)
QUICK_CASES = ("0", "1000", "1-region")


class BenchmarkError(Exception):
    """A run that measures nothing."""


@contextmanager
def serving(case: Case) -> Iterator[str]:
    """The URL of a server for `case`, which is ready."""
    options = ["--instances", str(case.instances), "--latency", str(case.latency)]
    regions = [f"--region={region}" for region in case.regions]
    command = [sys.executable, str(BENCHMARKS / "server.py"), *options, *regions]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip() if server.stdout else ""
        finally:
            server.terminate()


def environment(url: str, home: Path, program: Path) -> dict[str, str]:
    """The same for all: main.py takes its credentials from instance metadata alone, the others have the keys."""
    return {
        "PATH": f"{program.parent}:{os.defpath}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
        "AWS_DEFAULT_REGION": REGIONS[0],
        "AWS_ACCESS_KEY_ID": "AKIABENCHMARK",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


def measured(tool: Tool, case: Case, url: str) -> Cost:
    """What one run of `tool` costs, if it finds every instance."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program, *arguments = tool.command(case.regions, folder)
        path = VENVS / tool.venv / "bin" / program
        launcher = [sys.executable, "-I", "-S", str(BENCHMARKS / "measure.py"), str(TIMEOUT), str(folder / OUTPUT)]
        done = subprocess.run(
            [*launcher, str(path), *arguments],
            capture_output=True,
            check=False,
            cwd=folder,
            env=environment(url, folder, path),
            text=True,
        )
        if done.returncode:
            raise BenchmarkError(f"{tool.name} could not be started:\n{done.stderr}")
        result = json.loads(done.stdout)
        if result["exit_code"]:
            raise BenchmarkError(f"{tool.name} ended with {result['exit_code']}:\n{done.stderr}")
        check_instances(tool, case, folder, done.stderr)
        return Cost(**result["cost"])


def check_instances(tool: Tool, case: Case, folder: Path, stderr: str) -> None:
    expected = case.instances * len(case.regions)
    found = list(tool.instance_ids(folder))
    if len(found) != expected or len(set(found)) != expected:
        raise BenchmarkError(
            f"{tool.name}: {case.title}: {expected} expected, {len(found)} found, {len(set(found))} of them different:"
            f"\n{stderr}"
        )


def rows_of(case: Case, tools: Sequence[Tool]) -> list[Row]:
    """Every tool's costs. They take turns, so that what else the machine does strikes all alike."""
    costs: dict[str, list[Cost]] = {tool.name: [] for tool in tools if case.measures(tool)}
    with serving(case) as url:
        for repetition in range(1, case.repetitions + 1):
            for tool in tools:
                if case.measures(tool):
                    print(f"{case.title}: {repetition} of {case.repetitions}: {tool.name}", file=sys.stderr)
                    costs[tool.name].append(measured(tool, case, url))
    return [Row(case.title, case.name, name, tuple(runs)) for name, runs in costs.items()]


def warm_up(tools: Sequence[Tool]) -> None:
    """Have Python's byte code written and all files in the page cache."""
    rows_of(replace(CASES[0], title="warming up", repetitions=1), tools)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"each once; without --sizes, only {QUICK_CASES}")
    parser.add_argument("--only", nargs="+", choices=[tool.name for tool in TOOLS], metavar="NAME", help="tools")
    parser.add_argument("--sizes", nargs="+", choices=[case.name for case in CASES], metavar="SIZE", help="sizes")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    tools = [tool for tool in TOOLS if tool.name in (asked.only or {tool.name})]
    names = asked.sizes or (QUICK_CASES if asked.quick else [case.name for case in CASES])
    cases = [replace(case, repetitions=1 if asked.quick else case.repetitions) for case in CASES if case.name in names]
    missing = {tool.venv for tool in tools if not (VENVS / tool.venv / "ready").exists()}
    if missing:
        print(f"not installed: {', '.join(sorted(missing))}: see `make bench`", file=sys.stderr)
        return 1
    try:
        warm_up(tools)
        rows = [row for case in cases for row in rows_of(case, tools)]
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    save(rows)
    print(markdown(rows), versions(tools), sep="\n")
    if not (asked.quick or asked.only or asked.sizes):
        update_readme(rows, tools)
        plot = [str(VENVS / "matplotlib" / "bin" / "python"), str(BENCHMARKS / "plot.py"), str(RESULTS)]
        subprocess.run(plot, check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
