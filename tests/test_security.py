"""What README.md says under Security: what is asked for, what is written, and that no secret is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from scripted_aws import Reply, Request, ScriptedAWS, an_instance, ec2_error, page, sts_error
from test_readme import README

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Poller, Run
    from instance_metadata import InstanceMetadataService

    Scripts = Callable[..., ScriptedAWS]

EVERY_OPTION = [
    ["--verbose", "--full", "--deadline", "20"],
    ["--verbose", "--full", "--all-regions", "--format", "json"],
    ["--region", "eu-west-1", "--region", "us-east-1", "--format", "table"],
    ["--verbose", "--profile", "elsewhere", "--format", "auto"],
    ["--verbose", "--role-arn", "arn:aws:iam::222222222222:role/inventory", "--external-id", "acme"],
]


def a_poll_with(options: list[str], poller: Poller) -> Run:
    (poller.home / ".aws").mkdir(exist_ok=True)
    (poller.home / ".aws/config").write_text(
        "[profile elsewhere]\nregion = eu-west-1\naws_access_key_id = AKIAPROFILE\n"
        "aws_secret_access_key = secret-of-the-profile\naws_session_token = token-of-the-profile\n"
    )
    return poller.run(*options)


def signed_request_repeated(request: Request) -> Reply:
    """What AWS says of a bad signature: all that was signed, the session token among it."""
    return ec2_error(
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. The Canonical String for this "
        f"request should have been\n'POST\n/\n\nx-amz-security-token:{request.session_token}\n\n"
        f"Credential={request.access_key}/20261122/eu-west-1/ec2/aws4_request, Signature=0123456789abcdef'",
        403,
    )


@pytest.mark.parametrize("options", EVERY_OPTION, ids=" ".join)
@pytest.mark.parametrize("answered", ["all", "a page", "a bad signature", "no identity"])
def test_no_secret_is_written(answered: str, options: list[str], script: Scripts, poller: Poller) -> None:
    """Neither key, secret, token nor signature is in anything that is written: streams or files, whatever fails."""

    def answer(request: Request) -> Reply | str:
        if answered == "a bad signature":
            return signed_request_repeated(request)
        if answered == "all" or request.page_token is None:
            return page(an_instance(), token=None if answered == "all" else "t1")
        return Reply(f"<html>{signed_request_repeated(request).body!r}</html>", 400)

    if answered == "no identity":
        script(answer, lambda request: sts_error("AccessDenied", str(signed_request_repeated(request).body)))
    else:
        script(answer)
    run = a_poll_with(options, poller)
    assert run.code == (0 if answered == "all" else 1)
    assert run.stdout
    files = [file.read_text() for file in poller.home.rglob("*") if file.is_file()]
    assert len(files) == 1, "the configuration, and nothing of ours"
    written = run.stdout + run.stderr
    for secret in ("AKIAPROFILE", "ASIAMETADATA", "secret-of-", "token-of-", "Signature="):
        assert secret not in written
        assert quote(secret, safe="") not in written


def test_only_what_the_readme_says_is_asked(script: Scripts, poller: Poller, metadata: InstanceMetadataService) -> None:
    """The actions of AWS and the metadata paths that README.md names."""
    aws = script(lambda request: page(an_instance(), token="t1") if request.page_token is None else page())
    for options in EVERY_OPTION:
        assert a_poll_with(options, poller).code == 0
    assert poller.run().code == 0
    named = re.findall(r"^\| `(\w+:\w+|(?:PUT|GET) \S+)` \|", README, re.MULTILINE)
    assert {
        f"ec2:{each}" if each == "DescribeInstances" else f"sts:{each}"
        for each in {request.action for request in aws.requests}
    } == {name for name in named if ":" in name}
    assert {request.replace("/inventory", "/ROLE") for request in metadata.requests} == {
        name for name in named if ":" not in name
    }
