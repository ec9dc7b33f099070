#!/usr/bin/env python3
"""Every instance of many accounts as JSON Lines, as one writes it on boto3: role by role, region by region."""

from __future__ import annotations

import json
import sys

import boto3
from botocore.exceptions import ClientError


def main() -> int:
    roles, *regions = sys.argv[1:]
    sts = boto3.client("sts")
    with open(roles) as file:
        arns = file.read().split()
    for arn in arns:
        try:
            credentials = sts.assume_role(RoleArn=arn, RoleSessionName="loop")["Credentials"]
            session = boto3.Session(
                credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials["SessionToken"]
            )
            for region in regions:
                pages = session.client("ec2", region_name=region).get_paginator("describe_instances")
                for page in pages.paginate(PaginationConfig={"PageSize": 1000}):
                    for reservation in page["Reservations"]:
                        for instance in reservation["Instances"]:
                            print(json.dumps({"record": "instance", **instance}, default=str))
        except ClientError as error:
            print(arn, error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
