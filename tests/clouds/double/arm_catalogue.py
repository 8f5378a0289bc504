"""The sizes of the fake region, as Microsoft.Compute/skus words them."""


def sku(name, vcpus, memory, family, zones=("1", "2", "3"), restrictions=(), **more):
    capabilities = {"vCPUs": vcpus, "MemoryGB": memory, "MaxDataDiskCount": 2 * vcpus,
                    "CpuArchitectureType": "x64", "LowPriorityCapable": "True", **more}
    return {
        "resourceType": "virtualMachines", "name": name, "family": family, "locations": ["eastus"],
        "locationInfo": [{"location": "eastus", "zones": list(zones)}],
        "capabilities": [{"name": key, "value": str(value)} for key, value in capabilities.items()],
        "restrictions": list(restrictions),
    }


NOT_FOR_YOU = {"type": "Location", "values": ["eastus"], "reasonCode": "NotAvailableForSubscription"}
SNP = {"ConfidentialComputingType": "SNP"}
FEATURES = [{"name": "SecurityType", "value": "TrustedLaunchAndConfidentialVmSupported"}]
SKUS = [
    sku("Standard_DC2as_v5", 2, 8, "standardDCASv5Family", **SNP),
    sku("Standard_DC4as_v5", 4, 16, "standardDCASv5Family", **SNP),
    sku("Standard_DC8as_v5", 8, 32, "standardDCASv5Family", zones=("1",), **SNP),
    sku("Standard_B2als_v2", 2, 4, "standardBasv2Family"),
    sku("Standard_D2as_v5", 2, 8, "standardDASv5Family"),
    sku("Standard_D4as_v5", 4, 16, "standardDASv5Family"),
    sku("Standard_D2ads_v5", 2, 8, "standardDADSv5Family"),
    sku("Standard_D2s_v5", 2, 8, "standardDSv5Family"),
    sku("Standard_D4s_v5", 4, 16, "standardDSv5Family"),
    sku("Standard_D2ps_v5", 2, 8, "standardDPSv5Family", CpuArchitectureType="Arm64"),
    sku("Standard_NC4as_T4_v3", 4, 28, "standardNCASv3_T4Family", GPUs=1),
    sku("Standard_M8ms", 8, 218.75, "standardMSFamily", restrictions=[NOT_FOR_YOU]),
    {"resourceType": "disks", "name": "Premium_LRS", "locations": ["eastus"]},
]
