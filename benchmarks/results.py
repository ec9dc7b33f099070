"""The table of a benchmark run, and the README that it goes into."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from statistics import median

from tools import BENCHMARKS, VENVS, Tool

README = BENCHMARKS / "README.md"
RESULTS = VENVS / "results.json"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MB = 1_000_000


@dataclass(frozen=True)
class Cost:
    """What one run took, of the process and its children."""

    user: float
    """Seconds of CPU in the program."""
    system: float
    """Seconds of CPU in the kernel on its behalf."""
    wall: float
    """Seconds."""
    rss: int
    """Bytes that it had in memory at most. Of the largest process, where there are several."""


@dataclass(frozen=True)
class Row:
    """A tool's runs in one case."""

    title: str
    case: str
    tool: str
    costs: tuple[Cost, ...]

    def median(self, value: Callable[[Cost], float]) -> float:
        return median(map(value, self.costs))


def user(cost: Cost) -> float:
    return cost.user


def system(cost: Cost) -> float:
    return cost.system


def wall(cost: Cost) -> float:
    return cost.wall


def megabytes(cost: Cost) -> float:
    return cost.rss / MB


HEADINGS = ("tool", "user CPU, s", "×", "system CPU, s", "wall, s", "peak RSS, MB", "×", "runs")


def markdown(rows: Iterable[Row]) -> str:
    """A table for each case. Each × is the ratio to the table's first row."""
    tables = []
    for title, group in groupby(rows, key=lambda row: row.title):
        same = list(group)
        lines = [HEADINGS, *(cells(row, same[0]) for row in same)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        head, *body = (f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
        rule = f"|{'|'.join('-' * (width + 1) + (':' if place else '-') for place, width in enumerate(widths))}|"
        tables.append("\n".join([f"### {title[0].upper()}{title[1:]}", "", head, rule, *body, ""]))
    return "\n".join(tables)


def cells(row: Row, first: Row) -> tuple[str, ...]:
    return (
        row.tool,
        spread(row, user, 2),
        f"{row.median(user) / first.median(user):.2f}",
        spread(row, system, 2),
        spread(row, wall, 2),
        spread(row, megabytes, 0),
        f"{row.median(megabytes) / first.median(megabytes):.2f}",
        str(len(row.costs)),
    )


def spread(row: Row, value: Callable[[Cost], float], digits: int) -> str:
    """The median, with the least and the most."""
    values = [value(cost) for cost in row.costs]
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def versions(tools: Sequence[Tool]) -> str:
    """The machine and the versions of all that was measured on it."""
    lines = [
        f"- measured on {date.today().isoformat()}",
        f"- {os.cpu_count()} cores, {processor()}, {platform.system()}",
        f"- {platform.python_implementation()} {platform.python_version()} for all",
    ]
    for tool in tools:
        found = ", ".join(f"{name} {version}" for name, version in installed(tool).items())
        lines.append(f"- {tool.name}: {found}")
    return "\n".join(lines) + "\n"


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def installed(tool: Tool) -> dict[str, str]:
    """The versions of a tool's packages, and of the Ansible collection that the tool is part of, if it is."""
    ask = "import importlib.metadata, sys; print(*map(importlib.metadata.version, sys.argv[1:]))"
    python = VENVS / tool.venv / "bin" / "python"
    answer = subprocess.run([python, "-c", ask, *tool.packages], check=True, capture_output=True, text=True).stdout
    found = dict(zip(tool.packages, answer.split(), strict=True))
    for manifest in (VENVS / tool.venv).glob("lib/*/site-packages/ansible_collections/amazon/aws/MANIFEST.json"):
        found["amazon.aws"] = json.loads(manifest.read_text())["collection_info"]["version"]
    return found


def save(rows: Sequence[Row]) -> None:
    """Keep every single run, for the plot and for whoever wants to look closer."""
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def update_readme(rows: Sequence[Row], tools: Sequence[Tool]) -> None:
    """Put the run between the markers."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{versions(tools)}\n{markdown(rows)}{END}{after}")
