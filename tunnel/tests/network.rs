//! The tunnel in real network namespaces: a worker, a pod, a VM, and a stranger beside them.
//!
//! ```text
//!   pod eth0 ══ worker cni0      worker eth0 ══ bridge ══ VM ens0, stranger ens0
//! ```
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use peerpod_netlink::{Error, Handle, Netns, NewLink, Route as KernelRoute};
use peerpod_tunnel::network::guest::{self, GuestNetwork};
use peerpod_tunnel::network::{
    self, InspectError, InspectSettings, Liberty, PodNetwork, Policy, Tunnel,
};

const PORT: u16 = 9000;

/// Runs the test only as root and says so otherwise.
fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root to make network namespaces");
    }
    root
}

struct Lab {
    worker: Netns,
    pod: Netns,
    vm: Netns,
    stranger: Netns,
    dir: tempfile::TempDir,
}

struct Plan {
    pod: Vec<&'static str>,
    gateways: Vec<&'static str>,
    outer: [&'static str; 3],
    underlay: u32,
}

const V4: Plan4 = Plan4;
struct Plan4;
impl Plan4 {
    fn plan(&self) -> Plan {
        Plan {
            pod: vec!["10.244.0.5/24"],
            gateways: vec!["10.244.0.1/24"],
            outer: ["192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"],
            underlay: 1500,
        }
    }
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

impl Lab {
    fn new(plan: &Plan) -> Self {
        let make = || Netns::create().unwrap();
        let (worker, pod, vm, stranger) = (make(), make(), make(), make());
        let dir = tempfile::tempdir().unwrap();
        let lab = Self { worker, pod, vm, stranger, dir };
        lab.pod.persist(&lab.pod_path()).unwrap();
        lab.worker.run(|| lab.wire(plan)).unwrap();
        lab
    }

    fn pod_path(&self) -> PathBuf {
        self.dir.path().join("pod")
    }

    /// Of another pod, if a test has one.
    fn other_path(&self) -> PathBuf {
        self.dir.path().join("other")
    }

    fn podns(&self) -> PathBuf {
        self.dir.path().join("podns")
    }

    fn wire(&self, plan: &Plan) -> Result<(), Error> {
        let here = Handle::here()?;
        here.add_link(&NewLink::Bridge { name: "br0" })?;
        here.set_mtu("br0", plan.underlay)?;
        here.set_up("br0", true)?;
        here.add_link(&NewLink::Veth { name: "cni0", peer: "eth0", peer_netns: Some(&self.pod) })?;
        let pod = self.pod.handle()?;
        let mtu = plan.underlay.max(1500);
        here.set_mtu("cni0", mtu)?;
        pod.set_mtu("eth0", mtu)?;
        here.set_up("cni0", true)?;
        pod.set_up("lo", true)?;
        pod.set_up("eth0", true)?;
        for (address, gateway) in plan.pod.iter().zip(&plan.gateways) {
            here.add_address("cni0", net(gateway))?;
            pod.add_address("eth0", net(address))?;
            let default = if net(address).is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let via = Some(net(gateway).ip());
            pod.add_route(&KernelRoute::via(net(default), via, "eth0"))?;
        }
        here.add_address("br0", net(plan.outer[0]))?;
        let gateway = Some(net(plan.outer[0]).ip());
        let default = if net(plan.outer[0]).is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        // The worker's own default route leads nowhere, but is what marks the primary interface.
        here.add_route(&KernelRoute {
            gateway: None,
            ..KernelRoute::via(net(default), None, "br0")
        })?;
        for (n, ns) in [&self.vm, &self.stranger].into_iter().enumerate() {
            let name = format!("port{n}");
            here.add_link(&NewLink::Veth { name: &name, peer: "ens0", peer_netns: Some(ns) })?;
            here.set_mtu(&name, plan.underlay)?;
            here.set_master(&name, "br0")?;
            here.set_up(&name, true)?;
            let there = ns.handle()?;
            there.set_mtu("ens0", plan.underlay)?;
            there.add_address("ens0", net(plan.outer[n + 1]))?;
            there.set_up("ens0", true)?;
            there.add_route(&KernelRoute::via(net(default), gateway, "ens0"))?;
        }
        Ok(())
    }

    fn inspect(&self) -> (PodNetwork, (u64, u64)) {
        let settings = InspectSettings::default();
        self.worker.run(|| network::inspect(&self.pod_path(), &settings)).unwrap()
    }

    fn tunnel(&self, plan: &Plan, vni: u32) -> (Tunnel, GuestNetwork) {
        let (found, netns_id) = self.inspect();
        let vm = net(plan.outer[1]).ip();
        let tunnel = Tunnel {
            sandbox: format!("sandbox-{vni}"),
            vni,
            port: PORT,
            netns: self.pod_path(),
            netns_id,
            interface: found.interface.clone(),
            mac: found.mac,
            addresses: found.addresses.clone(),
            vm,
            mtu: found.inner_mtu(vm).unwrap(),
        };
        let guest = GuestNetwork {
            interface: found.interface,
            mac: found.mac,
            mtu: found.mtu,
            addresses: found.addresses,
            routes: found.routes,
            neighbors: found.neighbors,
            worker: found.worker.iter().map(IpNetwork::ip).collect(),
            vni,
            port: PORT,
            podns: self.podns(),
            host_interface: None,
        };
        (tunnel, guest)
    }

    fn attach(&self, tunnel: &Tunnel, guest: &GuestNetwork) {
        self.worker.run(|| network::attach(tunnel, &open())).map_err(show).unwrap();
        self.vm.run(|| guest::setup(guest)).map_err(show).unwrap();
    }

    fn podns_ns(&self) -> Netns {
        Netns::open(self.podns()).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for path in [self.pod_path(), self.other_path(), self.podns()] {
            let _ = Netns::unpersist(&path);
        }
    }
}

/// The worker stands for the cluster here, so pods may speak to it.
fn open() -> Policy {
    Policy { allow: [Liberty::Node].into(), ..Policy::default() }
}

fn show(e: impl std::fmt::Display) -> String {
    e.to_string()
}

type Io = Result<(), Error>;

/// An echo server of TCP and UDP in `server`, and a client in `client` that sends `size` bytes by
/// TCP and 1000 by UDP and looks at what comes back.
fn echo(server: &Netns, client: &Netns, at: SocketAddr, size: usize) -> std::io::Result<()> {
    let mut listener = None;
    let mut udp = None;
    server
        .run(|| -> Io {
            listener = Some(TcpListener::bind(at).unwrap());
            udp = Some(UdpSocket::bind(at).unwrap());
            Ok(())
        })
        .unwrap();
    let (listener, udp) = (listener.unwrap(), udp.unwrap());
    udp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; 2000];
        if let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..n], from);
        }
    });
    let mut result = Ok(());
    client
        .run(|| -> Io {
            result = speak(at, size);
            Ok(())
        })
        .unwrap();
    result
}

fn speak(at: SocketAddr, size: usize) -> std::io::Result<()> {
    let limit = Duration::from_secs(5);
    let payload: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut stream = TcpStream::connect_timeout(&at, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut writer = stream.try_clone()?;
    let sent = payload.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    writing.join().unwrap()?;
    assert!(back == payload, "what came back by TCP is not what was sent");
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send_to(&payload[..1000.min(size)], at)?;
    let mut buffer = vec![0; 2000];
    let (n, _) = socket.recv_from(&mut buffer)?;
    assert!(buffer[..n] == payload[..1000.min(size)], "what came back by UDP is not what was sent");
    Ok(())
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(net(address).ip(), port)
}

#[test]
fn traffic_passes_both_ways_and_the_counters_cover_it() {
    if !root("traffic_passes_both_ways_and_the_counters_cover_it") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_001);
    lab.attach(&tunnel, &guest);
    let podns = lab.podns_ns();
    echo(&podns, &lab.worker, at("10.244.0.5/24", 80), 1 << 20).expect("into the pod");
    echo(&lab.worker, &podns, at("10.244.0.1/24", 81), 1 << 20).expect("out of the pod");
    let counters = lab.worker.run(|| network::counters(&tunnel)).map_err(show).unwrap();
    assert!(counters.to_vm.bytes > 2 << 20 && counters.to_pod.bytes > 2 << 20, "{counters:?}");
    assert!(counters.dropped.iter().all(|(_, c)| c.packets == 0), "{counters:?}");
    assert_eq!(podns.handle().unwrap().link("eth0").unwrap().mtu, 1450);
    // With the device down nothing passes: the transfer went through it.
    podns.handle().unwrap().set_up("eth0", false).unwrap();
    echo(&lab.worker, &podns, at("10.244.0.1/24", 82), 10).expect_err("no way without the device");
}

#[test]
fn dual_stack_inside_and_ipv6_outside() {
    if !root("dual_stack_inside_and_ipv6_outside") {
        return;
    }
    let plan = Plan {
        pod: vec!["10.244.0.5/24", "fd00:244::5/64"],
        gateways: vec!["10.244.0.1/24", "fd00:244::1/64"],
        outer: ["fd00:1::1/64", "fd00:1::2/64", "fd00:1::3/64"],
        underlay: 9001,
    };
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_002);
    lab.attach(&tunnel, &guest);
    let podns = lab.podns_ns();
    assert_eq!(podns.handle().unwrap().link("eth0").unwrap().mtu, 8931);
    echo(&podns, &lab.worker, at("10.244.0.5/24", 80), 300_000).expect("IPv4 into the pod");
    echo(&lab.worker, &podns, at("fd00:244::1/64", 81), 300_000).expect("IPv6 out of the pod");
    echo(&podns, &lab.worker, at("fd00:244::5/64", 82), 300_000).expect("IPv6 into the pod");
}

#[test]
fn narrow_underlays_work_down_to_the_limit_and_are_refused_below() {
    if !root("narrow_underlays_work_down_to_the_limit_and_are_refused_below") {
        return;
    }
    let plan = Plan { underlay: 1330, ..V4.plan() };
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_003);
    lab.attach(&tunnel, &guest);
    let podns = lab.podns_ns();
    assert_eq!(podns.handle().unwrap().link("eth0").unwrap().mtu, 1280);
    echo(&podns, &lab.worker, at("10.244.0.5/24", 80), 200_000).expect("into the pod");
    lab.vm.handle().unwrap().set_mtu("ens0", 1329).unwrap();
    let error = lab.vm.run(|| guest::setup(&guest)).map(drop).map_err(show).expect_err("refused");
    assert!(error.contains("1329") && error.contains("1330"), "{error}");
}

/// Sends a VXLAN frame with an Ethernet/IPv4/UDP packet for the pod's peer.
fn forge(from: &Netns, to: SocketAddr, vni: u32, mac: [u8; 6], target: [u8; 6], source: [u8; 4]) {
    let mut frame = vec![0x08, 0, 0, 0];
    frame.extend(&vni.to_be_bytes()[1..]);
    frame.push(0);
    frame.extend(target);
    frame.extend(mac);
    frame.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0]);
    frame.extend(source);
    frame.extend([10, 244, 0, 1]);
    let sum: u32 = frame[22..42].chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[32..34].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x13, 0x88, 0x1f, 0x90, 0, 12, 0, 0]);
    frame.extend(b"evil");
    from.run(|| -> Io {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(&frame, to).unwrap();
        Ok(())
    })
    .unwrap();
}

fn listen(ns: &Netns) -> UdpSocket {
    let mut socket = None;
    ns.run(|| -> Io {
        socket = Some(UdpSocket::bind("10.244.0.1:8080").unwrap());
        Ok(())
    })
    .unwrap();
    socket.unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(std::time::Instant::now() < end, "in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_forged_frame_is_dropped_counted_and_passes_without_the_filter() {
    if !root("a_forged_frame_is_dropped_counted_and_passes_without_the_filter") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_004);
    lab.attach(&tunnel, &guest);
    let cni = lab.worker.handle().unwrap().link("cni0").unwrap().mac.unwrap().0;
    let to = at("192.0.2.1/24", PORT);
    let counters = || lab.worker.run(|| network::counters(&tunnel)).map_err(show).unwrap();
    let socket = listen(&lab.worker);
    let (mac, ip) = (tunnel.mac.0.0, [10, 244, 0, 5]);
    forge(&lab.stranger, to, tunnel.vni, mac, cni, ip);
    wait_for("the guard's counter", || counters().guarded.packets == 1);
    forge(&lab.vm, to, tunnel.vni, [2, 0, 0, 0, 0, 9], cni, ip);
    forge(&lab.vm, to, tunnel.vni, mac, cni, [10, 244, 0, 77]);
    wait_for("the pin's counter", || counters().dropped_for("foreign").packets == 2);
    assert_eq!(counters().to_pod.bytes, 0);
    // The control: when the filter lets the stranger in, its frame arrives.
    let moved = Tunnel { vm: net("192.0.2.3/24").ip(), ..tunnel.clone() };
    lab.worker.run(|| network::attach(&moved, &open())).map_err(show).unwrap();
    forge(&lab.stranger, to, tunnel.vni, mac, cni, ip);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(socket.recv(&mut buffer).expect("the forged packet"), 4);
    assert_eq!(&buffer[..4], b"evil");
}

#[test]
fn attach_and_detach_repeat_verify_sees_damage_and_nothing_is_left() {
    if !root("attach_and_detach_repeat_verify_sees_damage_and_nothing_is_left") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_005);
    let on_worker = |work: &(dyn Fn() + Sync)| {
        lab.worker
            .run(|| -> Io {
                work();
                Ok(())
            })
            .unwrap();
    };
    lab.attach(&tunnel, &guest);
    lab.attach(&tunnel, &guest);
    let verify = || {
        lab.worker.run(|| network::verify(&tunnel, &open()).map(|l| l.wrong)).map_err(show).unwrap()
    };
    assert_eq!(verify(), Vec::<String>::new());
    let pod = lab.pod.handle().unwrap();
    pod.delete_link("vxlan1").unwrap();
    assert!(verify().iter().any(|w| w.contains("vxlan1 is missing")), "{:?}", verify());
    lab.attach(&tunnel, &guest);
    assert_eq!(verify(), Vec::<String>::new());
    echo(&lab.podns_ns(), &lab.worker, at("10.244.0.5/24", 80), 1000).expect("after the repair");
    on_worker(&|| {
        network::detach(&tunnel).unwrap();
        network::detach(&tunnel).unwrap();
        assert_eq!(network::leftovers(&BTreeSet::new()).unwrap(), []);
        let links = Handle::here().unwrap().links().unwrap();
        assert!(links.iter().all(|l| l.vxlan.is_none()), "{links:?}");
    });
    assert!(pod.link("vxlan1").is_err());
    lab.vm.run(|| guest::teardown(&guest)).map_err(show).unwrap();
    lab.vm.run(|| guest::teardown(&guest)).map_err(show).unwrap();
    assert!(lab.podns_ns().handle().unwrap().link("eth0").is_err());
}

#[test]
fn a_vni_in_use_is_refused_and_nothing_stays_behind() {
    if !root("a_vni_in_use_is_refused_and_nothing_stays_behind") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, _) = lab.tunnel(&plan, 600_006);
    lab.worker
        .run(|| -> Io {
            let handle = Handle::here()?;
            let vxlan = peerpod_netlink::Vxlan {
                vni: 600_006,
                remote: IpAddr::from([192, 0, 2, 9]),
                port: PORT,
            };
            handle.add_link(&NewLink::Vxlan { name: "other", vxlan, alias: "somebody" })?;
            assert!(network::kernel_vnis().unwrap().contains(&600_006));
            let error = network::attach(&tunnel, &open()).expect_err("taken").to_string();
            assert!(error.contains("600006") && error.contains("in use"), "{error}");
            assert_eq!(network::leftovers(&BTreeSet::new())?, []);
            assert!(handle.link("other").is_ok(), "somebody else's device stays");
            Ok(())
        })
        .unwrap();
}

#[test]
fn devices_stand_in_the_pods_namespaces_and_their_sockets_in_the_hosts() {
    if !root("devices_stand_in_the_pods_namespaces_and_their_sockets_in_the_hosts") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_009);
    // Hosts that have links of the same names are no obstacle.
    for (ns, name) in [(&lab.worker, "vxlan1"), (&lab.vm, "eth0")] {
        ns.handle().unwrap().add_link(&NewLink::Bridge { name }).unwrap();
    }
    lab.attach(&tunnel, &guest);
    let has_socket = |ns: &Netns| {
        let read = || -> Result<String, Error> {
            Ok(std::fs::read_to_string("/proc/thread-self/net/udp").unwrap())
        };
        ns.run(read).unwrap().contains(&format!(":{PORT:04X} "))
    };
    let podns = lab.podns_ns();
    for (host, pod, name) in [(&lab.worker, &lab.pod, "vxlan1"), (&lab.vm, &podns, "eth0")] {
        assert!(has_socket(host) && !has_socket(pod), "{name}");
        assert!(pod.handle().unwrap().link(name).unwrap().vxlan.is_some(), "{name}");
        let links = host.handle().unwrap().links().unwrap();
        assert!(links.iter().all(|l| l.vxlan.is_none()), "{links:?}");
    }
    echo(&podns, &lab.worker, at("10.244.0.5/24", 80), 1000).expect("into the pod");
    lab.worker.run(|| network::detach(&tunnel)).map_err(show).unwrap();
    assert!(lab.worker.handle().unwrap().link("vxlan1").is_ok(), "the host's own stays");
}

#[test]
fn one_pods_detach_leaves_the_others_tunnel_and_filter() {
    if !root("one_pods_detach_leaves_the_others_tunnel_and_filter") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_011);
    let pod = Netns::create().unwrap();
    pod.handle().unwrap().add_link(&NewLink::Bridge { name: "eth0" }).unwrap();
    let path = lab.other_path();
    pod.persist(&path).unwrap();
    let other = Tunnel {
        sandbox: "other".to_owned(),
        vni: 600_012,
        netns: path,
        netns_id: pod.id().unwrap(),
        ..tunnel.clone()
    };
    lab.attach(&tunnel, &guest);
    lab.worker.run(|| network::attach(&other, &open())).map_err(show).unwrap();
    for _ in 0..2 {
        lab.worker.run(|| network::detach(&other)).map_err(show).unwrap();
        let wrong = lab
            .worker
            .run(|| network::verify(&tunnel, &open()).map(|l| l.wrong))
            .map_err(show)
            .unwrap();
        assert_eq!(wrong, Vec::<String>::new());
    }
    let owners = lab.worker.run(|| network::leftovers(&BTreeSet::new())).unwrap();
    assert_eq!(owners.len(), 1, "{owners:?}");
    echo(&lab.podns_ns(), &lab.worker, at("10.244.0.5/24", 80), 1000).expect("into the pod");
}

#[test]
fn what_a_killed_attach_has_left_is_replaced() {
    if !root("what_a_killed_attach_has_left_is_replaced") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_010);
    let vxlan = peerpod_netlink::Vxlan { vni: tunnel.vni, remote: tunnel.vm, port: PORT };
    let (worker, pod) = (lab.worker.handle().unwrap(), lab.pod.handle().unwrap());
    let mark = "peerpod:sandbox-600010";
    let inside = (&lab.pod, &pod);
    type Leave<'a> = (&'a str, &'a dyn Fn() -> Io);
    let cases: [Leave<'_>; 3] = [
        ("not marked yet", &|| worker.add_vxlan_in(inside, "vxlan1", vxlan)),
        ("not named yet", &|| worker.add_vxlan_in(inside, "ppvx600010", vxlan)),
        ("of an earlier version", &|| {
            worker.add_link(&NewLink::Vxlan { name: "ppvx600010", vxlan, alias: mark })
        }),
    ];
    for (what, leave) in cases {
        for repair in [true, false] {
            leave().expect(what);
            if repair {
                lab.attach(&tunnel, &guest);
                let wrong = lab
                    .worker
                    .run(|| network::verify(&tunnel, &open()).map(|l| l.wrong))
                    .map_err(show)
                    .unwrap();
                assert_eq!(wrong, Vec::<String>::new(), "{what}");
            }
            lab.worker.run(|| network::detach(&tunnel)).map_err(show).unwrap();
            for ns in [&lab.worker, &lab.pod] {
                let links = ns.handle().unwrap().links().unwrap();
                assert!(links.iter().all(|l| l.vxlan.is_none()), "{what}: {links:?}");
            }
        }
    }
}

#[test]
fn detach_works_when_the_namespace_has_gone_or_was_replaced() {
    if !root("detach_works_when_the_namespace_has_gone_or_was_replaced") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_007);
    lab.attach(&tunnel, &guest);
    Netns::unpersist(&lab.pod_path()).unwrap();
    let other = Netns::create().unwrap();
    other.persist(&lab.pod_path()).unwrap();
    lab.worker
        .run(|| -> Io {
            let error =
                network::attach(&tunnel, &open()).expect_err("another namespace").to_string();
            assert!(error.contains("another namespace"), "{error}");
            network::detach(&tunnel).unwrap();
            Netns::unpersist(&lab.pod_path()).unwrap();
            network::detach(&tunnel).unwrap();
            assert_eq!(network::leftovers(&BTreeSet::new())?, []);
            Ok(())
        })
        .unwrap();
}

#[test]
fn leftovers_of_nobody_are_found_and_removed() {
    if !root("leftovers_of_nobody_are_found_and_removed") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let (tunnel, guest) = lab.tunnel(&plan, 600_008);
    lab.attach(&tunnel, &guest);
    lab.worker
        .run(|| -> Io {
            let known = BTreeSet::from([tunnel.sandbox.clone()]);
            assert_eq!(network::leftovers(&known)?, []);
            let found = network::leftovers(&BTreeSet::new())?;
            assert_eq!(found.len(), 1, "{found:?}");
            for leftover in &found {
                network::remove_leftover(leftover)?;
            }
            assert_eq!(network::leftovers(&BTreeSet::new())?, []);
            Ok(())
        })
        .unwrap();
}

#[test]
fn inspect_names_what_is_wrong_with_a_namespace() {
    if !root("inspect_names_what_is_wrong_with_a_namespace") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let settings = InspectSettings::default();
    let look = |path: &std::path::Path| {
        lab.worker.run(|| network::inspect(path, &settings)).map(drop).expect_err("refused")
    };
    assert!(matches!(look("".as_ref()), InspectError::NoPath));
    let missing = look("/nonexistent/ns".as_ref()).to_string();
    assert!(missing.contains("/nonexistent/ns"), "{missing}");
    assert!(matches!(look("/proc/self/exe".as_ref()), InspectError::Open(_)));
    let host = look("/proc/thread-self/ns/net".as_ref());
    assert!(matches!(host, InspectError::HostNetwork(_)), "{host}");
    let empty = Netns::create().unwrap();
    let path = lab.dir.path().join("empty");
    empty.persist(&path).unwrap();
    assert!(matches!(look(&path), InspectError::NoDefaultRoute(_)));
    Netns::unpersist(&path).unwrap();
    let pod = lab.pod.handle().unwrap();
    pod.add_address("eth0", net("10.244.0.6/24")).unwrap();
    let many = look(&lab.pod_path()).to_string();
    assert!(many.contains("2 IPv4 addresses"), "{many}");
    pod.delete_address("eth0", net("10.244.0.6/24")).unwrap();
    pod.delete_address("eth0", net("10.244.0.5/24")).unwrap();
    pod.add_route(&KernelRoute::via(net("0.0.0.0/0"), None, "eth0")).unwrap();
    let none = look(&lab.pod_path());
    assert!(matches!(none, InspectError::NoAddress { .. }), "{none}");
}

#[test]
fn inspect_takes_routes_neighbours_and_the_worker_along() {
    if !root("inspect_takes_routes_neighbours_and_the_worker_along") {
        return;
    }
    let plan = V4.plan();
    let lab = Lab::new(&plan);
    let pod = lab.pod.handle().unwrap();
    let mac = "02:00:00:00:00:63".parse().unwrap();
    pod.add_neighbour("eth0", IpAddr::from([10, 244, 0, 99]), mac).unwrap();
    let settings = InspectSettings {
        pod_subnet_cidrs: vec![net("10.96.0.0/12")],
        ..InspectSettings::default()
    };
    let (found, _) = lab.worker.run(|| network::inspect(&lab.pod_path(), &settings)).unwrap();
    assert_eq!(found.addresses, [net("10.244.0.5/24")]);
    assert_eq!(found.worker, [net("192.0.2.1/24")]);
    assert_eq!((found.mtu, found.underlay_mtu, found.dedicated), (1500, 1500, false));
    let routes: Vec<_> = found.routes.iter().map(|r| (r.destination, r.gateway)).collect();
    let gateway = Some(IpAddr::from([10, 244, 0, 1]));
    assert!(routes.contains(&(net("0.0.0.0/0"), gateway)), "{routes:?}");
    assert!(routes.contains(&(net("10.96.0.0/12"), gateway)), "{routes:?}");
    assert!(routes.contains(&(net("10.244.0.0/24"), None)), "{routes:?}");
    assert_eq!(found.neighbors.len(), 1, "{:?}", found.neighbors);
}
