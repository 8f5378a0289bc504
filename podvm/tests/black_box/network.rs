//! The pod's network, in namespaces that stand for the VM and the pod.

use std::sync::Mutex;

use ipnetwork::IpNetwork;
use nix::sys::signal::Signal;
use peerpod_netlink::{Error, Handle, Netns, NewLink, Route as KernelRoute};
use peerpod_tunnel::network::{MacText, Neighbor, PodNetwork, Route};
use podvm::apf::ApfNetwork;
use tokio::process::Command;

use crate::lab::{Lab, Podvm, until};

const VNI: u32 = 601_001;

/// Runs the test only as root and says so otherwise.
fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root to make network namespaces");
    }
    root
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A VM whose interface has no address yet.
struct Vm {
    lab: Lab,
    netns: Netns,
    _worker: Netns,
}

impl Vm {
    fn new() -> Self {
        let lab = Lab::new();
        lab.user_data(&[lab.apf(Some(ApfNetwork::new(&pod(), VNI, 9000)))]);
        let (netns, worker) = (Netns::create().unwrap(), Netns::create().unwrap());
        let link = NewLink::Veth { name: "ens0", peer: "eth0", peer_netns: Some(&worker) };
        let here = netns.handle().unwrap();
        here.add_link(&link).unwrap();
        here.set_up("lo", true).unwrap();
        worker.handle().unwrap().set_up("eth0", true).unwrap();
        Self { lab, netns, _worker: worker }
    }

    fn give_address(&self) {
        let here = self.netns.handle().unwrap();
        here.add_address("ens0", net("192.0.2.2/24")).unwrap();
        here.set_up("ens0", true).unwrap();
        let gateway = Some(net("192.0.2.1/24").ip());
        here.add_route(&KernelRoute::via(net("0.0.0.0/0"), gateway, "ens0")).unwrap();
    }

    fn start(&self) -> Podvm {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podvm"));
        command.arg("run").args(self.lab.places()).args(self.lab.serving());
        let started = Mutex::new(None);
        let runtime = tokio::runtime::Handle::current();
        self.netns
            .run(|| -> Result<(), Error> {
                let _inside = runtime.enter();
                *started.lock().unwrap() = Some(Podvm::start(command));
                Ok(())
            })
            .unwrap();
        started.into_inner().unwrap().unwrap()
    }

    fn podns(&self) -> Option<Handle> {
        Netns::open(self.lab.path("podns")).ok()?.handle().ok()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = Netns::unpersist(&self.lab.path("podns"));
    }
}

fn mac(text: &str) -> MacText {
    MacText::try_from(text.to_owned()).unwrap()
}

fn pod() -> PodNetwork {
    let route = |destination: &str, gateway: Option<&str>| Route {
        destination: net(destination),
        gateway: gateway.map(|g| g.parse().unwrap()),
        protocol: "boot".to_owned(),
        scope: if gateway.is_some() { "universe" } else { "link" }.to_owned(),
    };
    PodNetwork {
        interface: "eth0".to_owned(),
        mac: mac("0a:58:0a:f4:00:05"),
        mtu: 1500,
        addresses: vec![net("10.244.0.5/24")],
        routes: vec![route("10.244.0.0/24", None), route("0.0.0.0/0", Some("10.244.0.1"))],
        neighbors: vec![Neighbor {
            ip: "10.244.0.1".parse().unwrap(),
            mac: mac("0a:58:0a:f4:00:01"),
        }],
        worker: vec![net("192.0.2.1/24")],
        underlay_mtu: 1500,
        dedicated: false,
    }
}

fn check(vm: &Vm) {
    let podns = vm.podns().expect("the pod's namespace");
    let link = podns.link("eth0").unwrap();
    assert_eq!((link.kind.as_deref(), link.mtu, link.up), (Some("vxlan"), 1450, true));
    assert_eq!(link.mac, Some(mac("0a:58:0a:f4:00:05").0));
    let tunnel = link.vxlan.unwrap();
    assert_eq!((tunnel.vni, tunnel.port, tunnel.remote), (VNI, 9000, net("192.0.2.1/24").ip()));
    assert_eq!(podns.addresses(link.index).unwrap(), [net("10.244.0.5/24")]);
    assert!(podns.routes().unwrap().iter().any(KernelRoute::is_default));
}

#[tokio::test]
async fn the_pod_network_waits_for_the_vms_own_survives_a_kill_and_goes_at_sigterm() {
    if !root("the_pod_network_waits_for_the_vms_own_survives_a_kill_and_goes_at_sigterm") {
        return;
    }
    let vm = Vm::new();
    let podvm = vm.start();
    podvm.line("waiting for the VM's own network").await;
    vm.give_address();
    podvm.line("forwarder serves").await;
    check(&vm);
    podvm.kill().await;

    let mut podvm = vm.start();
    podvm.line("forwarder serves").await;
    check(&vm);
    podvm.signal(Signal::SIGTERM);
    assert!(podvm.exit().await.success(), "{}", podvm.log());
    assert!(vm.podns().expect("the namespace stays").link("eth0").unwrap_err().is_absent());
}

#[tokio::test]
async fn killed_at_any_moment_the_next_run_stands() {
    if !root("killed_at_any_moment_the_next_run_stands") {
        return;
    }
    let vm = Vm::new();
    vm.give_address();
    for step in 0..15u64 {
        let podvm = vm.start();
        tokio::time::sleep(std::time::Duration::from_millis(step * 3)).await;
        podvm.kill().await;
    }
    let podvm = vm.start();
    podvm.line("forwarder serves").await;
    until("the interface", || vm.podns()?.link("eth0").ok()).await.expect("it is there");
    check(&vm);
}
