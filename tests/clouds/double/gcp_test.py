"""Google's own Python client against the fake Compute API: what it reads must be what was meant."""

import threading
import unittest
from http.server import ThreadingHTTPServer

import gcp
from base import handler
from google.api_core.exceptions import Conflict, Forbidden, NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1
from google.cloud.compute_v1.services.disks.transports import DisksRestTransport
from google.cloud.compute_v1.services.images.transports import ImagesRestTransport
from google.cloud.compute_v1.services.instances.transports import InstancesRestTransport
from google.cloud.compute_v1.services.machine_types.transports import MachineTypesRestTransport
from google.cloud.compute_v1.services.networks.transports import NetworksRestTransport
from google.cloud.compute_v1.services.regions.transports import RegionsRestTransport
from google.cloud.compute_v1.services.zone_operations.transports import ZoneOperationsRestTransport

ZONE = gcp.ZONES[0]


class Driven(unittest.TestCase):
    def setUp(self):
        self.cloud = gcp.Compute()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self.cloud))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        to = {"host": f"127.0.0.1:{self.server.server_address[1]}", "url_scheme": "http",
              "credentials": AnonymousCredentials()}
        self.instances = compute_v1.InstancesClient(transport=InstancesRestTransport(**to))
        self.operations = compute_v1.ZoneOperationsClient(transport=ZoneOperationsRestTransport(**to))
        self.disks = compute_v1.DisksClient(transport=DisksRestTransport(**to))
        self.types = compute_v1.MachineTypesClient(transport=MachineTypesRestTransport(**to))
        self.images = compute_v1.ImagesClient(transport=ImagesRestTransport(**to))
        self.networks = compute_v1.NetworksClient(transport=NetworksRestTransport(**to))
        self.regions = compute_v1.RegionsClient(transport=RegionsRestTransport(**to))
        self.at = {"project": gcp.PROJECT, "zone": ZONE}

    def tearDown(self):
        self.server.shutdown()
        self.server.server_close()

    def instance(self, name, **more):
        root = compute_v1.AttachedDiskInitializeParams(source_image="projects/p/global/images/podvm",
                                                       labels={"peerpodd-installation": "a"})
        return compute_v1.Instance(
            name=name, machine_type=f"zones/{ZONE}/machineTypes/e2-medium",
            labels={"peerpodd-installation": "a"},
            disks=[compute_v1.AttachedDisk(boot=True, auto_delete=True, initialize_params=root)],
            network_interfaces=[compute_v1.NetworkInterface(network="global/networks/default", **more)])

    def insert(self, name, request_id=None, **more):
        return self.instances.insert_unary(compute_v1.InsertInstanceRequest(
            instance_resource=self.instance(name, **more), request_id=request_id, **self.at))

    def wait(self, operation):
        for _ in range(10):
            if operation.status == compute_v1.Operation.Status.DONE:
                return operation
            operation = self.operations.wait(operation=operation.name, **self.at)
        self.fail("the operation does not end")

    def test_a_vm_is_made_read_listed_and_deleted(self):
        given = "00000000-0000-8000-8000-000000000001"
        first = self.insert("podvm-a", given)
        self.assertEqual(self.insert("podvm-a", given).name, first.name)
        self.wait(first)
        vm = self.instances.get(instance="podvm-a", **self.at)
        self.assertTrue(vm.network_interfaces[0].network_i_p.startswith("10."))
        with self.assertRaises(Conflict):
            self.insert("podvm-a", "00000000-0000-8000-8000-000000000002")
        for n in range(4):
            self.insert(f"podvm-b{n}")
        for client, what in ((self.instances, "instances"), (self.disks, "disks")):
            found = client.aggregated_list(request={"project": gcp.PROJECT,
                                                    "filter": "labels.peerpodd-installation=a"})
            names = [thing.name for _, scope in found for thing in getattr(scope, what)]
            self.assertEqual(len(names), 5)
        # By its number, and gone when the operation is done.
        deletion = self.instances.delete_unary(instance=str(vm.id), **self.at)
        self.assertEqual(self.instances.get(instance="podvm-a", **self.at).status, "STOPPING")
        self.wait(deletion)
        for name in ("podvm-a", str(vm.id)):
            with self.assertRaises(NotFound):
                self.instances.get(instance=name, **self.at)
        with self.assertRaises(NotFound):
            self.disks.get(disk="podvm-a", **self.at)
        self.assertEqual(self.cloud.violations, [])

    def test_an_operation_tells_its_error(self):
        self.cloud.set({"operation_error": "QUOTA_EXCEEDED"})
        operation = self.wait(self.insert("podvm-c"))
        self.assertEqual(operation.error.errors[0].code, "QUOTA_EXCEEDED")

    def test_a_refusal_tells_its_reason_in_either_form(self):
        for details, reasons in (("errors", ["rateLimitExceeded"]), ("details", ["RATE_LIMIT_EXCEEDED"])):
            self.cloud.set({"quota": 0, "details": details})
            with self.assertRaises(Forbidden) as raised:
                self.instances.get(instance="podvm-a", **self.at)
            found = [error["reason"] for error in raised.exception.errors]
            found += [detail["reason"] for detail in raised.exception.details]
            self.assertEqual(found, reasons)

    def test_what_a_check_looks_at_is_read(self):
        types = {found.name: found for found in self.types.list(**self.at)}
        self.assertEqual(types["t2a-standard-2"].architecture, "ARM64")
        self.assertEqual(types["g2-standard-4"].accelerators[0].guest_accelerator_count, 1)
        image = self.images.get(project=gcp.PROJECT, image="podvm")
        self.assertEqual((image.status, image.disk_size_gb), ("READY", 8))
        rules = self.networks.get_effective_firewalls(project=gcp.PROJECT, network="default")
        self.assertEqual(rules.firewalls[0].allowed[0].ports, ["0-65535"])
        quotas = self.regions.get(project=gcp.PROJECT, region=gcp.REGION).quotas
        self.assertIn("N2D_CPUS", [quota.metric for quota in quotas])
        self.assertEqual(self.cloud.violations, [])

    def test_what_the_document_does_not_have_is_a_violation(self):
        class Request:
            method, path, query = "POST", f"/compute/v1/projects/{gcp.PROJECT}/zones/{ZONE}/instances", {"x": "1"}
            body = b"x"

            def json(self):
                return {"name": "Bad_Name", "shape": 1, "status": "RUNNING",
                        "networkInterfaces": [{"stackType": "IPV4_Only"}], "disks": [{"boot": "yes"}]}

        wrong = "; ".join(gcp.MODEL.check(Request()))
        for part in ("unknown parameter x", "body.name", "body.shape is unknown", "body.status is output only",
                     "stackType", "boot is no boolean"):
            self.assertIn(part, wrong)
        self.assertIn("answer.shape is unknown", gcp.MODEL.check_answer(Request(), {"shape": 1}))
        self.assertEqual(gcp.MODEL.check_answer(Request(), {"status": "DONE"}), [])


if __name__ == "__main__":
    unittest.main()
