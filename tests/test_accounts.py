"""Many accounts in one run: main.py --role-arn and --roles, and accounts.py for those who import it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.config import Config
from conftest import REPOSITORY, Run, finished
from emulated_aws import BATCH, HOME, EmulatedAWS
from scripted_aws import (
    ACCOUNT,
    Reply,
    Request,
    ScriptedAWS,
    account_asked,
    an_instance,
    assumed_role,
    caller_identity,
    ec2_error,
    page,
    sts,
    sts_error,
)
from test_terminal import on_terminal

import inventory_manager
from accounts import ACCOUNTS_AT_ONCE, REGIONS_AT_ONCE, Account, AccountsPoll, AssumedRoles, account_of
from inventory_manager import Bounds, InventoryError, InventoryManager

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

    import boto3
    from conftest import Poller

    from inventory_manager import Record

    Answer = Callable[[Request], Reply | str]
    Scripts = Callable[..., ScriptedAWS]

SHOP, DATA = "222222222222", "333333333333"


def role(account: str, name: str = "inventory") -> str:
    return f"arn:aws:iam::{account}:role/{name}"


def accounts(count: int) -> list[str]:
    return [f"{444444440000 + number}" for number in range(count)]


def roles_file(tmp_path: Path, names: Iterable[str]) -> Path:
    path = tmp_path / "roles"
    path.write_text("".join(f"{role(name)}\n" for name in names))
    return path


def one_instance(request: Request) -> Reply | str:
    """One instance in each region of each account."""
    number = int(account_asked(request)[-6:])
    return page(an_instance(number, tags={"Name": f"web-{account_asked(request)}"}))


def polls(run: Run) -> dict[str | None, dict[str, Any]]:
    found = {poll["account"]: poll for poll in run.of("poll")}
    assert len(found) == len(run.of("poll")), "an account has two"
    return found


def test_the_accounts_of_a_company(poller: Poller) -> None:
    """Each account is a poll of its own: its instances, its regions, its poll line, all with its timestamp, by a role
    whose session has a name. The home account is one of them."""
    home, *others = (EmulatedAWS(account=f"20000000001{number}") for number in range(3))
    with home, others[0], others[1]:
        launched = {aws.account: aws.launch(BATCH) for aws in (home, *others)}
        poller.environment |= home.environment
        roles = [argument for other in others for argument in ("--role-arn", role(other.account))]
        run = poller.run(*roles, "--region", HOME, "--region", "us-east-1")
    assert (run.code, run.stderr) == (0, "")
    assert {account: [i["instance_id"] for i in run.instances if i["account"] == account] for account in launched} == (
        launched
    )
    for account, poll in polls(run).items():
        lines = [record for record in run.records if record["account"] == account]
        assert (poll["complete"], poll["instances"], poll["regions"]) == (True, 1, {"ok": 2})
        assert {line["timestamp"] for line in lines} == {poll["timestamp"]}
        assert lines[-1] == poll
        session = "i-0f1e2d3c4b5a69788" if account == home.account else "ec2-flight-recorder"
        assert poll["arn"] == f"arn:aws:sts::{account}:assumed-role/inventory/{session}"


def test_without_the_options_no_role_is_assumed(script: Scripts, poller: Poller) -> None:
    """sts:AssumeRole is the options' permission: without them it is not called."""
    aws = script(one_instance)
    assert poller.run().code == 0
    assert {request.action for request in aws.requests} == {"GetCallerIdentity", "DescribeInstances"}


def test_no_home(script: Scripts, poller: Poller) -> None:
    """The machine's own account is left out: of it, only the roles are assumed."""
    aws = script(one_instance)
    run = poller.run("--no-home", "--role-arn", role(SHOP))
    assert (run.code, list(polls(run))) == (0, [SHOP])
    assert Counter((request.action, account_asked(request)) for request in aws.requests) == {
        ("AssumeRole", ACCOUNT): 1,
        ("GetCallerIdentity", SHOP): 1,
        ("DescribeInstances", SHOP): 1,
    }


def test_what_the_role_is_assumed_with(script: Scripts, poller: Poller) -> None:
    """The external id and the session's name are passed on, and asked in the session's region, signed as the host."""
    aws = script(one_instance)
    run = poller.run(
        *("--role-arn", role(SHOP, "audit/inventory"), "--external-id", "acme:2026/1", "--role-session-name", "bob@hq"),
        env={"AWS_REGION": "eu-central-1"},
    )
    (asked,) = aws.asked("AssumeRole")
    assert run.code == 0
    assert {name: asked.parameters[name] for name in ("RoleArn", "ExternalId", "RoleSessionName")} == {
        "RoleArn": role(SHOP, "audit/inventory"),
        "ExternalId": "acme:2026/1",
        "RoleSessionName": "bob@hq",
    }
    assert (asked.region, asked.access_key) == ("eu-central-1", "ASIAMETADATA")


def test_the_file_of_roles(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """One ARN a line, comments and empty lines between, from a file or from standard input; each once."""
    script(one_instance)
    text = f"\ufeff# the company\n\n{role(SHOP)}  # the shop\r\n  {role(DATA)}\n{role(SHOP)}"
    (tmp_path / "roles").write_text(text, encoding="utf-8")
    run = poller.run("--roles", str(tmp_path / "roles"), "--role-arn", role(DATA))
    assert (run.code, set(polls(run))) == (0, {ACCOUNT, SHOP, DATA})
    run = poller.shell("--roles -", before=f"printf '%s\\n' '# all' {role(SHOP)} |")
    assert (run.code, set(polls(run))) == (0, {ACCOUNT, SHOP})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--role-arn", "inventory"], "--role-arn: 'inventory' is not the ARN of a role"),
        (["--role-arn", f"arn:aws:iam::{SHOP}:user/bob"], "is not the ARN of a role"),
        (["--role-arn", role(SHOP), "--role-arn", role(SHOP, "other")], "is in the same account as"),
        (["--roles", "nowhere"], "--roles: nowhere cannot be read"),
        (["--roles", ""], "--roles:  cannot be read"),
        (["--roles", "wrong"], "wrong, line 2: 'arn:aws:iam::1:role/x' is not the ARN of a role"),
        (["--roles", "empty"], "--roles: empty names no role"),
        (["--roles", "binary"], "--roles: binary cannot be read"),
        (["--no-home"], "--no-home is of use with --role-arn or --roles only"),
        (["--external-id", "acme"], "--external-id is of use with --role-arn or --roles only"),
        (["--role-session-name", "bob"], "--role-session-name is of use with"),
        (["--role-arn", role(SHOP), "--external-id", "a b"], "--external-id: invalid"),
        (["--role-arn", role(SHOP), "--role-session-name", "x"], "--role-session-name: invalid"),
    ],
)
def test_usage(
    arguments: list[str], says: str, poller: Poller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes no sense is refused before anything is asked, with exit code 2 and a poll line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong").write_text(f"{role(SHOP)}\narn:aws:iam::1:role/x\n")
    (tmp_path / "empty").write_text("# nobody\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    run = poller.run(*arguments)
    assert run.code == 2
    assert says in run.said
    assert (run.poll["complete"], run.poll["error"]["code"]) == (False, "Usage")


def test_standard_input_that_does_not_end(script: Scripts, poller: Poller) -> None:
    """A signal ends the run while it is waited for; where there is none, that is said."""
    aws = script(one_instance)
    run = poller.shell("--roles - & sleep 1.5; kill -TERM $!; wait $!", before="sleep 30 |")
    assert (run.code, run.poll["error"]["code"]) == (128 + 15, "SIGTERM")
    assert not aws.requests
    run = poller.shell("--roles - <&-")
    assert (run.code, run.poll["error"]["code"]) == (2, "Usage")
    assert "--roles: - cannot be read" in run.said


def test_the_home_account_by_a_role_too(script: Scripts, poller: Poller) -> None:
    """It is polled twice, and that is said."""
    script(one_instance)
    run = poller.run("--role-arn", role(ACCOUNT))
    assert (run.code, len(run.of("poll"))) == (0, 2)
    assert f"{ACCOUNT} is the home account, too, and was polled twice: add --no-home" in run.said


def test_an_error_that_nobody_has_thought_of(session: Callable[..., boto3.Session], caplog: Any) -> None:
    """It is that account's alone: every account has its poll line, once."""
    with ScriptedAWS(one_instance) as aws:
        roles = AssumedRoles(session(aws))
        names = accounts(30)

        def manager(name: str) -> InventoryManager:
            if name == names[5]:
                raise OSError("too many open files")
            return roles.manager(role(name))

        poll = AccountsPoll([Account(name, partial(manager, name)) for name in names])
        lines = [line for line in poll.records() if line["record"] == "poll"]
    assert Counter(line["account"] for line in lines) == Counter(names)
    assert {line["account"]: line["error"].code for line in lines if not line["complete"]} == {
        names[5]: "InternalError"
    }
    assert "an unforeseen error" in caplog.text


@pytest.mark.parametrize(("name", "allowed"), [("accounts", 0), ("accounts", 3), ("poll", 5), ("eu-west-1", 5)])
def test_where_there_is_no_room_for_threads(
    name: str, allowed: int, session: Callable[..., boto3.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system starts no more of them, every account still has its poll line, once, and it is an honest one."""
    start = threading.Thread.start
    numbers = count()

    def start_some(thread: threading.Thread) -> None:
        if thread.name == name and next(numbers) >= allowed:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    names = accounts(30)
    with ScriptedAWS(one_instance) as aws:
        roles = AssumedRoles(session(aws))
        poll = AccountsPoll([Account(name, partial(roles.manager, role(name))) for name in names])
        lines = [line for line in poll.records() if line["record"] == "poll"]
    assert Counter(line["account"] for line in lines) == Counter(names)
    complete = [line["instances"] for line in lines if line["complete"]]
    assert complete == [1] * (30 if name == "accounts" else allowed)
    assert {line["error"].code for line in lines if not line["complete"]} <= {"InternalError"}


def failing(kind: str) -> tuple[Answer, Answer]:
    """EC2 and STS, as they answer where something is the matter with the account SHOP."""

    def identify(request: Request) -> Reply | str:
        if request.action == "AssumeRole" and SHOP in request.parameters["RoleArn"]:
            if kind == "role":
                return sts_error("AccessDenied", f"not authorized to perform: sts:AssumeRole on resource: {role(SHOP)}")
            if kind == "another account":
                return assumed_role(request, key=f"ASIA{DATA}")
            if kind == "region":
                return sts_error("RegionDisabledException", "STS is not activated in this region")
            if kind == "nonsense":
                return "<html>a proxy</html>"
        if account_asked(request) == SHOP and kind == "revoked":
            return sts_error("InvalidClientTokenId", "The security token included in the request is invalid")
        return sts(request)

    def answer(request: Request) -> Reply | str:
        if account_asked(request) == SHOP and kind == "denied":
            return ec2_error("UnauthorizedOperation", status=403)
        return one_instance(request)

    return answer, identify


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("role", "AccessDenied", "Does the role exist, does it trust who asks"),
        ("another account", "WrongAccount", f"account {DATA} answers, as .*, and not {SHOP}"),
        ("region", "RegionDisabledException", "no credentials: AssumeRole: AWS answers RegionDisabledException"),
        ("nonsense", "MalformedResponse", "the answer has no 'AssumeRoleResult'"),
        ("revoked", "InvalidClientTokenId", "AWS refuses the credentials"),
        ("denied", "UnauthorizedOperation", "needs the permission ec2:DescribeInstances"),
    ],
)
def test_a_failing_account_touches_no_other(
    kind: str, code: str, says: str, script: Scripts, poller: Poller, tmp_path: Path
) -> None:
    """It is that account's failed poll, under its number, with its message; the others are complete: exit code 3.
    Where it is the only one, nothing is recorded: exit code 1."""
    aws = script(*failing(kind))
    run = poller.run("--roles", str(roles_file(tmp_path, [SHOP, "555555555555", "666666666666"])))
    assert run.code == 3
    assert {account: poll["complete"] for account, poll in polls(run).items()} == {
        ACCOUNT: True,
        SHOP: False,
        "555555555555": True,
        "666666666666": True,
    }
    poll = polls(run)[SHOP]
    assert poll["error"]["code"] == code
    assert re.search(says, poll["error"]["message"])
    (said,) = [log["message"] for log in run.logs if log["level"] == "ERROR"]
    assert said.startswith(f"{SHOP}: ")
    assert poll["error"]["message"] in said
    assert not [record for record in run.instances if record["account"] in {SHOP, DATA}]
    assert "traceback" not in run.stderr
    assert not re.search("secret-of-|token-of-|ASIA", run.stdout + run.stderr)
    assert aws.asked("AssumeRole")
    run = poller.run("--no-home", "--role-arn", role(SHOP))
    assert (run.code, list(polls(run)), polls(run)[SHOP]["error"]["code"]) == (1, [SHOP], code)


def test_no_credentials_on_the_host(script: Scripts, poller: Poller, metadata: Any, tmp_path: Path) -> None:
    """Where the host itself has none, each account says so: nothing is passed over in silence."""
    metadata.role = None
    script(one_instance)
    names = accounts(40)
    began = time.monotonic()
    run = poller.run("--roles", str(roles_file(tmp_path, names)))
    assert time.monotonic() - began < 20, "it was asked for each"
    assert run.code == 1
    assert set(polls(run)) == {None, *names}
    assert {poll["error"]["code"] for poll in run.of("poll")} == {"CredentialRetrievalError"}
    assert run.said.count("this instance has no IAM role") == 41
    assert "the home account: " in run.said


def test_credentials_are_renewed_while_a_poll_runs(script: Scripts, poller: Poller) -> None:
    """Those of a role that are about to expire are not used for the next page: the role is assumed anew."""
    assumed = 0

    def identify(request: Request) -> Reply | str:
        nonlocal assumed
        if request.action != "AssumeRole":
            return caller_identity(SHOP)
        assumed += 1
        return assumed_role(request, key=f"ASIA{SHOP}{assumed}", lifetime=300)

    def answer(request: Request) -> Reply | str:
        number = int(request.page_token or 0)
        return page(an_instance(number), token=str(number + 1) if number < 3 else None)

    aws = script(answer, identify)
    run = poller.run("--no-home", "--role-arn", role(SHOP))
    keys = [request.access_key for request in aws.asked("DescribeInstances")]
    assert (run.code, len(run.instances)) == (0, 4)
    assert len(set(keys)) == 4
    assert assumed == 5  # one more asked who it is


def test_no_more_at_once_than_is_stated(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """However many accounts: at most 16 regions are asked at a time, and connections are kept for the next account."""
    busy = most = 0
    lock = threading.Lock()

    def answer(request: Request) -> Reply | str:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.05)
        with lock:
            busy -= 1
        return one_instance(request)

    aws = script(answer)
    regions = ("--region", "eu-west-1", "--region", "us-east-1", "--region", "eu-north-1")
    run = poller.run("--roles", str(roles_file(tmp_path, accounts(60))), *regions)
    assert (run.code, len(run.of("poll")), len(run.instances)) == (0, 61, 183)
    assert REGIONS_AT_ONCE / 2 < most <= REGIONS_AT_ONCE
    assert len(aws.asked("AssumeRole")) == 60
    assert aws.connections <= REGIONS_AT_ONCE + 2 * ACCOUNTS_AT_ONCE < len(aws.requests) / 4


@pytest.mark.parametrize("after", ["nothing", "a page"])
def test_a_region_that_does_not_answer(
    after: str, session: Callable[..., boto3.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has kept some accounts waiting for nothing, one at a time asks it, and those that come meanwhile pass it
    over, and say so; when that one has an answer, all ask it again. Where it fails at once, or has given a page, it is
    asked by all."""
    monkeypatch.setattr(inventory_manager, "CLIENT_CONFIG", Config(read_timeout=0.5, retries={"total_max_attempts": 1}))
    silent, slow = True, threading.Event()

    def answer(request: Request) -> Reply | str:
        if after == "a page" and not request.page_token:
            return page(an_instance(), token="next")
        if silent:
            slow.set()
            return Reply(delay=1)
        return page()

    with ScriptedAWS(answer) as aws:
        manager, bounds = InventoryManager(session(aws)), Bounds()

        def code() -> str | None:
            (record,) = (record for record in manager.poll(bounds=bounds).records() if record["record"] == "region")
            return record["error"] and str(record["error"].code)

        def meanwhile() -> str | None:
            """What a poll comes to while another one waits for the answer."""
            slow.clear()
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(code)
                assert slow.wait(timeout=10)
                came = code()
                assert waiting.result() == ("ReadTimeoutError")
            return came

        assert [code() for _ in range(3)] == ["ReadTimeoutError"] * 3
        assert [meanwhile() for _ in range(2)] == [
            "RegionUnresponsive" if after == "nothing" else "ReadTimeoutError"
        ] * 2
        silent = False
        assert [code() for _ in range(2)] == [None, None]
        assert bounds._unanswered["eu-west-1"] == 0


def test_one_deadline_for_all(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """What has not answered by then is recorded as failed, also those accounts that had not been begun: each has its
    poll line."""
    names = accounts(40)

    def answer(request: Request) -> Reply | str:
        return one_instance(request) if account_asked(request) in {ACCOUNT, names[0]} else Reply(delay=20)

    script(answer)
    began = time.monotonic()
    run = poller.run("--roles", str(roles_file(tmp_path, names)), "--deadline", "3")
    assert time.monotonic() - began < 10
    assert run.code == 3
    assert set(polls(run)) == {ACCOUNT, *names}
    assert {account for account, poll in polls(run).items() if poll["complete"]} == {ACCOUNT, names[0]}
    errors = {poll["error"]["code"] for poll in run.of("poll") if not poll["complete"]}
    assert errors == {"DeadlineExceeded"}


def test_a_signal_ends_all(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """Every account has its poll line, and says which signal it was."""
    names = accounts(30)
    asked = threading.Event()

    def answer(request: Request) -> Reply | str:
        asked.set()
        return Reply(delay=20)

    script(answer)
    process = poller.start("--roles", str(roles_file(tmp_path, names)))
    assert asked.wait(timeout=30)
    process.terminate()
    run = finished(process)
    assert run.code == 128 + 15
    assert set(polls(run)) >= set(names)
    assert {poll["error"]["code"] for poll in run.of("poll")} == {"SIGTERM"}


def test_a_terminal_shows_the_accounts(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """The progress counts accounts, the table has them in a column, the last line sums them up and says how many are
    not complete."""
    script(*failing("role"))
    session = on_terminal(poller, "--roles", str(roles_file(tmp_path, [SHOP, DATA])), columns=160)
    assert session.code == 3
    assert re.search(r"[123] of 3 accounts, \d regions, \d instances", session.raw)
    assert re.search(r"^name .* account ", "\n".join(session.lines), re.MULTILINE)
    assert {re.findall(r"\b\d{12}\b", line)[-1] for line in session.table} == {ACCOUNT, DATA}
    assert re.search(r"UTC: 3 accounts, 2 regions, 2 instances .*INCOMPLETE in 1 of 3 accounts$", session.lines[-1])
    assert f"error: {SHOP}: no credentials: AssumeRole" in " ".join(session.lines)


def test_without_the_module(poller: Poller, tmp_path: Path) -> None:
    """The two files of the poller work without it, and say what the options need."""
    for name in ("main.py", "inventory_manager.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    run = finished(poller.start("--role-arn", role(SHOP), main=tmp_path / "main.py"))
    assert (run.code, run.poll["error"]["code"]) == (2, "Usage")
    assert "need accounts.py beside main.py" in run.said


def test_the_log_of_many_accounts_can_be_asked(script: Scripts, poller: Poller, tmp_path: Path) -> None:
    """history.py tells the accounts apart, and the one that failed is not covered."""
    script(*failing("role"))
    log = tmp_path / "inventory.log"
    names = roles_file(tmp_path, [SHOP, DATA])
    for _ in range(2):
        run = poller.run("--roles", str(names))
        with log.open("a") as file:
            file.write(run.stdout + run.stderr)
        time.sleep(1)

    def asked(*question: str) -> list[dict[str, Any]]:
        command = [sys.executable, str(REPOSITORY / "history.py"), "--log", str(log), "--format", "json", *question]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert {row["account"] for row in asked("at")} == {ACCOUNT, DATA}
    (found,) = asked("find", f"Name=web-{DATA}")
    assert (found["account"], found["fate"]) == (DATA, "present")
    assert {row["account"] for row in asked("coverage") if row["status"] == "covered"} == {ACCOUNT, DATA}


@pytest.mark.parametrize("settings", ["", "ca_bundle = own.pem\ntcp_keepalive = true\n"])
def test_connections_are_as_botocore_s_own(
    settings: str, session: Callable[..., boto3.Session], poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the accounts share has the time limits, the certificates and the socket options that a client's own has."""
    (poller.home / ".aws").mkdir()
    (poller.home / ".aws/config").write_text(f"[default]\nregion = eu-west-1\n{settings}")
    with ScriptedAWS(one_instance) as aws:
        own: Any = session(aws).client("ec2", config=inventory_manager.CLIENT_CONFIG)
        roles = AssumedRoles(session(aws))
        roles.manager(role(SHOP)).caller_identity()
    (shared,) = roles._connections._endpoints.values()
    for name in ("_verify", "_timeout", "_socket_options"):
        assert str(getattr(shared, name)) == str(getattr(own._endpoint.http_session, name)), name


def test_a_library_that_assumes_roles(session: Callable[..., boto3.Session]) -> None:
    """Any session will do as the source, and stays as it was; a manager is as any other."""
    with ScriptedAWS(one_instance) as aws:
        source = session(aws)
        manager = AssumedRoles(source, session_name="mine").manager(role(SHOP))
        assert (manager.account, manager.caller_identity().account) == (SHOP, SHOP)
        assert [instance.name for instance in manager.instances("us-east-1")] == [f"web-{SHOP}"]
        assert InventoryManager(source).caller_identity().account == ACCOUNT
        assert [request.parameters["RoleSessionName"] for request in aws.asked("AssumeRole")] == ["mine"]
    with pytest.raises(ValueError, match="is not the ARN of a role"):
        account_of("arn:aws:iam::1:role/x")


def test_a_session_of_another_account_than_meant(session: Callable[..., boto3.Session]) -> None:
    """Whoever says which account it must be hears of it if another one answers, and no instance is given."""
    with ScriptedAWS(one_instance) as aws:
        poll = InventoryManager(session(aws), account=SHOP).poll()
        (line,) = poll.records()
        assert (line["account"], line["complete"], line["error"].code) == (SHOP, False, "WrongAccount")
        assert not aws.asked("DescribeInstances")


def test_a_reader_that_goes_away(session: Callable[..., boto3.Session]) -> None:
    """Whoever stops reading leaves no thread behind that waits for them, and no bound used up."""
    with ScriptedAWS(lambda request: page(*map(an_instance, range(1000)), token="again")) as aws:
        roles = AssumedRoles(session(aws))
        poll = AccountsPoll([Account(name, lambda name=name: roles.manager(role(name))) for name in accounts(20)])  # type: ignore[misc]  # mypy has no types for such a default
        records = cast("Generator[Record]", poll.records())
        next(records)
        records.close()
        deadline = time.monotonic() + 20
        while [thread for thread in threading.enumerate() if thread.name in {"accounts", "poll", "eu-west-1"}]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert all(poll._bounds.regions.acquire(blocking=False) for _ in range(REGIONS_AT_ONCE))
        assert poll._bounds.pages.acquire(blocking=False)


def test_a_cancelled_poll_says_so_once(session: Callable[..., boto3.Session]) -> None:
    """Each account's line has the first reason, those too that never began."""
    with ScriptedAWS(one_instance) as aws:
        roles = AssumedRoles(session(aws))
        poll = AccountsPoll(
            [Account(SHOP, lambda: roles.manager(role(SHOP))), Account(None, lambda: roles.manager(""))]
        )
        poll.cancel(InventoryError("First", "the first"))
        poll.cancel(InventoryError("Second", "the second"))
        assert [(line["account"], line["error"].code) for line in poll.records()] == [(SHOP, "First"), (None, "First")]
        assert not aws.requests
