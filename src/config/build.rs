//! From one text per setting to [`Settings`]: every value read, every combination checked, every
//! problem noted.

use std::path::PathBuf;

use peerpod_tunnel::link::tls::{Profile, TlsError};
use peerpod_tunnel::network::Policy;

use super::key::{Key, Spec};
use super::resolve::Reader;
use super::settings::{
    ClientFiles, Kubernetes, Link, Log, Paths, Pods, Process, ProviderChoice, RelaySettings,
    Settings, Sweep, Tls, Tunnel,
};
use super::table as t;
use crate::volumes::Places;

pub(super) fn settings(r: &mut Reader<'_>, provider: ProviderChoice) -> Settings {
    if r.get(&t::EXTERNAL_PLUGIN) {
        r.refuse(
            &t::EXTERNAL_PLUGIN.spec,
            "Go plugins cannot be loaded; take a build with the provider's cargo feature instead",
        );
    }
    r.get(&t::TUNNEL_TYPE);
    Settings {
        paths: paths(r),
        process: process(r),
        provider,
        link: link(r),
        tunnel: tunnel(r),
        pods: pods(r),
        sweep: Sweep {
            interval: r.get(&t::SWEEP_INTERVAL),
            grace: r.get(&t::SWEEP_GRACE),
            dry_run: r.get(&t::SWEEP_DRY_RUN),
        },
        kubernetes: Kubernetes {
            pod_uid: r.get(&t::POD_UID),
            namespace: r.get(&t::POD_NAMESPACE),
            runtime_class: r.get(&t::RUNTIME_CLASS),
        },
    }
}

pub(super) fn relay(r: &mut Reader<'_>) -> RelaySettings {
    RelaySettings {
        paths: paths(r),
        log: log(r),
        drain_timeout: r.get(&t::DRAIN_TIMEOUT),
        linger: r.get(&t::RELAY_LINGER),
        stand_by: r.get(&t::RELAY_STAND_BY),
    }
}

pub(super) fn log(r: &mut Reader<'_>) -> Log {
    Log { format: r.get(&t::LOG_FORMAT), filter: r.get(&t::LOG_LEVEL) }
}

fn paths(r: &mut Reader<'_>) -> Paths {
    let paths = Paths {
        socket: r.get(&t::SOCKET),
        pods_dir: r.get(&t::PODS_DIR),
        run_dir: r.get(&t::RUN_DIR),
        state_dir: r.get(&t::STATE_DIR),
        allow_volatile_state: r.get(&t::ALLOW_VOLATILE_STATE),
    };
    if [paths.control_socket(), paths.node_socket(), paths.relay_socket()].contains(&paths.socket) {
        r.refuse(&t::SOCKET.spec, "is a socket of our own processes; take another name");
    }
    paths
}

fn process(r: &mut Reader<'_>) -> Process {
    Process {
        node_name: r.get(&t::NODE_NAME),
        installation_id: r.get(&t::INSTALLATION_ID),
        probe_port: r.get(&t::PROBE_PORT),
        drain_timeout: r.get(&t::DRAIN_TIMEOUT),
        log: log(r),
    }
}

fn link(r: &mut Reader<'_>) -> Link {
    Link {
        forwarder_port: r.get(&t::FORWARDER_PORT),
        tls: tls(r),
        profile: profile(r),
        proxy_timeout: r.get(&t::PROXY_TIMEOUT),
        give_up: r.get(&t::LINK_GIVE_UP),
        liveness_timeout: r.get(&t::LIVENESS_TIMEOUT),
    }
}

fn tls(r: &mut Reader<'_>) -> Tls {
    let disabled = r.get(&t::DISABLE_TLS);
    let skip = r.get(&t::TLS_SKIP_VERIFY);
    let ca = pem_file(r, &t::CA_CERT_FILE);
    let client = match (pem_file(r, &t::CERT_FILE), pem_file(r, &t::CERT_KEY)) {
        (Some(cert), Some(key)) => Some(ClientFiles { cert, key }),
        (None, None) => None,
        (Some(_), None) => half(r, &t::CERT_KEY.spec, &t::CERT_FILE.spec),
        (None, Some(_)) => half(r, &t::CERT_FILE.spec, &t::CERT_KEY.spec),
    };
    if disabled && (skip || ca.is_some() || client.is_some()) {
        let others = [&t::CA_CERT_FILE, &t::CERT_FILE, &t::CERT_KEY].map(|k| k.spec.name());
        let skip = t::TLS_SKIP_VERIFY.spec.name();
        r.refuse(
            &t::DISABLE_TLS.spec,
            format!("cannot be combined with {}, {skip}", others.join(", ")),
        );
    }
    match ca {
        _ if disabled => Tls::Disabled,
        Some(_) if skip => {
            let with = t::CA_CERT_FILE.spec.name();
            r.refuse(&t::TLS_SKIP_VERIFY.spec, format!("cannot be combined with {with}"));
            Tls::SkipVerify { client }
        }
        None if skip => Tls::SkipVerify { client },
        Some(ca) => Tls::Files { ca, client },
        None => Tls::Automatic { client },
    }
}

fn half(r: &mut Reader<'_>, missing: &Spec, given: &Spec) -> Option<ClientFiles> {
    r.refuse(missing, format!("must be given together with {}", given.name()));
    None
}

/// A file that can be read now; it may of course change later, when the certificates are opened.
fn pem_file(r: &mut Reader<'_>, key: &Key<Option<PathBuf>>) -> Option<PathBuf> {
    let path = r.get(key)?;
    match std::fs::read(&path) {
        Ok(bytes) if bytes.windows(11).any(|w| w == b"-----BEGIN ") => {}
        Ok(_) => r.refuse(&key.spec, "is not a PEM file"),
        Err(e) => r.refuse(&key.spec, format!("cannot be read: {e}")),
    }
    Some(path)
}

fn profile(r: &mut Reader<'_>) -> Profile {
    let profile = Profile {
        min_version: r.get(&t::TLS_MIN_VERSION),
        cipher_suites: r.get(&t::TLS_CIPHER_SUITES),
    };
    match profile.check() {
        Ok(()) => {}
        Err(TlsError::Version(_)) => {
            r.refuse(&t::TLS_MIN_VERSION.spec, "is not VersionTLS12 or VersionTLS13");
        }
        Err(TlsError::SuitesWith13) => {
            let with = t::TLS_MIN_VERSION.spec.name();
            let problem = format!("cannot be combined with {with} = VersionTLS13");
            r.refuse(&t::TLS_CIPHER_SUITES.spec, problem);
        }
        Err(TlsError::Suite(name, known)) => {
            let problem = format!("{name:?} is not a suite this build has; it has {known}");
            r.refuse(&t::TLS_CIPHER_SUITES.spec, problem);
        }
        Err(other) => r.refuse(&t::TLS_CIPHER_SUITES.spec, other.to_string()),
    }
    profile
}

fn tunnel(r: &mut Reader<'_>) -> Tunnel {
    if r.get(&t::EXT_NETWORK) {
        r.refuse(&t::EXT_NETWORK.spec, "no provider of this build gives a VM a second interface");
    }
    Tunnel {
        vxlan_port: r.get(&t::VXLAN_PORT),
        vxlan_min_id: u32::try_from(r.get(&t::VXLAN_MIN_ID)).unwrap_or(u32::MAX),
        host_interface: r.get(&t::HOST_INTERFACE),
        pod_subnets: r.get(&t::POD_SUBNET_CIDRS),
        policy: Policy {
            allow: r.get(&t::POD_NETWORK_ALLOW).into_iter().collect(),
            block: r.get(&t::POD_NETWORK_BLOCK),
        },
    }
}

fn pods(r: &mut Reader<'_>) -> Pods {
    Pods {
        limit: u32::try_from(r.get(&t::LIMIT)).ok(),
        max_concurrent_creates: usize::try_from(r.get(&t::MAX_CREATES)).unwrap_or(1),
        keep_failed: r.get(&t::KEEP_FAILED),
        capacity_cooldown: r.get(&t::CAPACITY_COOLDOWN),
        start_timeout: r.get(&t::START_TIMEOUT),
        sandbox_expiry: r.get(&t::SANDBOX_EXPIRY),
        orphan_grace: r.get(&t::ORPHAN_GRACE),
        rs_default_pair_is_unset: r.get(&t::RS_DEFAULT_PAIR),
        default_initdata: r.get(&t::INITDATA),
        scratch_space: r.get(&t::SCRATCH),
        volumes: Places { records: r.get(&t::DIRECT_VOLUMES), bundles: r.get(&t::BUNDLES) },
        cost_tags: r.get(&t::COST_TAGS),
    }
}
