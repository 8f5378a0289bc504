//! Values for tests.

use peerpod_providers::{Candidate, Market, UserData, VmName, VmSpec};
use peerpod_tunnel::network::{MacText, PodNetwork};

use super::phase::Phase;
use super::record::{LinkPart, Machine, NetworkPart, PodIdentity, Record, VERSION};
use crate::request::{PodRequest, SandboxId};
use crate::volumes::PodVolumes;

pub(crate) fn network() -> PodNetwork {
    PodNetwork {
        interface: "eth0".to_owned(),
        mac: MacText::try_from("02:00:00:00:00:01".to_owned()).expect("a MAC"),
        mtu: 1500,
        addresses: vec!["10.244.1.5/24".parse().expect("an address")],
        routes: Vec::new(),
        neighbors: Vec::new(),
        worker: vec!["192.168.0.10/24".parse().expect("an address")],
        underlay_mtu: 1500,
        dedicated: false,
    }
}

/// A request with nothing but what every one has.
pub(crate) fn request(sandbox: &str) -> PodRequest {
    PodRequest {
        sandbox: SandboxId::parse(sandbox).expect("id"),
        pod: "web".to_owned(),
        namespace: "shop".to_owned(),
        pod_uid: None,
        netns: "/run/netns/x".into(),
        machine_type: None,
        image: None,
        vcpus: None,
        memory_mib: None,
        gpus: 0,
        gpu_model: None,
        initdata: None,
    }
}

pub(crate) fn spec(sandbox: &str, pod: &str) -> VmSpec {
    VmSpec {
        user_data: UserData("PRIVATE KEY".to_owned()),
        ..VmSpec::new(VmName::first_form(pod, sandbox), sandbox)
    }
}

pub(crate) fn candidates() -> Vec<Candidate> {
    let candidate = |number, zone: &str| Candidate {
        number,
        instance_type: "small".to_owned(),
        zone: Some(zone.to_owned()),
        market: Market::OnDemand,
    };
    vec![candidate(0, "a"), candidate(1, "b")]
}

pub(crate) fn record(sandbox: &str) -> Record {
    Record {
        version: VERSION,
        boot: "boot-1".to_owned(),
        installation: "inst-1".to_owned(),
        sandbox: sandbox.to_owned(),
        pod: PodIdentity {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: None,
            gpus: 0,
        },
        network: NetworkPart {
            netns: "/run/netns/web".into(),
            netns_id: (4, 5),
            found: network(),
            vni: 600_001,
            vxlan_port: 9000,
        },
        link: LinkPart {
            socket: format!("/run/peerpod/pods/{sandbox}/agent.ttrpc").into(),
            edit_methods: Vec::new(),
            port: 15150,
            server_name: "podvm-web".to_owned(),
            authority: None,
        },
        machine: Machine {
            spec: spec(sandbox, "web"),
            candidates: candidates(),
            size_reason: "the default".to_owned(),
            follow: Vec::new(),
        },
        volumes: PodVolumes::default(),
        phase: Phase::Prepared,
        stage: None,
        timeline: Vec::new(),
        last_error: None,
        created_ms: 1,
        since_ms: 1,
        failed_start: false,
        spot: false,
        interruption: None,
        created_boot_ms: Some(1),
        #[cfg(feature = "next-version")]
        generation: VERSION,
    }
}
