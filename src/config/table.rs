//! The one table of all settings that are not a provider's own. `README.md` and `--help` are
//! printed from it; [`super::settings`] is built from it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use peerpod_tunnel::network::Liberty;
use podvm::initdata::Initdata;

use super::key::{Key, Origin, Shape, Spec};
use super::parse;
use super::settings::LogFormat;
use crate::labels::CostTag;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// `/control.sock`.
const BELOW_RUN_DIR: usize = 13;
/// `/<8 characters>/agent.ttrpc`: shorter sandbox ids do not occur.
const BELOW_PODS_DIR: usize = 1 + 8 + 12;

macro_rules! settings {
    ($($name:ident: $type:ty = $origin:ident $shape:ident $flag:literal $env:literal
        $default:literal $parse:expr, $help:literal $(, secret = $secret:literal)?;)*) => {
        $(pub(super) static $name: Key<$type> = Key {
            spec: Spec {
                flag: $flag,
                env: $env,
                default: $default,
                help: $help,
                shape: Shape::$shape,
                origin: Origin::$origin,
                secret: false $(|| $secret)?,
            },
            parse: $parse,
        };)*
        /// All of them, in the order they are printed in.
        pub(super) static ALL: &[&Spec] = &[$(&$name.spec),*];
    };
}

settings! {
    PROVIDER: String = Upstream One "provider" "CLOUD_PROVIDER" "local" parse::provider,
        "Where VMs come from.";
    SOCKET: PathBuf = Upstream One "socket" "REMOTE_HYPERVISOR_ENDPOINT" "/run/peerpod/hypervisor.sock" parse::socket,
        "Socket the Kata shims speak to.";
    PODS_DIR: PathBuf = Upstream One "pods-dir" "PODS_DIR" "/run/peerpod/pods" parse::socket_directory::<BELOW_PODS_DIR>,
        "One directory per sandbox, with its agent socket.";
    RUN_DIR: PathBuf = Ours One "run-dir" "PEERPODD_RUN_DIR" "/run/peerpod" parse::socket_directory::<BELOW_RUN_DIR>,
        "Sockets between the node and the relay process.";
    STATE_DIR: PathBuf = Ours One "state-dir" "PEERPODD_STATE_DIR" "/var/lib/peerpod" parse::directory,
        "What must survive a restart: records, keys, the installation id.";
    ALLOW_VOLATILE_STATE: bool = Ours Bool "allow-volatile-state" "PEERPODD_ALLOW_VOLATILE_STATE" "false" parse::boolean,
        "Take a state directory on a container's own layer, which is lost with the container.";
    INSTALLATION_ID: Option<String> = Ours One "installation-id" "INSTALLATION_ID" "" parse::installation_id,
        "Tag by which VMs are known to be ours; made once and kept in the state directory unless given.";
    NODE_NAME: String = Upstream One "node-name" "NODE_NAME" "" parse::text,
        "Name of this node; the host's name unless given.";

    FORWARDER_PORT: u16 = Upstream One "forwarder-port" "FORWARDER_PORT" "15150" parse::port,
        "TCP port of the agent link in the VM.";
    PROXY_TIMEOUT: Duration = Upstream One "proxy-timeout" "PROXY_TIMEOUT" "5m" parse::duration::<1_000, HOUR>,
        "How long a VM may take from having an address until its agent link answers.";
    LINK_GIVE_UP: Duration = Ours One "link-give-up" "PEERPODD_LINK_GIVE_UP" "20s" parse::duration::<0, HOUR>,
        "How long a broken agent link is dialled again before the shim is told.";
    LIVENESS_TIMEOUT: Duration = Ours One "liveness-timeout" "PEERPODD_LIVENESS_TIMEOUT" "15s" parse::duration::<1_000, HOUR>,
        "A VM that has not answered for that long is over.";
    CA_CERT_FILE: Option<PathBuf> = Upstream One "ca-cert-file" "CACERT_FILE" "" parse::file,
        "CA of the VMs' own certificates (PEM); turns certificates made per VM off.";
    CERT_FILE: Option<PathBuf> = Upstream One "cert-file" "CERT_FILE" "" parse::file,
        "Client certificate (PEM), together with --cert-key.";
    CERT_KEY: Option<PathBuf> = Upstream One "cert-key" "CERT_KEY" "" parse::file,
        "Private key of the client certificate (PEM).";
    TLS_SKIP_VERIFY: bool = Upstream Bool "tls-skip-verify" "TLS_SKIP_VERIFY" "false" parse::boolean,
        "Do not check the VM's certificate.";
    TLS_MIN_VERSION: String = Upstream One "tls-min-version" "TLS_MIN_VERSION" "" parse::text,
        "VersionTLS12 (also when empty) or VersionTLS13.";
    TLS_CIPHER_SUITES: Vec<String> = Upstream List "tls-cipher-suites" "TLS_CIPHER_SUITES" "" parse::list,
        "Comma list of IANA names of TLS 1.2 suites; all safe ones when empty.";
    DISABLE_TLS: bool = Upstream Bool "disable-tls" "" "false" parse::boolean,
        "Plain text on the agent link.";

    TUNNEL_TYPE: String = Upstream One "tunnel-type" "TUNNEL_TYPE" "vxlan" parse::tunnel_type,
        "Only vxlan exists.";
    VXLAN_PORT: u16 = Upstream One "vxlan-port" "VXLAN_PORT" "9000" parse::port,
        "UDP port of the tunnel.";
    VXLAN_MIN_ID: i64 = Upstream One "vxlan-min-id" "" "555000" parse::number::<1, 16_777_215>,
        "Smallest VXLAN network id used.";
    HOST_INTERFACE: Option<String> = Upstream One "host-interface" "" "" parse::interface,
        "Interface of the worker that carries the tunnel; the primary one when empty.";
    POD_SUBNET_CIDRS: Vec<IpNetwork> = Upstream List "pod-subnet-cidrs" "POD_SUBNET_CIDRS" "" parse::networks,
        "Comma list of further networks the pod reaches by its own gateway.";
    POD_NETWORK_ALLOW: Vec<Liberty> = Ours List "pod-network-allow" "PEERPODD_POD_NETWORK_ALLOW" "" parse::liberties,
        "Comma list of what pods may do besides speaking from their own addresses: node, metadata, router, foreign.";
    POD_NETWORK_BLOCK: Vec<IpAddr> = Ours List "pod-network-block" "PEERPODD_POD_NETWORK_BLOCK" "169.254.169.254,169.254.170.2,168.63.129.16,fd00:ec2::254,fd20:ce::254" parse::addresses,
        "Comma list of addresses that no pod reaches unless metadata is allowed.";
    EXT_NETWORK: bool = Upstream Bool "ext-network-via-podvm" "EXTERNAL_NETWORK_VIA_PODVM" "false" parse::boolean,
        "Outside traffic leaves by the VM's second interface; only where the provider has one.";

    LIMIT: i64 = Upstream One "peerpods-limit-per-node" "PEERPODS_LIMIT_PER_NODE" "10" parse::number::<{ -1_000_000 }, 1_000_000>,
        "Most pods on this node; a negative number is no limit.";
    MAX_CREATES: i64 = Ours One "max-concurrent-creates" "PEERPODD_MAX_CONCURRENT_CREATES" "250" parse::number::<1, 1_000>,
        "Most VMs being made at a time; how fast they are asked for, the provider's own rates say.";
    CAPACITY_COOLDOWN: Duration = Ours One "capacity-cooldown" "CAPACITY_COOLDOWN" "3m" parse::duration::<10_000, HOUR>,
        "For how long no VM is tried where there was no room; doubled when that happens again.";
    KEEP_FAILED: Duration = Ours One "keep-failed-vm" "PEERPODD_KEEP_FAILED_VM" "0" parse::duration::<0, DAY>,
        "For how long the VM of a start that failed is kept, so that somebody can look at it; it costs.";
    START_TIMEOUT: Duration = Ours One "start-timeout" "PEERPODD_START_TIMEOUT" "9m30s" parse::duration::<1_000, 599_000>,
        "Bound of one start, below the shim's 600s.";
    SANDBOX_EXPIRY: Duration = Ours One "sandbox-expiry" "PEERPODD_SANDBOX_EXPIRY" "15m" parse::duration::<1_000, DAY>,
        "How long a sandbox is kept that is created and never started.";
    ORPHAN_GRACE: Duration = Ours One "orphan-grace" "PEERPODD_ORPHAN_GRACE" "60s" parse::duration::<0, DAY>,
        "How long a pod is kept whose shim has gone without stopping it.";
    RS_DEFAULT_PAIR: bool = Ours Bool "rs-default-pair-is-unset" "PEERPODD_RS_DEFAULT_PAIR_IS_UNSET" "true" parse::boolean,
        "1 vCPU and 2048 MiB, which the Rust shim sends for a pod that asks for nothing, mean the default size.";
    INITDATA: Option<Initdata> = Upstream One "initdata" "INITDATA" "" parse::initdata,
        "initdata of pods that bring none: base64(gzip(TOML)).", secret = true;
    SCRATCH: bool = Upstream Bool "enable-scratch-space" "ENABLE_SCRATCH_SPACE" "false" parse::boolean,
        "Encrypted scratch disk in the VM.";
    DIRECT_VOLUMES: PathBuf = Ours One "direct-volumes-dir" "PEERPODD_DIRECT_VOLUMES_DIR" "/run/kata-containers/shared/direct-volumes" parse::directory,
        "Where a CSI driver writes the disks of pods down, as Kata's direct volumes.";
    BUNDLES: Vec<PathBuf> = Ours List "bundle-dirs" "PEERPODD_BUNDLE_DIRS" "/run/containerd/io.containerd.runtime.v2.task/k8s.io,/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io,/run/containers/storage/overlay-containers" parse::directories,
        "Comma list of directories with the bundles of sandboxes, which name the pod's UID and, under CRI-O, its labels; read on a node with disks and for cost tags.";
    TAGS: BTreeMap<String, String> = Upstream List "tags" "TAGS" "" parse::tags,
        "key=value,… on every VM.";
    COST_TAGS: Vec<CostTag> = Ours List "cost-tag-labels" "COST_TAG_LABELS" "" parse::cost_tags,
        "Comma list of labels, label or label=tag, that become tags of the VM of a pod that has them; known under CRI-O only.";
    VERIFY: bool = Upstream Bool "cloud-config-verify" "CLOUD_CONFIG_VERIFY" "false" parse::boolean,
        "Refuse to start when the provider's check finds a problem, instead of being not ready.";

    SWEEP_INTERVAL: Option<Duration> = Ours One "sweep-interval" "PEERPODD_SWEEP_INTERVAL" "5m" parse::interval,
        "Time between two searches for VMs that nobody knows; 0 is never.";
    SWEEP_GRACE: Duration = Ours One "sweep-grace" "PEERPODD_SWEEP_GRACE" "10m" parse::duration::<0, DAY>,
        "Younger unknown VMs are left alone.";
    SWEEP_DRY_RUN: bool = Ours Bool "sweep-dry-run" "PEERPODD_SWEEP_DRY_RUN" "false" parse::boolean,
        "Report unknown VMs, delete none.";

    PROBE_PORT: u16 = Upstream One "probe-port" "PROBE_PORT" "8000" parse::port,
        "Port of probes, metrics and status on 127.0.0.1.";
    DRAIN_TIMEOUT: Duration = Ours One "drain-timeout" "PEERPODD_DRAIN_TIMEOUT" "30s" parse::duration::<0, HOUR>,
        "How long an ending process waits for its tasks.";
    RELAY_LINGER: Duration = Ours One "relay-linger" "PEERPODD_RELAY_LINGER" "30s" parse::duration::<0, WEEK>,
        "How long a replaced relay that is told to end keeps the links that cannot move.";
    RELAY_STAND_BY: bool = Ours Bool "relay-stand-by" "PEERPODD_RELAY_STAND_BY" "false" parse::boolean,
        "A replaced relay waits to be told to end: for whatever starts one anew that has ended, as Kubernetes.";
    LOG_FORMAT: LogFormat = Ours One "log-format" "PEERPODD_LOG_FORMAT" "text" parse::log_format,
        "text or json.";
    LOG_LEVEL: String = Ours One "log-level" "PEERPODD_LOG_LEVEL" "info" parse::log_filter,
        "error, warn, info, debug, trace, or directives such as info,peerpodd::pod=debug.";

    RUNTIME_CLASS: String = Upstream One "runtimeclass-name" "RUNTIMECLASS_NAME" "kata-remote" parse::text,
        "RuntimeClass of peer pods.";
    POD_UID: Option<String> = Upstream One "pod-uid" "POD_UID" "" parse::optional,
        "UID of the daemon's own pod.";
    POD_NAMESPACE: Option<String> = Upstream One "pod-namespace" "POD_NAMESPACE" "" parse::optional,
        "Namespace of the daemon's own pod.";
    PAUSE_IMAGE: String = Unused One "pause-image" "PAUSE_IMAGE" "" parse::text,
        "Accepted and unused.";
}

/// Environment variables of users' config maps that have no effect here; they are reported.
pub(super) const UNUSED_ENV: [&str; 5] = [
    "AWS_VPC_ID",
    "LIBVIRT_DIR_NAME",
    "REDHAT_OFFLINE_TOKEN",
    "CLOUD_PROVIDER_EXTERNAL_PLUGIN_PATH",
    "CLOUD_PROVIDER_EXTERNAL_PLUGIN_HASH",
];

/// Standard variables of the clouds' own libraries, which platforms set: nobody has misspelt them.
pub(super) const LIBRARY_ENV: [&str; 13] = [
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
];

/// Turning it on is refused: a Go plugin cannot be loaded here.
pub(super) static EXTERNAL_PLUGIN: Key<bool> = Key {
    spec: Spec {
        flag: "",
        env: "ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN",
        default: "false",
        help: "Go plugins of cloud-api-adaptor; refused.",
        shape: Shape::Bool,
        origin: Origin::Unused,
        secret: false,
    },
    parse: parse::boolean,
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_stands_for_two_settings() {
        let flags: BTreeSet<_> = ALL.iter().map(|s| s.flag).collect();
        let named: Vec<_> = ALL.iter().map(|s| s.env).filter(|e| !e.is_empty()).collect();
        let envs: BTreeSet<_> = named.iter().collect();
        assert_eq!((flags.len(), envs.len()), (ALL.len(), named.len()));
    }

    #[test]
    fn the_common_keys_of_upstream_have_their_names_and_defaults() {
        // compat.md 2.2; vxlan-port is ours on purpose.
        let table = [
            ("socket", "REMOTE_HYPERVISOR_ENDPOINT", "/run/peerpod/hypervisor.sock"),
            ("pods-dir", "PODS_DIR", "/run/peerpod/pods"),
            ("pause-image", "PAUSE_IMAGE", ""),
            ("forwarder-port", "FORWARDER_PORT", "15150"),
            ("ca-cert-file", "CACERT_FILE", ""),
            ("cert-file", "CERT_FILE", ""),
            ("cert-key", "CERT_KEY", ""),
            ("tls-skip-verify", "TLS_SKIP_VERIFY", "false"),
            ("tls-min-version", "TLS_MIN_VERSION", ""),
            ("tls-cipher-suites", "TLS_CIPHER_SUITES", ""),
            ("proxy-timeout", "PROXY_TIMEOUT", "5m"),
            ("tunnel-type", "TUNNEL_TYPE", "vxlan"),
            ("vxlan-port", "VXLAN_PORT", "9000"),
            ("vxlan-min-id", "", "555000"),
            ("host-interface", "", ""),
            ("initdata", "INITDATA", ""),
            ("cloud-config-verify", "CLOUD_CONFIG_VERIFY", "false"),
            ("peerpods-limit-per-node", "PEERPODS_LIMIT_PER_NODE", "10"),
            ("enable-scratch-space", "ENABLE_SCRATCH_SPACE", "false"),
            ("ext-network-via-podvm", "EXTERNAL_NETWORK_VIA_PODVM", "false"),
            ("pod-subnet-cidrs", "POD_SUBNET_CIDRS", ""),
            ("disable-tls", "", "false"),
        ];
        for (flag, env, default) in table {
            let found = ALL.iter().find(|s| s.flag == flag).map(|s| (s.env, s.default));
            assert_eq!(found, Some((env, default)), "{flag}");
        }
    }
}
