//! The source filter in the host's namespace: of all that arrives for a VNI of ours, only what its
//! VM's address sends is let in; and that passes without connection tracking.
//!
//! ```text
//!   inet table peerpod     vnis: port . VNI          vms4, vms6: port . VNI . address
//!     input       port . VNI . source in vms → accept;  else port . VNI in vnis → drop, counted
//!     prerouting, output                 in vms → notrack
//! ```
//! The decision is taken at input, where fragments have been put together: at prerouting a first
//! fragment too short to hold the VNI would slip through.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use peerpod_netlink::Error;
use peerpod_netlink::nft::expression::{Base, Compare, Meta, Rule, Verdict};
use peerpod_netlink::nft::{Batch, Chain, Committed, Counter, Family, Hook, Nft, Set, Table};

const TABLE: Table<'static> = Table { family: Family::Inet, name: "peerpod" };
const VNIS: &str = "vnis";
const VMS4: &str = "vms4";
const VMS6: &str = "vms6";
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

/// Lets `source` speak for the key, and nobody else. There already is success.
pub(super) fn allow(key: Key, source: IpAddr, owner: &str) -> Result<(), Error> {
    let _one = TABLE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let (set, bytes) = full(key, source);
    let add = |batch: Batch| {
        batch.element(TABLE, VNIS, &key.bytes(), owner).element(TABLE, set, &bytes, owner)
    };
    // Looking first: the kernel takes some 10 ms to undo a batch that fails.
    if exists()? {
        add(Batch::new()).send("let the VM in")
    } else {
        add(with_table(Batch::new())).send("make the source filter")
    }
}

/// Takes back what [`allow`] gave for the key, whoever had it; the table goes with its last entry.
/// What is returned is better dropped last.
pub(super) fn revoke(key: Key) -> Result<Option<Committed>, Error> {
    let _one = TABLE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if !exists()? {
        return Ok(None);
    }
    let mut batch = Batch::new();
    let (mut mine, mut others) = (false, false);
    for set in [VMS4, VMS6, VNIS] {
        for (bytes, _) in Nft::elements(TABLE, set)? {
            if Key::read(&bytes) == Some(key) {
                batch = batch.delete_element(TABLE, set, &bytes);
                mine = true;
            } else {
                others |= set == VNIS;
            }
        }
    }
    match (mine, others) {
        (_, false) => Batch::new().delete_table(TABLE).commit("take the source filter away"),
        (true, true) => batch.commit("shut the VM out"),
        (false, true) => return Ok(None),
    }
    .map(Some)
}

/// Whether exactly `source` may speak for the key.
pub(super) fn allows(key: Key, source: IpAddr) -> Result<bool, Error> {
    let (wanted, bytes) = full(key, source);
    let mut found = false;
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
    Ok(Nft::counters(TABLE, "input")?.last().copied().unwrap_or_default())
}

fn exists() -> Result<bool, Error> {
    Ok(Nft::tables(Family::Inet)?.iter().any(|t| t == TABLE.name))
}

fn with_table(batch: Batch) -> Batch {
    let base = |name, hook| Chain { name, hook: Some((hook, -300)), drop_by_default: false };
    let sets = [
        Set { name: VNIS, key_length: 8 },
        Set { name: VMS4, key_length: 12 },
        Set { name: VMS6, key_length: 24 },
    ];
    let mut batch = batch.new_table(TABLE);
    for set in sets {
        batch = batch.set(TABLE, set);
    }
    batch = batch
        .chain(TABLE, base("prerouting", Hook::Prerouting))
        .chain(TABLE, base("output", Hook::Output))
        .chain(TABLE, base("input", Hook::Input));
    for (set, protocol, offset, length) in [(VMS4, 2, 12, 4), (VMS6, 10, 8, 16)] {
        let from = vni(protocol).payload(2, Base::Network, offset, length).lookup(0, set, false);
        let to = offset + length;
        let to = vni(protocol).payload(2, Base::Network, to, length).lookup(0, set, false);
        batch = batch
            .rule(TABLE, "prerouting", &from.clone().notrack())
            .rule(TABLE, "output", &to.notrack())
            .rule(TABLE, "input", &from.counter().verdict(Verdict::Accept));
    }
    let other = udp().payload(0, Base::Transport, 2, 2).payload(1, Base::Transport, 12, 3);
    let other = other.lookup(0, VNIS, false).counter().verdict(Verdict::Drop);
    batch.rule(TABLE, "input", &other)
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
