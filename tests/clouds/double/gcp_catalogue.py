"""What the fake project has besides VMs and disks: types, images, networks, quotas, tags, tokens."""

import json
import time

PROJECT = "peerpod-test"
REGION = "europe-west1"
ZONES = (f"{REGION}-b", f"{REGION}-c")
SCOPE = "https://www.googleapis.com/auth/cloud-platform"

TYPES = {  # name: (vCPUs, MiB, accelerators, architecture)
    "e2-medium": (2, 4096, 0, "X86_64"), "e2-standard-4": (4, 16384, 0, "X86_64"),
    "n2d-standard-2": (2, 8192, 0, "X86_64"), "n2d-standard-4": (4, 16384, 0, "X86_64"),
    "n1-standard-4": (4, 15360, 0, "X86_64"), "g2-standard-4": (4, 16384, 1, "X86_64"),
    "n4-standard-2": (2, 8192, 0, "X86_64"), "t2a-standard-2": (2, 8192, 0, "ARM64"),
}
# Where a type is missing.
MISSING = {(ZONES[1], "e2-standard-4")}
DISK_TYPES = ("pd-standard", "pd-balanced", "pd-ssd")
ACCELERATORS = ("nvidia-tesla-t4",)
FEATURES = ("UEFI_COMPATIBLE", "SEV_CAPABLE", "SEV_SNP_CAPABLE")
IMAGES = {  # name: (status, architecture, features, state)
    "podvm": ("READY", "X86_64", FEATURES, None), "podvm-plain": ("READY", "X86_64", (), None),
    "podvm-arm": ("READY", "ARM64", FEATURES, None), "podvm-pending": ("PENDING", "X86_64", FEATURES, None),
    "podvm-old": ("READY", "X86_64", FEATURES, "OBSOLETE"),
}
NETWORKS = {"default": True, "custom": False}  # name: automatic mode
SUBNETWORKS = {"pods": "custom", "default": "default"}  # name: network
TAGS = {"key1": ("value1",), "key2": ("value2",), "cost": ("pods",)}
QUOTAS = {"CPUS": 1000.0, "N2D_CPUS": 1000.0, "PREEMPTIBLE_CPUS": 0.0, "DISKS_TOTAL_GB": 40960.0,
          "SSD_TOTAL_GB": 40960.0, "INSTANCES": 1000.0, "IN_USE_ADDRESSES": 100.0}


def link(path):
    return f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/{path}"


def machine_type(zone, name):
    cpus, memory, gpus, architecture = TYPES[name]
    found = {"kind": "compute#machineType", "name": name, "guestCpus": cpus, "memoryMb": memory,
             "architecture": architecture, "zone": zone}
    if gpus:
        found["accelerators"] = [{"guestAcceleratorCount": gpus, "guestAcceleratorType": "nvidia-l4"}]
    return found


def image(name):
    status, architecture, features, state = IMAGES[name]
    found = {"kind": "compute#image", "name": name, "status": status, "diskSizeGb": "8",
             "architecture": architecture, "guestOsFeatures": [{"type": kind} for kind in features]}
    if state:
        found["deprecated"] = {"state": state}
    return found


def firewalls(network):
    """As a new project has them for its default network."""
    def rule(name, priority, sources, *allowed):
        return {"kind": "compute#firewall", "name": name, "direction": "INGRESS", "priority": priority,
                "network": link(f"global/networks/{network}"), "sourceRanges": sources, "disabled": False,
                "allowed": [{"IPProtocol": protocol, **({"ports": ports} if ports else {})}
                            for protocol, ports in allowed]}

    return [rule("default-allow-internal", 65534, ["10.128.0.0/9"], ("tcp", ["0-65535"]), ("udp", ["0-65535"]),
                 ("icmp", [])),
            rule("default-allow-ssh", 65534, ["0.0.0.0/0"], ("tcp", ["22"]))]


class Account:
    """A service account: its key is in a file, its tokens are checked."""

    def __init__(self, path):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption()).decode()
        self.public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.email = f"peerpodd@{PROJECT}.iam.gserviceaccount.com"
        with open(path, "w") as file:
            json.dump({"type": "service_account", "project_id": PROJECT, "private_key_id": "key-1",
                       "private_key": pem, "client_email": self.email, "client_id": "1",
                       "token_uri": "https://oauth2.googleapis.com/token",
                       "universe_domain": "googleapis.com"}, file)

    def refuses(self, header, ahead):
        """Why a token is refused by a cloud whose clock is so many seconds ahead; None if it is good."""
        from google.auth import jwt

        if not (header or "").startswith("Bearer "):
            return "no token"
        try:
            claims = jwt.decode(header.removeprefix("Bearer "), certs=self.public)
        except ValueError as error:
            return f"no good token: {error}"
        if claims["iss"] != self.email or SCOPE not in claims.get("scope", "").split():
            return f"no such account or scope: {claims}"
        if not claims["iat"] - 60 <= time.time() + ahead <= claims["exp"] + 60:
            return "the token is from another time"
        return None
