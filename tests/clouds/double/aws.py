"""EC2, as moto has it (providers.md 10.1), behind a desk of our own: it records each call, has it checked
by Amazon's model, and adds what moto lacks: replays by ClientToken and their refusal, pages, refusals,
addresses that come late, tags on all parts, what a check looks at, and the machine's metadata.

Set: {"stopped": name}, {"vanish": name}, {"foreign": name}, {"occupied": name} (somebody else has a VM of that
name), {"next": {"action", "code", "message", "status"}} (the next call of that action is refused), {"denied":
[actions]}, {"auth": code}, {"sts": status}, {"gone": bool} (the image), {"hidden": looks} (before a public address
shows), {"pages": things on one}, {"empty": bool} (an empty page before the last), {"bucket": [size, per second]},
{"image": {...}}, {"rules": [[protocol, port]]}, {"addresses": n}, {"offers": {type: [zones]}}, {"decides": {...}} (the
launch template), {"metadata": {path: text}}, {"console": {"text", "latest"}}, {"late":
seconds} (before a create takes effect).
"""

import base64
import re
import sys
import time
import xml.etree.ElementTree as ET
from urllib.parse import parse_qs

import aws_model
from aws_moto import MOTO, NS, REGION, ask, filters, found, moto, numbered, refusal, reply, tags
from aws_surroundings import Surroundings
from base import Answer, Bucket, Cloud, run
from moto.backends import get_backend
from moto.ec2.models.instance_types import INSTANCE_TYPES

ACCOUNT = "123456789012"
USER_DATA = 16384
TAGS = 50
REFUSALS = {
    "denied": (403, "UnauthorizedOperation"),
    "invalid": (400, "InvalidParameterValue"),
    "quota": (400, "VcpuLimitExceeded"),
    "capacity": (500, "InsufficientInstanceCapacity"),
    "throttled": (503, "RequestLimitExceeded"),
    "unavailable": (503, "Unavailable"),
    "other": (400, "SomethingNobodyKnows"),
    "not-found": (400, "InvalidInstanceID.NotFound"),
}
DELETES = ("TerminateInstances", "DeleteVolume", "DeleteNetworkInterface")
LISTS = {"DescribeInstances": "reservationSet", "DescribeNetworkInterfaces": "networkInterfaceSet",
         "DescribeVolumes": "volumeSet"}
OURS = ("peerpodd-installation", "peerpodd-sandbox", "Name")


class Aws(Surroundings, Cloud):
    def reset(self):
        super().reset()
        MOTO.post("/moto-api/reset")
        # Ids are the same ones each time, so that settings can name them; its default network, which takes
        # ids too, is there before.
        _ = self.moto
        MOTO.post("/moto-api/seed?a=1")
        self.tokens, self.hidden, self.limit, self.addresses = {}, {}, None, {}
        self.options = {
            "next": [], "denied": [], "auth": None, "hidden": 0, "pages": 3, "empty": False,
            "image": {}, "rules": [["tcp", 15150], ["udp", 9000]], "addresses": None, "offers": {},
            "decides": {}, "metadata": {}, "console": {}, "sts": 200, "gone": False,
            "late": 0}
        self.seed()

    def seed(self):
        """What is there before any VM: two networks, an image, a key pair, a disk."""
        self.ids = {}
        for network, block in (("net", "10.9"), ("other-net", "10.8")):
            vpc = found(ask("CreateVpc", CidrBlock=f"{block}.0.0/16"), "vpcId")
            self.ids[network] = vpc
            for n, zone in enumerate("ab"):
                subnet = ask("CreateSubnet", VpcId=vpc, CidrBlock=f"{block}.{n * 16}.0/20",
                             AvailabilityZone=f"{REGION}{zone}")
                self.ids[f"{network}-{zone}"] = found(subnet, "subnetId")
            group = ask("CreateSecurityGroup", GroupName=network, GroupDescription="pods", VpcId=vpc)
            self.ids[f"{network}-group"] = found(group, "groupId")
        image = {"Name": "podvm", "Architecture": "x86_64", "RootDeviceName": "/dev/xvda",
                 "VirtualizationType": "hvm"}
        self.ids["image"] = found(ask("RegisterImage", **image), "imageId")
        self.ids["own-image"] = found(ask("RegisterImage", **{**image, "Name": "own"}), "imageId")
        ask("CreateKeyPair", KeyName="people")
        for zone in "ab":
            volume = ask("CreateVolume", AvailabilityZone=f"{REGION}{zone}", Size="1")
            self.ids[f"data-{zone}"] = found(volume, "volumeId")

    def facts(self):
        return self.ids

    @property
    def moto(self):
        return get_backend("ec2")[ACCOUNT][REGION]

    def vms(self):
        return [vm for reservation in self.moto.reservations.values() for vm in reservation.instances
                if vm._state.name not in ("terminated", "shutting-down")]

    def resources(self):
        kept = [self.ids["data-a"], self.ids["data-b"]]
        return {"vm": len(self.vms()), "disk": len([v for v in self.moto.volumes if v not in kept]),
                "nic": len(self.moto.enis), "address": len(self.moto.addresses)}

    def tags(self):
        things = [("vm", vm) for vm in self.vms()]
        things += [("disk", v) for v in self.moto.volumes.values()] + [("nic", e) for e in self.moto.enis.values()]
        tagged = [(kind, {tag["key"]: tag["value"] for tag in thing.get_tags()}) for kind, thing in things]
        return [{"kind": kind, "tags": tags} for kind, tags in tagged if tags]

    def set(self, values):
        for key, value in values.items():
            if key == "stopped":
                vm = self.named(value).id
                ask("StopInstances", **{"InstanceId.1": vm})
                self.halt(vm)
            elif key == "occupied":
                self.occupy(value)
            elif key == "foreign":
                ask("CreateTags", **{"ResourceId.1": self.named(value).id, "Tag.1.Key": "peerpodd-sandbox",
                                     "Tag.1.Value": "somebody-elses"})
            elif key == "vanish":
                self.terminate([self.named(value).id])
            elif key == "next":
                self.options["next"].append(value)
            elif key == "bucket":
                self.limit = Bucket(*value)
            elif key in self.options:
                self.options[key] = value
            else:
                raise KeyError(key)

    def occupy(self, name):
        """A VM of somebody who does not know us."""
        vm = found(ask("RunInstances", ImageId=self.ids["image"], InstanceType="t3.small", MinCount="1",
                       MaxCount="1", SubnetId=self.ids["net-a"]), "instanceId")
        theirs = {"Name": name, "peerpodd-sandbox": "somebody-elses"}
        for thing in [vm, *(nic.id for nic in self.moto.get_instance(vm).nics.values())]:
            self.moto.create_tags([thing], theirs)

    def named(self, name):
        return next(vm for vm in self.vms() if self.tags_of(vm.id).get("Name") == name)

    def tags_of(self, thing):
        return {tag["key"]: tag["value"] for tag in self.moto.describe_tags(
            {"resource-id": [thing]})}

    # What is asked.

    def answer(self, request):
        if self.params(request).get("Action") == "RunInstances":
            # Others are answered meanwhile.
            time.sleep(self.options["late"])
        return super().answer(request)

    def params(self, request):
        if not hasattr(request, "params"):
            fields = parse_qs(request.body.decode(), keep_blank_values=True)
            request.params = {key: values[-1] for key, values in fields.items()}
        return request.params

    def classify(self, request):
        params = self.params(request)
        action, wanted = params.get("Action", ""), filters(params)
        name = tags(params, "instance").get("Name", "")
        if params.get("DryRun") == "true":
            return "check", name
        if action in ("RunInstances", "AttachVolume"):
            return "create", name
        if action in DELETES or "tag:peerpodd-sandbox" in wanted:
            return "delete", name
        if "tag:peerpodd-installation" in wanted:
            return "list", name
        if action in ("DescribeInstances", "DescribeVolumes"):
            return "create", name
        return ("check" if action.startswith("Describe") else "other"), name

    def validate(self, request):
        if request.path.startswith("/latest/"):
            return
        params = self.params(request)
        scope = re.search(r"Credential=[^/]+/\d{8}/([^/]+)/([^/]+)/aws4_request",
                          request.headers.get("Authorization") or "")
        if not scope:
            yield "not signed"
            return
        if scope.group(1) != REGION:
            yield f"signed for {scope.group(1)}"
        yield from aws_model.violations(scope.group(2), params)
        if params.get("Action") == "RunInstances":
            yield from self.judge_run(params)

    def judge_run(self, params):
        """What our own rules ask of each create."""
        token = params.get("ClientToken", "")
        if not 0 < len(token) <= 64 or not token.isascii():
            yield f"no ClientToken: {token!r}"
        for kind in ("instance", "volume", "network-interface"):
            missing = [key for key in OURS if not tags(params, kind).get(key)]
            if missing:
                yield f"{kind} without {missing}"
        if "LaunchTemplate.LaunchTemplateName" in params:
            return
        if params.get("MetadataOptions.HttpTokens") != "required":
            yield "metadata without a token"
        if params.get("InstanceInitiatedShutdownBehavior") != "terminate":
            yield "a VM that is off stays"
        disk = "BlockDeviceMapping.1.Ebs.DeleteOnTermination"
        if params.get(disk) != "true":
            yield "the disk outlives its VM"

    def refuse(self, kind, after, request):
        status, code = REFUSALS[kind]
        headers = {"Retry_After": str(int(after))} if after else {}
        return refusal(status, code, **headers)

    def serve(self, request):
        if request.path.startswith("/latest/"):
            return self.metadata(request)
        params = self.params(request)
        action = params.get("Action", "")
        if "/sts/" in (request.headers.get("Authorization") or ""):
            return self.caller(params)
        if self.options["auth"]:
            return refusal(401, self.options["auth"], "AWS was not able to validate the provided credentials")
        if action in self.options["denied"]:
            message = "You are not authorized. Encoded authorization failure message: hush-hush"
            return refusal(403, "UnauthorizedOperation", f"{action}: {message}")
        for refused in list(self.options["next"]):
            if refused["action"] == action:
                self.options["next"].remove(refused)
                return refusal(refused.get("status", 400), refused["code"], refused.get("message", "no"))
        own = getattr(self, f"do_{action}", None)
        return own(params) if own else self.forward(params)

    def forward(self, params):
        status, body = moto(params)
        return Answer(status, body, {"Content-Type": "text/xml"})

    # VMs.

    def do_RunInstances(self, params):
        problem = self.problem(params)
        if problem:
            return problem
        if params.get("DryRun") == "true":
            return refusal(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
        if self.limit and self.limit.take():
            return refusal(503, "RequestLimitExceeded", "Request limit exceeded.")
        token = params["ClientToken"]
        if token in self.tokens:
            known, vm = self.tokens[token]
            if known != params:
                return refusal(400, "IdempotentParameterMismatch", "Arguments on this idempotent request are "
                               "inconsistent with arguments used in previous request(s).")
            return self.again(vm)
        if self.fault("create", "partial"):
            self.leave_parts(params)
            return refusal(500, "InternalError", "An internal error has occurred")
        # moto loses the operations per second that such a disk must have.
        provisioned = "BlockDeviceMapping.1.Ebs.VolumeType"
        forwarded = {**params, **({provisioned: "gp3"} if params.get(provisioned) in ("io1", "io2") else {})}
        if "LaunchTemplate.LaunchTemplateName" in params:
            forwarded = {key: value for key, value in params.items() if not key.startswith("LaunchTemplate")}
            forwarded.update({"ImageId": self.ids["image"], "SubnetId": self.ids["net-a"],
                              "InstanceType": self.options["decides"].get("InstanceType", "t3.medium")})
        status, body = moto(forwarded)
        if status != 200:
            return Answer(status, body, {"Content-Type": "text/xml"})
        vm = found(body, "instanceId")
        self.tag_parts(vm, params)
        self.tokens[token] = (params, vm)
        self.hidden[vm] = self.options["hidden"]
        name, user_data = tags(params, "instance").get("Name"), base64.b64decode(params.get("UserData", ""))
        address = self.boot(vm, name, user_data.decode())
        if address:
            self.addresses[vm] = address
        return self.again(vm)

    def problem(self, params):
        """What EC2 looks at and moto does not."""
        data = base64.b64decode(params.get("UserData", ""))
        if len(data) > USER_DATA:
            return refusal(400, "InvalidParameterValue", "User data is limited to 16384 bytes")
        if len(tags(params, "instance")) > TAGS:
            return refusal(400, "TagLimitExceeded", "too many tags")
        if self.options["gone"]:
            return refusal(400, "InvalidAMIID.NotFound", f"The image id '[{params.get('ImageId')}]' does not exist")
        if any(key.lower().startswith("aws:") for key in tags(params, "instance")):
            return refusal(400, "InvalidParameterValue", "Tag keys starting with 'aws:' are reserved")
        kind = params.get("InstanceType")
        if kind and params.get("CpuOptions.AmdSevSnp") == "enabled":
            features = INSTANCE_TYPES.get(kind, {}).get("ProcessorInfo", {}).get("SupportedFeatures", [])
            if "amd-sev-snp" not in features:
                return refusal(400, "InvalidParameterCombination", f"{kind} does not support AMD SEV-SNP")
        zones = self.options["offers"].get(kind)
        subnet = params.get("SubnetId") or params.get("NetworkInterface.1.SubnetId")
        zone = next((f"{REGION}{z}" for z in "ab" if subnet == self.ids[f"net-{z}"]), None)
        if zones is not None and zone not in zones:
            return refusal(400, "Unsupported", f"Your requested instance type ({kind}) is not supported in "
                           f"your requested Availability Zone ({zone}).")
        return None

    def again(self, vm):
        """The answer to a create, as the VM is now."""
        text = ask("DescribeInstances", **{"InstanceId.1": vm})
        if vm in self.addresses:
            own = f"<privateIpAddress>{self.addresses[vm]}</privateIpAddress>"
            text = re.sub("<privateIpAddress>[^<]*</privateIpAddress>", own, text)
        root = ET.fromstring(text)
        self.hide(root)
        item = root.find(f".//{{{NS}}}reservationSet/{{{NS}}}item")
        inside = "".join(ET.tostring(part, "unicode") for part in item)
        return reply("RunInstances", inside)

    def hide(self, root):
        """A public address shows late."""
        for item in root.iter(f"{{{NS}}}item"):
            vm = item.findtext(f"{{{NS}}}instanceId")
            if vm and item.find(f"{{{NS}}}instanceState") is not None and self.hidden.get(vm, 0) > 0:
                self.hidden[vm] -= 1
                for parent in list(item.iter()):
                    for name in ("ipAddress", "association"):
                        for part in parent.findall(f"{{{NS}}}{name}"):
                            parent.remove(part)

    def tag_parts(self, vm, params):
        machine = self.moto.get_instance(vm)
        parts = [("network-interface", nic.id) for nic in machine.nics.values()]
        parts += [("volume", disk.volume_id) for disk in machine.block_device_mapping.values()]
        for kind, part in parts:
            self.moto.create_tags([part], tags(params, kind))

    def leave_parts(self, params):
        disk = found(ask("CreateVolume", AvailabilityZone=f"{REGION}a", Size="8"), "volumeId")
        nic = found(ask("CreateNetworkInterface", SubnetId=self.ids["net-a"]), "networkInterfaceId")
        self.moto.create_tags([disk], tags(params, "volume"))
        self.moto.create_tags([nic], tags(params, "network-interface"))

    def do_TerminateInstances(self, params):
        if params.get("DryRun") == "true":
            return refusal(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
        wanted = numbered(params, "InstanceId")
        known = {vm.id for reservation in self.moto.reservations.values() for vm in reservation.instances}
        unknown = [vm for vm in wanted if vm not in known]
        if unknown:
            return refusal(400, "InvalidInstanceID.NotFound",
                           f"The instance IDs '{', '.join(unknown)}' do not exist")
        return self.terminate(wanted)

    def terminate(self, wanted):
        nics = [nic.id for vm in wanted for nic in self.moto.get_instance(vm).nics.values()]
        answer = self.forward({"Action": "TerminateInstances", "Version": "2016-11-15",
                               **{f"InstanceId.{n + 1}": vm for n, vm in enumerate(wanted)}})
        for nic in nics:
            # moto lets them stay, whatever their DeleteOnTermination.
            self.moto.enis.pop(nic, None)
        for vm in wanted:
            self.halt(vm)
        return answer

    def do_DescribeInstances(self, params):
        status, body = moto({k: v for k, v in params.items() if k not in ("MaxResults", "NextToken")})
        if status != 200:
            return Answer(status, body, {"Content-Type": "text/xml"})
        root = ET.fromstring(body)
        if self.classify_params(params) == "create":
            self.hide(root)
        return self.page(root, params)

    do_DescribeVolumes = do_DescribeNetworkInterfaces = do_DescribeInstances

    def classify_params(self, params):
        wanted = filters(params)
        return "create" if not any(key.startswith("tag:") for key in wanted) else "list"

    def page(self, root, params):
        """A page of what moto gives at once."""
        items = root.find(f"{{{NS}}}{LISTS[params['Action']]}")
        start = params.get("NextToken", "0")
        if start != "0" and self.classify_params(params) == "list" and self.fault("list", "broken"):
            return Answer(200, f"<{params['Action']}Response xmlns=\"{NS}\"><reservationSet><item><inst")
        size, begin = self.options["pages"], int(start.removeprefix("empty-"))
        every = list(items)
        end = begin + size
        later = len(every) > end
        if self.options["empty"] and later and not start.startswith("empty-") and begin > 0:
            end, following = begin, f"empty-{begin}"
        else:
            following = str(end) if later else None
        for item in every[:begin] + every[end:]:
            items.remove(item)
        if following:
            ET.SubElement(root, f"{{{NS}}}nextToken").text = following
        return Answer(200, ET.tostring(root, "unicode"), {"Content-Type": "text/xml"})

    def do_AttachVolume(self, params):
        if self.fault("create", "volume"):
            return refusal(400, "VolumeInUse", "it is attached to another instance")
        return self.forward(params)

    def do_GetConsoleOutput(self, params):
        console = self.options["console"]
        if params.get("Latest") == "true" and not console.get("latest", True):
            return refusal(400, "UnsupportedOperation", "This instance type does not support retrieving the "
                           "latest console logs.")
        text = base64.b64encode(console.get("text", "").encode()).decode()
        return reply("GetConsoleOutput", f"<instanceId>{params['InstanceId']}</instanceId>"
                     f"<timestamp>2026-01-01T00:00:00.000Z</timestamp><output>{text}</output>")


if __name__ == "__main__":
    run(Aws(), *sys.argv[1:])
