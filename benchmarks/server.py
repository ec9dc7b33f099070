#!/usr/bin/env python3
"""EC2, STS and the instance metadata service on loopback, for benchmarks: its answers are rendered before it listens,
so that a client waits for nothing but its own work and the latency that was asked for.

Prints its URL once all is rendered, and serves until it is killed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

ACCOUNT = "123456789012"
PAGE_SIZE = 1000
ROLE = "inventory"

EC2_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
STS_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
IAM_NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"

INSTANCE_NUMBERS_PER_REGION = 500_000
"""More than any run asks for, and few enough that the numbers of 33 regions fit the three bytes of an address."""

CREDENTIALS_LIFETIME = 6 * 3600

Pages = Mapping[str, Sequence[bytes]]
"""A region's DescribeInstances answers, in order, as they go over the wire."""


@dataclass(frozen=True)
class Settings:
    instances: int
    """In each region."""
    regions: tuple[str, ...]
    latency: float
    """Seconds before each answer of DescribeInstances."""


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True

    def __init__(self, settings: Settings) -> None:
        self.pages: Pages = {
            region: region_pages(region, number, settings.instances) for number, region in enumerate(settings.regions)
        }
        self.latency = settings.latency
        self.answers = {action: response("text/xml", body) for action, body in other_actions(settings.regions).items()}
        self.metadata = {
            path: response("text/plain", body) for path, body in instance_metadata(settings.regions[0]).items()
        }
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Every answer is one sendall of bytes that were there before."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parameters = dict(parse_qsl(body, keep_blank_values=True))
        if parameters.get("Action") != "DescribeInstances":
            self.answer_other(parameters.get("Action", ""))
            return
        time.sleep(self.server.latency)
        pages = self.server.pages.get(self.signed_region())
        self.wfile.write(pages[int(parameters.get("NextToken", 0))] if pages else NOT_ENABLED)

    def answer_other(self, action: str) -> None:
        if action not in self.server.answers:
            print(f"unknown action {action!r}: {self.headers.get('X-Amz-Target')}", file=sys.stderr, flush=True)
        self.wfile.write(self.server.answers.get(action, UNKNOWN_ACTION))

    def do_PUT(self) -> None:
        self.wfile.write(self.server.metadata["api/token"])

    def do_GET(self) -> None:
        name = self.path.removeprefix("/latest/").rstrip("/")
        self.wfile.write(self.server.metadata.get(name, NOT_FOUND))

    def signed_region(self) -> str:
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/", self.headers["Authorization"])
        return scope[1] if scope else ""

    def log_message(self, format: str, *values: object) -> None:
        pass


def response(content_type: str, body: str, status: str = "200 OK") -> bytes:
    """A whole HTTP answer."""
    content = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type};charset=UTF-8\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def ec2_error(code: str, message: str) -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{code}</Code>'
        f"<Message>{message}</Message></Error></Errors><RequestID>{REQUEST_ID}</RequestID></Response>"
    )


REQUEST_ID = "8f7724cf-496f-496e-8fe3-5a1d0b6c8a11"
UNKNOWN_ACTION = response("text/xml", ec2_error("InvalidAction", "No such action here."), "400 Bad Request")
NOT_ENABLED = response("text/xml", ec2_error("OptInRequired", "The region is not enabled."), "403 Forbidden")
NOT_FOUND = response("text/plain", "Not Found", "404 Not Found")


def region_pages(region: str, number: int, instances: int) -> list[bytes]:
    """The answers for the region that is the `number`th, at least one."""
    # Every other instance has two network interfaces.
    templates = [
        compact(RESERVATION.replace("INTERFACES", FIRST_INTERFACE + second)) for second in ("", SECOND_INTERFACE)
    ]
    starts = range(0, max(instances, 1), PAGE_SIZE)
    return [
        page(
            "".join(
                templates[index % 2] % instance_values(region, number * INSTANCE_NUMBERS_PER_REGION + index)
                for index in range(start, min(start + PAGE_SIZE, instances))
            ),
            token=str(place) if place < len(starts) else None,
        )
        for place, start in enumerate(starts, start=1)
    ]


def page(reservations: str, token: str | None) -> bytes:
    next_token = f"<nextToken>{token}</nextToken>" if token else ""
    return response(
        "text/xml",
        f'<?xml version="1.0" encoding="UTF-8"?>\n<DescribeInstancesResponse xmlns="{EC2_NAMESPACE}">'
        f"<requestId>{REQUEST_ID}</requestId><reservationSet>{reservations}</reservationSet>{next_token}"
        "</DescribeInstancesResponse>",
    )


def compact(markup: str) -> str:
    return "".join(line.strip() for line in markup.splitlines())


def instance_values(region: str, number: int) -> dict[str, str]:
    """What differs from one instance to the next. No two numbers share an id, an address or a host name."""
    low = f"{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    zone = "abc"[number % 3]
    return {
        "id": f"{0xA1B3C4D5 << 32 | number:017x}",
        "second": f"{0xC2D5E6F7 << 32 | number:017x}",
        "region": region,
        "zone": f"{region}{zone}",
        "zone_id": f"use1-az{number % 3 + 1}",
        "private": f"10.{low}",
        "private_name": f"ip-10-{low.replace('.', '-')}",
        "other": f"100.{low}",
        "other_name": f"ip-100-{low.replace('.', '-')}",
        "mac": ":".join(f"{number:010x}"[at : at + 2] for at in range(0, 10, 2)),
        "number": f"{number:06d}",
    }


RESERVATION = """
<item>
 <reservationId>r-%(id)s</reservationId>
 <ownerId>123456789012</ownerId>
 <groupSet/>
 <instancesSet>
  <item>
   <instanceId>i-%(id)s</instanceId>
   <imageId>ami-0abcdef1234567890</imageId>
   <instanceState>
    <code>16</code>
    <name>running</name>
   </instanceState>
   <privateDnsName>%(private_name)s.%(region)s.compute.internal</privateDnsName>
   <dnsName/>
   <reason/>
   <keyName>operations</keyName>
   <amiLaunchIndex>0</amiLaunchIndex>
   <productCodes/>
   <instanceType>m7g.large</instanceType>
   <launchTime>2026-10-14T08:12:31.000Z</launchTime>
   <placement>
    <availabilityZone>%(zone)s</availabilityZone>
    <availabilityZoneId>%(zone_id)s</availabilityZoneId>
    <groupName/>
    <tenancy>default</tenancy>
   </placement>
   <monitoring>
    <state>disabled</state>
   </monitoring>
   <subnetId>subnet-0a1b2c3d4e5f60718</subnetId>
   <vpcId>vpc-0f1e2d3c4b5a69788</vpcId>
   <privateIpAddress>%(private)s</privateIpAddress>
   <sourceDestCheck>true</sourceDestCheck>
   <groupSet>
    <item>
     <groupId>sg-0123456789abcdef0</groupId>
     <groupName>web</groupName>
    </item>
   </groupSet>
   <architecture>arm64</architecture>
   <rootDeviceType>ebs</rootDeviceType>
   <rootDeviceName>/dev/xvda</rootDeviceName>
   <blockDeviceMapping>
    <item>
     <deviceName>/dev/xvda</deviceName>
     <ebs>
      <volumeId>vol-%(id)s</volumeId>
      <status>attached</status>
      <attachTime>2026-03-02T10:45:09.000Z</attachTime>
      <deleteOnTermination>true</deleteOnTermination>
      <ebsCardIndex>0</ebsCardIndex>
     </ebs>
    </item>
    <item>
     <deviceName>/dev/sdf</deviceName>
     <ebs>
      <volumeId>vol-%(second)s</volumeId>
      <status>attached</status>
      <attachTime>2026-03-02T10:45:09.000Z</attachTime>
      <deleteOnTermination>false</deleteOnTermination>
      <ebsCardIndex>0</ebsCardIndex>
     </ebs>
    </item>
   </blockDeviceMapping>
   <virtualizationType>hvm</virtualizationType>
   <clientToken>fleet-%(id)s</clientToken>
   <tagSet>
    <item>
     <key>Name</key>
     <value>web-%(number)s</value>
    </item>
    <item>
     <key>Team</key>
     <value>payments</value>
    </item>
    <item>
     <key>Environment</key>
     <value>production</value>
    </item>
    <item>
     <key>CostCenter</key>
     <value>4711</value>
    </item>
    <item>
     <key>aws:autoscaling:groupName</key>
     <value>web-%(zone)s</value>
    </item>
    <item>
     <key>aws:ec2launchtemplate:version</key>
     <value>12</value>
    </item>
   </tagSet>
   <hypervisor>xen</hypervisor>
   <networkInterfaceSet>
    INTERFACES
   </networkInterfaceSet>
   <iamInstanceProfile>
    <arn>arn:aws:iam::123456789012:instance-profile/web</arn>
    <id>AIPAEXAMPLEEXAMPLEEXA</id>
   </iamInstanceProfile>
   <ebsOptimized>true</ebsOptimized>
   <enaSupport>true</enaSupport>
   <cpuOptions>
    <coreCount>2</coreCount>
    <threadsPerCore>1</threadsPerCore>
   </cpuOptions>
   <capacityReservationSpecification>
    <capacityReservationPreference>open</capacityReservationPreference>
   </capacityReservationSpecification>
   <hibernationOptions>
    <configured>false</configured>
   </hibernationOptions>
   <enclaveOptions>
    <enabled>false</enabled>
   </enclaveOptions>
   <metadataOptions>
    <state>applied</state>
    <httpTokens>required</httpTokens>
    <httpPutResponseHopLimit>2</httpPutResponseHopLimit>
    <httpEndpoint>enabled</httpEndpoint>
    <httpProtocolIpv6>disabled</httpProtocolIpv6>
    <instanceMetadataTags>disabled</instanceMetadataTags>
   </metadataOptions>
   <maintenanceOptions>
    <autoRecovery>default</autoRecovery>
    <rebootMigration>default</rebootMigration>
   </maintenanceOptions>
   <platformDetails>Linux/UNIX</platformDetails>
   <usageOperation>RunInstances</usageOperation>
   <usageOperationUpdateTime>2026-03-02T10:45:08.000Z</usageOperationUpdateTime>
   <privateDnsNameOptions>
    <hostnameType>ip-name</hostnameType>
    <enableResourceNameDnsARecord>false</enableResourceNameDnsARecord>
    <enableResourceNameDnsAAAARecord>false</enableResourceNameDnsAAAARecord>
   </privateDnsNameOptions>
   <bootMode>uefi</bootMode>
   <currentInstanceBootMode>uefi</currentInstanceBootMode>
   <networkPerformanceOptions>
    <bandwidthWeighting>default</bandwidthWeighting>
   </networkPerformanceOptions>
   <operator>
    <managed>false</managed>
   </operator>
  </item>
 </instancesSet>
</item>
"""


def group(group_id: str, name: str) -> str:
    return f"<item><groupId>{group_id}</groupId><groupName>{name}</groupName></item>"


WEB = group("sg-0123456789abcdef0", "web")
MONITORING = group("sg-0fedcba9876543210", "monitoring")


def interface(index: int, suffix: str, address: str, mac: str, description: str, groups: str, attached: str) -> str:
    """A network interface. `suffix` and `address` are names of instance_values."""
    name = f"%({address}_name)s.%(region)s.compute.internal"
    return f"""
    <item>
     <networkInterfaceId>eni-%({suffix})s</networkInterfaceId>
     <subnetId>subnet-0a1b2c3d4e5f60718</subnetId>
     <vpcId>vpc-0f1e2d3c4b5a69788</vpcId>
     {description}
     <ownerId>123456789012</ownerId>
     <status>in-use</status>
     <macAddress>{mac}:%(mac)s</macAddress>
     <privateIpAddress>%({address})s</privateIpAddress>
     <privateDnsName>{name}</privateDnsName>
     <sourceDestCheck>true</sourceDestCheck>
     <groupSet>{groups}</groupSet>
     <attachment>
      <attachmentId>eni-attach-%({suffix})s</attachmentId>
      <deviceIndex>{index}</deviceIndex>
      <status>attached</status>
      <attachTime>{attached}</attachTime>
      <deleteOnTermination>true</deleteOnTermination>
      <networkCardIndex>0</networkCardIndex>
     </attachment>
     <privateIpAddressesSet>
      <item>
       <privateIpAddress>%({address})s</privateIpAddress>
       <privateDnsName>{name}</privateDnsName>
       <primary>true</primary>
      </item>
     </privateIpAddressesSet>
     <ipv6AddressesSet/>
     <interfaceType>interface</interfaceType>
     <operator>
      <managed>false</managed>
     </operator>
    </item>
"""


FIRST_INTERFACE = interface(0, "id", "private", "02", "<description/>", WEB + MONITORING, "2026-03-02T10:45:08.000Z")
SECOND_INTERFACE = interface(
    1, "second", "other", "06", "<description>pods</description>", MONITORING, "2026-03-02T10:45:30.000Z"
)


def other_actions(regions: Sequence[str]) -> dict[str, str]:
    """What else a tool asks of EC2, STS and IAM before it lists instances."""
    region_items = "".join(
        f"<item><regionName>{region}</regionName><regionEndpoint>ec2.{region}.amazonaws.com</regionEndpoint>"
        "<optInStatus>opt-in-not-required</optInStatus></item>"
        for region in regions
    )
    return {
        "GetCallerIdentity": f'<GetCallerIdentityResponse xmlns="{STS_NAMESPACE}"><GetCallerIdentityResult>'
        f"<Arn>arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/i-0f1e2d3c4b5a69788</Arn>"
        f"<UserId>AROAEXAMPLE:i-0f1e2d3c4b5a69788</UserId><Account>{ACCOUNT}</Account></GetCallerIdentityResult>"
        f"<ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        "DescribeRegions": f'<DescribeRegionsResponse xmlns="{EC2_NAMESPACE}"><requestId>{REQUEST_ID}</requestId>'
        f"<regionInfo>{region_items}</regionInfo></DescribeRegionsResponse>",
        "ListAccountAliases": f'<ListAccountAliasesResponse xmlns="{IAM_NAMESPACE}"><ListAccountAliasesResult>'
        "<IsTruncated>false</IsTruncated><AccountAliases/></ListAccountAliasesResult>"
        f"<ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata></ListAccountAliasesResponse>",
    }


def instance_metadata(region: str) -> dict[str, str]:
    """IMDSv2's answers by their path below /latest/."""
    expiration = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + CREDENTIALS_LIFETIME))
    credentials = {
        "Code": "Success",
        "LastUpdated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIABENCHMARK",
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": expiration,
    }
    return {
        "api/token": "a-token",
        "meta-data/placement/region": region,
        "meta-data/placement/availability-zone": f"{region}a",
        "meta-data/iam/security-credentials": ROLE,
        f"meta-data/iam/security-credentials/{ROLE}": json.dumps(credentials),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=PAGE_SIZE, help="in each region (default: %(default)s)")
    parser.add_argument("--region", action="append", dest="regions", help="may be repeated (default: us-east-1)")
    parser.add_argument("--latency", type=float, default=0, help="seconds before each page (default: none)")
    asked = parser.parse_args()
    server = Server(Settings(asked.instances, tuple(asked.regions or ["us-east-1"]), asked.latency))
    print(server.url, flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
