"""An emulated AWS account on loopback, with a lifelike fleet: for the demonstration, and for tests of behaviour.

EC2 and STS are moto's server; the instance metadata service hands out role credentials of moto's STS. A process
reaches them through AWS's own settings, `EmulatedAWS.environment`, as it would reach the real ones.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import boto3
from instance_metadata import InstanceMetadataService, RoleCredentials
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import InstanceState
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType

    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import RunInstancesRequestTypeDef
    from typing_extensions import Self

ACCOUNT = "123456789012"
HOME = "eu-west-1"


@dataclass(frozen=True)
class Group:
    """Instances that are launched together."""

    region: str
    instance_type: str
    tags: dict[str, str]
    count: int = 1
    state: str = "running"
    age: timedelta = timedelta(days=30)
    public: bool = False
    spot: bool = False
    key_name: str | None = None


STATE_CODES = {"pending": 0, "shutting-down": 32, "stopping": 64}
"""Those that moto passes through too fast to be seen."""

BATCH = Group(HOME, "c7g.4xlarge", {"Name": "batch", "Team": "data"}, spot=True, age=timedelta(hours=2))

FLEET = (
    Group(HOME, "m7g.large", {"Name": "web", "Team": "shop"}, count=4, public=True, age=timedelta(days=12)),
    Group(HOME, "r7g.xlarge", {"Name": "orders-db", "Team": "payments", "Backup": "daily"}, age=timedelta(days=400)),
    Group(HOME, "t4g.nano", {"Name": "inventory", "Team": "platform"}, age=timedelta(days=90)),
    Group(HOME, "t3.medium", {}, count=2, state="stopped", age=timedelta(days=200)),
    replace(BATCH, count=3),
    replace(BATCH, state="terminated"),
    Group("us-east-1", "m5.2xlarge", {"Name": "analytics", "Team": "data"}, count=2, key_name="ops"),
    Group("us-east-1", "t3.micro", {"Name": 'Bob\'s "test" box\n(do not delete!)', "Owner": "Bob"}, key_name="ops"),
    Group("us-east-1", "t3.micro", {"Name": "starting"}, state="pending", age=timedelta(seconds=20)),
    Group("us-east-1", "t3.micro", {"Name": "leaving"}, state="shutting-down", age=timedelta(days=3)),
    Group("ap-southeast-2", "t3.large", {"Name": "Büro Zürich – 東京 \x85 tail", "empty": ""}, public=True),
    Group("ap-southeast-2", "t3.large", {"Name": "evil\u202egnp.exe", "ansi": "\x9b2J"}, state="stopping"),
)


@dataclass
class EmulatedAWS:
    """Serves within a with statement, in which `session` is one of the account's owner."""

    metadata: InstanceMetadataService = field(default_factory=lambda: InstanceMetadataService(region=HOME))
    account: str = ACCOUNT
    """Accounts are what is kept apart: all that are emulated in one process know each other's servers."""
    address: tuple[str, int] = ("127.0.0.1", 0)
    """EC2's and STS's."""
    metadata_network: Callable[[], AbstractContextManager[None]] = nullcontext
    """What the metadata service is started within."""

    def __enter__(self) -> Self:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._stack = ExitStack()
        moto = ThreadedMotoServer(*self.address, verbose=False)
        moto.start()
        self._stack.callback(moto.stop)
        self.url = "http://{}:{}".format(*moto.get_host_and_port())
        self.metadata.account = self.account
        self.metadata.credentials = self._role_credentials
        with self.metadata_network():
            self._stack.enter_context(self.metadata)
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url,
        }
        owner = self._assumed("owner", "owner")
        self.session = boto3.Session(owner.access_key, owner.secret_key, owner.token, region_name=HOME)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def ec2(self, region: str = HOME) -> EC2Client:
        """For whoever changes the fleet."""
        return self.session.client("ec2", region_name=region, endpoint_url=self.url)

    def launch_fleet(self) -> None:
        for group in FLEET:
            self.launch(group)

    def launch(self, group: Group) -> list[str]:
        """The ids of the new instances."""
        ec2 = self.ec2(group.region)
        request: RunInstancesRequestTypeDef = {
            "ImageId": "ami-0abcdef1234567890",
            "InstanceType": group.instance_type,  # type: ignore[typeddict-item]  # the stubs know each by name
            "MinCount": group.count,
            "MaxCount": group.count,
            "NetworkInterfaces": [
                {"DeviceIndex": 0, "AssociatePublicIpAddress": group.public, "SubnetId": self._subnet(ec2)}
            ],
        }
        if group.tags:
            request["TagSpecifications"] = [
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": key, "Value": value} for key, value in group.tags.items()],
                }
            ]
        if group.spot:
            request["InstanceMarketOptions"] = {"MarketType": "spot"}
        if group.key_name:
            request["KeyName"] = group.key_name
        ids = [instance["InstanceId"] for instance in ec2.run_instances(**request)["Instances"]]
        if group.state == "stopped":
            ec2.stop_instances(InstanceIds=ids)
        elif group.state == "terminated":
            ec2.terminate_instances(InstanceIds=ids)
        for instance_id in ids:
            # moto has no way to say this over its API.
            instance = ec2_backends[self.account][group.region].get_instance(instance_id)
            instance.launch_time -= group.age
            for interface in instance.nics.values():
                interface.attach_time = instance.launch_time
            if group.state in STATE_CODES:
                instance._state = InstanceState(group.state, STATE_CODES[group.state])
        return ids

    def _subnet(self, ec2: EC2Client) -> str:
        return ec2.describe_subnets()["Subnets"][0]["SubnetId"]

    def _role_credentials(self) -> RoleCredentials:
        assert self.metadata.role, "asked for only where there is one"
        return self._assumed(self.metadata.role, self.metadata.instance_id)

    def _assumed(self, role: str, session_name: str) -> RoleCredentials:
        sts = boto3.Session("AKIAEXAMPLE", "secret", region_name=HOME).client("sts", endpoint_url=self.url)
        answer = sts.assume_role(
            RoleArn=f"arn:aws:iam::{self.account}:role/{role}", RoleSessionName=session_name, DurationSeconds=6 * 3600
        )["Credentials"]
        return RoleCredentials(
            answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"], answer["Expiration"]
        )
