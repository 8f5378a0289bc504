//! Forwarding and pinning in the pod's namespace: one netdev table, made in one batch. Both base
//! chains drop what no rule has sent on; so without the table, or with half of it, nothing passes.
//!
//! ```text
//!   from_pod   ingress of eth0     questions of the node by UDP are remembered; everything → vxlan1
//!   from_vm    ingress of vxlan1   let in by the source filter?   no → drop_source
//!        the pod's MAC, no tag ──┬─ IPv4 of the pod's ── ip4 ─┐
//!                                ├─ ARP of the pod's ─────────┼─▶ deliver → eth0
//!                                ├─ IPv6 of the pod's ── ip6 ─┤
//!                                └─ else drop_foreign         └─▶ drop_<reason>, counted
//! ```

mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;

use peerpod_netlink::Error;
use peerpod_netlink::nft::{Batch, Committed, Counter, Family, Found, Nft, Table};

use super::{Policy, Tunnel};

pub(super) const TABLE: Table<'static> = Table { family: Family::Netdev, name: "peerpod" };

/// Why frames of the VM are dropped, and what that means.
pub const REASONS: [(&str, &str); 7] = [
    ("source", "not let in by the source filter, which may be missing"),
    ("foreign", "another MAC or address than the pod's, a tag, or neither IP nor ARP"),
    ("claim", "a claim to an address of others, by ARP or neighbour discovery"),
    ("router", "router advertisement, redirect, multicast query, DHCP server"),
    ("node", "to an address of the worker, and no answer"),
    ("metadata", "to an address that is blocked"),
    ("odd", "IP options, routing headers, what cannot be read"),
];

/// All that decides about the table besides the tunnel.
#[derive(Clone, Debug)]
pub(super) struct Around<'a> {
    pub(super) policy: &'a Policy,
    /// The worker's own addresses.
    pub(super) host: BTreeSet<IpAddr>,
}

/// The two ends of the forwarding: indexes of the pod's interface and of the VXLAN device, whose name
/// is `device`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'a> {
    pub(super) device: &'a str,
    pub(super) pod: u32,
    pub(super) vm: u32,
}

/// Replaces the table of the calling thread's namespace by the tunnel's own.
pub(super) fn set(tunnel: &Tunnel, around: &Around<'_>, ends: Ends<'_>) -> Result<(), Error> {
    let mut batch = Batch::new();
    // Only where there is something: a deletion is waited for, some 10 ms.
    if exists()? {
        batch = batch.delete_table(TABLE);
    }
    rules::whole(tunnel, around, ends).make(batch).send("forward and pin")
}

/// Takes the table away; absent is success. What is returned is better dropped last.
pub(super) fn clear() -> Result<Option<Committed>, Error> {
    if !exists()? {
        return Ok(None);
    }
    Batch::new().delete_table(TABLE).commit("stop forwarding").map(Some)
}

fn exists() -> Result<bool, Error> {
    Ok(Nft::tables(Family::Netdev)?.iter().any(|t| t == TABLE.name))
}

/// Compares the table with what it is to be.
pub(super) fn look(tunnel: &Tunnel, around: &Around<'_>, ends: Ends<'_>) -> Result<Found, Error> {
    rules::whole(tunnel, around, ends).compare()
}

/// To the VM, to the pod's interface, and dropped, by reason.
type Passed = (Counter, Counter, Vec<(&'static str, Counter)>);

/// What has passed to the VM, to the pod's interface, and what was dropped, by reason.
pub(super) fn counters() -> Result<Passed, Error> {
    let sum = |chain: &str| -> Result<Counter, Error> {
        let all = Nft::counters(TABLE, chain)?;
        Ok(all.into_iter().fold(Counter::default(), Counter::plus))
    };
    let mut dropped = Vec::new();
    for (reason, _) in REASONS {
        dropped.push((reason, sum(&format!("drop_{reason}"))?));
    }
    Ok((sum("from_pod")?, sum("deliver")?, dropped))
}

/// The same out of what a comparison has read.
pub(super) fn counters_of(found: &Found) -> Passed {
    let dropped = REASONS.map(|(reason, _)| (reason, found.sum(&format!("drop_{reason}"))));
    (found.sum("from_pod"), found.sum("deliver"), dropped.to_vec())
}
