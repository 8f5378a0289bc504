"""Amazon's own Python client against the double: what the double answers, that client understands, and what
it sends, the double takes."""

import json
import threading
import urllib.request

import boto3
import botocore.exceptions
from aws import REGION, Aws
from base import Server, handler
from botocore.config import Config


def main():
    cloud = Aws()
    server = Server(("127.0.0.1", 0), handler(cloud))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"

    def client(service):
        return boto3.client(service, region_name=REGION, endpoint_url=url, aws_access_key_id="AKIADOUBLE",
                            aws_secret_access_key="hunter2", config=Config(retries={"max_attempts": 0}))

    def control(what, body):
        urllib.request.urlopen(f"{url}/_double/{what}", json.dumps(body).encode()).read()

    def refused(code, call, **arguments):
        try:
            call(**arguments)
        except botocore.exceptions.ClientError as e:
            assert e.response["Error"]["Code"] == code, e
        else:
            raise AssertionError(f"not refused with {code}")

    ec2, ids = client("ec2"), cloud.facts()
    look_at_surroundings(ec2, ids)
    assert client("sts").get_caller_identity()["Arn"].startswith("arn:aws")
    request = request_of("0" * 64, ids)
    refused("DryRunOperation", ec2.run_instances, DryRun=True, **request)
    vm = ec2.run_instances(**request)["Instances"][0]
    assert vm["NetworkInterfaces"][0]["PrivateIpAddress"] == vm["PrivateIpAddress"], vm
    assert ec2.run_instances(**request)["Instances"][0]["InstanceId"] == vm["InstanceId"]
    refused("IdempotentParameterMismatch", ec2.run_instances, **{**request, "InstanceType": "t3.large"})
    tagged = [{"Name": "tag:peerpodd-sandbox", "Values": ["s"]}]
    mine = ec2.describe_volumes(Filters=tagged)["Volumes"] + ec2.describe_network_interfaces(
        Filters=tagged)["NetworkInterfaces"]
    assert len(mine) == 2, mine
    assert cloud.resources() == {"vm": 1, "disk": 1, "nic": 1, "address": 0}, cloud.resources()
    assert {thing["kind"] for thing in cloud.tags() if "peerpodd-sandbox" in thing["tags"]} == {"vm", "disk", "nic"}
    for n in range(1, 8):
        ec2.run_instances(**request_of(f"{n:064x}", ids))
    control("set", {"empty": True})
    pages = list(ec2.get_paginator("describe_instances").paginate(Filters=tagged))
    sizes = [len(page["Reservations"]) for page in pages]
    assert sum(sizes) == 8 and 0 in sizes[:-1], sizes
    everything = [i["InstanceId"] for page in pages for r in page["Reservations"] for i in r["Instances"]]
    refused("InvalidInstanceID.NotFound", ec2.terminate_instances, InstanceIds=[*everything, "i-0123456789abcdef0"])
    attach(ec2, vm["InstanceId"], ids["data-a"])
    ended = ec2.terminate_instances(InstanceIds=everything)["TerminatingInstances"]
    assert all(e["CurrentState"]["Name"] == "shutting-down" for e in ended), ended
    assert ec2.describe_volumes(VolumeIds=[ids["data-a"]])["Volumes"][0]["State"] == "available"
    assert sum(cloud.resources().values()) == 0, cloud.resources()
    again = ec2.run_instances(**request)["Instances"][0]
    assert again["State"]["Name"] == "terminated", again
    assert not cloud.violations, cloud.violations
    wrong(ec2, cloud, ids)
    print("aws: Amazon's client and the double agree")


def attach(ec2, vm, volume):
    ec2.attach_volume(VolumeId=volume, InstanceId=vm, Device="/dev/xvdb")
    found = ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [volume]}])["Volumes"][0]
    assert found["Attachments"][0]["InstanceId"] == vm and found["Attachments"][0]["State"] == "attached", found


def request_of(token, ids):
    tags = [{"Key": key, "Value": value} for key, value in (
        ("peerpodd-installation", "i"), ("peerpodd-sandbox", "s"), ("Name", "podvm-x"))]
    return {
        "MinCount": 1, "MaxCount": 1, "ImageId": ids["image"], "InstanceType": "t3.medium", "UserData": "#cloud-config",
        "SubnetId": ids["net-a"], "SecurityGroupIds": [ids["net-group"]], "ClientToken": token,
        "MetadataOptions": {"HttpTokens": "required"}, "InstanceInitiatedShutdownBehavior": "terminate",
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 8, "DeleteOnTermination": True}}],
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags}
                              for kind in ("instance", "volume", "network-interface")],
    }


def look_at_surroundings(ec2, ids):
    image = ec2.describe_images(ImageIds=[ids["image"]])["Images"][0]
    assert (image["State"], image["RootDeviceName"], image["BootMode"]) == ("available", "/dev/xvda", "uefi"), image
    group = ec2.describe_security_groups(GroupIds=[ids["net-group"]])["SecurityGroups"][0]
    assert group["VpcId"] == ids["net"] and len(group["IpPermissions"]) == 2, group
    assert ec2.describe_subnets(SubnetIds=[ids["net-b"]])["Subnets"][0]["AvailabilityZone"] == f"{REGION}b"
    family = [{"Name": "instance-type", "Values": ["m6a.*"]}]
    types = ec2.describe_instance_types(Filters=family)["InstanceTypes"]
    assert any("amd-sev-snp" in t["ProcessorInfo"].get("SupportedFeatures", []) for t in types), len(types)
    offers = ec2.describe_instance_type_offerings(Filters=family, LocationType="availability-zone")
    assert len(offers["InstanceTypeOfferings"]) == 2 * len(types)
    versions = ec2.describe_launch_template_versions(LaunchTemplateName="kata", Versions=["$Default"])
    assert versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["InstanceType"] == "t3.medium"
    assert ec2.describe_key_pairs(KeyNames=["people"])["KeyPairs"]


def wrong(ec2, cloud, ids):
    """What that client itself does not look at and the model would refuse, the double notes."""
    ec2.describe_instances(Filters=[{"Name": "instance-type", "Values": ["m6a.large"]}])
    before = len(cloud.violations)
    for change in ({"ShutdownBehaviour": "terminate"}, {"MinCount": "one"}, {"CpuOptions.AmdSevSnp": "maybe"},
                   {"BlockDeviceMapping.3.DeviceName": "/dev/xvdc"}, {"UserData.1": "x"}):
        params = {"Action": "RunInstances", "Version": "2016-11-15", "MinCount": "1", "MaxCount": "1", **change}
        assert cloud_violations(params), change
    assert len(cloud.violations) == before


def cloud_violations(params):
    import aws_model
    return aws_model.violations("ec2", params)


if __name__ == "__main__":
    main()
