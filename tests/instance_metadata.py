"""An instance metadata service on loopback that speaks IMDSv2 and nothing else."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from loopback import Handler, LoopbackService

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class RoleCredentials:
    access_key: str
    secret_key: str
    token: str
    expires: datetime


def some_credentials(access_key: str = "ASIAMETADATA", lifetime: float = 6 * 3600) -> RoleCredentials:
    """Credentials that expire `lifetime` seconds from now."""
    expires = datetime.now(timezone.utc) + timedelta(seconds=lifetime)
    return RoleCredentials(access_key, f"secret-of-{access_key}", f"token-of-{access_key}", expires)


@dataclass
class InstanceMetadataService(LoopbackService):
    """Serves from `start` to `stop`, at `url`. Its attributes may be changed meanwhile."""

    region: str = "eu-west-1"
    availability_zone: str = ""
    """Default: the region's a."""
    instance_id: str = "i-0f1e2d3c4b5a69788"
    account: str = "123456789012"
    role: str | None = "inventory"
    credentials: Callable[[], RoleCredentials] = some_credentials
    overrides: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and body for a path below /latest/, in place of the usual answer."""
    hang: float = 0
    """Seconds before each answer."""
    requests: list[str] = field(default_factory=list)
    """Method and path of all that was asked, in order."""
    address: tuple[str, int] = ("127.0.0.1", 0)
    _tokens: set[str] = field(default_factory=set)

    def handler(self) -> type[Handler]:
        service = self

        class MetadataHandler(Handler):
            def do_PUT(self) -> None:
                self.say(*service._put(self.path, self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")))

            def do_GET(self) -> None:
                self.say(*service._get(self.path, self.headers.get("X-aws-ec2-metadata-token")))

            def say(self, status: int, body: str) -> None:
                service.requests.append(f"{self.command} {self.path}")
                time.sleep(service.hang)
                self.answer(status, "text/plain", body.encode())

        return MetadataHandler

    def _put(self, path: str, lifetime: str | None) -> tuple[int, str]:
        if "api/token" in self.overrides:
            return self.overrides["api/token"]
        if path != "/latest/api/token" or not (lifetime or "").isdigit():
            return 400, "Bad Request"
        token = secrets.token_urlsafe(40)
        self._tokens.add(token)
        return 200, token

    def _get(self, path: str, token: str | None) -> tuple[int, str]:
        if token not in self._tokens:
            return 401, "Unauthorized"
        version, _, name = path.removeprefix("/").partition("/")
        if version not in {"latest", "2009-04-04"}:  # the second is what ec2metadata asks under
            return 404, "Not Found"
        if name in self.overrides:
            return self.overrides[name]
        name = name.rstrip("/")
        zone = self.availability_zone or f"{self.region}a"
        values = {
            "meta-data/placement/region": self.region,
            "meta-data/placement/availability-zone": zone,
            "meta-data/instance-id": self.instance_id,
            "dynamic/instance-identity/document": json.dumps(
                {
                    "accountId": self.account,
                    "availabilityZone": zone,
                    "instanceId": self.instance_id,
                    "instanceType": "t4g.nano",
                    "region": self.region,
                    "version": "2017-09-30",
                }
            ),
        }
        if self.role:
            values["meta-data/iam/security-credentials"] = self.role
            if name == f"meta-data/iam/security-credentials/{self.role}":
                return 200, self._role_document()
        return (200, values[name]) if name in values else (404, "Not Found")

    def _role_document(self) -> str:
        credentials = self.credentials()
        return json.dumps(
            {
                "Code": "Success",
                "LastUpdated": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
                "Type": "AWS-HMAC",
                "AccessKeyId": credentials.access_key,
                "SecretAccessKey": credentials.secret_key,
                "Token": credentials.token,
                "Expiration": f"{credentials.expires:%Y-%m-%dT%H:%M:%SZ}",
            }
        )
