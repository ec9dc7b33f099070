"""Hostile input: from the XML to the record and to the terminal, arguments, and configuration files."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import BotoCoreError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripted_aws import Reply, ScriptedAWS, an_instance, escaped, page

import inventory_manager
import main
from inventory_manager import InventoryManager, Poll, json_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import boto3
    from conftest import Poller

# Function-scoped fixtures: what they give is the same for all examples.
repeatable = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PAGE = page(
    *(
        an_instance(
            number,
            tags={"Name": f"web-{number}", "Team": "Zürich – 東京"},
            more="<placement><availabilityZone>eu-west-1a</availabilityZone><tenancy>default</tenancy></placement>"
            "<reason>User initiated (2021-10-04 14:13:33 GMT)</reason>"
            "<networkInterfaceSet><item><attachment><deviceIndex>0</deviceIndex>"
            "<attachTime>2026-11-01T08:00:00.000Z</attachTime></attachment></item></networkInterfaceSet>",
        )
        for number in range(3)
    ),
    per_reservation=2,
)

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
XML_TEXT = st.text(
    # Of the control characters, XML 1.0 knows three; of the last two code points none.
    st.characters(exclude_categories=["Cs"], exclude_characters="".join(map(chr, range(32))) + "\ufffe\uffff")
    | st.sampled_from("\t\n\r\x7f\x85\x9b\u2028\u202e")
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_manager, "PAUSE", 0)
    monkeypatch.setattr(main, "METADATA_PAUSE", 0)


@pytest.fixture
def polled(session: Callable[..., boto3.Session]) -> Iterator[Callable[[str | bytes], list[dict[str, Any]]]]:
    """A function that polls an EC2 which answers with this body, and gives the lines, having looked at their form."""
    with ScriptedAWS(lambda request: "") as aws:
        manager = InventoryManager(session(aws))

        def answered(body: str | bytes) -> list[dict[str, Any]]:
            aws.answer = lambda request: Reply(body)
            return lines_of(manager.poll())

        yield answered


def lines_of(poll: Poll) -> list[dict[str, Any]]:
    """The lines of a poll, that are lines, printable on a terminal, and without a bug of ours."""
    records = list(poll.records())
    lines = [json_line(record) for record in records]
    for line in lines:
        assert re.fullmatch(r"[ -~]*\n", line)
    assert all(line.isprintable() for line in main.table(records).splitlines())
    read = [json.loads(line) for line in lines]
    assert [record["record"] for record in read].index("poll") == len(read) - 1
    for record in read:
        assert not record.get("error") or record["error"]["code"] != "InternalError"
    return read


@repeatable
@given(tags=st.dictionaries(XML_TEXT, XML_TEXT), name=XML_TEXT, zone=XML_TEXT, reason=XML_TEXT)
def test_any_text(
    tags: dict[str, str], name: str, zone: str, reason: str, polled: Callable[[str | bytes], list[dict[str, Any]]]
) -> None:
    """Whatever XML can say in a field is recorded as it is, on one line, and harmless on a terminal."""
    tags = {**tags, "Name": name}
    more = (
        f"<placement><availabilityZone>{escaped(zone)}</availabilityZone></placement><reason>{escaped(reason)}</reason>"
    )
    instance, region, poll = polled(page(an_instance(tags=tags, more=more)))
    assert instance["tags"] == tags
    assert (instance["name"], instance["availability_zone"]) == (name, zone or None)
    assert instance["state_transition_reason"] == (reason or None)
    assert region["status"] == "ok"
    assert poll["complete"] is True


ACCIDENTS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 40),
        st.binary(max_size=3)
        | st.sampled_from([b"<", b">", b"&", b"</item>", b"<item>", b"&lt;", b"\0", b"\x1b", b"9" * 30, b"-1", b"]]>"]),
    ),
    min_size=1,
    max_size=4,
)


def damaged(body: bytes, accidents: list[tuple[float, int, bytes]]) -> bytes:
    for where, removed, inserted in accidents:
        start = int(where * len(body))
        body = body[:start] + inserted + body[start + removed :]
    return body


@settings(repeatable, max_examples=300)
@given(accidents=ACCIDENTS)
def test_damaged_pages(
    accidents: list[tuple[float, int, bytes]], polled: Callable[[str | bytes], list[dict[str, Any]]]
) -> None:
    """A page that is damaged anywhere is a page still, or a failed region that says so and has recorded nothing."""
    *instances, region, poll = polled(damaged(PAGE.encode(), accidents))
    assert region["instances"] == len(instances) == poll["instances"]
    if region["status"] == "ok":
        assert poll["complete"] is True
    else:
        assert (region["status"], instances, poll["complete"]) == ("failed", [], False)
        assert region["error"]["code"]


NESTED = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {name} "{f"&{inner};" * 10}">' for inner, name in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><DescribeInstancesResponse><reservationSet>&i;</reservationSet></DescribeInstancesResponse>"
)
DEEP = "<DescribeInstancesResponse>" + "<reservationSet><item>" * 200_000


@pytest.mark.parametrize("body", [NESTED, DEEP], ids=["entities of entities", "deep"])
def test_bombs(body: str, script: Callable[..., ScriptedAWS], poller: Poller) -> None:
    """XML that is small and means to be large, or deep, is a failed region, in bounded memory."""
    script(lambda request: body)
    run = poller.shell("", before="ulimit -v 600000;")  # kilobytes of address space, most of which is never touched
    assert run.code == 1
    assert [record["record"] for record in run.records] == ["region", "poll"]
    assert run.poll["error"]["code"] == "MalformedResponse"


OPTIONS = ["--region", "--all-regions", "--format", "--full", "--deadline", "--profile", "--verbose", "table", "json"]


@repeatable
@given(
    arguments=st.lists(
        st.sampled_from([*OPTIONS, "eu-west-1", "default", "1e999", "nan", "-1", "", "\udcff"]) | ANY_TEXT
    )
)
@example(["--region", "eu-west-1\n"])
@example(["--deadline", "9" * 400])
def test_any_arguments(arguments: list[str]) -> None:
    """They make sense, or are a usage error that can be printed."""
    try:
        asked = main.arguments(arguments)
        main.make_session(asked.profile, asked.region)
    except SystemExit:  # an abbreviation of nothing: --help, spelt out by chance
        assert "-h" in " ".join(arguments)
    except main.UsageError as error:
        assert main.printable(str(error)).isprintable()
        line = json_line({"error": inventory_manager.InventoryError("Usage", str(error))})
        assert re.fullmatch(r"[ -~]*\n", line)


SETTINGS = st.sampled_from(
    [
        *("region", "endpoint_url", "retry_mode", "max_attempts", "ca_bundle", "output", "services", "s3", "role_arn"),
        *("metadata_service_timeout", "metadata_service_num_attempts", "ec2_metadata_service_endpoint"),
        *("ec2_metadata_service_endpoint_mode", "use_fips_endpoint", "use_dualstack_endpoint", "defaults_mode"),
        *("sts_regional_endpoints", "parameter_validation", "tcp_keepalive", "request_min_compression_size_bytes"),
        *("credential_process", "account_id_endpoint_mode", "sigv4a_signing_region_set", "user_agent_appid"),
    ]
)
VALUES = ANY_TEXT | st.sampled_from(["true", "ipv6", "http://[", "eu-west-1", "standard", "-1", "0", "auto", "legacy"])
CONFIGS = st.binary() | st.lists(st.tuples(SETTINGS, VALUES)).map(
    lambda lines: b"[default]\n" + "".join(f"{name} = {value}\n" for name, value in lines).encode()
)


@repeatable
@given(config=CONFIGS)
def test_any_configuration(config: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A configuration file makes a session, or is an error that main.py knows, or one that is in the poll line."""
    (tmp_path / "config").write_bytes(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    try:
        session = main.make_session(None, [])
    except (main.UsageError, BotoCoreError):
        return
    assert lines_of(InventoryManager(session).poll(deadline=20))[-1]["complete"] is False
