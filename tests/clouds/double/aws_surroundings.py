"""What a check of AWS looks at besides VMs: who asks, image, network, types, launch template, and what a
machine's metadata say."""

import fnmatch
import re

from aws_moto import REGION, filters, moto, refusal, reply
from base import Answer
from moto.ec2.models.instance_types import INSTANCE_TYPES


class Surroundings:
    """The double has `ids` of what is there and `options` that were set."""

    def caller(self, params):
        if self.options["sts"] != 200:
            code = "InvalidClientTokenId" if self.options["sts"] == 403 else "ServiceUnavailable"
            return Answer(self.options["sts"], "<ErrorResponse><Error><Type>Sender</Type>"
                          f"<Code>{code}</Code><Message>no</Message></Error><RequestId>r</RequestId></ErrorResponse>")
        status, body = moto(params, "sts")
        return Answer(status, body, {"Content-Type": "text/xml"})

    def metadata(self, request):
        """The service at 169.254.169.254, version 2."""
        if request.method == "PUT" and request.path == "/latest/api/token":
            return Answer(200, "token", {"x-aws-ec2-metadata-token-ttl-seconds": "21600"})
        if request.headers.get("x-aws-ec2-metadata-token") != "token":
            return Answer(401, "")
        text = self.options["metadata"].get(request.path.removeprefix("/latest/meta-data/"))
        return Answer(200, text) if text else Answer(404, "")

    def do_DescribeImages(self, params):
        image = params["ImageId.1"]
        known = {self.ids["image"]: 8, self.ids["own-image"]: 20}
        if image not in known:
            return refusal(400, "InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
        told = {"imageState": "available", "architecture": "x86_64", "bootMode": "uefi",
                "rootDeviceName": "/dev/xvda", **self.options["image"]}
        fields = "".join(f"<{key}>{value}</{key}>" for key, value in told.items())
        # The disk that it boots from is not the first one.
        disks = "".join(f"<item><deviceName>{name}</deviceName><ebs><volumeSize>{size}</volumeSize></ebs></item>"
                        for name, size in (("/dev/xvdb", 99), ("/dev/xvda", known[image])))
        return reply("DescribeImages", f"<imagesSet><item><imageId>{image}</imageId>{fields}"
                     f"<blockDeviceMapping>{disks}</blockDeviceMapping></item></imagesSet>")

    def do_DescribeSecurityGroups(self, params):
        group = params["GroupId.1"]
        vpc = next((self.ids[net] for net in ("net", "other-net") if self.ids[f"{net}-group"] == group), None)
        if not vpc:
            return refusal(400, "InvalidGroup.NotFound", f"The security group '{group}' does not exist")
        rules = "".join(
            f"<item><ipProtocol>{protocol}</ipProtocol><fromPort>{port}</fromPort><toPort>{port}</toPort>"
            f"<groups><item><groupId>{group}</groupId></item></groups></item>"
            for protocol, port in self.options["rules"])
        return reply("DescribeSecurityGroups", f"<securityGroupInfo><item><groupId>{group}</groupId><vpcId>{vpc}"
                     f"</vpcId><ipPermissions>{rules}</ipPermissions></item></securityGroupInfo>")

    def do_DescribeSubnets(self, params):
        status, body = moto(params)
        text = body
        if self.options["addresses"] is not None:
            count = f"<availableIpAddressCount>{self.options['addresses']}</availableIpAddressCount>"
            text = re.sub("<availableIpAddressCount>[^<]*</availableIpAddressCount>", count, text)
        return Answer(status, text, {"Content-Type": "text/xml"})

    def matching(self, params):
        patterns = filters(params)["instance-type"]
        return [name for name in INSTANCE_TYPES if any(fnmatch.fnmatchcase(name, p) for p in patterns)]

    def do_DescribeInstanceTypes(self, params):
        names = self.matching(params)
        if not names:
            return reply("DescribeInstanceTypes", "<instanceTypeSet/>")
        return self.forward({"Action": "DescribeInstanceTypes", "Version": "2016-11-15",
                             **{f"InstanceType.{n + 1}": name for n, name in enumerate(names)}})

    def do_DescribeInstanceTypeOfferings(self, params):
        everywhere = [f"{REGION}{zone}" for zone in "ab"]
        items = "".join(
            f"<item><instanceType>{name}</instanceType><location>{zone}</location>"
            "<locationType>availability-zone</locationType></item>"
            for name in self.matching(params) for zone in self.options["offers"].get(name, everywhere))
        return reply("DescribeInstanceTypeOfferings", f"<instanceTypeOfferingSet>{items}</instanceTypeOfferingSet>")

    def do_DescribeLaunchTemplateVersions(self, params):
        if params.get("LaunchTemplateName") != "kata":
            return refusal(400, "InvalidLaunchTemplateName.NotFoundException", "no such launch template")
        decides = {"imageId": self.ids["image"], "instanceType": "t3.medium", **self.options["decides"]}
        data = "".join(f"<{key}>{value}</{key}>" for key, value in decides.items() if value)
        return reply("DescribeLaunchTemplateVersions", "<launchTemplateVersionSet><item><launchTemplateName>kata"
                     "</launchTemplateName><versionNumber>1</versionNumber><launchTemplateData>"
                     f"{data}</launchTemplateData></item></launchTemplateVersionSet>")
