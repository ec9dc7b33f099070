"""lambda_function.py, called by Lambda's own runtime for Python, and template.yaml, read by SAM's own translator, whose
state machine is executed by moto's interpreter of the Amazon States Language.

What is not tested, for it is AWS alone that does it: that policies are enforced, that the schedule starts executions,
that a distributed Map runs more than a handful of children, and gives up by ToleratedFailurePercentage; moto tolerates
every failure. Its ResultWriter writes a manifest, and no files of results.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from ast import literal_eval
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from importlib.metadata import distribution
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import duckdb
import pytest
from cfnlint.api import lint
from cfnlint.config import ManualArgs
from conftest import REPOSITORY
from emulated_aws import BATCH, HOME, EmulatedAWS
from lambda_runtime import ACCOUNT, FUNCTION_ARN, Cloud, Function, FunctionError
from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse
from scripted_aws import Reply, Request, caller_identity, ec2_error, page, sts_error
from test_main import KEYS
from test_readme import sample

from accounts import account_of
from lambda_function import check

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

    Script = Callable[[Request], Reply | str | None]

SHOP, DATA, GONE = "777777777777", "033333333333", "444444444444"
"""Two accounts, one of them with a number that is not to be taken for one, and one without the role. No other tests
emulate them: in one process, moto has each account once."""

buckets = (f"inventory-{number}" for number in count())


def role(account: str) -> str:
    return f"arn:aws:iam::{account}:role/inventory"


def due() -> datetime:
    """A scheduled time that a poll now is of."""
    return datetime.now(timezone.utc).replace(second=0, microsecond=0)


def event(account: str, **fields: Any) -> dict[str, Any]:
    return {"role_arn": role(account), "time": f"{due():%Y-%m-%dT%H:%M:%SZ}", **fields}


@dataclass
class Recorder:
    """The function with all of AWS around it."""

    cloud: Cloud
    s3: S3Client
    environment: dict[str, str]
    bucket: str = field(default_factory=lambda: next(buckets))

    def __post_init__(self) -> None:
        self.s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        self.environment["BUCKET"] = self.bucket

    def function(self, script: Script = lambda request: None, folder: Path = REPOSITORY, **settings: Any) -> Function:
        self.cloud.script = script
        return Function(folder, self.environment, **settings)

    @property
    def asked(self) -> list[str]:
        return [request.action for request in self.cloud.requests]

    def objects(self) -> dict[str, bytes]:
        keys = [item["Key"] for item in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]
        return {key: self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of each object that is a record, by its key."""
        return {
            key: [json.loads(line) for line in gzip.decompress(body).splitlines()]
            for key, body in self.objects().items()
            if key.endswith(".gz")
        }

    def copy(self, folder: Path) -> Path:
        """The tree of records as files."""
        for key, body in self.objects().items():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(body)
        return folder / "inventory"


@pytest.fixture(scope="module")
def company() -> Iterator[dict[str, EmulatedAWS]]:
    """The accounts, each with an instance."""
    with EmulatedAWS(account=ACCOUNT) as home, EmulatedAWS(account=SHOP) as shop, EmulatedAWS(account=DATA) as data:
        for account in (home, shop, data):
            account.launch(BATCH)
        yield {ACCOUNT: home, SHOP: shop, DATA: data}


@pytest.fixture
def recorder(company: dict[str, EmulatedAWS], tmp_path: Path) -> Iterator[Recorder]:
    home = company[ACCOUNT]
    credentials = home.session.get_credentials()
    assert credentials and credentials.token
    with Cloud(home.url) as cloud:
        environment = {
            "HOME": str(tmp_path / "home"),
            "AWS_REGION": HOME,
            "AWS_DEFAULT_REGION": HOME,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_SESSION_TOKEN": credentials.token,
            "AWS_ENDPOINT_URL": cloud.url,
            "PREFIX": "inventory/",
        }
        yield Recorder(cloud, home.session.client("s3", endpoint_url=home.url), environment)


def key(account: str, poll: str | datetime, *, of: datetime | None = None, incomplete: bool = False) -> str:
    time = datetime.fromisoformat(poll.replace("Z", "+00:00")) if isinstance(poll, str) else poll
    of = of or time
    name = f"{time:%Y%m%dT%H%M%SZ}{'-incomplete' if incomplete else ''}"
    return f"inventory/account={account}/date={of:%Y-%m-%d}/hour={of:%H}/{name}.jsonl.gz"


def failure(function: Function, event: object, seconds: float | None = None) -> tuple[str, str]:
    """The name and the message of what the handler raises."""
    with pytest.raises(FunctionError) as raised:
        function.invoke(event, seconds)
    return raised.value.type, raised.value.message


def denied(account: str) -> Script:
    """STS as it is where the role is not there, or trusts somebody else. moto lets everybody assume everything."""

    def script(request: Request) -> Reply | None:
        missing = request.action == "AssumeRole" and request.parameters["RoleArn"] == role(account)
        return sts_error("AccessDenied", "not authorized to perform: sts:AssumeRole") if missing else None

    return script


def test_another_account(recorder: Recorder) -> None:
    """A role is assumed, its account is polled, and the record is one object, named by the scheduled time. The poll
    line is what the function returns. Nothing else is asked of AWS."""
    with recorder.function() as function:
        poll = function.invoke(event(DATA, external_id="acme"))
    assert (poll["account"], poll["complete"], poll["instances"]) == (DATA, True, 1)
    assert poll["arn"] == f"arn:aws:sts::{DATA}:assumed-role/inventory/ec2-flight-recorder"
    ((name, records),) = recorder.records().items()
    assert name == key(DATA, due()) or name == key(DATA, due() - timedelta(minutes=1))
    assert [record["record"] for record in records] == ["instance", "region", "poll"]
    assert records[-1] == poll
    assert recorder.asked == ["AssumeRole", "GetCallerIdentity", "DescribeInstances", "PutObject"]
    assert recorder.cloud.requests[0].parameters["ExternalId"] == "acme"


def test_its_own_account(recorder: Recorder) -> None:
    """Without a role it is the function's own account, without a time the poll's own."""
    with recorder.function() as function:
        poll = function.invoke({})
    assert (poll["account"], list(recorder.records())) == (ACCOUNT, [key(ACCOUNT, poll["timestamp"])])
    assert "AssumeRole" not in recorder.asked


def test_what_is_asked_for(recorder: Recorder) -> None:
    """Regions and external id are the event's, or else the environment's."""
    recorder.environment |= {"REGIONS": "us-east-1,us-west-2", "EXTERNAL_ID": "acme"}

    def regions() -> set[str]:
        return {request.region for request in recorder.cloud.requests if request.action == "DescribeInstances"}

    with recorder.function() as function:
        function.invoke(event(SHOP))
        assert recorder.cloud.requests[0].parameters["ExternalId"] == "acme"
        assert regions() == {"us-east-1", "us-west-2"}
        recorder.cloud.requests.clear()
        function.invoke(event(DATA, regions=["eu-west-2"]))
        assert regions() == {"eu-west-2"}
    recorder.environment["REGIONS"] = "all"
    with recorder.function(lambda request: page() if request.action == "DescribeInstances" else None) as function:
        recorder.cloud.requests.clear()
        poll = function.invoke({**event(SHOP), "time": None})
        assert len(regions()) == poll["regions"]["ok"] > 15
        recorder.cloud.requests.clear()
        function.invoke({"role_arn": role(DATA), "all_regions": False})
        assert regions() == {HOME}


def test_events_that_are_none(recorder: Recorder) -> None:
    """What is wrong with an event is said, before anything is asked of AWS."""
    wrong: list[tuple[object, str]] = [
        (["role"], "the event is no object: ['role']"),
        ({"role-arn": role(SHOP)}, "the event has 'role-arn', and may have role_arn, external_id, "),
        ({"role_arn": "inventory"}, "role_arn: 'inventory' is not the ARN of a role, such as arn:aws:iam::"),
        ({"role_arn": 222222222222}, "role_arn is 222222222222, which is no str"),
        ({"regions": "eu-west-1"}, "regions is 'eu-west-1', which is no list"),
        ({"regions": ["eu-west-1", None]}, "regions is ['eu-west-1', None], and has to be a list of names"),
        ({"regions": ["eu-west-1"], "all_regions": True}, "the event has both regions and all_regions"),
        ({"time": "at nine"}, "time is 'at nine', and has to be like 2026-11-22T09:00:00Z"),
        ({"time": "2026-11-22T09:00:00"}, "time is '2026-11-22T09:00:00', and has to be like 2026-11-22T09:00:00Z"),
    ]
    with recorder.function() as function:
        for event, message in wrong:
            error, said = failure(function, event)
            assert (error, said[: len(message)]) == ("InvalidEvent", message)
    assert recorder.asked == []


def test_once_an_hour(recorder: Recorder) -> None:
    """A second complete poll of the same time succeeds, and leaves the first one's object as it is."""
    asked = event(SHOP)
    with recorder.function() as function:
        first = function.invoke(asked)
        before = recorder.objects()
        time.sleep(1)
        assert function.invoke(asked)["timestamp"] > first["timestamp"]
    assert recorder.objects() == before
    assert (len(before), recorder.asked.count("PutObject")) == (1, 2)


def test_what_is_incomplete_lies_beside(recorder: Recorder) -> None:
    """Each incomplete poll is an object of its own, named by its own second, and an error that says what is missing. It
    neither takes the complete one's place nor keeps it from being written."""
    asked = event(SHOP, regions=[HOME, "us-east-1"])
    well = False

    def script(request: Request) -> Reply | None:
        broken = not well and (request.action, request.region) == ("DescribeInstances", "us-east-1")
        return ec2_error("UnauthorizedOperation") if broken else None

    with recorder.function(script) as function:
        errors = [failure(function, asked)]
        well = True
        complete = function.invoke(asked)
        well = False
        errors.append(failure(function, asked))
    records = recorder.records()
    polls = {name: lines[-1] for name, lines in records.items()}
    of = datetime.fromisoformat(asked["time"].replace("Z", "+00:00"))
    partial = [name for name, poll in polls.items() if not poll["complete"]]
    assert [poll for poll in polls.values() if poll["complete"]] == [complete]
    assert polls[key(SHOP, of)] == complete
    assert partial == [key(SHOP, polls[name]["timestamp"], of=of, incomplete=True) for name in partial]
    # Where the two began in the same second, the first one stays.
    assert {name for name, _ in errors} == {"PollIncomplete"}
    assert {message.split(": ")[0] for _, message in errors} == set(partial)
    assert all("ec2:DescribeInstances in us-east-1: denied." in message for _, message in errors)
    for name in partial:
        assert polls[name]["regions"] == {"denied": 1, "ok": 1}
        assert [line["region"] for line in records[name] if line["record"] == "instance"] == [HOME]


def test_a_role_that_cannot_be_assumed(recorder: Recorder) -> None:
    """The account is known by the role: its partition has a record that says what is the matter."""
    with recorder.function(denied(GONE)) as function:
        error, message = failure(function, event(GONE))
    ((name, (poll,)),) = recorder.records().items()
    assert (error, message.split(": ")[0]) == ("PollIncomplete", name)
    assert "AssumeRole: AWS answers AccessDenied." in message
    assert name.startswith(f"inventory/account={GONE}/")
    assert (poll["account"], poll["complete"], poll["error"]["code"]) == (GONE, False, "AccessDenied")


def test_nobody_says_who_we_are(recorder: Recorder) -> None:
    """The function's own account is known by its ARN, even where STS does not say."""

    def script(request: Request) -> Reply | None:
        return sts_error("AccessDenied") if request.action == "GetCallerIdentity" else None

    with recorder.function(script) as function:
        assert failure(function, {})[0] == "PollIncomplete"
    ((_, (poll,)),) = recorder.records().items()
    assert (poll["account"], poll["arn"], poll["complete"]) == (ACCOUNT, None, False)


def test_another_account_answers(recorder: Recorder) -> None:
    """It is not recorded as the one that was meant, nor asked for its instances."""

    def script(request: Request) -> str | None:
        return caller_identity(SHOP) if request.action == "GetCallerIdentity" else None

    with recorder.function(script) as function:
        assert f"account {SHOP} answers" in failure(function, event(DATA))[1]
        assert f"account {SHOP} answers" in failure(function, {})[1]
    polls = {poll["account"]: poll for (poll,) in recorder.records().values()}
    assert polls.keys() == {DATA, ACCOUNT}
    assert {poll["error"]["code"] for poll in polls.values()} == {"WrongAccount"}
    assert "DescribeInstances" not in recorder.asked


def test_the_function_s_time(recorder: Recorder) -> None:
    """Half a minute before Lambda would end it the poll ends, and what was seen is written. Even where less is left."""

    def script(request: Request) -> Reply | None:
        return Reply(delay=5, status=500) if request.region == "us-east-1" else None

    with recorder.function(script) as function:
        began = time.monotonic()
        error, message = failure(function, event(SHOP, regions=[HOME, "us-east-1"]), seconds=32)
        assert time.monotonic() - began < 4
        assert (error, "not done by the deadline" in message) == ("PollIncomplete", True)
        assert failure(function, event(DATA), seconds=3)[0] == "PollIncomplete"
    records = {lines[-1]["account"]: lines for lines in recorder.records().values()}
    assert records[SHOP][-1]["regions"] == {"failed": 1, "ok": 1}
    assert [line["region"] for line in records[SHOP] if line["record"] == "instance"] == [HOME]
    assert records[DATA][-1]["error"]["code"] == "DeadlineExceeded"


@pytest.mark.parametrize(("status", "code", "attempts"), [(403, "AccessDenied", 1), (503, "SlowDown", 3)])
def test_a_record_that_cannot_be_written(recorder: Recorder, status: int, code: str, attempts: int) -> None:
    """A complete poll that is not in S3 is a failure, after S3 has been asked as often as makes sense."""

    def script(request: Request) -> Reply | None:
        error = f"<Error><Code>{code}</Code><Message>Computer says no.</Message></Error>"
        return Reply(error, status) if request.action == "PutObject" else None

    with recorder.function(script) as function:
        error, message = failure(function, event(SHOP))
    assert (error, code in message, recorder.asked.count("PutObject")) == ("RecordNotWritten", True, attempts)
    assert message.startswith(f"s3://{recorder.bucket}/inventory/account={SHOP}/")
    assert not recorder.objects()


def test_an_answer_that_is_lost(recorder: Recorder) -> None:
    """Where S3 has taken the record, but its answer is lost, another attempt finds it there, which is a success."""
    lost: list[Request] = []

    def script(request: Request) -> Reply | None:
        if request.action != "PutObject" or lost:
            return None
        lost.append(request)
        return Reply(hang_up=True)

    with recorder.function(script) as function:
        poll = function.invoke(event(SHOP))
    ((_, lines),) = recorder.records().items()
    assert (lines[-1], recorder.asked.count("PutObject")) == (poll, 2)


def test_an_old_execution(recorder: Recorder) -> None:
    """A poll that is made hours later, when somebody runs an old execution again, is not put into the hour that the
    execution was for, which it has not seen, but into its own."""
    with recorder.function() as function:
        poll = function.invoke({**event(SHOP), "time": "2026-01-01T09:00:00Z"})
    assert list(recorder.records()) == [key(SHOP, poll["timestamp"])]


def test_the_tree(recorder: Recorder, tmp_path: Path) -> None:
    """DuckDB reads the tree with its partitions, and history.py answers from a copy of it."""
    with recorder.function(denied(GONE)) as function:
        for account in (SHOP, DATA):
            function.invoke(event(account))
        failure(function, event(GONE))
    tree = recorder.copy(tmp_path)
    hours = duckdb.execute(
        f"""select account, date, hour, count(*) filter (record = 'instance'), bool_or(complete)
        from read_json('{tree}/**/*.jsonl.gz', hive_partitioning = true, union_by_name = true, sample_size = -1,
                       hive_types = {{account: varchar, date: date, hour: varchar}})
        where date >= current_date - 1 group by all"""
    ).fetchall()
    assert {account: (instances, complete) for account, _, _, instances, complete in hours} == {
        DATA: (1, True),
        SHOP: (1, True),
        GONE: (0, False),
    }
    assert all(f"account={account}/date={date}/hour={hour}" in map_of(tree) for account, date, hour, *_ in hours)
    done = subprocess.run(
        [sys.executable, REPOSITORY / "history.py", "--log", tree, "--format", "json", "at"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {json.loads(line)["account"] for line in done.stdout.splitlines()} == {SHOP, DATA}


def map_of(tree: Path) -> set[str]:
    return {str(path.parent.relative_to(tree)) for path in tree.rglob("*.gz")}


PIP = """#!{python}
# In place of pip, which would need a network: copies the packages from the tests' own environment.
import argparse, re, shutil
from importlib.metadata import distribution
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--target", type=Path)
parser.add_argument("-r", type=Path)
asked, _ = parser.parse_known_args()
for name, version in re.findall(r"^([\\w.-]+)==(\\S+)", asked.r.read_text(), re.MULTILINE):
    package = distribution(name)
    assert package.version == version, name
    for file in package.files:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (asked.target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), asked.target / file)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lambda.zip, made by the Makefile's rule, where pip does without a network."""
    if not (shutil.which("make") and shutil.which("zip")):
        pytest.skip("needs make and zip")
    folder = tmp_path_factory.mktemp("lambda")
    for name in ("Makefile", "requirements.txt", "inventory_manager.py", "accounts.py", "lambda_function.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    pip = folder / "venv/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.write_text(PIP.format(python=sys.executable))
    pip.chmod(0o755)
    (folder / "venv/ready").touch()
    for name in ("first.zip", "lambda.zip"):
        subprocess.run(["make", "--silent", "-o", "venv/ready", "lambda.zip", "VENV=venv"], cwd=folder, check=True)
        if name != "lambda.zip":
            (folder / "lambda.zip").rename(folder / name)
    return folder / "lambda.zip"


def test_the_archive(archive: Path, recorder: Recorder, tmp_path: Path) -> None:
    """lambda.zip has all that the function needs, under 50 MB, the same each time it is made. Python's own library
    apart, Lambda's runtime is the only other thing that can be imported."""
    assert archive.read_bytes() == archive.with_name("first.zip").read_bytes()
    assert archive.stat().st_size < 50_000_000
    task, runtime = tmp_path / "task", tmp_path / "runtime"
    shutil.unpack_archive(archive, task)
    for name in ("awslambdaric", "simplejson", "snapshot-restore-py"):
        for file in distribution(name).files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (runtime / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), runtime / file)
    program = (
        f"import sys; sys.path += [{str(task)!r}, {str(runtime)!r}]; sys.argv[1:] = ['lambda_function.lambda_handler'];"
        "import atexit, awslambdaric.__main__ as runtime, lambda_function, boto3;"
        "print(*sorted({getattr(m, '__file__', None) or '' for m in list(sys.modules.values())}));"
        "runtime.main(sys.argv)"
    )
    with recorder.function(folder=task, command=[sys.executable, "-I", "-S", "-B", "-c", program]) as function:
        assert function.invoke(event(SHOP))["complete"]
    imported = function.log.split()
    assert [path for path in imported if "site-packages" in path or str(REPOSITORY) in path] == []
    assert f"{task}/boto3/__init__.py" in imported
    assert {path.name for path in task.glob("*.py")} == {
        *("accounts.py", "inventory_manager.py", "lambda_function.py", "six.py")
    }
    assert not list(task.rglob("*.so")), "it has to run on any architecture"


TEMPLATE = REPOSITORY / "template.yaml"
STACK = "recorder"


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """template.yaml as AWS translates it before it creates anything, with the archive where `package` puts it."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", HOME)
    template = yaml_parse(TEMPLATE.read_text())
    template["Resources"]["Function"]["Properties"]["CodeUri"] = "s3://code/lambda.zip"
    result: dict[str, Any] = transform(template, {"AWS::Region": HOME}, ManagedPolicyLoader(None))
    return result


def resolved(value: Any, names: dict[str, Any]) -> Any:
    """What CloudFormation makes of its functions, where `names` has what Ref and GetAtt give. moto's creates state
    machines where its interpreter does not find them."""
    if isinstance(value, list):
        return [resolved(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((function, argument),) = value.items()
        if function == "Ref":
            return names[argument]
        if function == "Fn::GetAtt":
            return names[".".join(argument)]
        if function == "Fn::Sub":
            return re.sub(r"\$\{([\w:.]+)\}", lambda found: str(names[found[1]]), argument)
        if function == "Fn::Join":
            return argument[0].join(resolved(argument[1], names))
    return {name: resolved(item, names) for name, item in value.items()}


def names(translated: dict[str, Any], bucket: str) -> dict[str, Any]:
    """What the names in the template stand for, with the defaults of all parameters."""
    return {name: parameter["Default"] for name, parameter in translated["Parameters"].items()} | {
        "AWS::Partition": "aws",
        "AWS::Region": HOME,
        "AWS::AccountId": ACCOUNT,
        "AWS::StackName": STACK,
        "Bucket": bucket,
        "Bucket.Arn": f"arn:aws:s3:::{bucket}",
        "Function.Arn": FUNCTION_ARN,
        "LogGroup.Arn": f"arn:aws:logs:{HOME}:{ACCOUNT}:log-group:function:*",
        "StateMachine": f"arn:aws:states:{HOME}:{ACCOUNT}:stateMachine:{STACK}-accounts",
    }


def statements(translated: dict[str, Any], role: str, bucket: str = "bucket") -> list[dict[str, Any]]:
    (policy,) = translated["Resources"][role]["Properties"]["Policies"]
    result: list[dict[str, Any]] = resolved(policy, names(translated, bucket))["PolicyDocument"]["Statement"]
    return result


def allowed(statements: list[dict[str, Any]], action: str, resource: str) -> bool:
    def listed(value: str | list[str]) -> list[str]:
        return [value] if isinstance(value, str) else value

    return any(
        action in listed(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        for statement in statements
    )


def test_the_template_is_sound(translated: dict[str, Any]) -> None:
    """cfn-lint finds nothing in the template, nor in what SAM makes of it."""
    for template in (TEMPLATE.read_text(), json.dumps(translated)):
        assert lint(template, config=ManualArgs(regions=[HOME])) == []


def test_no_role_may_do_more(translated: dict[str, Any]) -> None:
    """All roles are ours, SAM adds none. No action is a pattern, and no resource is everything."""
    roles = {name for name, resource in translated["Resources"].items() if resource["Type"] == "AWS::IAM::Role"}
    assert roles == {"FunctionRole", "StateMachineRole", "ScheduleRole"}
    for name in roles:
        assert "ManagedPolicyArns" not in translated["Resources"][name]["Properties"]
        for statement in statements(translated, name):
            assert "*" not in json.dumps(statement["Action"])
            assert statement["Resource"] != "*"
    assert {json.dumps(statement["Action"]) for statement in statements(translated, "FunctionRole")} == {
        *('"sts:AssumeRole"', '"s3:PutObject"', '["logs:CreateLogStream", "logs:PutLogEvents"]')
    }


def test_the_function_needs_no_more(translated: dict[str, Any], recorder: Recorder) -> None:
    """With its own credentials it asks for what its role allows, and all that it writes is new."""
    policy = statements(translated, "FunctionRole", recorder.bucket)
    with recorder.function(denied(GONE)) as function:
        function.invoke(event(SHOP))
        failure(function, event(GONE))
    own = [each for each in recorder.cloud.requests if each.access_key == recorder.environment["AWS_ACCESS_KEY_ID"]]
    for request in own:
        if request.action == "AssumeRole":
            assert allowed(policy, "sts:AssumeRole", request.parameters["RoleArn"])
        else:
            assert allowed(policy, "s3:PutObject", f"arn:aws:s3:::{request.parameters['path'][1:]}")
            assert request.parameters["if-none-match"] == "*"
    assert [request.action for request in own] == ["AssumeRole", "PutObject"] * 2
    (write,) = [statement for statement in policy if statement["Action"] == "s3:PutObject"]
    assert write["Condition"] == {"Null": {"s3:if-none-match": "false"}}


def test_the_schedule(translated: dict[str, Any]) -> None:
    """Each execution is told the time that it is scheduled for, in words that EventBridge Scheduler replaces."""
    target = translated["Resources"]["StateMachineSchedule"]["Properties"]["Target"]
    assert json.loads(target["Input"]) == {"time": "<aws.scheduler.scheduled-time>"}
    assert target["RoleArn"] == {"Fn::GetAtt": ["ScheduleRole", "Arn"]}


@pytest.mark.filterwarnings("ignore:Tried to parse AWS.*it's not supported by moto")
def test_the_stack(translated: dict[str, Any], recorder: Recorder, company: dict[str, EmulatedAWS]) -> None:
    """CloudFormation, as far as moto has it, creates the stack, with the policy and the environment that `resolved`
    makes of the template."""
    recorder.s3.create_bucket(Bucket="code", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    recorder.s3.put_object(Bucket="code", Key="lambda.zip", Body=b"")
    url = company[ACCOUNT].url
    owner = boto3.Session("ak", "sk", region_name=HOME)
    cloudformation, iam, functions = (
        owner.client(service, endpoint_url=url) for service in ("cloudformation", "iam", "lambda")
    )
    cloudformation.create_stack(StackName=STACK, TemplateBody=json.dumps(translated))
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    made = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    assert made.keys() == {"Bucket", "FunctionRoleArn", "StateMachineArn"}
    name = made["FunctionRoleArn"].split("/")[-1]
    policy = iam.get_role_policy(RoleName=name, PolicyName="record")["PolicyDocument"]
    assert literal_eval(str(policy))["Statement"][:2] == statements(translated, "FunctionRole", made["Bucket"])[:2]
    (function,) = functions.list_functions()["Functions"]
    environment = translated["Resources"]["Function"]["Properties"]["Environment"]
    assert function["Environment"] == resolved(environment, names(translated, made["Bucket"]))


@dataclass
class Executions:
    """Runs template.yaml's state machine, in moto."""

    url: str
    recorder: Recorder
    definition: str

    def run(self, accounts: list[Any], given: dict[str, Any], script: Script = lambda request: None) -> dict[str, Any]:
        """The execution, after it has ended."""
        recorder = self.recorder
        recorder.s3.put_object(Bucket=recorder.bucket, Key="accounts.json", Body=json.dumps(accounts).encode())
        # moto's interpreter has credentials of its own, and looks for Map Runs in their account.
        sfn = boto3.client(
            "stepfunctions", HOME, endpoint_url=self.url, aws_access_key_id="ak", aws_secret_access_key="sk"
        )
        machine = sfn.create_state_machine(
            name=f"{recorder.bucket}-accounts", definition=self.definition, roleArn="arn:aws:iam::123456789012:role/r"
        )
        with recorder.function(script, processes=2) as recorder.cloud.function:
            execution = sfn.start_execution(stateMachineArn=machine["stateMachineArn"], input=json.dumps(given))
            until = time.monotonic() + 40
            while time.monotonic() < until:
                ended = sfn.describe_execution(executionArn=execution["executionArn"])
                if ended["status"] != "RUNNING":
                    return dict(ended)
                time.sleep(0.05)
        pytest.fail("the execution does not end")


@pytest.fixture
def executions(
    recorder: Recorder, company: dict[str, EmulatedAWS], translated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Generator[Executions]:
    """The state machine and the function's environment as a stack has them, but for the seconds between attempts, and
    the case of some names."""
    known = names(translated, recorder.bucket) | {"Regions": HOME, "MaxConcurrency": 2}
    machine, function = (
        resolved(translated["Resources"][name]["Properties"][part], known)
        for name, part in (("StateMachine", "DefinitionString"), ("Function", "Environment"))
    )
    substitutions = resolved(translated["Resources"]["StateMachine"]["Properties"]["DefinitionSubstitutions"], known)
    definition = re.sub(r"\$\{(\w+)\}", lambda found: str(substitutions[found[1]]), machine)
    definition = re.sub(r'"IntervalSeconds": \d+', '"IntervalSeconds": 1', definition)
    # In a task of aws-sdk, AWS begins all names with a capital. moto has them as they are in the API.
    definition = definition.replace('"MapRunArn.$"', '"mapRunArn.$"')
    definition = re.sub(r"\$\.ItemCounts\.(\w+)", lambda found: f"$.itemCounts.{found[1].lower()}", definition)
    recorder.environment |= function["Variables"]
    url = company[ACCOUNT].url

    def set_moto(executes: bool) -> None:
        config = json.dumps({"stepfunctions": {"execute_state_machine": executes}}).encode()
        urllib.request.urlopen(f"{url}/moto-api/config", config, timeout=10).close()

    # Where moto's interpreter sends all that it asks of AWS.
    monkeypatch.setenv("MOTO_PORT", str(urlsplit(recorder.cloud.url).port))
    set_moto(True)
    yield Executions(url, recorder, definition)
    set_moto(False)


def test_one_account_fails(executions: Executions) -> None:
    """All others are recorded, each under the execution's time; the one that fails is tried three times, has a record
    that says why, and fails the execution once all are done."""
    accounts = [{"role_arn": role(GONE)}, {"role_arn": role(SHOP)}, {"role_arn": role(DATA), "regions": ["us-east-1"]}]
    now = due()
    execution = executions.run(accounts, {"time": f"{now:%Y-%m-%dT%H:%M:%SZ}"}, denied(GONE))
    records = executions.recorder.records()
    regions = {account: [line["region"] for line in records[key(account, now)][:-1]] for account in (SHOP, DATA)}
    assert regions == {SHOP: [HOME, HOME], DATA: ["us-east-1"]}
    failed = [lines[-1] for lines in records.values() if lines[-1]["account"] == GONE]
    assert {poll["error"]["code"] for poll in failed} == {"AccessDenied"}
    tried = [each for each in executions.recorder.cloud.requests if each.parameters.get("RoleArn") == role(GONE)]
    assert len(tried) == 3
    assert (execution["status"], execution["error"]) == ("FAILED", "AccountsIncomplete")
    assert execution["cause"].startswith("2 of 3 accounts are recorded in full: s3://inventory-")
    manifest = execution["cause"].split(" names ")[0].split(f"s3://{executions.recorder.bucket}/")[1]
    assert re.fullmatch(r"executions/[\w-]+/manifest\.json", manifest)
    assert manifest in executions.recorder.objects()


def test_the_state_machine_needs_no_more(executions: Executions, translated: dict[str, Any]) -> None:
    """What Step Functions asks of S3 in the name of the state machine's role, that role allows."""
    executions.run([{"role_arn": role(SHOP)}], {})
    recorder = executions.recorder
    policy = statements(translated, "StateMachineRole", recorder.bucket)
    own = [request for request in recorder.cloud.requests if request.access_key == "ak"]
    assert [request.action for request in own] == ["GetObject", "PutObject", "DescribeMapRun"]
    for request in own[:2]:
        assert allowed(policy, f"s3:{request.action}", f"arn:aws:s3:::{request.parameters['path'][1:]}")
    assert allowed(policy, "lambda:InvokeFunction", FUNCTION_ARN)
    assert allowed(
        policy, "states:DescribeMapRun", f"arn:aws:states:{HOME}:{ACCOUNT}:mapRun:{STACK}-accounts/Accounts:1"
    )
    assert not allowed(policy, "s3:PutObject", f"arn:aws:s3:::{recorder.bucket}/inventory/account={SHOP}/x.jsonl.gz")


def test_all_accounts_are_complete(executions: Executions) -> None:
    """Then the execution succeeds. One that was started by hand has no time, and its polls have their own."""
    execution = executions.run([{"role_arn": role(SHOP)}, {"role_arn": role(DATA)}], {})
    assert execution["status"] == "SUCCEEDED"
    records = executions.recorder.records()
    polls = [lines[-1] for lines in records.values()]
    assert {poll["account"] for poll in polls} == {SHOP, DATA}
    assert records.keys() == {key(poll["account"], poll["timestamp"]) for poll in polls}


def test_what_another_attempt_does_not_mend(executions: Executions) -> None:
    """An account whose event is none is tried once, and touches no other."""
    execution = executions.run([{"role": role(GONE)}, "nonsense", {"role_arn": role(SHOP)}], {})
    assert (execution["status"], execution["cause"][:6]) == ("FAILED", "1 of 3")
    assert [lines[-1]["account"] for lines in executions.recorder.records().values()] == [SHOP]


def test_nobody_is_listed(executions: Executions) -> None:
    """A list without accounts is a mistake, and no success."""
    execution = executions.run([], {})
    assert (execution["status"], execution["cause"][:6]) == ("FAILED", "0 of 0")


def test_the_list_of_accounts() -> None:
    """Each item of the README's is an event that the handler takes."""
    for item in json.loads(sample("accounts.json")):
        check({**item, "time": "2026-11-22T09:00:00Z"})
        assert account_of(item["role_arn"])


def test_the_table() -> None:
    """Athena's table in the README has each field of the record once: the account is a partition."""
    columns = re.findall(
        r"`?(\w+)`? (?:string|int|double|boolean|\w+<[\w:,]+>),?\n? ?", sample("athena").split("\n)")[0]
    )
    assert columns == [name for name in dict.fromkeys(" ".join(KEYS.values()).split()) if name != "account"]
