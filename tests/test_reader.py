"""The reader of DescribeInstances' answers against botocore's own parser: equal results, or none of its own."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any, cast
from xml.sax.saxutils import escape

import boto3
import pytest
import server
from botocore.loaders import Loader
from botocore.model import ListShape, ServiceModel, Shape, StructureShape
from botocore.parsers import EC2QueryParser, ResponseParserError
from hypothesis import given, settings
from scripted_aws import ScriptedAWS, ec2_error, page
from test_fuzz import ACCIDENTS, PAGE, damaged, repeatable

from inventory_manager import InventoryManager, MalformedResponseError, _instances, _Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulated_aws import EmulatedAWS

    Scripts = Callable[..., ScriptedAWS]
    Sessions = Callable[..., boto3.Session]

MODEL = boto3.Session("AKIAEXAMPLE", "secret").client("ec2", "eu-west-1").meta.service_model
OPERATION = MODEL.operation_model("DescribeInstances")
READER = _Reader(MODEL, full=True)
SHAPE = cast("StructureShape", OPERATION.output_shape)


def parsed(response: dict[str, Any]) -> Any:
    """What botocore's parser makes of a response, or the kind of its error."""
    try:
        return EC2QueryParser().parse(response, SHAPE)
    except (ResponseParserError, ValueError, AttributeError, TypeError, LookupError) as error:
        return type(error)


def both(body: bytes, status: int = 200) -> tuple[Any, Any, bool]:
    """What botocore makes of an answer, by itself and with the reader; and whether the reader has read it."""
    alone = parsed({"status_code": status, "headers": {}, "body": body})
    response = {"status_code": status, "headers": {}, "body": body}
    given_in_advance: dict[str, Any] = {}
    READER.before_parse(response, given_in_advance)
    together = parsed(response)
    if isinstance(together, dict):
        together.update(given_in_advance)
    return alone, together, response["body"] != body


def typed(value: Any) -> Any:
    """`value` with the type of everything in it: True is not 1."""
    if isinstance(value, dict):
        return {key: typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [typed(each) for each in value]
    return type(value), value, repr(value)


def rendered(shape: Shape, chance: random.Random, indent: str) -> str:
    """An XML element's content as the model has it, with every member more often than not."""
    if isinstance(shape, StructureShape):
        parts = []
        for name, member in shape.members.items():
            tag = member.serialization.get("name", name)
            if chance.random() < 0.9:
                parts.append(f"<{tag}>{rendered(member, chance, indent)}</{tag}>{indent}")
            if chance.random() < 0.02:
                parts.append("<newerThanTheModel><item>1<item/></item></newerThanTheModel>")
        chance.shuffle(parts)
        return indent + "".join(parts)
    if isinstance(shape, ListShape):
        tag = shape.member.serialization["name"]
        items = range(chance.choice([0, 1, 1, 2]))
        return indent + "".join(f"<{tag}>{rendered(shape.member, chance, indent)}</{tag}>" for _ in items)
    texts: dict[str, Callable[[], str]] = {
        "string": lambda: escape(chance.choice(["", " a b ", "Zürich & <東京>", "x" * 300, "a\nb", "\x85\u2028"])),
        "integer": lambda: chance.choice(["0", "-1", "443", " 7 ", "+5"]),
        "long": lambda: str(2**40),
        "float": lambda: chance.choice(["1", "0.5", "-1e3"]),
        "double": lambda: "0.25",
        "boolean": lambda: chance.choice(["true", "false", "TRUE", "1", ""]),
        "timestamp": lambda: chance.choice(
            [
                "2026-11-01T08:00:00.000Z",
                "2026-11-01T08:00:00Z",
                "2026-11-01T08:00:00.123456Z",
                "1761984000",
                "2026-11-01T08:00:00+02:00",
                "2024-02-29T23:59:59.999Z",
            ]
        ),
    }
    return texts[shape.type_name]()


@pytest.mark.parametrize("seed", range(40))
def test_every_member_of_the_model(seed: int) -> None:
    """Answers made from the model, with every member of it, are read with an equal result, to the types."""
    chance = random.Random(seed)
    content = rendered(SHAPE, chance, chance.choice(["", "\n    "]))
    body = f"<?xml version='1.0'?>\n<DescribeInstancesResponse xmlns='x'><requestId>r-{seed}</requestId>{content}"
    alone, together, read = both(f"{body}</DescribeInstancesResponse>".encode())
    assert read
    assert typed(together) == typed(alone)


@pytest.mark.parametrize("seed", range(40))
def test_what_an_instance_is_made_of(seed: int) -> None:
    """A reader that is not full reads whatever an Instance needs: made of its result, all of them are equal."""
    content = rendered(SHAPE, random.Random(seed), "")
    body = f"<DescribeInstancesResponse>{content}</DescribeInstancesResponse>".encode()

    def made_by(reader: _Reader) -> Any:
        answer: Any = {}
        reader.before_parse({"status_code": 200, "headers": {}, "body": body}, answer)
        try:
            return _instances(answer, "eu-west-1", full=False), answer.get("NextToken")
        except KeyError as error:  # an instance without an id, say
            return repr(error)

    assert made_by(_Reader(MODEL, full=False)) == made_by(READER)


def test_what_nobody_needs_is_not_read() -> None:
    """A reader that is not full leaves most of an answer out."""
    answers: list[dict[str, Any]] = [{}, {}]
    content = max((rendered(SHAPE, random.Random(seed), "") for seed in range(5)), key=len)
    body = f"<DescribeInstancesResponse>{content}</DescribeInstancesResponse>".encode()
    for answer, full in zip(answers, (True, False), strict=True):
        _Reader(MODEL, full).before_parse({"status_code": 200, "headers": {}, "body": body}, answer)
    assert len(repr(answers[1])) < len(repr(answers[0])) / 2


def test_the_model_is_covered() -> None:
    """All those answers together have every member that the model has."""

    def members(shape: Shape, path: str) -> set[str]:
        if isinstance(shape, StructureShape):
            return {each for name, member in shape.members.items() for each in members(member, f"{path}.{name}")} | {
                path
            }
        return members(shape.member, f"{path}[]") if isinstance(shape, ListShape) else {path}

    def found(value: Any, path: str) -> set[str]:
        if isinstance(value, dict):
            return {each for name, member in value.items() for each in found(member, f"{path}.{name}")} | {path}
        return {each for item in value for each in found(item, f"{path}[]")} if isinstance(value, list) else {path}

    seen: set[str] = set()
    for seed in range(40):
        content = rendered(SHAPE, random.Random(seed), "")
        seen |= found(both(f"<DescribeInstancesResponse>{content}</DescribeInstancesResponse>".encode())[1], "")
    assert members(SHAPE, "") - seen == set()


def test_an_emulated_account(account: EmulatedAWS) -> None:
    """The lifelike fleet is read as botocore reads it."""
    bodies = []
    client = account.ec2()
    client.meta.events.register("before-parse.ec2", lambda response_dict, **event: bodies.append(response_dict["body"]))
    client.describe_instances()
    alone, together, read = both(bodies[0])
    assert read
    assert len(alone["Reservations"]) > 4
    assert typed(together) == typed(alone)


def test_a_page_of_the_benchmarks() -> None:
    """The lifelike page that speed is measured on is read as botocore reads it."""
    (answer,) = server.region_pages("eu-west-1", number=0, instances=10)
    alone, together, read = both(answer.partition(b"\r\n\r\n")[2])
    assert read
    assert len(alone["Reservations"]) == 10
    assert typed(together) == typed(alone)


UNUSUAL = {
    "a request id to escape": PAGE.replace("<requestId>r-1</requestId>", "<requestId>&lt;&amp;</requestId>"),
    "empty": "",
    "foreign": "<feed><entry/></feed>",
    "HTML": "<html><body>Please log in</body></html>",
    "not closed": PAGE[:-5],
    "an item of another name": PAGE.replace("<tagSet>", "<tagSet><tag><key>a</key><value>b</value></tag>"),
    "an element in a scalar": PAGE.replace("<imageId>", "<imageId>ami<b>-1</b>"),
    "a prefix": PAGE.replace("<imageId>", "<x:imageId xmlns:x='y'>").replace("</imageId>", "</x:imageId>"),
    "a prefix that stands for nothing": PAGE.replace("imageId>", "x:imageId>"),
    "an attribute": PAGE.replace("<imageId>", "<imageId a='1'>"),
    "a bad integer": PAGE.replace("<code>16<", "<code>sixteen<"),
    "a bad time": PAGE.replace("2026-11-01T", "2026-31-01T"),
    "entities": "<!DOCTYPE x [<!ENTITY a 'b'>]>" + PAGE.partition("?>")[2].replace("web-0", "&a;"),
    "an unknown entity": PAGE.replace("web-0", "&nbsp;"),
    "another root": PAGE.replace("DescribeInstancesResponse", "DescribeVolumesResponse"),
}
TWICE = {
    "a list twice": PAGE.replace("<tagSet>", "<tagSet><item><key>a</key></item></tagSet><tagSet>"),
    "two request ids": PAGE.replace("<requestId>", "<requestId>1</requestId><requestId>"),
    "a member twice": PAGE.replace("<imageId>", "<imageId>ami-1</imageId><imageId>"),
}
USUAL = {
    "as it is": PAGE,
    "a comment": PAGE.replace("web-0", "web<!-- comment -->-0"),
    "CDATA": PAGE.replace("web-0", "<![CDATA[<web>]]>"),
    "character references": PAGE.replace("web-0", "&#x27;&#13;&amp;lt;"),
    "unknown elements": PAGE.replace("<imageId>", "<brandNew><imageId>ami-1</imageId><item/></brandNew><imageId>"),
    "no request id": PAGE.replace("<requestId>r-1</requestId>", ""),
    "an empty request id": PAGE.replace("<requestId>r-1</requestId>", "<requestId/>"),
    "no instances": page(),
    "latin-1": PAGE.replace("UTF-8", "latin-1"),
    "a time in another alphabet": PAGE.replace("2026-11-01T", "٢٠٢٦-11-01T"),
}


@pytest.mark.parametrize("body", USUAL.values(), ids=USUAL.keys())
def test_what_is_read(body: str) -> None:
    """Whatever XML has to say one thing, the result is botocore's."""
    alone, together, read = both(body.encode())
    assert read
    assert typed(together) == typed(alone)


@pytest.mark.parametrize("body", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_left_to_botocore(body: str) -> None:
    """Anything else, the reader does not touch: the result or the error is botocore's."""
    alone, together, read = both(body.encode())
    assert not read
    assert alone is together or typed(together) == typed(alone)


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE.keys())
def test_what_comes_twice(body: str, script: Scripts, session: Sessions) -> None:
    """botocore's parser would mix XML nodes, or nonsense, into the result: no answer is better."""
    aws = script(lambda request: body)
    with pytest.raises(MalformedResponseError):
        list(InventoryManager(session(aws)).instances())


@pytest.mark.parametrize("status", [300, 400, 403, 500, 503])
def test_errors_are_left_to_botocore(status: int) -> None:
    """Also those that look like a page."""
    for body in (str(ec2_error("RequestLimitExceeded").body), PAGE, ""):
        alone, together, read = both(body.encode(), status)
        assert not read
        assert alone is together or typed(together) == typed(alone)


@settings(repeatable, max_examples=1000)
@given(accidents=ACCIDENTS)
def test_damaged_answers(accidents: list[tuple[float, int, bytes]]) -> None:
    """Read or not: the result, or the kind of error, is botocore's."""
    body = damaged(PAGE.encode(), accidents)
    try:
        alone, together, _ = both(body)
    except ResponseParserError as error:
        assert "comes twice" in str(error)
        return
    assert alone is together or typed(together) == typed(alone)


# What the reader relies on in botocore


def test_contract_with_botocore(script: Scripts, session: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's parser is given no more than the rest of an answer: its event is there, and does what it did.

    If this fails, botocore has changed, polls are right still, and take several times the CPU.
    """
    sizes = []
    parse = EC2QueryParser.parse
    here = threading.get_ident()

    def watched(self: EC2QueryParser, response: dict[str, Any], shape: Shape) -> Any:
        if threading.get_ident() == here:  # and not in a poll that another test has given up
            sizes.append(len(response["body"]))
        return parse(self, response, shape)

    monkeypatch.setattr(EC2QueryParser, "parse", watched)
    aws = script(lambda request: PAGE)
    assert len(list(InventoryManager(session(aws)).instances())) == 3
    assert len(sizes) == 1
    assert sizes[0] < 100


def test_only_the_managers_own_clients_have_it(script: Scripts, session: Sessions) -> None:
    """Neither the caller's session, nor a client that it makes later, nor botocore as a whole is changed."""
    aws = script(lambda request: PAGE)
    given = session(aws)
    assert len(list(InventoryManager(given).instances())) == 3
    response = {"status_code": 200, "headers": {}, "body": PAGE.encode()}
    for events in (given.events, given.client("ec2").meta.events, boto3.Session().events):
        events.emit(
            "before-parse.ec2.DescribeInstances",
            operation_model=OPERATION,
            response_dict=response,
            customized_response_dict={},
        )
        assert response["body"] == PAGE.encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"type": "map", "key": {"shape": "String"}, "value": {"shape": "String"}},
        {"type": "blob"},
        {"type": "structure", "members": {}, "union": True},
        {"type": "list", "member": {"shape": "String"}, "flattened": True},
        {"type": "list", "member": {"shape": "String"}},
        {"type": "structure", "members": {"A": {"shape": "String", "xmlAttribute": True}}},
    ],
)
def test_a_model_that_it_does_not_know(changed: dict[str, Any]) -> None:
    """A shape of a new kind, anywhere in the model, leaves all to botocore's parser."""
    definition = Loader().load_service_model("ec2", "service-2")
    definition["shapes"]["Tag"] = changed
    response = {"status_code": 200, "headers": {}, "body": PAGE.encode()}
    given_in_advance: dict[str, Any] = {}
    _Reader(ServiceModel(definition, "ec2"), full=True).before_parse(response, given_in_advance)
    assert (response["body"], given_in_advance) == (PAGE.encode(), {})
