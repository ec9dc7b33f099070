"""main.py as a person sees it: on a real pseudo-terminal, read by a terminal emulator."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyte
import pytest
from conftest import MAIN
from scripted_aws import Reply, ScriptedAWS, an_instance, ec2_error, page
from test_main import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import Poller
    from emulated_aws import EmulatedAWS

    Scripts = Callable[..., ScriptedAWS]

REGIONS = ("--region", "eu-west-1", "--region", "us-east-1", "--region", "ap-southeast-2")


@dataclass
class Session:
    """What a terminal was sent, and what stands on it in the end."""

    code: int
    raw: str
    lines: list[str]
    """Without the empty ones at the end."""

    @property
    def table(self) -> list[str]:
        """The rows below the header, without the summary."""
        (start,) = (at for at, line in enumerate(self.lines) if line.startswith("name "))
        return [line for line in self.lines[start + 1 :] if " i-" in line]


def on_terminal(
    poller: Poller,
    *arguments: str,
    columns: int = 120,
    rows: int = 80,
    env: Mapping[str, str] | None = None,
    script: Path = MAIN,
) -> Session:
    """Run main.py, or another script, with its three streams on a terminal of that size."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, script, *arguments],
        env=poller.variables({"TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})}),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    received = b""
    try:
        while True:
            try:
                chunk = os.read(controller, 65536)
            except OSError:  # the last writer has closed it
                break
            if not chunk:
                break
            received += chunk
        code = process.wait(timeout=60)
    finally:
        process.kill()
        os.close(controller)
    screen = pyte.Screen(columns, rows)
    raw = received.decode()
    pyte.Stream(screen).feed(raw)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return Session(code, raw, lines)


@pytest.fixture
def person(account: EmulatedAWS, poller: Poller) -> Poller:
    """Someone logged in to the emulated account's instance."""
    poller.environment |= account.environment
    return poller


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
def test_the_table_fits_the_window(columns: int, person: Poller) -> None:
    """No row is broken, no id and no address is shortened, whatever the width."""
    session = on_terminal(person, *REGIONS, columns=columns)
    assert session.code == 0
    assert len(session.table) == 19
    for line in session.table:
        assert re.search(r"  i-[0-9a-f]{17}( |$)", line)
        for address in re.findall(r"(?<!\w)\d+\.[\d.…]*", line):
            assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", address)
    assert ("private_ip" in session.lines[0]) == (columns >= 80)
    assert ("launched" in session.lines[0]) == (columns >= 200)
    assert "complete" in " ".join(session.lines[-3:])


@pytest.mark.parametrize("columns", [1, 10, 20])
def test_a_window_too_narrow_for_an_id(columns: int, person: Poller) -> None:
    """There is no good answer, but neither is there a crash."""
    session = on_terminal(person, *REGIONS, columns=columns)
    assert session.code == 0
    assert "Traceback" not in session.raw


def test_the_summary(person: Poller) -> None:
    """The last line sums the poll up."""
    session = on_terminal(person, *REGIONS, columns=200)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: account 123456789012, 3 regions, 19 instances \(1 pending, 13 running, "
        r"1 shutting-down, 2 stopped, 1 stopping, 1 terminated\), \d+\.\d s: complete",
        session.lines[-1],
    )


def test_hostile_tags_leave_the_table_undisturbed(script: Scripts, poller: Poller) -> None:
    """A name cannot break a row or drive the terminal: what is not printable is shown as an escape."""
    names = [*HOSTILE.values(), "[bold red]markup[/]", ":smile:", "e\u0301", "\u6771\u4eac" * 20]
    script(lambda request: page(*(an_instance(number, tags={"Name": name}) for number, name in enumerate(names))))
    session = on_terminal(poller, columns=100)
    assert len(session.table) == len(names)
    assert {line.index(" i-") for line in session.lines if " i-" in line and line.isascii()} == {
        session.lines[0].index(" instance_id")
    }
    assert {line[line.index(" i-") + 1 :].split()[0] for line in session.table} == {
        f"i-{number:017x}" for number in range(len(names))
    }
    ours = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r?\n|\r", "", session.raw)
    assert ours.isprintable()
    assert r"a\nb\rc\r\nd" in session.raw
    assert "[bold red]markup[/]" in session.raw
    assert ":smile:" in session.raw


def test_progress(script: Scripts, poller: Poller) -> None:
    """While it works, one sees regions done and instances so far; when it is done, that is gone."""

    def answer(request: object) -> Reply:
        return Reply(page(an_instance()), delay=1)

    script(answer)
    session = on_terminal(poller, *REGIONS)
    assert "asking who we are" in session.raw
    assert re.search(r"[0-3] of 3 regions, [0-3] instances", session.raw)
    assert not any("of 3 regions" in line for line in session.lines)


def test_progress_while_the_records_go_to_a_file(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """`./main.py > file` shows the progress on the terminal and puts JSON Lines in the file."""
    script(lambda request: Reply(page(an_instance()), delay=1))
    controller, terminal = pty.openpty()
    with (tmp_path / "file").open("w") as file:
        process = poller.start(env={"TERM": "xterm"}, stdout=file, stderr=terminal)
        assert process.wait(timeout=60) == 0
    time.sleep(0.1)
    shown = os.read(controller, 65536).decode()
    os.close(terminal)
    os.close(controller)
    assert "of 1 regions" in shown
    assert [json.loads(line)["record"] for line in (tmp_path / "file").read_text().splitlines()] == [
        "instance",
        "region",
        "poll",
    ]


def test_failures_are_sentences(script: Scripts, poller: Poller) -> None:
    """On a terminal, what went wrong is a sentence, and the summary says that it is not all."""
    message = "You are \x9b31mnot\u202e authorized."
    script(
        lambda request: (
            ec2_error("UnauthorizedOperation", message, 403) if request.region == "us-east-1" else page(an_instance())
        )
    )
    session = on_terminal(poller, *REGIONS, columns=200)
    assert session.code == 3
    assert any(
        line.startswith("error: us-east-1: denied: ec2:DescribeInstances in us-east-1") for line in session.lines
    )
    assert r"You are \x9b31mnot\u202e authorized." in session.raw
    assert session.lines[-1].endswith("INCOMPLETE")
    assert len(session.table) == 2


def test_usage_on_a_terminal(poller: Poller) -> None:
    """A slip is answered with a sentence, and with no JSON."""
    session = on_terminal(poller, "--region", "us-esat-1", columns=200)
    assert session.code == 2
    assert session.lines == [
        "error: there is no region 'us-esat-1': did you mean us-east-1? (A newer one needs a newer botocore.)"
    ]


def test_json_on_a_terminal(person: Poller) -> None:
    """--format json is JSON Lines there, too."""
    session = on_terminal(person, "--format", "json", columns=5000)
    assert [json.loads(line)["record"] for line in session.raw.splitlines()][-2:] == ["region", "poll"]


def test_a_table_in_a_file(person: Poller) -> None:
    """--format table without a terminal is as wide as it needs to be, and plain."""
    run = person.run(*REGIONS, "--format", "table")
    assert (run.code, run.stderr) == (0, "")
    assert run.stdout.splitlines()[0].split() == [
        *("name", "instance_id", "state", "type", "zone", "private_ip", "public_ip", "launched")
    ]
    assert "\x1b" not in run.stdout
    assert "…" not in run.stdout


def test_a_dumb_terminal(person: Poller) -> None:
    """It is as wide as it is, all the same."""
    session = on_terminal(person, *REGIONS, columns=200, env={"TERM": "dumb"})
    assert "…" not in session.raw
    assert len(session.table) == 19


def test_a_terminal_that_goes_away(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """The record in the file is finished, with one poll line, and the exit code is the poll's."""
    script(lambda request: Reply(page(an_instance()), delay=3))
    controller, terminal = pty.openpty()
    with (tmp_path / "file").open("w") as file:
        process = poller.start(env={"TERM": "xterm"}, stdout=file, stderr=terminal, new_session=True)
        os.close(terminal)
        time.sleep(1.5)
        os.close(controller)
        assert process.wait(timeout=60) == 0
    records = [json.loads(line) for line in (tmp_path / "file").read_text().splitlines()]
    assert [(record["record"], record.get("complete")) for record in records] == [
        ("instance", None),
        ("region", None),
        ("poll", True),
    ]


def test_no_color(person: Poller) -> None:
    """NO_COLOR is honoured."""
    session = on_terminal(person, env={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", session.raw)


def test_without_rich(person: Poller, tmp_path: Path) -> None:
    """Where rich is not installed, a terminal gets JSON Lines, and --format table says what is missing."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['rich'] = None\n")
    session = on_terminal(person, columns=5000, env={"PYTHONPATH": str(tmp_path)})
    assert session.code == 0
    assert json.loads(session.lines[-1])["record"] == "poll"
    run = person.run("--format", "table", env={"PYTHONPATH": str(tmp_path)})
    assert run.code == 2
    assert "pip install rich" in run.said
