"""What one writes without this project: every instance of the regions named, one region after the other."""

import json
import sys

import boto3

for region in sys.argv[1:]:
    paginator = boto3.client("ec2", region_name=region).get_paginator("describe_instances")
    for page in paginator.paginate(PaginationConfig={"PageSize": 1000}):
        for reservation in page["Reservations"]:
            for instance in reservation["Instances"]:
                print(json.dumps(instance, default=str))
