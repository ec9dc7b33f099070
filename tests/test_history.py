"""history.py as a process: what it reads, what it answers, how it prints, and what it refuses."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from conftest import REPOSITORY
from test_main import HOSTILE
from test_readme import sample
from test_terminal import on_terminal
from written_log import ACCOUNT, block, instance, lines, poll, region

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Poller

HISTORY = REPOSITORY / "history.py"
ONE, TWO, THREE, SIX = (f"2026-08-05T0{hour}:00:00Z" for hour in (1, 2, 3, 6))


@dataclass
class Asked:
    code: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def ask(log: Path | str, *question: str, given: str | None = None) -> Asked:
    done = subprocess.run(
        [sys.executable, HISTORY, "--log", log, *question],
        input=given,
        stdin=None if given is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Asked(done.returncode, done.stdout, done.stderr)


A = instance(ONE, 1, tags={"Name": "a", "Team": "payments"})
STOPPED = {
    "state": "stopped",
    "state_transition_reason": "User initiated (2026-08-05 02:20:00 GMT)",
    "state_transition_time": "2026-08-05T02:20:00Z",
}
B = instance(ONE, 2, tags={"Name": "b", "Team": "shop"}, launch_time="2026-08-05T01:20:11Z")
RECORDS = [
    *block(ONE, A),
    *block(TWO, A, B),
    *block(THREE, {**A, **STOPPED, "tags": {"Name": "a", "Team": "data"}}, B),
    region(SIX, 0, "failed"),
    poll(SIX, complete=False, regions={"failed": 1}),
    *block("2026-08-05T07:00:00Z", {**A, **STOPPED, "tags": {"Name": "a", "Team": "data"}}),
]
"""A was launched long ago, is stopped at 02:20 and retagged. B is launched at 01:20:11, and vanishes after three."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (path := tmp_path / "inventory.log").write_text(lines(RECORDS))
    return path


QUESTIONS = {
    "at": ("at", TWO),
    "find": ("find", "10.0.3.2"),
    "timeline": ("timeline", A["instance_id"]),
    "changes": ("changes",),
    "hours": ("hours", "--by", "tag:Team"),
    "coverage": ("coverage",),
    "sql": ("sql", "SELECT count(*) AS number, min(timestamp) AS first FROM instances"),
}


def test_at(log: Path) -> None:
    """The fleet is as it was then; who is not sure to have been there is marked."""
    there = {row["name"]: (row["state"], row["known"]) for row in ask(log, "at", "2026-08-05T02:30:00Z").rows}
    assert there == {"a": ("stopped", "exact"), "b": ("running", "agreed")}
    there = {row["name"]: (row["state"], row["known"]) for row in ask(log, "at", "2026-08-05T02:10:00+00:00").rows}
    assert there == {"a": ("running", "exact"), "b": ("running", "agreed")}
    assert [row["name"] for row in ask(log, "at", "2026-08-05T01:00:00Z").rows] == ["a"]
    assert {row["name"]: row["known"] for row in ask(log, "at", "2026-08-05T05:00:00Z").rows} == {
        "a": "agreed",
        "b": "bounded",
    }
    assert [row["name"] for row in ask(log, "at").rows] == ["a"], "as last recorded"


def test_find(log: Path) -> None:
    """An address has its holders, with what is known of both ends; a failed region ended nothing."""
    (row,) = ask(log, "find", "10.0.3.2").rows
    assert row["field"] == "private_ip_address"
    assert row["begin_earliest"] == row["begin_latest"] == "2026-08-05T01:20:11Z", "AWS gave the time"
    assert (row["end_earliest"], row["end_latest"]) == (THREE, "2026-08-05T07:00:06Z"), "between two polls"
    assert row["fate"] == "vanished unseen"

    (row,) = ask(log, "find", "payments").rows
    assert (row["field"], row["end_earliest"], row["end_latest"]) == ("tag:Team", TWO, "2026-08-05T03:00:06Z")
    assert ask(log, "find", "Team=payments").rows == [{**row, "value": "Team=payments"}]
    assert ask(log, "find", "payments", "--at", "2026-08-05T06:00:00Z").code == 1
    assert ask(log, "find", B["instance_id"], "--at", "2026-08-05T06:00:00Z").code == 0


def test_an_address_is_an_address(tmp_path: Path) -> None:
    """An IPv6 address is found however it is written."""
    (log := tmp_path / "log").write_text(
        lines(block(ONE, instance(ONE, ipv6_addresses=["2001:db8::7", "2001:db8::1"])))
    )
    (row,) = ask(log, "find", "2001:0DB8:0:0::07").rows
    assert row["field"] == "ipv6_addresses"


def test_timeline_and_changes(log: Path) -> None:
    """What happened to an instance, and to all, in order, with exact and bounded times."""
    rows = ask(log, "timeline", A["instance_id"]).rows
    assert [(row["event"], row["field"], row["before"], row["after"]) for row in rows] == [
        ("launched", None, None, None),
        ("stopped", None, None, None),
        ("modified", "tag:Team", "payments", "data"),
        ("present", None, None, None),
    ]
    assert rows[1]["time_earliest"] == rows[1]["time_latest"] == "2026-08-05T02:20:00Z"
    assert (rows[2]["time_earliest"], rows[2]["time_latest"]) == (TWO, "2026-08-05T03:00:06Z")
    changes = [(row["name"], row["event"]) for row in ask(log, "changes").rows]
    assert changes == [("b", "launched"), ("a", "stopped"), ("a", "modified"), ("b", "vanished")], (
        "from the first poll on"
    )
    assert len(ask(log, "changes", "--until", "2026-08-05T02:25:00Z", "--since", TWO).rows) == 2
    assert ask(log, "changes", "--since", "2026-08-06").code == 1


def test_hours(log: Path) -> None:
    """Running hours by tag, type family or several fields, with the possible error."""
    rows = ask(log, "hours", "--by", "tag:Team").rows
    # B ran from 01:20:11 until some time between 03:00 and 07:00, where the window ends; A from 01:00 to 02:20.
    assert rows == [
        {"tag:Team": "shop", "instances": 1, "hours": 3.664, "error": 2.0},
        {"tag:Team": "payments", "instances": 1, "hours": 1.333, "error": 0.0},
    ]
    for every in ("account", "launch_time", "state", "tags", "volumes", "name", 'tag:it\'s "odd" {here}'):
        assert list(ask(log, "hours", "--by", every).rows[0]) == [every, "instances", "hours", "error"]
    (row,) = ask(log, "hours", "--by", "instance_family", "--by", "region").rows
    assert (row["instance_family"], row["region"], row["instances"]) == ("m5", "eu-west-1", 2)
    (row,) = ask(log, "hours", "--since", "2026-08-05T02:00:00Z", "--until", "2026-08-05T02:10:00Z").rows
    assert (row["instance_type"], row["hours"], row["error"]) == ("m5.large", 0.333, 0)
    refused = ask(log, "hours", "--by", "colour")
    assert (refused.code, refused.stdout) == (2, "")
    assert "--by colour" in refused.stderr


def test_coverage(log: Path) -> None:
    """Each gap is there with its reason, and the exit code says that there is one."""
    asked = ask(log, "coverage")
    assert asked.code == 3
    assert [(row["status"], row["begin"], row["end"], row["polls"], row["reason"]) for row in asked.rows] == [
        ("covered", ONE, "2026-08-05T03:00:06Z", 3, None),
        ("gap", THREE, "2026-08-05T07:00:06Z", 0, "1 failed: RequestLimitExceeded"),
        ("covered", "2026-08-05T07:00:00Z", "2026-08-05T07:00:06Z", 1, None),
    ]
    assert asked.rows[1]["unseen_hours"] == 3.002
    assert ask(log, "coverage", "--until", "2026-08-05T02:30:00Z").code == 0
    assert ask(log, "coverage", "--gap", "5 hours").code == 0
    assert ask(log, "coverage", "--gap", "many hours").code == 2


def test_a_monitor(tmp_path: Path) -> None:
    """coverage --since "2 hours ago" is content with an hourly log of today, and not with one that ended."""

    def hours_ago(*hours: float) -> str:
        now = datetime.now(timezone.utc)
        return lines(
            record for each in hours for record in block(f"{now - timedelta(hours=each):%Y-%m-%dT%H:%M:%SZ}", A)
        )

    (log := tmp_path / "log").write_text(hours_ago(3.5, 2.5, 1.5, 0.5))
    assert ask(log, "coverage", "--since", "2 hours ago").code == 0
    log.write_text(hours_ago(3.5, 2.5, 1.5))
    asked = ask(log, "coverage", "--since", "2 hours ago")
    assert (asked.code, asked.rows[-1]["reason"]) == (3, "no poll")
    log.write_text("")
    asked = ask(log, "coverage", "--since", "2 hours ago")
    assert asked.code == 3, "a log that is empty covers nothing"
    assert ask(log, "coverage").code == 1


@pytest.mark.parametrize("question", ["changes", "coverage", "sql"])
def test_all_that_a_log_can_be(question: str, log: Path, tmp_path: Path) -> None:
    """Rotated, compressed, archived, piped, twice: the answer is the same."""
    asked = ask(log, *QUESTIONS[question])
    assert asked.stderr == ""
    text = log.read_text()
    half = text.index("\n", len(text) // 2) + 1

    rotated = tmp_path / "rotated"
    rotated.mkdir()
    (rotated / "inventory.log").write_text(text[half:])
    (rotated / "inventory.log-20260805.gz").write_bytes(gzip.compress(text[:half].encode()))
    assert ask(f"{rotated}/inventory.log*", *QUESTIONS[question]) == asked

    zstandard = tmp_path / "inventory.log.zst"
    duckdb.sql(f"COPY (SELECT json FROM read_ndjson_objects('{log}')) TO '{zstandard}' "
               "(FORMAT csv, HEADER false, QUOTE '', DELIM '\t', COMPRESSION zstd)")  # fmt: skip
    assert ask(zstandard, *QUESTIONS[question]) == asked

    archive = tmp_path / "inventory.parquet"
    assert ask(log, "archive", str(archive)).code == 0
    assert ask(archive, *QUESTIONS[question]) == asked
    assert ask(archive, "--log", str(log), "--log", str(zstandard), *QUESTIONS[question]) == asked, "read three times"

    assert ask("-", *QUESTIONS[question], given=text) == asked


def test_a_folder_of_logs(log: Path, tmp_path: Path) -> None:
    """A tree with a file for each poll, by account and day and hour, is a log; what else lies there is not."""
    asked = ask(log, "changes")
    for text in log.read_text().splitlines(keepends=True):
        record = json.loads(text)
        part = f"account={record['account']}/date={record['timestamp'][:10]}/hour={record['timestamp'][11:13]}"
        (folder := tmp_path / "bucket" / part).mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / "poll.jsonl.gz", "at") as file:
            file.write(text)
    (tmp_path / "bucket/README.md").write_text("not a log")
    assert len(list((tmp_path / "bucket").rglob("*.gz"))) > 2
    assert ask(tmp_path / "bucket", "changes") == asked
    assert ask(f"{tmp_path}/bucket/**/*.gz", "changes") == asked
    (tmp_path / "empty").mkdir()
    refused = ask(tmp_path / "empty", "changes")
    assert (refused.code, "no log is in this folder" in refused.stderr) == (2, True)


def test_what_does_not_belong(log: Path) -> None:
    """Half lines, other programs' lines, unknown and missing fields, cut-off polls: counted, said once, not fatal."""
    answers = {name: ask(log, *question).stdout for name, question in QUESTIONS.items() if name != "sql"}
    later = {**instance(TWO, 1, **{**A, "timestamp": TWO}), "colour": "red"}
    del later["managed_by"]
    odd = [
        lines(RECORDS).replace(json.dumps({**A, "timestamp": TWO}), json.dumps(later)),
        "Killed\n",
        '"a string"\n{"timestamp": "yesterday", "record": "instance"}\n{"record": "poll"}\n',
        lines([{"timestamp": TWO, "record": "log", "level": "ERROR", "message": "skipped"}]),
        lines([{**A, "timestamp": "2026-08-05T07:30:00Z", "instance_id": None}]),
        lines([{**A, **STOPPED, "tags": {"Name": "a", "Team": "data"}, "timestamp": "2026-08-05T08:00:00Z"}]),
        lines(RECORDS)[:100],
    ]
    log.write_bytes("".join(odd).encode() + b"\xff\x00")
    for name, stdout in answers.items():
        asked = ask(log, *QUESTIONS[name])
        assert asked.stderr == (
            "history.py: lines that are no JSON: 2; lines that are no records: 4; polls that were cut off: 1; "
            "lines with fields unknown here (colour): 1; lines without fields of today (managed_by): 1\n"
        )
        if name not in ("at", "timeline", "coverage", "hours"):  # where the last poll, cut off, has its say
            assert asked.stdout == stdout
    assert ask(log, "timeline", A["instance_id"]).rows[-1]["event"] == "present", "nothing came after"


def test_half_a_block(log: Path) -> None:
    """A log that begins within a poll does not take that for all that there was."""
    text = log.read_text()
    log.write_text(text[text.index("\n", text.index(TWO)) + 1 :])  # the poll at two has lost A
    rows = ask(log, "sql", "SELECT timestamp, covered, instances, lines FROM regions ORDER BY timestamp LIMIT 2").rows
    assert rows[0] == {"timestamp": TWO, "covered": False, "instances": 2, "lines": 1}
    assert rows[1]["covered"]
    (row,) = ask(log, "find", A["instance_id"]).rows
    assert row["begin_latest"] == "2026-08-01T00:00:00Z"


def test_accounts_and_regions_apart(tmp_path: Path) -> None:
    """The same instance id and address in two accounts and two regions are four instances, each with its own end."""
    other = {"account": "210987654321"}
    away = {"region": "us-east-1"}
    (log := tmp_path / "log").write_text(
        lines(
            [
                *([A, region(ONE, 1), {**A, **away}, region(ONE, 1, **away), poll(ONE, 2)]),
                *([{**A, **other}, region(ONE, 1, **other), {**A, **other, **away}, region(ONE, 1, **other, **away)]),
                poll(ONE, 2, **other),
                *([region(TWO, 0), region(TWO, 1, **away), {**A, **away, "timestamp": TWO}, poll(TWO, 2)]),
                *([region(TWO, 0, **other, **away), poll(TWO, 1, **other)]),
            ]
        )
    )
    fates = {(row["account"], row["region"]): row["fate"] for row in ask(log, "find", A["instance_id"]).rows}
    assert fates == {
        (ACCOUNT, "eu-west-1"): "vanished unseen",
        (ACCOUNT, "us-east-1"): "present",
        ("210987654321", "eu-west-1"): "present",
        ("210987654321", "us-east-1"): "vanished unseen",
    }


def test_all_tags_gone(tmp_path: Path) -> None:
    """A poll in which no instance of a region has a tag says nothing of tags; a terminated one keeps its last."""
    bare: dict[str, Any] = {"tags": {}, "name": None}
    ended = {"state": "terminated", "state_transition_time": "2026-08-05T05:30:00Z", "private_ip_address": None, **bare}
    (log := tmp_path / "log").write_text(
        lines(
            [
                *block(ONE, A, B),
                *block(TWO, {**A, **bare}, {**B, **bare}),
                *block(THREE, A, {**B, **bare}),
                *block(SIX, A, {**B, **ended}),
            ]
        )
    )
    changes = [(row["event"], row["field"], row["time_earliest"]) for row in ask(log, "changes").rows]
    assert changes == [
        ("launched", None, "2026-08-05T01:20:11Z"),
        ("modified", "tag:Name", ONE),
        ("modified", "tag:Team", ONE),
        ("terminated", None, "2026-08-05T05:30:00Z"),
    ]
    assert ask(log, "find", "payments").rows[0]["end_latest"] is None
    (row,) = ask(log, "sql", f"SELECT name, fate FROM lives WHERE instance_id = '{B['instance_id']}'").rows
    assert row == {"name": None, "fate": "seen terminated"}, "it was told to have none before it ended"


TIMES = {
    "2026-08-05T03:00:00Z": "2026-08-05T03:00:00Z",
    "2026-08-05T05:00:00+02:00": "2026-08-05T03:00:00Z",
    "2026-08-05 03:00": "2026-08-05T03:00:00Z",
    "2026-08-05": "2026-08-05T00:00:00Z",
}


@pytest.mark.parametrize("text", TIMES)
def test_times(text: str, log: Path) -> None:
    """A time is read as ISO 8601 has it, in UTC unless it says otherwise, whatever the machine's zone is."""
    environment = {**os.environ, "TZ": "Asia/Tokyo"}
    asked = [
        subprocess.run(
            [sys.executable, HISTORY, "--log", log, "at", time], env=environment, capture_output=True, check=True
        ).stdout
        for time in (text, TIMES[text])
    ]
    assert asked[0] == asked[1] != b""


def test_words_for_times(tmp_path: Path) -> None:
    """yesterday, today, now and so long ago are what people mean."""
    now = datetime.now(timezone.utc)
    midnight = now.replace(hour=0, minute=0, second=0)
    moments = [midnight - timedelta(days=1, hours=1), midnight - timedelta(hours=12), now - timedelta(minutes=2)]
    blocks = [block(f"{moment:%Y-%m-%dT%H:%M:%SZ}", instance("", number)) for number, moment in enumerate(moments, 1)]
    (log := tmp_path / "log").write_text(lines(record for each in blocks for record in each))

    def seen(*window: str) -> set[int]:
        rows = ask(log, "changes", *window).rows
        return {int(row["instance_id"][-1]) for row in rows if row["event"] == "vanished"}

    assert seen() == {1, 2}
    assert seen("--since", "yesterday") == {1, 2}
    assert seen("--since", "3 minutes ago") == {2}
    assert seen("--since", "now") == set()
    assert seen("--until", "yesterday") == {1}
    for nonsense in ("the day before", "25:00", "2026-13-01", "x ago", ""):
        asked = ask(log, "changes", "--since", nonsense)
        assert asked.code == 2
        assert f"{nonsense!r} is no time" in asked.stderr


def test_formats(log: Path) -> None:
    """CSV and JSON say the same; the table shows one time for an exact end and two for a bounded one."""
    rows = ask(log, "--format", "json", "find", "10.0.3.2").rows
    (read,) = csv.DictReader(io.StringIO(ask(log, "--format", "csv", "find", "10.0.3.2").stdout))
    assert read == {column: value or "" for column, value in rows[0].items()}
    header, line = ask(log, "--format", "table", "find", "10.0.3.2").stdout.splitlines()
    assert header.split() == [
        "field",
        "value",
        "account",
        "region",
        "instance_id",
        "name",
        "begin",
        "first_seen",
        "last_seen",
        "end",
        "fate",
    ]
    assert "2026-08-05 01:20:11  " in line
    assert "2026-08-05 03:00:00 to 07:00:06" in line


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_a_terminal(columns: int, tmp_path: Path, poller: Poller) -> None:
    """The table fits the window, and hostile values cannot drive the terminal or break a line."""
    records = block(ONE, *(instance(ONE, number, tags={"Name": name}) for number, name in enumerate(HOSTILE, 1)))
    (log := tmp_path / "log").write_text(lines(records))
    session = on_terminal(poller, "--log", str(log), "at", script=HISTORY, columns=columns)
    assert session.code == 0
    assert len(session.lines) == len(HOSTILE) + 1
    assert all(len(line) <= columns for line in session.lines)
    assert all(re.search(r"i-[0-9a-f]{17}", line) for line in session.lines[1:])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", session.raw)  # rich's own colours
    assert all(char.isprintable() or char in "\r\n" for char in shown)


FORBIDDEN = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_csv('{log}')",
    "SELECT * FROM glob('/*')",
    "COPY polls TO '{log}.copy'",
    "ATTACH '{log}.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "CREATE TABLE mine AS SELECT 1",
    "INSERT INTO polls SELECT * FROM polls",
    "DROP TABLE polls",
    "SELECT 1; SELECT 2",
    "SELECT * FROM asked",  # a variable of the program
    "EXPORT DATABASE '{log}.d'",
    "PRAGMA enable_profiling",
    "SELECT nothing FROM polls",
    "this is no SQL",
    "",
]


@pytest.mark.parametrize("query", FORBIDDEN)
def test_sql_reaches_nothing_else(query: str, log: Path) -> None:
    """sql opens no file, loads nothing, writes nothing, changes no setting; and says so as a usage error."""
    before = sorted(log.parent.iterdir())
    asked = ask(log, "sql", query.format(log=log))
    assert (asked.code, asked.stdout) == (2, "")
    assert asked.stderr.startswith("history.py: sql: ")
    assert sorted(log.parent.iterdir()) == before


def test_sql(log: Path) -> None:
    """The documented views have the columns that the documentation names."""
    text = (REPOSITORY / "docs/history.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| .*? \| `(.*)` \|$", text, re.MULTILINE))
    assert set(documented) == {"polls", "regions", "instances", "lives", "changes"}
    for view, columns in documented.items():
        rows = ask(log, "sql", f"FROM {view} LIMIT 1").rows
        assert list(rows[0]) == columns.split(", "), view


def test_archive(log: Path, tmp_path: Path) -> None:
    """An archive has every line, is written at once or not at all, and can be archived again with more."""
    diagnostics = [{"timestamp": TWO, "record": "log", "level": "ERROR", "message": "skipped"}]
    log.write_text(lines(RECORDS + diagnostics))
    archive = tmp_path / "archives" / "a.parquet"
    asked = ask(log, "archive", str(archive))
    assert (asked.code, asked.stdout) == (74, "")
    archive.parent.mkdir()
    assert ask(log, "archive", str(archive)).code == 0
    assert [path.name for path in archive.parent.iterdir()] == ["a.parquet"]
    query = f"""SELECT '{{"timestamp": "' || strftime(unnest(times), '%Y-%m-%dT%H:%M:%SZ') || '", ' || line FROM '{archive}'"""
    assert sorted(row[0] for row in duckdb.execute(query).fetchall()) == sorted(
        lines(RECORDS + diagnostics).splitlines()
    )

    more = block("2026-08-05T08:00:00Z", A)
    (tmp_path / "more.log").write_text(lines(more))
    assert ask(tmp_path / "more.log", "--log", str(archive), "archive", str(archive)).code == 0
    assert ask(archive, "sql", "SELECT count(*) AS number FROM polls").rows == [{"number": 6}]


def test_what_cannot_be_read(log: Path, tmp_path: Path) -> None:
    """A file that is not there is a usage error; one that is damaged or foreign is said to be; neither is an empty answer."""
    assert ask(tmp_path / "nothing.log", "at").code == 2
    whole = gzip.compress(log.read_bytes())
    (damaged := tmp_path / "damaged.log.gz").write_bytes(whole[: len(whole) // 2])
    (foreign := tmp_path / "foreign.parquet").write_bytes(b"PAR1 no")
    other = tmp_path / "other.parquet"
    duckdb.sql(f"COPY (SELECT 1 AS one) TO '{other}'")
    # Until 2.0, DuckDB does not notice that a gzipped file is cut short.
    for path in (foreign, other) if duckdb.__version__ < "2" else (damaged, foreign, other):
        asked = ask(path, "at")
        assert (asked.code, asked.stdout) == (74, "")
        assert asked.stderr.startswith("history.py: the log cannot be read: ")


@pytest.mark.parametrize("question", [("at",), ("report", "/dev/full"), ("report", "/nowhere/page.html")])
def test_what_cannot_be_written(question: tuple[str, ...], log: Path) -> None:
    """Where there is no room, or no folder, there is a message and the exit code for it."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, HISTORY, "--log", log, *question],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 74
    assert re.fullmatch(r"history.py: .* cannot be written: .*\n", done.stderr)


REFUSED = {
    "at 99999-01-01": "is no time",
    "coverage --gap '-1 hour'": "is no duration",
    "coverage --gap '100000000 years'": "is no duration",
    "archive log.pq": "ends in .parquet",
    "find \udcff": "not in UTF-8",
    "hours --by tag:\udcff": "not in UTF-8",
    "sql 'SELECT now()'": "cast",
    "sql 'FROM polls JOIN regions USING (account)'": "the same name",
    "sql 'FROM polls WHERE'": "Parser Error",
}


@pytest.mark.parametrize("question", REFUSED)
def test_what_one_cannot_ask(question: str, log: Path) -> None:
    """It is refused in a sentence, as a usage error."""
    asked = ask(log, *shlex.split(question))
    assert (asked.code, asked.stdout) == (2, "")
    assert REFUSED[question] in asked.stderr


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    """The file that is named is read, and not the one that it would match."""
    for number, name in ((1, "a[1].log"), (2, "a1.log"), (3, "b*.log")):
        (tmp_path / name).write_text(lines(block(ONE, instance(ONE, number))))
    for number, name in ((1, "a[1].log"), (3, "b*.log")):
        (row,) = ask(tmp_path / name, "at").rows
        assert row["private_ip_address"] == f"10.0.3.{number}"
        archive = tmp_path / name.replace("log", "parquet")
        assert ask(tmp_path / name, "archive", str(archive)).code == 0
        assert ask(archive, "at").rows == [row]


def test_what_nobody_can_read(tmp_path: Path) -> None:
    """A file of which nothing is a record, as one that is compressed otherwise, is an error and no empty answer."""
    (log := tmp_path / "log.bz2").write_bytes(bz2.compress(lines(RECORDS).encode()))
    asked = ask(log, "at")
    assert (asked.code, asked.stdout) == (74, "")
    assert "no line of it is a record" in asked.stderr


def test_what_is_unreadable_proves_nothing(tmp_path: Path) -> None:
    """A region line without its count or its status covers nothing; a poll of endless seconds is taken for cut off."""
    (log := tmp_path / "log").write_text(
        lines([*block(ONE, A), region(TWO, None), poll(TWO), region(THREE, 0, None), poll(THREE, seconds=1e300)])
    )
    (row,) = ask(log, "find", A["instance_id"]).rows
    assert (row["fate"], row["end_latest"]) == ("not covered", None)
    assert ask(log, "coverage").rows[-1]["reason"] == ("1 lacking lines, 1 without status: RequestLimitExceeded")


def test_hours_that_nobody_saw(tmp_path: Path) -> None:
    """Of an instance that is not covered any more, the error says that it may have run on."""
    failed = [
        record for time in (THREE, SIX) for record in (region(time, 0, "failed"), poll(time, regions={"failed": 1}))
    ]
    (log := tmp_path / "log").write_text(lines([*block(ONE, A), *block(TWO, A), *failed]))
    (row,) = ask(log, "hours").rows
    assert (row["hours"], row["error"]) == (3.0, 2.0)


def test_nothing_found(log: Path, tmp_path: Path) -> None:
    """Nothing found is exit code 1, and nothing on standard output."""
    (empty := tmp_path / "empty.log").write_text("")
    for path, question in (
        (log, ("find", "10.9.9.9")),
        (log, ("timeline", "i-0")),
        (empty, ("at",)),
        (empty, ("hours",)),
    ):
        asked = ask(path, *question)
        assert (asked.code, asked.stdout, asked.stderr) == (1, "", "")


def test_a_reader_that_leaves(log: Path) -> None:
    """A pipe to head ends without a word."""
    log.write_text(lines(block(ONE, *(instance(ONE, number) for number in range(1, 3000)))))
    command = f"{sys.executable} {HISTORY} --log {log} at | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


def test_without_duckdb(log: Path) -> None:
    """Where DuckDB is not installed, --help works and a question says what to install; the poller never imports it."""
    without = "import runpy, sys; sys.modules['duckdb'] = None; sys.argv[0] = path = sys.argv.pop(1); runpy.run_path(path, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", without, HISTORY, "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[0][:17]) == (0, "usage: history.py")
    asked = [sys.executable, "-c", without, str(HISTORY), "--log", str(log), "at"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        74,
        "history.py: duckdb is missing: pip install -r requirements-history.txt\n",
    )
    seen = "import sys; sys.argv = ['main.py', '--version']; import main; print('duckdb' in sys.modules, 'history' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", seen], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_readme(log: Path) -> None:
    """The questions of the README are answered as it shows."""
    shown = sample("questions")
    commands = re.findall(r"^\$ (./history.py --log inventory.log (.*))$", shown, re.MULTILINE)
    assert len(commands) > 4
    answers = (
        f"$ {command}\n{ask(log, '--format', 'table', *question.split()).stdout}" for command, question in commands
    )
    assert "".join(answers) == shown


def test_help() -> None:
    """The README's help is the real one."""
    done = subprocess.run(
        [sys.executable, HISTORY, "--help"], env={"COLUMNS": "80"}, capture_output=True, text=True, check=True
    )
    assert f"$ ./history.py --help\n{done.stdout}" == sample("history help")
