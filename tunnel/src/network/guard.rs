//! The source filter in the host's namespace: of all that arrives for a VNI of ours, only what its
//! VM's address sends is let in; and that passes without connection tracking.
//!
//! ```text
//!   inet table peerpod     vnis: port . VNI     vms4, vms6: port . VNI . address     ports: port
//!     input       port . VNI . source in vms → stamped, accept
//!                 port . VNI in vnis, or a fragment for a port of ours → drop, counted
//!     prerouting, output                 in vms → notrack
//! ```
//! The decision is taken at input, where fragments of IPv4 have been put together; those of IPv6 are
//! not always, and of them only a first one that shows its VNI is let in.
//!
//! The stamp is the kernel's priority of the packet, which survives the VXLAN device. In the pod's
//! namespace nothing without it goes on: where this table is taken away, the tunnel is shut, not open.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use peerpod_netlink::Error;
use peerpod_netlink::nft::expression::{Base, Compare, Meta, Rule, Verdict};
use peerpod_netlink::nft::{
    Batch, Chain, Committed, Counter, Family, Hook, Nft, Set, Table, Whole,
};

pub(super) const TABLE: Table<'static> = Table { family: Family::Inet, name: "peerpod" };
const VNIS: &str = "vnis";
const VMS4: &str = "vms4";
const VMS6: &str = "vms6";
const PORTS: &str = "ports";
const SETS: [&str; 4] = [VNIS, VMS4, VMS6, PORTS];
/// What the filter has let in; no program without privileges can give a packet such a priority.
pub(super) const STAMP: u32 = u32::from_be_bytes(*b"peer");
const FRAGMENT: u8 = 44;
const UDP: u8 = 17;
/// Making the table and taking the empty one away must not cross.
static TABLE_LOCK: Mutex<()> = Mutex::new(());

/// A pair of port and VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) port: u16,
    pub(super) vni: u32,
}

impl Key {
    /// As it lies in two 4-byte registers: port and VNI, each padded at its end.
    fn bytes(self) -> [u8; 8] {
        let [p0, p1] = self.port.to_be_bytes();
        let [_, v0, v1, v2] = self.vni.to_be_bytes();
        [p0, p1, 0, 0, v0, v1, v2, 0]
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let [p0, p1, _, _, v0, v1, v2, _] = *bytes.first_chunk::<8>()?;
        let vni = u32::from_be_bytes([0, v0, v1, v2]);
        Some(Self { port: u16::from_be_bytes([p0, p1]), vni })
    }
}

fn full(key: Key, address: IpAddr) -> (&'static str, Vec<u8>) {
    let mut bytes = key.bytes().to_vec();
    match address {
        IpAddr::V4(a) => {
            bytes.extend(a.octets());
            (VMS4, bytes)
        }
        IpAddr::V6(a) => {
            bytes.extend(a.octets());
            (VMS6, bytes)
        }
    }
}

/// Lets `source` speak for the key, and nobody else; a table that somebody has altered is made anew in
/// the same step, with all that others have in it. There already is success.
pub(super) fn allow(key: Key, source: IpAddr, owner: &str) -> Result<(), Error> {
    let _one = TABLE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let (mine, bytes) = full(key, source);
    let mut batch = Batch::new();
    let whole = whole();
    // Looking first: the kernel takes some 10 ms to undo a batch that fails.
    let there = exists()?;
    let altered = there && !whole.compare()?.wrong.is_empty();
    // All of a key come and go together, and a list of a thousand pods' takes its time.
    let known =
        there && (Nft::holds(TABLE, VNIS, &key.bytes())? || Nft::holds(TABLE, mine, &bytes)?);
    let others = if altered || known { elements()? } else { Vec::new() };
    if altered {
        batch = batch.delete_table(TABLE);
    }
    if altered || !there {
        batch = whole.make(batch);
        for (set, bytes, owner) in others.iter().filter(|(_, b, _)| Key::read(b) != Some(key)) {
            batch = batch.element(TABLE, set, bytes, owner);
        }
        let ports = others.iter().filter_map(|(_, b, _)| Some(Key::read(b)?.port));
        for port in ports.collect::<BTreeSet<_>>() {
            batch = batch.element(TABLE, PORTS, &port_key(port), "");
        }
    } else {
        // Nobody but `source`.
        for (set, have, _) in &others {
            if Key::read(have) == Some(key) && *set != VNIS && (*set != mine || *have != bytes) {
                batch = batch.delete_element(TABLE, set, have);
            }
        }
    }
    batch
        .element(TABLE, PORTS, &port_key(key.port), "")
        .element(TABLE, VNIS, &key.bytes(), owner)
        .element(TABLE, mine, &bytes, owner)
        .send("let the VM in")
}

fn port_key(port: u16) -> [u8; 2] {
    port.to_be_bytes()
}

/// An entry: the set, the bytes, the owner.
type Entry = (&'static str, Vec<u8>, String);

/// All entries that belong to a key.
fn elements() -> Result<Vec<Entry>, Error> {
    let mut all = Vec::new();
    for set in [VNIS, VMS4, VMS6] {
        let some = Nft::elements(TABLE, set)?;
        all.extend(some.into_iter().map(|(bytes, owner)| (set, bytes, owner)));
    }
    Ok(all)
}

/// Takes back what [`allow`] gave for the key: to `source`, or, where that is not known or not all, to
/// whoever has it. The table goes with its last entry. What is returned is better dropped last.
pub(super) fn revoke(key: Key, source: Option<IpAddr>) -> Result<Option<Committed>, Error> {
    let _one = TABLE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if !exists()? {
        return Ok(None);
    }
    if !Nft::holds_another(TABLE, VNIS, &key.bytes())? {
        let gone = Batch::new().delete_table(TABLE).commit("take the source filter away");
        return gone.map(Some);
    }
    let mine = match source.map(|source| full(key, source)) {
        Some((set, bytes))
            if Nft::holds(TABLE, VNIS, &key.bytes())? && Nft::holds(TABLE, set, &bytes)? =>
        {
            vec![(VNIS, key.bytes().to_vec()), (set, bytes)]
        }
        _ => all_of(key)?,
    };
    if mine.is_empty() {
        return Ok(None);
    }
    let all = mine.iter();
    let batch =
        all.fold(Batch::new(), |batch, (set, bytes)| batch.delete_element(TABLE, set, bytes));
    batch.commit("shut the VM out").map(Some)
}

fn all_of(key: Key) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let mut all = elements()?;
    all.retain(|(_, bytes, _)| Key::read(bytes) == Some(key));
    Ok(all.into_iter().map(|(set, bytes, _)| (set, bytes)).collect())
}

/// What is wrong with the filter for a key that exactly `source` may speak for; nothing is well.
pub(super) fn look(key: Key, source: IpAddr) -> Result<Vec<String>, Error> {
    let found = whole().compare()?;
    let mut wrong: Vec<_> =
        found.wrong.into_iter().map(|w| format!("the source filter: {w}")).collect();
    if wrong.is_empty() && !allows(key, source)? {
        wrong.push(format!("the source filter does not let {source} in alone"));
    }
    Ok(wrong)
}

/// Whether exactly `source` may speak for the key.
fn allows(key: Key, source: IpAddr) -> Result<bool, Error> {
    let (wanted, bytes) = full(key, source);
    let mut found = false;
    if !Nft::elements(TABLE, VNIS)?.iter().any(|(have, _)| Key::read(have) == Some(key)) {
        return Ok(false);
    }
    for set in [VMS4, VMS6] {
        for (have, _) in Nft::elements(TABLE, set)? {
            if Key::read(&have) == Some(key) {
                if set != wanted || have.get(..bytes.len()) != Some(&bytes[..]) {
                    return Ok(false);
                }
                found = true;
            }
        }
    }
    Ok(found)
}

/// All keys with their owner marks.
pub(super) fn marked() -> Result<Vec<(Key, String)>, Error> {
    let all = Nft::elements(TABLE, VNIS)?;
    Ok(all.into_iter().filter_map(|(k, owner)| Some((Key::read(&k)?, owner))).collect())
}

/// What was dropped here, of all VNIs together.
pub(super) fn dropped() -> Result<Counter, Error> {
    if !exists()? {
        return Ok(Counter::default());
    }
    let counters = Nft::counters(TABLE, "input")?;
    Ok(counters.into_iter().skip(ACCEPTING).fold(Counter::default(), Counter::plus))
}

fn exists() -> Result<bool, Error> {
    Ok(Nft::tables(Family::Inet)?.iter().any(|t| t == TABLE.name))
}

/// Rules at the head of input that let in; the rest drops.
const ACCEPTING: usize = 2;

fn whole() -> Whole<'static> {
    let base = |name, hook| Chain { name, hook: Some((hook, -300)), drop_by_default: false };
    let set = |(name, key_length)| (Set { name, key_length, remembers: 0 }, None);
    let mut rules = Vec::new();
    for (set, protocol, offset, length) in [(VMS4, 2, 12, 4), (VMS6, 10, 8, 16)] {
        let from = vni(protocol).payload(2, Base::Network, offset, length).lookup(0, set, false);
        let to = offset + length;
        let to = vni(protocol).payload(2, Base::Network, to, length).lookup(0, set, false);
        rules.push(("prerouting", from.clone().notrack()));
        rules.push(("output", to.notrack()));
        rules.push(("input", from.counter().prioritise(STAMP).verdict(Verdict::Accept)));
    }
    let other = udp().payload(0, Base::Transport, 2, 2).payload(1, Base::Transport, 12, 3);
    let other = other.lookup(0, VNIS, false);
    // The kernel makes no fragments of tunnel packets: what they carry is small enough.
    let part = Rule::new().meta(0, Meta::NfProto).compare(0, Compare::Equal, &[10]);
    let part = part.has_extension(FRAGMENT).meta(0, Meta::L4Protocol);
    let part = part.compare(0, Compare::Equal, &[UDP]).payload(0, Base::Transport, 2, 2);
    for drop in [other, part.lookup(0, PORTS, false)] {
        rules.push(("input", drop.counter().verdict(Verdict::Drop)));
    }
    Whole {
        table: TABLE,
        sets: SETS.into_iter().zip([8, 12, 24, 2]).map(set).collect(),
        chains: vec![
            base("prerouting", Hook::Prerouting),
            base("output", Hook::Output),
            base("input", Hook::Input),
        ],
        rules,
    }
}

fn udp() -> Rule {
    Rule::new().meta(0, Meta::L4Protocol).compare(0, Compare::Equal, &[UDP])
}

/// Port into slot 0 and VNI into slot 1, of UDP packets of one IP version.
fn vni(nf_protocol: u8) -> Rule {
    Rule::new()
        .meta(0, Meta::NfProto)
        .compare(0, Compare::Equal, &[nf_protocol])
        .meta(0, Meta::L4Protocol)
        .compare(0, Compare::Equal, &[UDP])
        .payload(0, Base::Transport, 2, 2)
        .payload(1, Base::Transport, 12, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_lies_as_the_bytes_of_a_packet_do() {
        let key = Key { port: 9000, vni: 0x000a_0b0c };
        assert_eq!(key.bytes(), [0x23, 0x28, 0, 0, 0x0a, 0x0b, 0x0c, 0]);
        assert_eq!(Key::read(&key.bytes()), Some(key));
        assert_eq!(port_key(9000), [0x23, 0x28]);
        let (set, bytes) = full(key, IpAddr::from([192, 0, 2, 7]));
        assert_eq!((set, &bytes[8..]), (VMS4, &[192, 0, 2, 7][..]));
    }
}
