//! Filters altered behind our back: each alteration is noticed and put right by the next attach, and
//! as long as a filter is missing, nothing passes.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use peerpod_netlink::nft::expression::{Rule, Verdict};
use peerpod_netlink::nft::{Batch, Nft};
use peerpod_tunnel::network::Policy;

use super::frames::vxlan;
use super::lab::{HOST_TABLE, Lab, POD_TABLE, PORT, VNI};
use super::wire::Sniffer;
use super::{Range, root, stranger, within};

type Alter = fn(&Lab);

fn on_worker(lab: &Lab, batch: Batch) {
    lab.worker.run(|| batch.send("tamper")).unwrap();
}

fn in_pod(lab: &Lab, batch: Batch) {
    lab.pod.run(|| batch.send("tamper")).unwrap();
}

fn elements(lab: &Lab, set: &str) -> Vec<Vec<u8>> {
    let all = lab.worker.run(|| Nft::elements(HOST_TABLE, set)).unwrap();
    all.into_iter().map(|(key, _)| key).collect()
}

/// What speaks for our tunnel, with another address.
fn another_speaker(lab: &Lab) {
    let mut key = PORT.to_be_bytes().to_vec();
    key.extend([0, 0]);
    key.extend(&VNI.to_be_bytes()[1..]);
    key.extend([0, 192, 0, 2, 4]);
    on_worker(lab, Batch::new().element(HOST_TABLE, "vms4", &key, "tamper"));
}

const ALTERATIONS: [(&str, Alter); 14] = [
    ("the source filter is gone", |lab| lab.delete_host_table(&lab.worker)),
    ("the source filter has a rule more", |lab| {
        let accept = Rule::new().verdict(Verdict::Accept);
        on_worker(lab, Batch::new().rule(HOST_TABLE, "input", &accept));
    }),
    ("another may speak, too", another_speaker),
    ("our VNI is not guarded", |lab| {
        let all = elements(lab, "vnis");
        let batch = all.iter().fold(Batch::new(), |b, k| b.delete_element(HOST_TABLE, "vnis", k));
        on_worker(lab, batch);
    }),
    ("our VM may not speak", |lab| {
        let all = elements(lab, "vms4");
        let batch = all.iter().fold(Batch::new(), |b, k| b.delete_element(HOST_TABLE, "vms4", k));
        on_worker(lab, batch);
    }),
    ("the pod's table is gone", |lab| in_pod(lab, Batch::new().delete_table(POD_TABLE))),
    ("the pod's table has a rule more", |lab| {
        let rule = Rule::new().counter().verdict(Verdict::Accept);
        in_pod(lab, Batch::new().rule(POD_TABLE, "drop_node", &rule));
    }),
    ("the metadata service is not blocked", |lab| {
        let key = [169, 254, 169, 254];
        in_pod(lab, Batch::new().delete_element(POD_TABLE, "blocked4", &key));
    }),
    ("an address of the node is forgotten", |lab| {
        in_pod(lab, Batch::new().delete_element(POD_TABLE, "near4", &[10, 244, 0, 1]));
    }),
    ("the node has another address", |lab| {
        lab.worker
            .handle()
            .unwrap()
            .add_address("br0", "198.51.100.7/24".parse().unwrap())
            .unwrap();
    }),
    ("the device is gone", |lab| lab.pod.handle().unwrap().delete_link("vxlan1").unwrap()),
    ("the device is down", |lab| lab.pod.handle().unwrap().set_up("vxlan1", false).unwrap()),
    ("the device has another MTU", |lab| {
        lab.pod.handle().unwrap().set_mtu("vxlan1", 1300).unwrap()
    }),
    ("the device sends elsewhere", |lab| {
        let to = lab.outer[3];
        let mac = "02:00:00:00:00:99".parse().unwrap();
        lab.pod.handle().unwrap().add_forward("vxlan1", mac, to).unwrap();
    }),
];

#[test]
fn every_alteration_is_noticed_and_put_right() {
    if !root("tamper::every_alteration_is_noticed_and_put_right") {
        return;
    }
    let lab = Lab::new(true, Policy::default());
    for (n, (what, alter)) in ALTERATIONS.iter().enumerate() {
        assert_eq!(lab.verify(), Vec::<String>::new(), "before: {what}");
        alter(&lab);
        let wrong = lab.verify();
        println!("spoof: {what}: {}", wrong.join("; "));
        assert!(!wrong.is_empty(), "not noticed: {what}");
        lab.attach();
        assert_eq!(lab.verify(), Vec::<String>::new(), "after: {what}");
        Range::new(&lab).settle(u16::try_from(n).unwrap());
    }
}

/// All entries have to go into one batch, which then is larger than a socket's usual buffer, and so
/// would its acknowledgements be.
#[test]
fn a_worker_with_a_thousand_tunnels_gets_its_filter_back() {
    if !root("tamper::a_worker_with_a_thousand_tunnels_gets_its_filter_back") {
        return;
    }
    const OTHERS: u32 = 2000;
    let lab = Lab::new(true, Policy::default());
    let mut batch = Batch::new();
    let owner = "0123456789abcdef".repeat(4);
    for other in 1..=OTHERS {
        let [_, a, b, c] = (VNI + other).to_be_bytes();
        let [p, q] = PORT.to_be_bytes();
        let [_, _, x, y] = other.to_be_bytes();
        let key = [p, q, 0, 0, a, b, c, 0, 192, 1, x, y];
        batch = batch.element(HOST_TABLE, "vnis", &key[..8], &owner);
        batch = batch.element(HOST_TABLE, "vms4", &key, &owner);
    }
    on_worker(&lab, batch);
    assert_eq!(lab.verify(), Vec::<String>::new(), "others' entries are none of ours");
    let all =
        || ["vnis", "vms4"].map(|set| elements(&lab, set).into_iter().collect::<BTreeSet<_>>());
    let before = all();
    assert!(before.iter().all(|set| set.len() > OTHERS as usize));
    let accept = Rule::new().verdict(Verdict::Accept);
    on_worker(&lab, Batch::new().rule(HOST_TABLE, "input", &accept));
    assert!(!lab.verify().is_empty(), "a rule more");
    lab.attach();
    assert_eq!(lab.verify(), Vec::<String>::new());
    assert_eq!(all(), before, "with all that others have in it");
}

#[test]
fn without_a_filter_nothing_passes() {
    if !root("tamper::without_a_filter_nothing_passes") {
        return;
    }
    let missing: [(&str, Alter, &str); 2] =
        [("source filter", ALTERATIONS[0].1, "source"), ("pod's table", ALTERATIONS[5].1, "")];
    for (what, alter, reason) in missing {
        let lab = Lab::new(true, Policy::default());
        let sniffer = Sniffer::new(&[(&lab.cluster, "eth0"), (&lab.worker, "cni0")]);
        alter(&lab);
        let datagram = vxlan(8, VNI, &stranger(&lab, 1));
        let to = (lab.outer[0], PORT);
        let vxlan1 = || lab.pod.handle().unwrap().link("vxlan1").unwrap().packets.0;
        let before = vxlan1();
        for ns in [&lab.third, &lab.vm] {
            let send = || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&datagram, to).unwrap();
            within(ns, send);
        }
        super::wait_for("the device to receive", || vxlan1() > before || reason.is_empty());
        if !reason.is_empty() {
            super::wait_for(what, || lab.counters().dropped_for(reason).packets >= 2);
        }
        assert_eq!(sniffer.count(1), 0, "without the {what}");
        lab.attach();
        Range::new(&lab).settle(2);
    }
}
