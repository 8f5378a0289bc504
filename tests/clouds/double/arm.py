"""A fake Azure Resource Manager: VMs with their interfaces, disks and addresses, operations that take a
while, tokens, the catalogue and all that a check looks at (providers.md 10.4).

Set: {"stopped": name}, {"next": {"code", "message"}} (the next create fails inside its operation),
{"polls": n, "retry_after": "s", "by_location": bool} (how operations behave), {"cascade": bool},
{"disk_tags": bool}, {"foreign": name}, {"occupied": name} (somebody else has a VM of that name),
{"vanish": name}, {"gone": [part of a path]}, {"quota": cores}, {"granted": [actions]},
{"nsg": [rules]}, {"token": status}, {"buckets": [size, per minute]}.
"""

import math
import re
import sys
import time
import uuid

import arm_model
from arm_catalogue import FEATURES, SKUS
from base import Answer, Bucket, Cloud, run

SUB = "/subscriptions/00000000-0000-0000-0000-000000000001"
GROUP = f"{SUB}/resourceGroups/pods"
NET = f"{GROUP}/providers/Microsoft.Network"
COMPUTE = f"{GROUP}/providers/Microsoft.Compute"
SUBNET = f"{NET}/virtualNetworks/net/subnets/pods"
NSG = f"{NET}/networkSecurityGroups/pods"
IMAGE = f"{COMPUTE}/galleries/podvm/images/podvm"
REGION = "eastus"
PAGE = 3
KINDS = {"vm": "virtualMachines", "nic": "networkInterfaces", "address": "publicIPAddresses", "disk": "disks"}
REFUSALS = {
    "denied": (403, "AuthorizationFailed"),
    "invalid": (400, "InvalidParameter"),
    "quota": (409, "OperationNotAllowed"),
    "capacity": (409, "AllocationFailed"),
    "throttled": (429, "TooManyRequests"),
    "unavailable": (503, "ServiceUnavailable"),
    "other": (409, "SomethingNobodyKnows"),
    "not-found": (404, "ResourceNotFound"),
}


def refusal(status, code, message="no", **headers):
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    headers.setdefault("x-ms-request-id", str(uuid.uuid4()))
    return Answer(status, {"error": {"code": code, "message": message}}, headers)


def upper(text):
    """Azure writes the group's name in other places as it likes."""
    return re.sub("(?i)/resourceGroups/pods", "/resourceGroups/PODS", text)


def wrong_tags(tags):
    """What is wrong with the tags of a VM or an interface, by "Limitations" of Azure's pages about tags."""
    if len(tags) > 50 or len({key.lower() for key in tags}) < len(tags):
        return "too many tags, or one twice"
    if sum(len(key) + len(value) for key, value in tags.items()) > 2048:
        return "more than 2048 characters of tags"
    odd = [key for key, value in tags.items() if not 0 < len(key) <= 512 or len(value) > 256
           or set(key) & set("<>%&\\?/") or key.lower().startswith(("microsoft", "azure", "windows"))]
    return f"no tags: {odd}" if odd else None


class Azure(Cloud):
    def reset(self):
        super().reset()
        self.things = {kind: {} for kind in KINDS}
        self.operations, self.buckets, self.throttled = {}, {}, 0
        self.options = {"polls": 1, "retry_after": "0", "by_location": False, "cascade": True, "gone": [],
                        "disk_tags": False, "quota": 1000, "granted": ["*"], "nsg": [], "token": 200,
                        "buckets": None, "next": None}
        volume = {"id": f"{COMPUTE}/disks/data-1", "name": "data-1", "location": REGION, "tags": {},
                  "properties": {"diskState": "Unattached", "timeCreated": "2026-01-01T00:00:00Z"}}
        self.things["disk"]["data-1"] = volume

    def set(self, values):
        for key, value in values.items():
            if key == "stopped":
                self.things["vm"][value]["power"] = "stopped"
                self.halt(value)
            elif key == "occupied":
                self.things["vm"][value] = self.foreign(value)
            elif key == "foreign":
                self.things["vm"][value]["tags"]["peerpodd-sandbox"] = "somebody-elses"
            elif key == "vanish":
                self.remove(self.things["vm"][value])
            elif key in self.options:
                self.options[key] = value
            else:
                raise KeyError(key)

    @staticmethod
    def foreign(name):
        """A VM of somebody who does not know us."""
        return {"id": f"{COMPUTE}/virtualMachines/{name}", "name": name, "location": REGION, "power": "running",
                "tags": {"peerpodd-sandbox": "somebody-elses"}, "parts": {},
                "properties": {"provisioningState": "Succeeded", "hardwareProfile": {"vmSize": "Standard_D2s_v5"},
                               "storageProfile": {}, "timeCreated": "2026-01-01T00:00:00Z"}}

    def resources(self):
        return {kind: len([n for n in things if n != "data-1"]) for kind, things in self.things.items()}

    def tags(self):
        return [{"kind": kind, "tags": thing["tags"]} for kind, things in self.things.items()
                for thing in things.values() if thing["tags"]]

    # What is asked.

    def classify(self, request):
        name = self.named(request.path, "virtualMachines") or ""
        words = (request.headers.get("User-Agent") or "").split(" ")
        if words[0].startswith("peerpodd/") and len(words) > 1:
            return words[-1], name
        other = "list" if request.path.endswith("virtualMachines") else "other"
        return {"PUT": "create", "DELETE": "delete"}.get(request.method, other), name

    @staticmethod
    def named(path, kind):
        found = re.search(f"(?i)/{kind}/([^/]+)$", path)
        return found.group(1) if found else None

    def validate(self, request):
        if request.path.startswith("/blob/") and request.headers.get("Authorization"):
            yield "a token goes to somebody who is not the Resource Manager"
        if request.path.startswith("/blob/") or request.path.endswith("/oauth2/v2.0/token"):
            return
        if not (request.headers.get("Authorization") or "").startswith("Bearer token-"):
            yield "no token"
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", request.query.get("api-version", "")):
            yield "no api-version"
        if request.method == "PUT":
            if request.headers.get("If-None-Match") != "*":
                yield "a PUT that could change what is there"
            yield from arm_model.violations(request.json())

    def refuse(self, kind, after, request):
        status, code = REFUSALS[kind]
        quota = "Operation could not be completed as it results in exceeding approved Total Regional " \
                "Cores quota." if kind == "quota" else "no"
        headers = {"Retry-After": str(int(after))} if after else {}
        return refusal(status, code, quota, **headers)

    def serve(self, request):
        self.settle()
        path = request.path
        if path.endswith("/oauth2/v2.0/token"):
            return self.token()
        for gone in self.options["gone"]:
            if gone.lower() in path.lower():
                return refusal(404, "ResourceNotFound", f"{path} was not found")
        if path.startswith("/blob/"):
            return Answer(200, f"\x1b[31mlast words of {path[6:]}")
        if path.endswith("/retrieveBootDiagnosticsData"):
            link = f"http://{request.headers.get('Host')}/blob/{path.split('/')[-2]}?sig=secret"
            return Answer(200, {"serialConsoleLogBlobUri": link})
        operation = re.search("/operations/([^/]+)$", path)
        if operation:
            return self.look(operation.group(1))
        for kind, word in KINDS.items():
            name = self.named(path, word)
            if name:
                return self.one(kind, name, request)
            if path.lower().endswith(f"/{word}".lower()):
                return self.many(kind, request)
        return self.surroundings(request)

    def token(self):
        if self.options["token"] != 200:
            return Answer(self.options["token"], {"error": "invalid_client", "error_description": "AADSTS7000222"})
        return Answer(200, {"access_token": f"token-{uuid.uuid4()}", "token_type": "Bearer", "expires_in": 3600})

    # VMs and parts.

    def one(self, kind, name, request):
        things = self.things[kind]
        if kind == "vm":
            wait = self.bucket(request.method, name)
            if wait:
                self.throttled += 1
                return refusal(429, "TooManyRequests", "slow down", Retry_After=str(math.ceil(wait)))
        if kind == "vm" and request.method == "PUT":
            return self.put(name, request)
        found = things.get(name) or next((t for n, t in things.items() if n.lower() == name.lower()), None)
        if request.method == "GET":
            return Answer(200, self.seen(kind, found, request)) if found else refusal(404, "ResourceNotFound")
        if not found:
            return Answer(204)
        return self.delete(kind, found, request)

    def bucket(self, method, name):
        reads = method == "GET"
        size, refill = (36, 12) if reads else (12, 4)
        if self.options["buckets"]:
            size, refill = self.options["buckets"]
        key = ("GET" if reads else method, name)
        return self.buckets.setdefault(key, Bucket(size, refill / 60)).take()

    def many(self, kind, request):
        things = [self.seen(kind, thing, request) for thing in self.things[kind].values()]
        start = int(request.query.get("$skiptoken", 0))
        if start and self.fault("list", "broken"):
            return Answer(200, '{"value": [{"id": ')
        page = {"value": things[start:start + PAGE]}
        if start + PAGE < len(things):
            host = request.headers.get("Host")
            query = "&".join(f"{k}={v}" for k, v in request.query.items() if k != "$skiptoken")
            page["nextLink"] = f"http://{host}{request.path}?{query}&$skiptoken={start + PAGE}"
        return Answer(200, page)

    def seen(self, kind, thing, request):
        shown = self.plain(thing)
        if kind == "vm" and ("statusOnly" in request.query or "$expand" in request.query):
            codes = [f"ProvisioningState/{shown['properties']['provisioningState'].lower()}"]
            if thing.get("error"):
                codes[0] += f"/{thing['error']['code']}"
            else:
                codes.append(f"PowerState/{thing['power']}")
            view = {"instanceView": {"statuses": [{"code": code} for code in codes]}}
            shown["properties"] = {**shown["properties"], **view}
        if "statusOnly" in request.query:
            shown["id"] = upper(shown["id"])
        return shown

    def put(self, name, request):
        if name in self.things["vm"]:
            return refusal(412, "PreconditionFailed", "it is there")
        body = request.json()
        problem = self.problem(body)
        if problem:
            return problem
        properties = {**body["properties"], "provisioningState": "Creating", "vmId": str(uuid.uuid4()),
                      "timeCreated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        vm = {"id": f"{COMPUTE}/virtualMachines/{name}", "name": name, "location": REGION, "power": "starting",
              "tags": body["tags"], "zones": body.get("zones", []), "properties": properties}
        self.things["vm"][name] = vm
        fails = self.options["next"]
        self.options["next"] = None
        if self.fault("create", "partial"):
            fails = {"code": "AllocationFailed", "message": "no room"}
        if self.fault("create", "volume"):
            fails = {"code": "AttachDiskWhileBeingDetached", "message": "the disk is being detached"}
        user_data = properties.pop("userData", "")
        self.parts(vm, None if fails else self.boot(name, name, user_data))
        return self.begin(request, 201, "create", vm, fails, vm)

    def parts(self, vm, address):
        """What is made with it; the interface's name gets a suffix that nobody can guess."""
        name, properties = vm["name"], vm["properties"]
        config = properties["networkProfile"].pop("networkInterfaceConfigurations")[0]
        nic = f"{config['name']}-{uuid.uuid4().hex[:8]}"
        number = len(self.things["nic"]) + 4
        ip = {"privateIPAddress": address or f"10.0.{number // 250}.{number % 250 + 4}"}
        public = config["properties"]["ipConfigurations"][0]["properties"].get("publicIPAddressConfiguration")
        if public:
            address = f"{public['name']}-{uuid.uuid4().hex[:8]}"
            self.things["address"][address] = {
                "id": f"{NET}/publicIPAddresses/{address}", "name": address, "location": REGION,
                "tags": public.get("tags", {}), "properties": {"ipAddress": f"192.0.2.{number % 250}"}}
            ip["publicIPAddress"] = {"id": f"{NET}/publicIPAddresses/{address}"}
        self.things["nic"][nic] = {
            "id": upper(f"{NET}/networkInterfaces/{nic}"), "name": nic, "location": REGION,
            "tags": config.get("tags", {}),
            "properties": {"virtualMachine": {"id": upper(vm["id"])},
                           "ipConfigurations": [{"name": "ip-config", "properties": ip}]}}
        properties["networkProfile"]["networkInterfaces"] = [{"id": upper(f"{NET}/networkInterfaces/{nic}")}]
        disk = properties["storageProfile"]["osDisk"]["name"]
        self.things["disk"][disk] = {
            "id": f"{COMPUTE}/disks/{disk}", "name": disk, "location": REGION, "managedBy": upper(vm["id"]),
            "tags": dict(vm["tags"]) if self.options["disk_tags"] else {},
            "properties": {"timeCreated": properties["timeCreated"]}}
        for volume in properties["storageProfile"].get("dataDisks", []):
            self.things["disk"][volume["managedDisk"]["id"].split("/")[-1]]["managedBy"] = vm["id"]
        vm["parts"] = {"nic": nic, "disk": disk, "address": address if public else None}

    def problem(self, body):
        """What the cloud looks at before it begins."""
        properties = body["properties"]
        size = properties["hardwareProfile"]["vmSize"]
        sku = next((s for s in SKUS if s["name"] == size), None)
        interface_config = properties["networkProfile"]["networkInterfaceConfigurations"][0]
        interface = interface_config["properties"]
        subnet = interface["ipConfigurations"][0]["properties"]["subnet"]["id"]
        image = next(iter(properties["storageProfile"]["imageReference"].values()))
        if not sku:
            return refusal(400, "InvalidParameter", f"The value {size} of parameter vmSize is invalid.")
        if subnet.lower() != SUBNET.lower():
            return refusal(400, "InvalidResourceReference", f"{subnet} was not found")
        gone = any(part.lower() in image.lower() for part in self.options["gone"])
        if gone or not image.lower().startswith((IMAGE.lower(), "/communitygalleries/")):
            return refusal(404, "GalleryImageNotFound", f"{image} was not found")
        cvm = any(c["name"] == "ConfidentialComputingType" for c in sku["capabilities"])
        if properties.get("securityProfile") and not cvm:
            return refusal(400, "BadRequest", f"{size} cannot be a confidential VM")
        for tags in (body["tags"], interface_config.get("tags", {})):
            if wrong_tags(tags):
                return refusal(400, "InvalidParameter", wrong_tags(tags))
        if len(properties["userData"]) > 65536:
            return refusal(400, "InvalidParameter", "too much")
        for volume in properties["storageProfile"].get("dataDisks", []):
            disk = self.things["disk"].get(volume["managedDisk"]["id"].split("/")[-1])
            if not disk:
                return refusal(404, "ResourceNotFound", "no such disk")
            if disk.get("managedBy"):
                return refusal(409, "AttachDiskWhileBeingDetached", "it is attached")
        return None

    def delete(self, kind, thing, request):
        if kind == "vm":
            thing["properties"]["provisioningState"] = "Deleting"
            return self.begin(request, 202, "delete", thing, None, None)
        owner = thing.get("managedBy") or thing["properties"].get("virtualMachine", {}).get("id")
        if owner:
            return refusal(400, "NicInUse" if kind == "nic" else "OperationNotAllowed", "it is attached")
        del self.things[kind][thing["name"]]
        return Answer(200)

    # Operations.

    def begin(self, request, status, what, vm, fails, body):
        number = str(uuid.uuid4())
        self.operations[number] = {"what": what, "vm": vm, "left": self.options["polls"], "fails": fails,
                                   "at": time.monotonic(), "status": "InProgress"}
        path = f"{SUB}/providers/Microsoft.Compute/locations/{REGION}/operations/{number}"
        url = f"http://{request.headers.get('Host')}{path}?api-version=2024-07-01"
        location = self.options["by_location"] or what == "delete"
        headers = {"Location" if location else "Azure-AsyncOperation": url}
        if self.options["retry_after"]:
            headers["Retry-After"] = self.options["retry_after"]
        self.operations[number]["location"] = location
        return Answer(status, self.plain(body) if body else None, headers)

    @staticmethod
    def plain(vm):
        return {key: value for key, value in vm.items() if key not in ("power", "parts", "error")}

    def look(self, number):
        operation = self.operations.get(number)
        if not operation:
            return refusal(404, "NotFound", "no such operation")
        if operation["left"] > 0:
            operation["left"] -= 1
        else:
            self.end(operation)
        headers = {"Retry-After": self.options["retry_after"]} if self.options["retry_after"] else {}
        done = operation["status"] != "InProgress"
        if operation["location"]:
            if not done:
                return Answer(202, None, headers)
            if operation["status"] == "Failed":
                return refusal(409, operation["fails"]["code"], operation["fails"]["message"])
            return Answer(200, self.plain(operation["vm"])) if operation["what"] == "create" else Answer(204)
        body = {"status": operation["status"], "name": number}
        if operation["status"] == "Failed":
            body["error"] = operation["fails"]
        return Answer(200, body, {} if done else headers)

    def settle(self):
        """What nobody asks for ends all the same."""
        for operation in self.operations.values():
            if time.monotonic() - operation["at"] > 0.3 + self.options["polls"]:
                self.end(operation)

    def end(self, operation):
        if operation["status"] != "InProgress":
            return
        vm, fails = operation["vm"], operation["fails"]
        operation["status"] = "Failed" if fails else "Succeeded"
        if operation["what"] == "delete":
            self.remove(vm)
        elif fails and vm["properties"]["provisioningState"] == "Creating":
            vm["properties"]["provisioningState"], vm["error"] = "Failed", fails
        elif vm["properties"]["provisioningState"] == "Creating":
            vm["properties"]["provisioningState"], vm["power"] = "Succeeded", "running"

    def remove(self, vm):
        if self.things["vm"].pop(vm["name"], None) is None:
            return
        self.halt(vm["name"])
        for kind, name in vm["parts"].items():
            part = self.things[kind].get(name)
            if part:
                part.pop("managedBy", None)
                part["properties"].pop("virtualMachine", None)
                if self.options["cascade"]:
                    del self.things[kind][name]
        for volume in vm["properties"]["storageProfile"].get("dataDisks", []):
            self.things["disk"][volume["managedDisk"]["id"].split("/")[-1]].pop("managedBy", None)

    # What a check looks at.

    def surroundings(self, request):
        path = request.path.lower()
        rules = {"id": NSG, "name": "pods", "properties": {"securityRules": self.options["nsg"]}}
        answers = {
            GROUP: {"id": GROUP, "location": REGION},
            f"{NET}/virtualNetworks/net": {"location": REGION, "properties": {"subnets": [
                {"id": SUBNET, "properties": {"networkSecurityGroup": {"id": upper(NSG)}}}]}},
            NSG: rules,
            IMAGE: {"id": IMAGE, "properties": {"provisioningState": "Succeeded", "architecture": "x64",
                                                "features": FEATURES}},
            f"{IMAGE}/versions/1.0.0": {"properties": {"provisioningState": "Succeeded", "storageProfile": {
                "osDiskImage": {"sizeInGB": 8}}}},
            f"{SUB}/providers/Microsoft.Compute/skus": {
                "value": SKUS if f"'{REGION}'" in request.query.get("$filter", "") else []},
            f"{SUB}/providers/Microsoft.Compute/locations/{REGION}/usages": {"value": [
                {"name": {"value": "cores"}, "currentValue": 0, "limit": self.options["quota"]}]},
            f"{GROUP}/providers/Microsoft.Authorization/permissions": {"value": [
                {"actions": self.options["granted"], "notActions": []}]},
        }
        for known, answer in answers.items():
            if known.lower() == path:
                return Answer(200, answer)
        return refusal(404, "ResourceNotFound", f"{request.path} was not found")


if __name__ == "__main__":
    cloud = Azure()
    run(cloud, *sys.argv[1:])
