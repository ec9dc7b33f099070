"""Every fault at every joint, see faults.py: the record is whole, and says what it lacks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from faults import (
    DOCUMENT,
    FLEET,
    HOME,
    IDENTITY,
    INTRODUCTION,
    JOINTS,
    METADATA,
    PAGES,
    honest_page,
    performed,
    rendered,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from conftest import Poller
    from scripted_aws import ScriptedAWS


def column(table: str, joint: str) -> list[tuple[str, str]]:
    """Fault and outcome."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return [(row[0], row[JOINTS.index(joint) + 1]) for row in rows]


@pytest.mark.parametrize(
    "joints", [[joint] for joint in (*METADATA, IDENTITY)] + [PAGES], ids=lambda joints: joints[-1]
)
def test_faults(joints: Sequence[str]) -> None:
    """Exit code, log and time are as they should be for each fault, and as the documentation says."""
    outcomes = performed(joints)
    flaws = [f"{outcome.play}: {'; '.join(outcome.flaws)}\n{outcome.log}" for outcome in outcomes if outcome.flaws]
    assert not flaws, "\n".join(flaws)
    assert DOCUMENT.read_text().startswith(INTRODUCTION)
    for joint in joints:
        assert column(DOCUMENT.read_text(), joint) == column(rendered(outcomes), joint)


@pytest.mark.parametrize(
    "redirected",
    [">&-", "1< $log", "> /dev/full", ">> $log"],
    ids=["closed", "open for reading only", "a full disk", "a disk that fills in mid-poll"],
)
def test_output_faults(redirected: str, script: Callable[..., ScriptedAWS], poller: Poller, tmp_path: Path) -> None:
    """Exit code 74, then a poll that can write leaves a complete record, of which no line is joined to another."""
    script(honest_page)
    log = tmp_path / "log"
    log.touch()
    poller.environment["log"] = str(log)
    run = poller.shell(redirected, before="ulimit -f 4;")  # blocks of 512 bytes, or of 1,024
    assert run.code == 74
    assert run.said.startswith("standard output cannot be written: ")
    assert poller.shell(">> $log").code == 0
    lines = log.read_text().splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]
    assert len(lines) - len(records) <= (redirected == ">> $log")
    ids = [each for page in FLEET[HOME] for each in page]
    assert [record.get("instance_id") for record in records[-11:]] == [*ids, None, None]
    assert [record["instance_id"] for record in records[:-11]] == ids[: len(records) - 11]
