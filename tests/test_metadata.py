"""Credentials and region from instance metadata, and what is said when there is none."""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from instance_metadata import some_credentials
from scripted_aws import Request, ScriptedAWS, an_instance, page

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Poller
    from instance_metadata import InstanceMetadataService, RoleCredentials

    Scripts = Callable[..., ScriptedAWS]

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAENVIRONMENT", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
DOCUMENT = "meta-data/iam/security-credentials/inventory"


@pytest.mark.parametrize("broken", [False, True])
def test_keys_are_never_used(broken: bool, script: Scripts, poller: Poller) -> None:
    """Keys in the environment and in files have no say, and a broken file or profile breaks nothing."""
    (poller.home / ".aws").mkdir()
    (poller.home / ".aws/credentials").write_text(
        "[default\n\n==" if broken else "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = s\n"
    )
    (poller.home / ".aws/config").write_text("[default]\nregion = eu-west-1\ncredential_process = /bin/false\n")
    aws = script(lambda request: page(an_instance()))
    run = poller.run(env={**KEYS, "AWS_PROFILE": "nobody" if broken else "default"})
    assert (run.code, run.stderr) == (0, "")
    assert {request.action for request in aws.requests} == {"GetCallerIdentity", "DescribeInstances"}
    for request in aws.requests:
        assert (request.access_key, request.session_token) == ("ASIAMETADATA", "token-of-ASIAMETADATA")


def test_credentials_that_expire_in_mid_poll(
    script: Scripts, poller: Poller, metadata: InstanceMetadataService
) -> None:
    """They are renewed from the metadata service, a quarter of an hour before the end, without a warning."""
    given: list[RoleCredentials] = []

    def next_credentials() -> RoleCredentials:
        given.append(some_credentials(f"ASIA{len(given)}", lifetime=902 if not given else 3600))
        return given[-1]

    def answer(request: Request) -> str:
        if request.page_token is None:
            time.sleep(2.5)
            return page(an_instance(1), token="t1")
        return page(an_instance(2))

    metadata.credentials = next_credentials
    aws = script(answer)
    run = poller.run()
    assert (run.code, run.stderr) == (0, "")
    assert len(run.instances) == 2
    assert aws.requests[-1].access_key == given[-1].access_key != aws.requests[0].access_key
    assert given[-1].expires > datetime.now(timezone.utc)


def test_expired_credentials_are_used_all_the_same(
    script: Scripts, poller: Poller, metadata: InstanceMetadataService
) -> None:
    """AWS accepts them while its own service that renews them is down; it is noted."""
    metadata.credentials = lambda: some_credentials(lifetime=-60)
    script(lambda request: page(an_instance()))
    run = poller.run()
    assert run.code == 0
    (log,) = run.logs
    assert "expired" in log["message"]


def test_only_imdsv2_is_spoken(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """Every question is preceded by a token, and just three paths are asked."""
    script(lambda request: page(an_instance()))
    assert poller.run().code == 0
    assert set(metadata.requests[::2]) == {"PUT /latest/api/token"}
    assert metadata.requests[1::2] == [
        "GET /latest/meta-data/placement/region",
        "GET /latest/meta-data/iam/security-credentials/",
        "GET /latest/meta-data/iam/security-credentials/inventory",
    ]


@pytest.mark.parametrize("status", [403, 404, 405, 500])
def test_no_fall_back_to_imdsv1(
    status: int, script: Scripts, poller: Poller, metadata: InstanceMetadataService
) -> None:
    """Where a token is refused, nothing is asked without one."""
    metadata.overrides["api/token"] = (status, "no")
    script(lambda request: page())
    run = poller.run()
    assert run.code == 1
    assert f"refuses an IMDSv2 token (HTTP {status})" in run.poll["error"]["message"]
    assert set(metadata.requests) == {"PUT /latest/api/token"}


def test_a_local_zone(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """The region of an instance in a Local Zone is its parent's, not the zone's name without a letter."""
    metadata.region, metadata.availability_zone = "us-west-2", "us-west-2-lax-1a"
    script(lambda request: page())
    assert list(poller.run().regions) == ["us-west-2"]


def test_no_metadata_service(script: Scripts, poller: Poller) -> None:
    """Away from EC2 one is told so, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    script(lambda request: page())
    run = poller.run(env={"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{port}"})
    assert run.code == 1
    assert [record["record"] for record in run.records] == ["poll"]
    assert "Not on EC2? Then name a profile with --profile" in run.poll["error"]["message"]
    assert run.said == run.poll["error"]["message"]


def test_a_metadata_service_that_hangs(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """It is given up within seconds."""
    metadata.hang = 30
    script(lambda request: page())
    began = time.monotonic()
    run = poller.run()
    assert time.monotonic() - began < 25
    assert run.code == 1
    assert "does not answer within 2 s" in run.poll["error"]["message"]


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("meta-data/placement/region", "<html>Please log in</html>", "of another form"),
        ("meta-data/iam/security-credentials/", "two\nroles", "of another form"),
        ("api/token", "SECRET\nTOKEN", "of another form"),
    ],
)
def test_answers_of_another_form(
    path: str, answer: str, says: str, script: Scripts, poller: Poller, metadata: InstanceMetadataService
) -> None:
    """What cannot be a region, a role or a token is not used for one, and not repeated."""
    metadata.overrides[path] = (200, answer)
    script(lambda request: page())
    run = poller.run()
    assert run.code == 1
    assert says in run.poll["error"]["message"]
    assert max(answer.split(), key=len) not in run.stdout + run.stderr


def test_a_metadata_service_that_fails_once(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """One failure, of any of its answers, costs nothing."""
    failed: set[str] = set()
    once = metadata._get

    def get(path: str, token: str | None) -> tuple[int, str]:
        if path in failed:
            return once(path, token)
        failed.add(path)
        return 503, "Service Unavailable"

    metadata._get = get  # type: ignore[method-assign]  # of the stand-in's
    script(lambda request: page(an_instance()))
    run = poller.run()
    assert (run.code, run.stderr) == (0, "")
    assert len(failed) == 3


def test_no_role(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """An instance without a role is told what it lacks."""
    metadata.role = None
    script(lambda request: page())
    run = poller.run()
    assert run.code == 1
    assert run.poll["error"]["code"] == "CredentialRetrievalError"
    assert "no IAM role: attach an instance profile" in run.poll["error"]["message"]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (json.dumps({"Code": "AssumeRoleUnauthorizedAccess", "Message": "EC2 cannot assume"}), "trust policy"),
        ("secret nonsense", "are no credentials"),
        ("[]", "are no credentials"),
        (json.dumps({"Code": "Success", "AccessKeyId": "A"}), "are no credentials"),
    ],
)
def test_a_role_without_credentials(
    document: str, says: str, script: Scripts, poller: Poller, metadata: InstanceMetadataService
) -> None:
    """What is no credentials is not used, and not repeated either."""
    metadata.overrides[DOCUMENT] = (200, document)
    script(lambda request: page())
    run = poller.run()
    assert run.code == 1
    assert says in run.poll["error"]["message"]
    assert "secret nonsense" not in run.stdout + run.stderr


def test_metadata_disabled(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """AWS's own switch is honoured and named."""
    script(lambda request: page())
    run = poller.run(env={"AWS_EC2_METADATA_DISABLED": "true"})
    assert run.code == 1
    assert "AWS_EC2_METADATA_DISABLED" in run.poll["error"]["message"]
    assert metadata.requests == []


def test_a_proxy_is_not_asked_for_metadata(script: Scripts, poller: Poller) -> None:
    """A proxy would give its own machine's credentials: requests to AWS go by it, those for metadata never."""
    aws = script(lambda request: page())
    run = poller.run(env={"http_proxy": "http://127.0.0.1:9", "NO_PROXY": aws.url.removeprefix("http://")})
    assert run.code == 0
    run = poller.run(env={"http_proxy": "http://127.0.0.1:9"})
    assert run.code == 1
    assert run.poll["error"]["code"] == "ProxyConnectionError"
