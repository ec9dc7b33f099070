"""The library, on real HTTP: another project imports it, gives it a session, and gets typed instances."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from conftest import REPOSITORY
from scripted_aws import (
    ACCOUNT,
    Reply,
    Request,
    ScriptedAWS,
    an_instance,
    caller_identity,
    ec2_error,
    endless,
    page,
    sts_error,
)

import inventory_manager
from inventory_manager import (
    CredentialsError,
    DeniedError,
    Instance,
    InventoryError,
    InventoryManager,
    MalformedResponseError,
    NotEnabledError,
    PollOutcome,
    RegionError,
    RegionOutcome,
    json_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from emulated_aws import EmulatedAWS

    Sessions = Callable[..., boto3.Session]
    Scripts = Callable[..., ScriptedAWS]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_manager, "PAUSE", 0.01)


def only(manager: InventoryManager) -> Instance:
    (instance,) = manager.instances()
    return instance


# What is asked


def test_the_request_is_for_whole_pages_and_managed_instances(script: Scripts, session: Sessions) -> None:
    """DescribeInstances is asked with MaxResults 1000 and IncludeManagedResources, in the session's region."""
    aws = script(lambda request: page(an_instance()))
    list(InventoryManager(session(aws)).instances())
    (request,) = aws.requests
    assert request.action == "DescribeInstances"
    assert request.region == "eu-west-1"
    assert request.parameters["MaxResults"] == "1000"
    assert request.parameters["IncludeManagedResources"] == "true"


def test_filters_and_another_region(script: Scripts, session: Sessions) -> None:
    """Filters take a value or several; a region named wins over the session's."""
    aws = script(lambda request: page())
    manager = InventoryManager(session(aws))
    assert (
        list(manager.instances("us-east-1", {"tag:Team": "payments", "instance-type": ["m5.large", "c5.large"]})) == []
    )
    (request,) = aws.requests
    assert request.region == "us-east-1"
    assert {name: value for name, value in request.parameters.items() if name.startswith("Filter")} == {
        "Filter.1.Name": "tag:Team",
        "Filter.1.Value.1": "payments",
        "Filter.2.Name": "instance-type",
        "Filter.2.Value.1": "m5.large",
        "Filter.2.Value.2": "c5.large",
    }


def test_filters_work(account: EmulatedAWS, session: Sessions) -> None:
    """A filter keeps what matches it."""
    manager = InventoryManager(session(account))
    assert {instance.name for instance in manager.instances(filters={"tag:Team": "payments"})} == {"orders-db"}


def test_nothing_is_asked_before_it_is_needed(script: Scripts, session: Sessions) -> None:
    """Neither the constructor nor the call of instances() asks AWS, and a page is asked for when it is wanted."""
    aws = script(endless())
    instances = InventoryManager(session(aws)).instances()
    assert aws.requests == []
    assert [next(instances).instance_id[-1] for _ in range(3)] == ["0", "1", "2"]
    assert len(aws.requests) == 3


def test_session_and_environment_stay_as_they_were(script: Scripts, session: Sessions) -> None:
    """No component of the session is replaced, none of its settings, and nothing in the environment."""
    aws = script(lambda request: page(an_instance()))
    given = session(aws)
    inner = given._session
    components = ("credential_provider", "data_loader", "event_emitter", "config_store")

    def state() -> tuple[object, ...]:
        return (
            [inner.get_component(name) for name in components],
            inner.get_default_client_config(),
            dict(inner.instance_variables()),
            given.region_name,
            given.events,
            dict(os.environ),
        )

    before = state()
    manager = InventoryManager(given)
    manager.caller_identity()
    list(manager.instances())
    list(manager.poll(["us-east-1"]))
    assert state() == before


# Whose account


def test_plain_session(account: EmulatedAWS, session: Sessions) -> None:
    """A session with keys is who STS says."""
    identity = InventoryManager(session(account)).caller_identity()
    assert identity.account == ACCOUNT
    assert identity.arn == f"arn:aws:sts::{ACCOUNT}:user/moto"


def test_assumed_role(account: EmulatedAWS, session: Sessions) -> None:
    """A session of a role in another account is asked as that role, and sees that account."""
    role = (
        session(account)
        .client("sts")
        .assume_role(RoleArn="arn:aws:iam::210987654321:role/auditor", RoleSessionName="test")["Credentials"]
    )
    assumed = boto3.Session(role["AccessKeyId"], role["SecretAccessKey"], role["SessionToken"], region_name="eu-west-1")
    manager = InventoryManager(assumed)
    assert manager.caller_identity().arn == "arn:aws:sts::210987654321:assumed-role/auditor/test"
    assert list(manager.instances()) == []


def test_profile(account: EmulatedAWS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A session of a profile takes that profile's keys and region."""
    config = tmp_path / "config"
    config.write_text("[profile dev]\nregion = us-east-1\naws_access_key_id = AKIADEV\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ENDPOINT_URL", account.url)
    manager = InventoryManager(boto3.Session(profile_name="dev"))
    assert {instance.region for instance in manager.instances()} == {"us-east-1"}


def test_motos_session() -> None:
    """A project that tests itself with moto's decorator can do so with this in it."""
    project = """
import boto3
from inventory_manager import InventoryManager
from moto import mock_aws
with mock_aws():
    session = boto3.Session(region_name="eu-west-1")
    session.client("ec2").run_instances(ImageId="ami-0abcdef1234567890", MinCount=2, MaxCount=2)
    manager = InventoryManager(session)
    print([instance.state for instance in manager.instances()], [type(item).__name__ for item in manager.poll()])
"""
    # A process of its own: the decorator empties every account that moto emulates in it.
    run = subprocess.run([sys.executable, "-c", project], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == "['running', 'running'] ['Instance', 'Instance', 'RegionOutcome', 'PollOutcome']\n"


def test_identity_without_a_region(script: Scripts, session: Sessions) -> None:
    """A session without a region asks STS in us-east-1; listing needs a region, and says so."""
    aws = script(lambda request: page())
    manager = InventoryManager(session(aws, region=None))
    assert manager.caller_identity().account == ACCOUNT
    assert aws.requests[0].region == "us-east-1"
    with pytest.raises(RegionError, match="AWS_REGION"):
        next(manager.instances())


# What is given


def test_every_field(script: Scripts, session: Sessions) -> None:
    """Each field of Instance comes from its place in the API's answer."""
    aws = script(
        lambda request: page(
            an_instance(
                "i-1",
                state="stopped",
                tags={"Name": "db", "Team": "payments", "empty": ""},
                more="""<reason>User initiated (2021-10-04 14:13:33 GMT)</reason>
                <placement><availabilityZone>eu-west-1b</availabilityZone><tenancy>dedicated</tenancy></placement>
                <privateIpAddress>10.0.3.7</privateIpAddress><ipAddress>54.1.2.3</ipAddress>
                <vpcId>vpc-1</vpcId><subnetId>subnet-1</subnetId><keyName>ops</keyName>
                <groupSet><item><groupId>sg-1</groupId><groupName>a</groupName></item>
                <item><groupId>sg-2</groupId><groupName>b</groupName></item></groupSet>
                <iamInstanceProfile><arn>arn:aws:iam::1:instance-profile/p</arn><id>X</id></iamInstanceProfile>
                <architecture>arm64</architecture><platformDetails>Linux/UNIX</platformDetails>
                <instanceLifecycle>spot</instanceLifecycle>
                <operator><managed>true</managed><principal>eks.amazonaws.com</principal></operator>
                <blockDeviceMapping><item><deviceName>/dev/sda1</deviceName><ebs><volumeId>vol-1</volumeId></ebs></item>
                <item><deviceName>/dev/sdb</deviceName><ebs><volumeId>vol-2</volumeId></ebs></item></blockDeviceMapping>
                <networkInterfaceSet>
                <item><attachment><deviceIndex>1</deviceIndex><attachTime>2021-05-05T05:05:05.000Z</attachTime>
                </attachment><ipv6AddressesSet><item><ipv6Address>2001:db8::2</ipv6Address></item></ipv6AddressesSet></item>
                <item><attachment><deviceIndex>0</deviceIndex><attachTime>2020-02-29T01:02:03.000Z</attachTime>
                </attachment><ipv6AddressesSet><item><ipv6Address>2001:db8::1</ipv6Address></item></ipv6AddressesSet></item>
                </networkInterfaceSet>""",
            )
        )
    )
    instance = only(InventoryManager(session(aws)))
    utc = timezone.utc
    assert instance == Instance(
        region="eu-west-1",
        instance_id="i-1",
        state="stopped",
        name="db",
        instance_type="t4g.nano",
        availability_zone="eu-west-1b",
        launch_time=datetime(2026, 11, 1, 8, tzinfo=utc),
        first_launch_time=datetime(2020, 2, 29, 1, 2, 3, tzinfo=utc),
        state_transition_reason="User initiated (2021-10-04 14:13:33 GMT)",
        state_transition_time=datetime(2021, 10, 4, 14, 13, 33, tzinfo=utc),
        private_ip_address="10.0.3.7",
        public_ip_address="54.1.2.3",
        ipv6_addresses=("2001:db8::2", "2001:db8::1"),
        vpc_id="vpc-1",
        subnet_id="subnet-1",
        security_groups=("sg-1", "sg-2"),
        image_id="ami-0abcdef1234567890",
        key_name="ops",
        iam_instance_profile="arn:aws:iam::1:instance-profile/p",
        architecture="arm64",
        platform_details="Linux/UNIX",
        tenancy="dedicated",
        lifecycle="spot",
        owner_id=ACCOUNT,
        reservation_id="r-00000000000000000",
        volumes=("vol-1", "vol-2"),
        managed_by="eks.amazonaws.com",
        tags={"Name": "db", "Team": "payments", "empty": ""},
    )
    (full,) = InventoryManager(session(aws)).instances(full=True)
    assert full == instance
    assert full.details
    assert full.details["Placement"]["Tenancy"] == "dedicated"
    with pytest.raises(AttributeError):
        instance.state = "running"  # type: ignore[misc]  # it is frozen: that is the test


def test_a_terminated_instance_that_has_lost_everything(script: Scripts, session: Sessions) -> None:
    """What AWS no longer gives is None or empty, and nothing fails."""
    bare = (
        "<item><instanceId>i-1</instanceId><instanceState><code>48</code><name>terminated</name></instanceState></item>"
    )
    aws = script(lambda request: page(bare))
    instance = only(InventoryManager(session(aws)))
    given = {"region", "instance_id", "state", "lifecycle", "owner_id", "reservation_id", "details"}
    for name in (entry.name for entry in fields(instance)):
        if name not in given:
            assert not getattr(instance, name), name
    assert instance.lifecycle == "on-demand"


@pytest.mark.parametrize(
    ("reason", "time"),
    [
        ("User initiated (2021-10-04 14:13:33 GMT)", datetime(2021, 10, 4, 14, 13, 33, tzinfo=timezone.utc)),
        ("User initiated (2021-10-04 14:13:33 UTC)", datetime(2021, 10, 4, 14, 13, 33, tzinfo=timezone.utc)),
        ("User initiated", None),
        ("Server.InternalError", None),
        ("", None),
        ("User initiated (2021-13-40 14:13:33 GMT)", None),
        ("User initiated (2021-10-04 14:13:33 PST)", None),
    ],
)
def test_state_transition_time(reason: str, time: datetime | None, script: Scripts, session: Sessions) -> None:
    """The time is taken from the reason where it has one in UTC, and never invented."""
    aws = script(lambda request: page(an_instance(state="stopped", more=f"<reason>{reason}</reason>")))
    instance = only(InventoryManager(session(aws)))
    assert instance.state_transition_reason == (reason or None)
    assert instance.state_transition_time == time


@pytest.mark.parametrize("zone", ["us-west-2-lax-1a", "us-east-1-wl1-bos-wlz-1", "eu-west-1c"])
def test_zone_names(zone: str, script: Scripts, session: Sessions) -> None:
    """Local Zones and Wavelength Zones keep their whole names."""
    more = f"<placement><availabilityZone>{zone}</availabilityZone></placement>"
    aws = script(lambda request: page(an_instance(more=more)))
    assert only(InventoryManager(session(aws))).availability_zone == zone


def test_ipv6_only(script: Scripts, session: Sessions) -> None:
    """An instance may have nothing but an IPv6 address."""
    more = """<networkInterfaceSet><item><attachment><deviceIndex>0</deviceIndex></attachment><ipv6AddressesSet><item>
    <ipv6Address>2001:db8::1</ipv6Address></item></ipv6AddressesSet></item></networkInterfaceSet>"""
    aws = script(lambda request: page(an_instance(more=more)))
    instance = only(InventoryManager(session(aws)))
    assert (instance.private_ip_address, instance.public_ip_address) == (None, None)
    assert instance.ipv6_addresses == ("2001:db8::1",)
    assert instance.first_launch_time is None


# Pages


def test_2500_instances_in_odd_pages(script: Scripts, session: Sessions) -> None:
    """Several reservations, a short page, an empty one with a token and an instance twice: each once, in order."""
    pages = {
        None: page(*map(an_instance, range(1000)), token="t1", per_reservation=7),
        "t1": page(token="t2"),
        "t2": page(*map(an_instance, range(1000, 1400)), token="t3", per_reservation=400),
        "t3": page(*map(an_instance, [3, 1399, *range(1400, 2500), 2499]), token=None),
    }
    aws = script(lambda request: pages[request.page_token])
    ids = [instance.instance_id for instance in InventoryManager(session(aws)).instances()]
    assert ids == [f"i-{number:017x}" for number in range(2500)]


@pytest.mark.parametrize("code", ["InvalidPaginationToken", "InvalidNextToken"])
def test_a_page_token_that_expires_once(code: str, script: Scripts, session: Sessions) -> None:
    """The region is begun again, and what was given before is not given twice."""

    def answer(request: Request) -> Reply | str:
        if request.page_token is None:
            return page(an_instance(1), token=f"t{len(aws.requests)}")
        return ec2_error(code) if request.page_token == "t1" else page(an_instance(1), an_instance(2))

    aws = script(answer)
    assert len(list(InventoryManager(session(aws)).instances())) == 2
    assert [request.page_token for request in aws.requests] == [None, "t1", None, "t3"]


def test_tokens_that_go_round(script: Scripts, session: Sessions) -> None:
    """Tokens t1, t2, t1 for ever end in an error, not in a loop."""
    following = {None: "t1", "t1": "t2", "t2": "t1"}
    aws = script(lambda request: page(an_instance(), token=following[request.page_token]))
    with pytest.raises(InventoryError, match="same page token twice") as caught:
        list(InventoryManager(session(aws)).instances())
    assert caught.value.code == "RepeatedToken"
    assert len(aws.requests) == 12


ATTACHMENT = "<networkInterfaceSet><item><attachment>{}</attachment></item></networkInterfaceSet>"
MALFORMED = {
    "empty": "",
    "page of a proxy": "<html><body>Please log in</body></html>",
    "foreign XML": "<feed><entry/></feed>",
    "not XML": "upstream connect error",
    "cut off": page(an_instance())[:-40],
    "no Reservations": page().replace("reservationSet", "nothing"),
    "a bad integer": page(an_instance(more=ATTACHMENT.format("<deviceIndex>first</deviceIndex>"))),
    "a bad time": page(an_instance(more=ATTACHMENT.format("<attachTime>soon</attachTime>"))),
    "no id": page(an_instance().replace("instanceId", "id")),
    "no state": page(an_instance().replace("instanceState", "mood")),
    "a control character": page(an_instance(more="<keyName>\x1b</keyName>")),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_answer_is_never_an_empty_region(body: str, script: Scripts, session: Sessions) -> None:
    """HTTP 200 with anything but a whole page is asked for four times, then it is an error with botocore's behind."""
    aws = script(lambda request: body)
    with pytest.raises(MalformedResponseError, match=r"ec2:DescribeInstances in eu-west-1: the answer") as caught:
        list(InventoryManager(session(aws)).instances())
    assert isinstance(caught.value.__cause__, ResponseParserError | ValueError | KeyError)
    assert "Please log in" not in str(caught.value)
    assert len(aws.requests) == 4


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_answer_that_passes(body: str, script: Scripts, session: Sessions) -> None:
    """One such answer among good ones costs nothing: the same page is asked for again."""

    def answer(request: Request) -> str:
        if request.page_token is None:
            return page(an_instance(1), token="t1")
        return body if len(aws.requests) == 2 else page(an_instance(2))

    aws = script(answer)
    assert len(list(InventoryManager(session(aws)).instances())) == 2
    assert [request.page_token for request in aws.requests] == [None, "t1", "t1"]


def test_a_bad_number_that_nobody_asks_for(script: Scripts, session: Sessions) -> None:
    """It is part of an instance's details, and of nothing else: only they cannot be given."""
    aws = script(lambda request: page(an_instance(more="<amiLaunchIndex>first</amiLaunchIndex>")))
    assert only(InventoryManager(session(aws)))
    with pytest.raises(MalformedResponseError):
        list(InventoryManager(session(aws)).instances(full=True))


# Errors


@pytest.mark.parametrize(
    "reply",
    [Reply("<html>Bad Gateway</html>", 400), ec2_error("RequestExpired"), ec2_error("ExpiredToken"), Reply("", 302)],
)
def test_an_error_that_may_pass(reply: Reply, script: Scripts, session: Sessions) -> None:
    """What is not of AWS, and credentials that have just expired, are worth another try, but not more than three."""
    aws: ScriptedAWS = script(lambda request: reply if len(aws.requests) < 3 else page(an_instance()))
    assert only(InventoryManager(session(aws)))
    assert len(aws.requests) == 3
    aws.answer = lambda request: reply
    with pytest.raises(InventoryError):
        list(InventoryManager(session(aws)).instances())
    assert len(aws.requests) == 3 + 4


@pytest.mark.parametrize("status", [400, 503])
def test_throttling_is_waited_out(status: int, script: Scripts, session: Sessions) -> None:
    """RequestLimitExceeded is tried again, whichever HTTP status it comes with."""
    aws: ScriptedAWS = script(
        lambda request: (
            ec2_error("RequestLimitExceeded", status=status) if len(aws.requests) < 3 else page(an_instance())
        )
    )
    assert only(InventoryManager(session(aws)))
    assert len(aws.requests) == 3


def test_permission_missing(script: Scripts, session: Sessions) -> None:
    """A denial names the permission and the region, and has AWS's error as its cause."""
    aws = script(lambda request: ec2_error("UnauthorizedOperation", "You are not authorized.", 403))
    with pytest.raises(
        DeniedError, match="ec2:DescribeInstances in eu-west-1: denied.*You are not authorized"
    ) as caught:
        list(InventoryManager(session(aws)).instances())
    assert caught.value.code == "UnauthorizedOperation"
    assert isinstance(caught.value.__cause__, ClientError)


def test_refused_once_is_not_a_region_that_is_not_enabled(script: Scripts, session: Sessions) -> None:
    """One AuthFailure may be of credentials that are new, or of a clock: it is asked again before it is believed."""
    aws: ScriptedAWS = script(
        lambda request: (
            ec2_error("AuthFailure", status=401) if len(aws.asked("DescribeInstances")) < 2 else page(an_instance())
        )
    )
    assert len(list(InventoryManager(session(aws)).instances("ap-east-1"))) == 1


def test_a_region_that_has_answered_is_enabled(script: Scripts, session: Sessions) -> None:
    """An AuthFailure between two pages never ends a region as if it had no more."""
    aws = script(
        lambda request: ec2_error("AuthFailure", status=401) if request.page_token else page(an_instance(), token="t1")
    )
    (_, region, poll) = InventoryManager(session(aws)).poll(["ap-east-1"])
    assert isinstance(region, RegionOutcome)
    assert (region.status, region.instances) == ("failed", 1)
    assert isinstance(region.error, CredentialsError)
    assert isinstance(poll, PollOutcome)
    assert not poll.complete


@pytest.mark.parametrize(
    "body",
    [
        "<Response><Errors><Error><Code>X</Code><Message>see <a>this</a></Message></Error></Errors></Response>",
        "<Response><Errors><Error><Code>see <a>this</a></Code><Message>no</Message></Error></Errors></Response>",
        f"<Response><Errors><Error><Code>{'Signature=' * 200}</Code></Error></Errors></Response>",
        "<Response><Errors><Error><Code>two words</Code></Error></Errors></Response>",
    ],
)
def test_an_error_of_another_form(body: str, script: Scripts, session: Sessions) -> None:
    """What is no error of AWS's is a malformed answer, of which nothing is repeated."""
    aws = script(lambda request: Reply(body, 400))
    with pytest.raises(MalformedResponseError) as caught:
        list(InventoryManager(session(aws)).instances())
    assert "Signature" not in str(caught.value)
    assert len(aws.requests) == 4


def test_an_identity_of_nobody(script: Scripts, session: Sessions) -> None:
    """An account without a number is none."""
    aws = script(lambda request: page(), lambda request: caller_identity(account=""))
    with pytest.raises(MalformedResponseError):
        InventoryManager(session(aws)).caller_identity()


@pytest.mark.parametrize("code", ["AuthFailure", "OptInRequired"])
def test_region_not_enabled(code: str, script: Scripts, session: Sessions) -> None:
    """AuthFailure in an opt-in region, with credentials that STS accepts, means that it is not enabled."""
    aws = script(lambda request: ec2_error(code, status=401))
    with pytest.raises(NotEnabledError, match="me-south-1"):
        list(InventoryManager(session(aws)).instances("me-south-1"))


@pytest.mark.parametrize(
    ("region", "home", "partition"),
    [
        ("us-west-2", "eu-west-1", "aws"),
        ("me-south-1", "me-south-1", "aws"),
        ("cn-northwest-1", "cn-north-1", "aws-cn"),
    ],
)
def test_refused_where_no_account_can_be_without(
    region: str, home: str, partition: str, script: Scripts, session: Sessions
) -> None:
    """The same AuthFailure in an always-enabled region, in the home region or in China is a failure."""
    aws = script(lambda request: ec2_error("AuthFailure", status=401), lambda request: caller_identity("1", partition))
    with pytest.raises(CredentialsError, match="refuses the credentials") as caught:
        list(InventoryManager(session(aws, home)).instances(region))
    assert isinstance(caught.value.__cause__, ClientError)


def test_dead_credentials_are_not_a_region_that_is_not_enabled(script: Scripts, session: Sessions) -> None:
    """AuthFailure in an opt-in region is the credentials' fault if STS refuses them, too."""
    aws = script(
        lambda request: ec2_error("AuthFailure", status=401), lambda request: sts_error("ExpiredToken", status=400)
    )
    with pytest.raises(CredentialsError, match="expired"):
        list(InventoryManager(session(aws)).instances("me-south-1"))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ExpiredToken", "expired"),
        ("InvalidClientTokenId", "refuses the credentials"),
        ("SignatureDoesNotMatch", "refuses the credentials"),
        ("AccessDenied", "sts:GetCallerIdentity"),
        ("SomethingNew", "AWS answers SomethingNew"),
    ],
)
def test_identity_errors(code: str, says: str, script: Scripts, session: Sessions) -> None:
    """Each refusal of the identity has a sentence of its own."""
    aws = script(lambda request: page(), lambda request: sts_error(code))
    with pytest.raises(InventoryError, match=says) as caught:
        InventoryManager(session(aws)).caller_identity()
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("SignatureDoesNotMatch", "The Canonical String should have been 'POST / x-amz-security-token:SECRET'"),
        ("IncompleteSignature", "Authorization=AWS4-HMAC-SHA256 Credential=ASIA/x, Signature=SECRET"),
    ],
)
def test_the_signed_request_is_not_repeated(code: str, said: str, script: Scripts, session: Sessions) -> None:
    """AWS repeats the request, token included, where it finds fault with the signature: that stays out."""
    aws = script(lambda request: page(), lambda request: sts_error(code, said))
    with pytest.raises(CredentialsError) as caught:
        InventoryManager(session(aws)).caller_identity()
    assert "SECRET" not in caught.value.message


def test_a_role_that_may_not_be_assumed(script: Scripts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A denial on the way to the credentials is the credentials' fault, not a permission that the role lacks."""
    config = tmp_path / "config"
    config.write_text(
        "[profile base]\naws_access_key_id = AKIABASE\naws_secret_access_key = s\n"
        "[profile auditor]\nrole_arn = arn:aws:iam::1:role/auditor\nsource_profile = base\nregion = eu-west-1\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    aws = script(lambda request: page(), lambda request: sts_error("AccessDenied", "not authorized"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    with pytest.raises(CredentialsError, match="no credentials: AssumeRole: AWS answers AccessDenied"):
        list(InventoryManager(boto3.Session(profile_name="auditor")).instances())


def test_errors_and_instances_travel(script: Scripts, session: Sessions) -> None:
    """An error can be pickled, as pools of processes do; an instance can be put in a set."""
    error = pickle.loads(pickle.dumps(DeniedError("AccessDenied", "no")))
    assert (type(error), error.code, str(error)) == (DeniedError, "AccessDenied", "no")
    aws = script(lambda request: page(an_instance(tags={"a": "b"})))
    assert len({only(InventoryManager(session(aws))), only(InventoryManager(session(aws)))}) == 1


def test_identity_that_is_none(script: Scripts, session: Sessions) -> None:
    """Foreign XML with status 200 is no identity."""
    aws = script(lambda request: page(), lambda request: "<feed/>")
    with pytest.raises(MalformedResponseError, match="sts:GetCallerIdentity"):
        InventoryManager(session(aws)).caller_identity()


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session without credentials is told so."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(CredentialsError, match="credentials"):
        InventoryManager(boto3.Session(region_name="eu-west-1")).caller_identity()


def test_nobody_there(session: Sessions, script: Scripts) -> None:
    """A refused connection is an error that names the place."""
    aws = script(lambda request: page())
    given = session(aws)
    aws.__exit__(None, None, None)
    with pytest.raises(InventoryError, match=r"ec2:DescribeInstances in eu-west-1: Could not connect"):
        list(InventoryManager(given).instances())
    aws.__enter__()


def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in AWS_ENDPOINT_URL is named, for either service."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    manager = InventoryManager(boto3.Session("AKIAEXAMPLE", "secret", region_name="eu-west-1"))
    with pytest.raises(InventoryError, match="sts:GetCallerIdentity in eu-west-1: Invalid endpoint: nonsense"):
        manager.caller_identity()
    with pytest.raises(InventoryError, match="ec2:DescribeInstances in eu-west-1: Invalid endpoint: nonsense"):
        next(manager.instances())


# Polls of many regions


def test_a_poll_of_the_emulated_account(account: EmulatedAWS, session: Sessions) -> None:
    """A poll gives each region's instances, then its outcome, and the poll's outcome last; the sums agree."""
    poll = InventoryManager(session(account)).poll(["eu-west-1", "us-east-1", "eu-north-1"])
    items = list(poll)
    seen: dict[str, int] = {}
    for item in items[:-1]:
        if isinstance(item, Instance):
            seen[item.region] = seen.get(item.region, 0) + 1
        else:
            assert isinstance(item, RegionOutcome)
            assert (item.status, item.instances, item.error) == ("ok", seen.pop(item.region, 0), None)
            assert item.pages == 1
    assert seen == {}
    outcome = items[-1]
    assert isinstance(outcome, PollOutcome)
    assert outcome == poll.outcome
    assert outcome.complete
    assert outcome.regions == {"ok": 3}
    assert outcome.instances == sum(outcome.states.values()) == len(items) - 4
    assert poll.regions == ("eu-west-1", "us-east-1", "eu-north-1")


def test_a_poll_is_iterated_once(account: EmulatedAWS, session: Sessions) -> None:
    """A second iteration is refused: it would find nothing, and look like an empty account."""
    poll = InventoryManager(session(account)).poll()
    assert list(poll)
    with pytest.raises(RuntimeError, match="once"):
        list(poll)


def test_available_regions(session: Sessions, script: Scripts) -> None:
    """All regions of the partition, the session's first, without a request."""
    aws = script(lambda request: page())
    regions = InventoryManager(session(aws, "us-west-2")).available_regions()
    assert regions[0] == "us-west-2"
    assert len(regions) == len(set(regions)) >= 34
    assert {"us-east-1", "me-south-1"} <= set(regions)
    assert set(InventoryManager(session(aws, "cn-north-1")).available_regions()) == {"cn-north-1", "cn-northwest-1"}
    assert aws.requests == []


def test_at_most_6_regions_at_once(session: Sessions, script: Scripts) -> None:
    """The number of regions that are asked at the same time is bounded."""
    lock = threading.Lock()
    now = most = 0

    def answer(request: Request) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.2)
        with lock:
            now -= 1
        return page(an_instance())

    aws = script(answer)
    poll = InventoryManager(session(aws)).poll(all_regions=True)
    assert sum(isinstance(item, RegionOutcome) for item in poll) == len(poll.regions) > 6
    assert 2 < most <= 6


def test_a_slow_reader_bounds_what_is_read(session: Sessions, script: Scripts) -> None:
    """Pages are not fetched far ahead of a reader that does not come for them."""
    aws = script(endless())
    items = iter(InventoryManager(session(aws)).poll())
    next(items)
    time.sleep(1.5)
    assert len(aws.asked("DescribeInstances")) <= 8
    items.close()  # type: ignore[attr-defined]  # a generator


def test_cancel(session: Sessions, script: Scripts) -> None:
    """A cancelled poll gives what it has read, and says of the rest that it was cancelled."""
    aws = script(lambda request: page(an_instance(1), token="t1") if not request.page_token else Reply(delay=20))
    poll = InventoryManager(session(aws)).poll(["eu-west-1", "us-east-1"])
    items: list[Any] = []
    for item in poll:
        items.append(item)
        if len(items) == 2:
            poll.cancel(InventoryError("Enough", "that is enough"))
    assert [type(item).__name__ for item in items] == ["Instance"] * 2 + ["RegionOutcome"] * 2 + ["PollOutcome"]
    assert {item.status for item in items[2:4]} == {"failed"}
    assert poll.outcome.error is not None
    assert (poll.outcome.error.code, poll.outcome.complete, poll.outcome.instances) == ("Enough", False, 2)


def test_an_abandoned_poll_ends(session: Sessions, script: Scripts) -> None:
    """A reader who goes away leaves no thread behind."""
    aws = script(endless())
    items = iter(InventoryManager(session(aws)).poll(["eu-north-1"]))
    next(items)
    items.close()  # type: ignore[attr-defined]  # a generator
    for _ in range(100):
        if not any(thread.name == "eu-north-1" for thread in threading.enumerate()):
            return
        time.sleep(0.1)
    pytest.fail("still reading")


def test_one_line_of_ascii() -> None:
    """json_line leaves no control character and no character outside ASCII, whatever the value."""
    line = json_line({"record": "x", "value": "".join(map(chr, range(0x100))) + "\u2028\u202e\U0001f600"})
    assert line.endswith("}\n")
    assert all(" " <= char <= "~" for char in line[:-1])
