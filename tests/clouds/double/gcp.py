"""A fake Compute API of Google Cloud, with as much of the Resource Manager as it takes: one project, zones,
instances and disks, operations that take a look or two to be done, requestId, pages, quotas.

    gcp.py [--key file]   with a service account, whose key is written there and whose tokens are asked for

    POST /_double/set  {"stopped": name} {"vanish": name} {"foreign": [zone, name]} {"occupied": name}
                       {"left": [zone, name, sandbox]}
                       {"steps": n} {"serial": text} {"operation_error": code} {"delete_error": code}
                       {"operation_status": HTTP status} {"quota": calls per minute} {"limits": {metric: limit}} {"granted": [permission]}
                       {"firewalls": [rule]} {"policies": [policy]} {"gone": [image or type]} {"hollow": true}
                       {"unreachable": zone} {"denied": [method]} {"clock": seconds ahead}
                       {"details": how an error says its reason}
"""

import re
import sys
import time
import uuid

import gcp_catalogue as catalogue
from base import Answer, Cloud, run
from gcp_catalogue import PROJECT, REGION, ZONES, Account, link
from gcp_model import Model, wrong_labels

PAGE = 3
REFUSALS = {
    "not-found": (404, "notFound"), "denied": (403, "forbidden"), "invalid": (400, "invalid"),
    "quota": (403, "quotaExceeded"), "capacity": (503, "ZONE_RESOURCE_POOL_EXHAUSTED"),
    "throttled": (403, "rateLimitExceeded"), "unavailable": (503, "backendError"),
}
# The same in google.rpc.ErrorInfo, where there is one.
DETAILS = {"rateLimitExceeded": "RATE_LIMIT_EXCEEDED", "quotaExceeded": "QUOTA_EXCEEDED",
           "forbidden": "IAM_PERMISSION_DENIED", "accessNotConfigured": "SERVICE_DISABLED"}
STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
          409: "ALREADY_EXISTS", 503: "UNAVAILABLE"}
MODEL = Model()


class Compute(Cloud):
    account = None

    def reset(self):
        super().reset()
        self.instances, self.disks, self.operations, self.requests, self.dying = {}, {}, {}, {}, {}
        self.number, self.steps, self.serial = 10 ** 18, 1, ""
        self.operation_error, self.operation_status, self.details = None, 503, "errors"
        self.quota, self.minutes, self.limits = 1500, {}, dict(catalogue.QUOTAS)
        self.granted, self.firewalls, self.policies = None, None, []
        self.gone, self.hollow, self.unreachable, self.denied, self.clock = [], False, None, [], 0
        self.delete_error = None
        for zone in ZONES:
            self.disks[zone, "data-1"] = self.stamp(zone, "disks", {
                "name": "data-1", "kind": "compute#disk", "sizeGb": "10", "status": "READY", "users": []})

    def stamp(self, zone, kind, thing):
        self.number += 1
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime())
        return {**thing, "id": str(self.number), "creationTimestamp": stamp, "zone": link(f"zones/{zone}"),
                "selfLink": link(f"zones/{zone}/{kind}/{thing['name']}")}

    # Asking and refusing.

    def named(self, things, zone, key):
        """Things are called by name or by number."""
        if key.isdigit():
            return next((thing for (at, _), thing in things.items() if at == zone and thing["id"] == key), None)
        return things.get((zone, key))

    def classify(self, request):
        method, at = MODEL.find(request)
        what = method["id"].removeprefix("compute.") if method else ""
        vm = self.named(self.instances, at.get("zone"), at["instance"]) if "instance" in at else None
        name = vm["name"] if vm else at.get("instance", at.get("disk", ""))
        if what == "instances.insert":
            try:
                name = request.json().get("name", "")
            except ValueError:
                name = ""
            return "create", name
        if what in ("instances.delete", "disks.delete"):
            return "delete", name
        # A create looks at nothing that is not there.
        if what == "instances.get" and vm is None:
            return "delete", name
        if what in ("instances.aggregatedList", "disks.aggregatedList"):
            return "list", ""
        if what.split(".")[0] in ("instances", "disks", "zoneOperations"):
            return "other", name
        return "check", ""

    def refusal(self, status, reason, message, after=None):
        error = {"code": status, "message": message, "status": STATUS.get(status, "UNKNOWN")}
        if self.details != "details" or reason not in DETAILS:
            error["errors"] = [{"message": message, "domain": "global", "reason": reason}]
        if self.details != "errors" and reason in DETAILS:
            error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
                                 "reason": DETAILS[reason], "domain": "googleapis.com"}]
        headers = {"Retry-After": str(max(1, round(after)))} if after else {}
        return Answer(status, {"error": error}, headers)

    def missing(self, path):
        return self.refusal(404, "notFound", f"The resource 'projects/{PROJECT}/{path}' was not found")

    def refuse(self, kind, after, request):
        status, reason = REFUSALS.get(kind, (418, kind))
        return self.refusal(status, reason, f"refused: {kind}", after)

    def validate(self, request):
        wrong = MODEL.check(request)
        if request.method == "POST" and request.headers.get("Content-Length") is None:
            wrong.append("a POST without a length (Google answers 411)")
        given = request.query.get("requestId")
        if given is not None:
            try:
                if uuid.UUID(given).int == 0:
                    wrong.append("requestId is zero")
            except ValueError:
                wrong.append(f"requestId is no UUID: {given}")
        if request.method == "POST" and request.path.endswith("/instances"):
            wrong += wrong_labels(request.json())
        return wrong

    def tags(self):
        things = [("vm", vm) for vm in self.instances.values()] + [("disk", d) for d in self.disks.values()]
        return [{"kind": kind, "tags": thing["labels"]} for kind, thing in things if thing.get("labels")]

    def resources(self):
        mine = [d for d in self.disks.values() if d["name"] != "data-1"]
        return {"vm": len(self.instances), "disk": len(mine)}

    def set(self, values):
        for key, value in values.items():
            if key in ("stopped", "vanish"):
                for zone, name in [place for place in self.instances if place[1] == value]:
                    if key == "stopped":
                        self.instances[zone, name]["status"] = "TERMINATED"
                        self.halt(self.instances[zone, name]["id"])
                    else:
                        self.end(zone, name)
            elif key in ("foreign", "occupied"):
                zone, name = (ZONES[0], value) if key == "occupied" else value
                thing = {"name": name, "kind": "compute#instance", "status": "RUNNING", "labels": {},
                         "disks": [], "networkInterfaces": [{"networkIP": "10.0.9.9"}]}
                self.instances[zone, name] = self.stamp(zone, "instances", thing)
            elif key == "left":
                zone, name, sandbox = value
                thing = {"name": name, "kind": "compute#disk", "sizeGb": "8", "status": "READY", "users": [],
                         "description": sandbox, "labels": {"peerpodd-sandbox": sandbox[:63]}}
                self.disks[zone, name] = self.stamp(zone, "disks", thing)
            elif key in ("steps", "serial", "quota", "operation_error", "operation_status", "granted", "firewalls",
                         "policies", "gone", "hollow", "unreachable", "denied", "clock", "details",
                         "delete_error"):
                setattr(self, key, value)
            elif key == "limits":
                self.limits.update(value)
            else:
                super().set({key: value})

    def serve(self, request):
        method, at = MODEL.find(request)
        if method is None:
            return Answer(404, "<html>no such page</html>", {"Content-Type": "text/html"})
        if self.account:
            why = self.account.refuses(request.headers.get("Authorization"), self.clock)
            if why:
                return self.refusal(401, "authError", f"Request had invalid authentication credentials: {why}")
        what, minute = method["id"].removeprefix("compute."), int(time.time() // 60)
        used = self.minutes.setdefault((what, minute), 0) + 1
        self.minutes[what, minute] = used
        if used > self.quota:
            return self.refusal(403, "rateLimitExceeded", f"Quota exceeded for {what}")
        if what in self.denied:
            return self.refusal(403, "forbidden", f"Required permission for {what} is missing")
        if at.get("project", at.get("projectsId", PROJECT)) != PROJECT:
            return self.refusal(404, "notFound", f"The project {at} was not found")
        zone = at.get("zone")
        if zone is not None and zone not in ZONES:
            return self.refusal(400, "invalid", f"Unknown zone '{zone}'")
        handler = getattr(self, re.sub(r"\W", "_", what), None)
        if handler is None:
            return self.refusal(501, "notImplemented", f"the double has no {what}")
        answer = handler(request, zone, at)
        if isinstance(answer, Answer):
            return answer
        self.violations += [f"{what}: {wrong}" for wrong in MODEL.check_answer(request, answer)]
        return Answer(200, answer)

    # What is read.

    def projects_get(self, request, zone, at):
        return {"kind": "compute#project", "name": PROJECT,
                "quotas": [{"metric": "CPUS_ALL_REGIONS", "limit": self.limits.get("CPUS_ALL_REGIONS", 500.0),
                            "usage": 0.0}]}

    def regions_get(self, request, zone, at):
        if at["region"] != REGION:
            return self.missing(f"regions/{at['region']}")
        quotas = [{"metric": metric, "limit": limit, "usage": 0.0} for metric, limit in self.limits.items()
                  if metric in catalogue.QUOTAS]
        return {"kind": "compute#region", "name": REGION, "quotas": quotas}

    def machineTypes_list(self, request, zone, at):
        items = [catalogue.machine_type(zone, name) for name in catalogue.TYPES
                 if (zone, name) not in catalogue.MISSING and name not in self.gone]
        begin, items, more = self.page(request, items)
        return {"kind": "compute#machineTypeList", "id": "list", "items": items, **more}

    def diskTypes_get(self, request, zone, at):
        if at["diskType"] not in catalogue.DISK_TYPES:
            return self.missing(f"zones/{zone}/diskTypes/{at['diskType']}")
        return {"kind": "compute#diskType", "name": at["diskType"]}

    def acceleratorTypes_get(self, request, zone, at):
        if at["acceleratorType"] not in catalogue.ACCELERATORS:
            return self.missing(f"zones/{zone}/acceleratorTypes/{at['acceleratorType']}")
        return {"kind": "compute#acceleratorType", "name": at["acceleratorType"], "maximumCardsPerInstance": 4}

    def images_get(self, request, zone, at):
        name = at["image"]
        if name not in catalogue.IMAGES or name in self.gone:
            return self.missing(f"global/images/{name}")
        return catalogue.image(name)

    def images_getFromFamily(self, request, zone, at):
        return self.images_get(request, zone, {"image": at["family"]})

    def networks_get(self, request, zone, at):
        name = at["network"]
        if name not in catalogue.NETWORKS:
            return self.missing(f"global/networks/{name}")
        return {"kind": "compute#network", "name": name, "autoCreateSubnetworks": catalogue.NETWORKS[name]}

    def networks_getEffectiveFirewalls(self, request, zone, at):
        rules = catalogue.firewalls(at["network"]) if self.firewalls is None else self.firewalls
        return {"firewalls": rules, "firewallPolicys": self.policies}

    def subnetworks_get(self, request, zone, at):
        name, region = at["subnetwork"], at["region"]
        if name not in catalogue.SUBNETWORKS or region != REGION:
            return self.missing(f"regions/{region}/subnetworks/{name}")
        return {"kind": "compute#subnetwork", "name": name, "region": link(f"regions/{region}"),
                "network": link(f"global/networks/{catalogue.SUBNETWORKS[name]}")}

    def cloudresourcemanager_projects_testIamPermissions(self, request, zone, at):
        asked = request.json()["permissions"]
        granted = [p for p in asked if self.granted is None or p in self.granted]
        return {"permissions": granted} if granted else {}

    def cloudresourcemanager_tagValues_getNamespaced(self, request, zone, at):
        parts = request.query["name"].split("/")
        if len(parts) != 3 or parts[0] != PROJECT or parts[2] not in catalogue.TAGS.get(parts[1], ()):
            return self.refusal(403, "forbidden", "The caller does not have permission, or it does not exist")
        number = 100 + list(catalogue.TAGS).index(parts[1])
        return {"name": f"tagValues/{number + 100}", "parent": f"tagKeys/{number}", "shortName": parts[2]}

    # Lists.

    def page(self, request, items):
        """(begin, items of the page, how to go on)."""
        token = request.query.get("pageToken")
        if self.hollow and token is None and items:
            return 0, [], {"nextPageToken": "0"}
        begin, most = int(token or 0), min(int(request.query.get("maxResults") or PAGE), PAGE)
        more = {"nextPageToken": str(begin + most)} if begin + most < len(items) else {}
        return begin, items[begin:begin + most], more

    def aggregated(self, request, kind, what, things):
        if request.query.get("pageToken") and self.fault("list", "broken"):
            return self.refusal(503, "backendError", "the second page cannot be had")
        match = re.fullmatch(r"labels\.([\w-]+)=([\w-]+)", request.query.get("filter", ""))
        found = [(zone, thing) for (zone, _), thing in sorted(things.items())
                 if not match or thing.get("labels", {}).get(match[1]) == match[2]]
        _, found, more = self.page(request, found)
        empty = {"warning": {"code": "NO_RESULTS_ON_PAGE", "message": "nothing here"}}
        scopes = {f"zones/{zone}": empty for zone in ZONES}
        for zone, thing in found:
            scopes[f"zones/{zone}"] = {what: scopes[f"zones/{zone}"].get(what, []) + [thing]}
        if self.unreachable:
            scopes[f"zones/{self.unreachable}"] = {"warning": {"code": "UNREACHABLE", "message": "no answer"}}
        return {"kind": kind, "id": "list", "items": scopes, **more}

    def instances_aggregatedList(self, request, zone, at):
        for place in list(self.dying):
            self.look(*place)
        return self.aggregated(request, "compute#instanceAggregatedList", "instances", self.instances)

    def disks_aggregatedList(self, request, zone, at):
        return self.aggregated(request, "compute#diskAggregatedList", "disks", self.disks)

    # Single things.

    def instances_get(self, request, zone, at):
        self.look(zone, at["instance"])
        found = self.named(self.instances, zone, at["instance"])
        return found or self.missing(f"zones/{zone}/instances/{at['instance']}")

    def disks_get(self, request, zone, at):
        return self.named(self.disks, zone, at["disk"]) or self.missing(f"zones/{zone}/disks/{at['disk']}")

    def instances_getSerialPortOutput(self, request, zone, at):
        if self.named(self.instances, zone, at["instance"]) is None:
            return self.missing(f"zones/{zone}/instances/{at['instance']}")
        start = int(request.query.get("start") or 0)
        begin = max(0, len(self.serial) + start) if start < 0 else start
        return {"kind": "compute#serialPortOutput", "contents": self.serial[begin:], "start": str(begin),
                "next": str(len(self.serial))}

    # What is done.

    def operation(self, zone, kind, target, error=None, effect=None):
        self.number += 1
        name = f"operation-{self.number}"
        operation = {"kind": "compute#operation", "id": str(self.number), "name": name, "status": "PENDING",
                     "operationType": kind, "targetId": target.get("id", "0"), "progress": 0,
                     "targetLink": target.get("selfLink", ""), "zone": link(f"zones/{zone}"),
                     "selfLink": link(f"zones/{zone}/operations/{name}")}
        self.operations[zone, name] = [operation, self.steps, error, effect]
        return operation

    def zoneOperations_wait(self, request, zone, at):
        entry = self.operations.get((zone, at["operation"]))
        if entry is None:
            return self.missing(f"zones/{zone}/operations/{at['operation']}")
        operation, left, error, effect = entry
        if operation["status"] != "DONE" and left > 0:
            entry[1] -= 1
            operation["status"] = "RUNNING"
        elif operation["status"] != "DONE":
            operation.update(status="DONE", progress=100)
            if effect:
                effect()
            if error:
                operation.update(error={"errors": [{"code": error, "message": f"failed: {error}"}]},
                                 httpErrorStatusCode=self.operation_status, httpErrorMessage="FAILED")
        return operation

    zoneOperations_get = zoneOperations_wait

    def instances_insert(self, request, zone, at):
        given = request.query.get("requestId")
        if given and given in self.requests:
            return self.requests[given]
        body = request.json()
        name = body["name"]
        if (zone, name) in self.instances or (zone, name) in self.disks:
            return self.refusal(409, "alreadyExists", f"The resource 'instances/{name}' already exists")
        wrong = self.wrong(body, zone)
        if wrong:
            return wrong
        partial, volume = self.fault("create", "partial"), self.fault("create", "volume")
        error, self.operation_error = self.operation_error, None
        if partial:
            error = "ZONE_RESOURCE_POOL_EXHAUSTED"
        if volume and len(body["disks"]) > 1:
            error = "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE"
        root = body["disks"][0]["initializeParams"]
        disk = self.stamp(zone, "disks", {
            "kind": "compute#disk", "name": name, "labels": root.get("labels", {}), "status": "READY",
            "description": root.get("description", ""), "sizeGb": root.get("diskSizeGb", "8"), "users": []})
        if error is None or partial:
            self.disks[zone, name] = disk
        vm = self.make(zone, body, disk) if error is None else {}
        operation = self.operation(zone, "insert", vm, error)
        if given:
            self.requests[given] = operation
        return operation

    def wrong(self, body, zone):
        """What Google would refuse and its document does not say."""
        machine = body.get("machineType", "").rsplit("/", 1)[-1]
        if machine not in catalogue.TYPES or machine in self.gone:
            return self.refusal(400, "invalid", f"Invalid value for field 'resource.machineType': '{machine}'")
        root = body["disks"][0].get("initializeParams", {})
        image = root.get("sourceImage", "")
        name = image.rsplit("/", 1)[-1]
        if "/global/images/" not in image or name not in catalogue.IMAGES or name in self.gone:
            return self.refusal(404, "notFound", f"The resource '{image}' was not found")
        if int(root.get("diskSizeGb", "8")) < 8:
            return self.refusal(400, "invalid", "Requested disk size cannot be smaller than the image size (8 GB)")
        confidential, accelerators = body.get("confidentialInstanceConfig"), body.get("guestAccelerators")
        if confidential and not machine.startswith("n2d-"):
            return self.refusal(400, "invalid", f"{machine} cannot be confidential")
        if accelerators and not machine.startswith("n1-"):
            return self.refusal(400, "invalid", f"no accelerators can be attached to {machine}")
        needs = confidential or accelerators or machine.startswith("g2-") or \
            body.get("scheduling", {}).get("provisioningModel") == "SPOT"
        if needs and body.get("scheduling", {}).get("onHostMaintenance") != "TERMINATE":
            return self.refusal(400, "invalid", "onHostMaintenance must be TERMINATE")
        for key in body.get("params", {}).get("resourceManagerTags", {}):
            if not key.startswith("tagKeys/"):
                return self.refusal(400, "invalid", f"tag {key} was not looked up")
        for disk in body["disks"][1:]:
            if (zone, disk["source"].rsplit("/", 1)[-1]) not in self.disks:
                return self.refusal(404, "notFound", f"The resource '{disk['source']}' was not found")
        return None

    def make(self, zone, body, disk):
        vm = self.stamp(zone, "instances", {**body, "kind": "compute#instance", "status": "RUNNING"})
        interface = dict(body["networkInterfaces"][0])
        n = self.number % 65000
        items = {item["key"]: item["value"] for item in body.get("metadata", {}).get("items", [])}
        address = self.boot(vm["id"], vm["name"], items.get("user-data", ""))
        interface["networkIP"] = address or f"10.1.{n // 250}.{n % 250 + 1}"
        interface["accessConfigs"] = [{**config, "natIP": f"203.0.113.{n % 250 + 1}"}
                                      for config in interface.get("accessConfigs", [])]
        vm["networkInterfaces"] = [interface]
        vm["disks"] = [{"boot": True, "source": disk["selfLink"]}] + body["disks"][1:]
        disk["users"] = [vm["selfLink"]]
        vm.pop("params", None)
        self.instances[zone, body["name"]] = vm
        return vm

    def look(self, zone, name):
        """A VM that is being deleted is there for a while."""
        if (zone, name) not in self.dying:
            return
        self.dying[zone, name] -= 1
        if self.dying[zone, name] < 0:
            self.end(zone, name)

    def end(self, zone, name, number=None):
        vm = self.instances.get((zone, name))
        if vm is None or number not in (None, vm["id"]):
            return
        self.instances.pop((zone, name))
        self.halt(vm["id"])
        self.dying.pop((zone, name), None)
        if any(disk.get("boot") for disk in vm["disks"]):
            self.disks.pop((zone, name), None)

    def instances_delete(self, request, zone, at):
        vm = self.named(self.instances, zone, at["instance"])
        if vm is None:
            return self.missing(f"zones/{zone}/instances/{at['instance']}")
        if vm["status"] == "STOPPING":
            return self.refusal(400, "resourceNotReady", f"The resource {vm['name']} is not ready")
        error, self.delete_error = self.delete_error, None
        if error:
            return self.operation(zone, "delete", vm, error)
        vm["status"], self.dying[zone, vm["name"]] = "STOPPING", self.steps
        if self.steps == 0:
            self.end(zone, vm["name"])
        return self.operation(zone, "delete", vm, None, lambda: self.end(zone, vm["name"], vm["id"]))

    def disks_delete(self, request, zone, at):
        disk = self.named(self.disks, zone, at["disk"])
        if disk is None:
            return self.missing(f"zones/{zone}/disks/{at['disk']}")
        if disk["users"]:
            return self.refusal(400, "resourceInUseByAnotherResource", f"The disk {disk['name']} is in use")
        return self.operation(zone, "delete", self.disks.pop((zone, disk["name"])))


if __name__ == "__main__":
    CLOUD = Compute()
    if sys.argv[1:2] == ["--key"]:
        CLOUD.account = Account(sys.argv[2])
    run(CLOUD)
