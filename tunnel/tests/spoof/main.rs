//! The tunnel is closed: everything a stranger on the underlay or a hostile VM can send is sent for
//! real, and what arrives in the cluster's, the worker's or the VM's namespace is counted; then all is
//! sent once more with the filters taken away, and must arrive.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod frames;
mod lab;
mod rows;
mod tamper;
mod wire;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use frames::{UDP, ether, ip4, ip6, udp};
use lab::{CLUSTER4, CLUSTER6, Lab, NODE4, NODE6, POD4, POD6};
use peerpod_netlink::{Error, Netns};
use peerpod_tunnel::network::{Liberty, Policy};
use rows::{Fate, From, Row, Rows};
use wire::{Sniffer, Wire, label};

/// Each row's frames are sent that often.
const TIMES: usize = 3;
/// How long to wait for what must come; it comes at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the test only as root and says so otherwise.
pub(crate) fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root to make network namespaces");
    }
    root
}

pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// Everything that sends and counts.
struct Range<'a> {
    lab: &'a Lab,
    sniffer: Sniffer,
    wires: BTreeMap<&'static str, Wire>,
}

impl<'a> Range<'a> {
    fn new(lab: &'a Lab) -> Self {
        let podns = lab.podns();
        let sniffer =
            Sniffer::new(&[(&lab.cluster, "eth0"), (&lab.worker, "cni0"), (&podns, "eth0")]);
        let wires = BTreeMap::from([
            ("third", Wire::open(&lab.third, "ens0")),
            ("other", Wire::open(&lab.other, "ens0")),
            ("vm", Wire::open(&podns, "eth0")),
        ]);
        Self { lab, sniffer, wires }
    }

    fn send(&self, row: &Row) {
        let wire = match row.from {
            From::Third | From::Forged | From::ThirdToVm => "third",
            From::Other => "other",
            From::Vm => "vm",
        };
        for _ in 0..TIMES {
            for frame in &row.frames {
                self.wires[wire].send(frame);
            }
        }
    }

    /// What has been dropped for that reason: of the worker, or of the VM for frames to it.
    fn dropped(&self, row: &Row, reason: &str) -> u64 {
        if row.from == From::ThirdToVm {
            let read = || peerpod_netlink::nft::Nft::counters(lab::HOST_TABLE, "input");
            let all = self.lab.vm.run(read).unwrap();
            return all.iter().skip(2).map(|c| c.packets).sum();
        }
        let counters = self.lab.counters();
        if reason == "guard" {
            counters.guarded.packets
        } else {
            counters.dropped_for(reason).packets
        }
    }

    /// With all filters: each row is sent, and what it has to be counted as is waited for.
    fn closed(&self, rows: &[Row]) {
        for (id, row) in rows.iter().enumerate() {
            let id = u16::try_from(id).unwrap();
            let reason = match row.fate {
                Fate::Dropped(reason) => reason,
                Fate::Twice => "guard",
                Fate::Passes => {
                    self.send(row);
                    wait_for(&row.name, || self.sniffer.count(id) >= TIMES);
                    continue;
                }
                Fate::Kernel => {
                    self.send(row);
                    continue;
                }
            };
            let before = self.dropped(row, reason);
            self.send(row);
            let what = format!("{} to be counted as {reason}", row.name);
            wait_for(&what, || self.dropped(row, reason) >= before + TIMES as u64);
        }
        self.settle(4000);
    }

    /// Whatever was sent before has arrived once an ordinary frame sent now has.
    fn settle(&self, id: u16) {
        let body = udp(POD4.into(), CLUSTER4.into(), (1, 2), b"end");
        let (mac, to) = (self.lab.tunnel.mac.0.0, Lab::mac(&self.lab.cluster, "eth0"));
        let frame = ether(to, mac, 0x0800, &ip4((POD4, CLUSTER4), UDP, 0, &[], &body));
        self.wires["vm"].send(&label(frame, id));
        wait_for("an ordinary frame", || self.sniffer.count(id) > 0);
    }
}

fn matrix(v4: bool) {
    let lab = Lab::new(v4, Policy::default());
    let mut rows = Rows::new(&lab);
    rows.underlay();
    rows.ordinary();
    rows.pinned();
    rows.claims();
    rows.routers();
    rows.node();
    rows.metadata();
    let rows = rows.all;
    let range = Range::new(&lab);
    range.closed(&rows);
    let arrived: Vec<usize> = ids(&rows).map(|id| range.sniffer.count(id)).collect();
    drop(range);
    // A new count: nothing late of the first round is in it.
    lab.open_up();
    let range = Range::new(&lab);
    for (id, row) in ids(&rows).zip(&rows) {
        range.send(row);
        if !matches!(row.fate, Fate::Kernel | Fate::Twice) {
            wait_for(&format!("{} without its filter", row.name), || {
                range.sniffer.count(id) >= TIMES
            });
        }
    }
    range.settle(4001);
    let open: Vec<usize> = ids(&rows).map(|id| range.sniffer.count(id)).collect();
    table(&rows, &arrived, &open, v4);
    for (row, arrived) in rows.iter().zip(&arrived) {
        let wanted = if row.fate == Fate::Passes { TIMES } else { 0 };
        assert!(
            *arrived == wanted || (wanted > 0 && *arrived >= wanted),
            "{}: {arrived}",
            row.name
        );
    }
    for (row, open) in rows.iter().zip(&open) {
        let kernel = matches!(row.fate, Fate::Kernel | Fate::Twice);
        assert_eq!(kernel, *open == 0, "{} without its filter: {open}", row.name);
    }
}

fn ids(rows: &[Row]) -> impl Iterator<Item = u16> {
    0..u16::try_from(rows.len()).unwrap()
}

fn table(rows: &[Row], arrived: &[usize], open: &[usize], v4: bool) {
    let outer = if v4 { "IPv4" } else { "IPv6" };
    println!(
        "spoof: {} rows, {outer} outside; sent, delivered, delivered without filter",
        rows.len()
    );
    for ((row, arrived), open) in rows.iter().zip(arrived).zip(open) {
        let from = format!("{:?}", row.from);
        println!("spoof: {:<58} {from:<9} {TIMES:>3} {arrived:>3} {open:>3}", row.name);
    }
}

#[test]
fn every_row_of_the_matrix_over_ipv4() {
    if root("every_row_of_the_matrix_over_ipv4") {
        matrix(true);
    }
}

#[test]
fn every_row_of_the_matrix_over_ipv6() {
    if root("every_row_of_the_matrix_over_ipv6") {
        matrix(false);
    }
}

pub(crate) fn within<T: Send>(ns: &Netns, work: impl FnOnce() -> T + Send) -> T {
    ns.run(|| -> Result<T, Error> { Ok(work()) }).unwrap()
}

#[test]
fn a_probe_by_the_node_is_answered_and_the_node_is_not_to_be_reached() {
    if !root("a_probe_by_the_node_is_answered_and_the_node_is_not_to_be_reached") {
        return;
    }
    for open in [false, true] {
        let allow = if open { [Liberty::Node].into() } else { [].into() };
        let lab = Lab::new(true, Policy { allow, ..Policy::default() });
        let podns = lab.podns();
        for (pod, node) in [(POD4.into(), NODE4.into()), (POD6.into(), NODE6.into())] {
            let (probed, asked) = (SocketAddr::new(pod, 8080), SocketAddr::new(pod, 5353));
            let server = within(&podns, || TcpListener::bind(probed).unwrap());
            let serving = std::thread::spawn(move || {
                let (mut stream, _) = server.accept().unwrap();
                let mut text = [0; 5];
                stream.read_exact(&mut text).unwrap();
                stream.write_all(&text).unwrap();
            });
            let answer = within(&lab.worker, || {
                let mut stream = TcpStream::connect_timeout(&probed, PATIENCE).unwrap();
                stream.write_all(b"alive").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            });
            assert_eq!(answer, "alive");
            serving.join().unwrap();
            let server = within(&podns, || UdpSocket::bind(asked).unwrap());
            let client = within(&lab.worker, || UdpSocket::bind((node, 0)).unwrap());
            client.send_to(b"name?", asked).unwrap();
            let mut buffer = [0; 16];
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"name!", from).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 5, "an answer by UDP");
            let ssh = SocketAddr::new(node, 22);
            let _listening = within(&lab.worker, || TcpListener::bind(ssh).unwrap());
            let limit = if open { PATIENCE } else { Duration::from_millis(300) };
            let reached = within(&podns, || TcpStream::connect_timeout(&ssh, limit).is_ok());
            assert_eq!(reached, open, "{ssh} from the pod");
        }
        let dropped = lab.counters().dropped_for("node").packets;
        assert_eq!(dropped == 0, open, "{dropped} were counted");
    }
}

#[test]
fn what_a_setting_opens_passes_and_nothing_else() {
    if !root("what_a_setting_opens_passes_and_nothing_else") {
        return;
    }
    for liberty in Liberty::ALL {
        let lab = Lab::new(true, Policy { allow: [liberty].into(), ..Policy::default() });
        let range = Range::new(&lab);
        let mut rows = Rows::new(&lab);
        rows.pinned();
        rows.claims();
        rows.routers();
        rows.node();
        rows.metadata();
        let mut opened = 0;
        for (id, row) in ids(&rows.all).zip(&rows.all) {
            let Fate::Dropped(reason) = row.fate else { continue };
            // Discovery in odd wrappings counts as a router's, and is let in as nobody's.
            let odd = row.name.starts_with("advertisement ") && reason == "router";
            let mine = reason == liberty.as_str() && !odd && !row.name.contains("127.0.0.1");
            if mine && liberty != Liberty::Foreign {
                range.send(row);
                wait_for(&format!("{} with {liberty:?}", row.name), || {
                    range.sniffer.count(id) >= TIMES
                });
                opened += 1;
            } else if liberty != Liberty::Foreign && reason != liberty.as_str() {
                let before = range.dropped(row, reason);
                range.send(row);
                let what = format!("{} to be dropped with {liberty:?}", row.name);
                wait_for(&what, || range.dropped(row, reason) >= before + TIMES as u64);
                assert_eq!(range.sniffer.count(id), 0, "{what}");
            } else if liberty == Liberty::Foreign && matches!(reason, "foreign" | "claim") {
                range.send(row);
                wait_for(&format!("{} with {liberty:?}", row.name), || {
                    range.sniffer.count(id) >= TIMES
                });
                opened += 1;
            }
        }
        assert!(opened > 0, "{liberty:?} opens something");
    }
}

/// A frame of the third host for the cluster.
pub(crate) fn stranger(lab: &Lab, id: u16) -> Vec<u8> {
    let body = udp(POD6.into(), CLUSTER6.into(), (1, 2), b"x");
    let (mac, to) = (lab.tunnel.mac.0.0, Lab::mac(&lab.cluster, "eth0"));
    label(ether(to, mac, 0x86dd, &ip6((POD6, CLUSTER6), UDP, &body)), id)
}
