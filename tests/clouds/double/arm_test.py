"""Drives the fake Resource Manager with Microsoft's own client, so that it is known to behave as that
expects: begin_create_or_update (201, Azure-AsyncOperation, polls, the VM at last) and begin_delete (202,
Location), a refusal inside an operation, what is there already, and the buckets."""

import sys
import threading

import arm
from arm_model import violations
from azure.core.exceptions import HttpResponseError, ResourceModifiedError
from azure.core.credentials import AccessToken
from azure.core.pipeline.policies import RetryPolicy
from azure.mgmt.compute import ComputeManagementClient
from base import Server, handler


class Token:
    def get_token(self, *_, **__):
        return AccessToken("token-test", 4102444800)


def body(size="Standard_DC2as_v5"):
    return {
        "location": "eastus", "tags": {"peerpodd-sandbox": "s"},
        "properties": {
            "hardwareProfile": {"vmSize": size}, "userData": "I2Nsb3VkLWNvbmZpZwo=",
            "storageProfile": {
                "imageReference": {"id": f"{arm.IMAGE}/versions/1.0.0"},
                "osDisk": {"name": "vm-disk", "createOption": "FromImage", "deleteOption": "Delete"}},
            "networkProfile": {"networkApiVersion": "2022-11-01", "networkInterfaceConfigurations": [{
                "name": "vm-net", "properties": {"primary": True, "deleteOption": "Delete", "ipConfigurations": [
                    {"name": "ip-config", "properties": {"subnet": {"id": arm.SUBNET}}}]}}]},
        },
    }


def put(client, name, **more):
    return client.virtual_machines.begin_create_or_update(
        "pods", name, body(), headers={"If-None-Match": "*"}, enforce_https=False, polling_interval=0, **more)


def code_of(call):
    try:
        call()
    except (HttpResponseError, ResourceModifiedError) as error:
        return error.error.code if error.error else error.status_code
    raise AssertionError("accepted")


def main():
    cloud = arm.Azure()
    server = Server(("127.0.0.1", 0), handler(cloud))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = ComputeManagementClient(
        Token(), arm.SUB.split("/")[2], base_url=f"http://127.0.0.1:{server.server_address[1]}",
        credential_scopes=["https://management.azure.com/.default"], retry_policy=RetryPolicy(retry_total=0))
    for by_location in (False, True):
        cloud.set({"by_location": by_location})
        vm = put(client, "vm").result()
        assert vm.provisioning_state == "Succeeded" and vm.name == "vm", vm
        assert vm.network_profile.network_interfaces[0].id, vm
        assert code_of(lambda: put(client, "vm").result()) == "PreconditionFailed"
        assert [found.name for found in client.virtual_machines.list("pods", enforce_https=False)] == ["vm"]
        client.virtual_machines.begin_delete("pods", "vm", enforce_https=False, polling_interval=0).result()
        assert sum(cloud.resources().values()) == 0, cloud.resources()
    cloud.set({"by_location": False, "next": {"code": "AllocationFailed", "message": "no room"}})
    assert code_of(lambda: put(client, "failed").result()) == "AllocationFailed"
    assert cloud.resources() == {"vm": 1, "disk": 1, "nic": 1, "address": 0}, cloud.resources()
    looks = [client.virtual_machines.get] * 37
    codes = [look("pods", "failed", enforce_https=False).provisioning_state for look in looks[:30]]
    assert set(codes) == {"Failed"}, codes
    assert code_of(lambda: [look("pods", "failed", enforce_https=False) for look in looks]) == "TooManyRequests"
    assert cloud.calls[-1]["status"] == 429
    assert not cloud.violations, cloud.violations
    check_of_bodies()
    print(f"arm_test: {len(cloud.calls)} calls of Microsoft's client")


def check_of_bodies():
    """Bodies that Microsoft's types refuse."""
    def changed(*path, value):
        wrong = body()
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return violations(wrong)

    assert not violations(body())
    assert changed("properties", "vmSize", value="x") == ["vm.properties.vmSize: VirtualMachineProperties has no such field"]
    assert changed("zones", value="1") == ["vm.zones: str instead of a list"]
    assert changed("properties", "priority", value="Cheap")
    assert changed("properties", "storageProfile", "osDisk", "diskSizeGB", value="30")
    assert changed("properties", "storageProfile", "dataDisks", value=[{"createOption": "Attach"}])


if __name__ == "__main__":
    sys.exit(main())
