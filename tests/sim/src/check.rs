//! The invariants: what must hold at every call and answer, and what must be left at the end.
//!
//! ```text
//!   I1  every VM of ours is in a record, or gone within grace and one sweep
//!   I2  one live VM per sandbox at most                (cloud.rs, where machines are made)
//!   I3  no record without progress: at the end only those of pods that run
//!   I4  the budget: creates under way, calls in all, no call before the cloud's hint
//!   I5  devices, sockets and parts of pods that are over: none
//!   I6  what belongs to others is not touched, not even knocked at
//!   I7  no secret in a log line, an answer, a status, or the record of a pod that runs
//!   I8  no effect and no answer before the state it depends on would survive a power loss
//!   R2  a pod that runs ends, and a start fails, only for a reason; deaths of the daemon are none
//!   R6  one daemon at a time
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use peerpod_providers::{Candidate, VmRef, VmSpec};
use peerpod_tunnel::network::Tunnel;
use peerpodd::hypervisor::Failure;
use peerpodd::pod::phase::Phase;
use tokio::time::{Duration, Instant, sleep};

use crate::cloud::Cloud;
use crate::core::{Core, lock, seconds};
use crate::kernel::{FOREIGN_VNI, Kernel};
use crate::machines::{foreigners, is_ours};
use crate::relay::{Call, Relay};
use crate::site::{GRACE, INTERVAL, Site};

/// Creates under way at a time: what the daemon is told.
pub(crate) const CREATES: u32 = 3;
/// More calls of the provider than that in one run are a loop without a pause.
pub(crate) const CALLS: u64 = 6000;
/// What every VM's user data holds.
pub(crate) const SECRET: &str = "PLANTED-SECRET";
/// From the last fault until all must be well.
const CONVERGE: Duration = Duration::from_secs(25 * 60);
/// How long a StopVM may take; the Rust shim waits no longer.
const STOP: Duration = Duration::from_secs(1);
/// How long a VM without a record may be there once nothing goes wrong any more.
const UNKNOWN: Duration = Duration::from_secs(GRACE + INTERVAL + 30);

/// A create may be sent only if the disk says that just this one is being tried.
pub(crate) fn create(cloud: &Cloud, spec: &VmSpec, candidate: &Candidate) {
    let kept = cloud.store.kept(&spec.sandbox);
    let says = kept.as_ref().map(|r| r.phase.name()).unwrap_or("nothing");
    let ok = kept.as_ref().is_some_and(|r| {
        matches!(r.phase, Phase::Launching { candidate: n, .. } if n == candidate.number)
            && r.machine.spec == *spec
            && r.machine.candidates.contains(candidate)
    });
    if !ok {
        let (name, n) = (&spec.name, candidate.number);
        let phase = kept.map(|r| format!("{:?}", r.phase)).unwrap_or_default();
        let what =
            format!("a create of {name}, candidate {n}, is sent; the disk says {says} {phase}");
        cloud.core.breach("I8", what);
    }
}

/// Something is made for a sandbox: a record must say so first.
pub(crate) fn effect(cloud: &Cloud, sandbox: &str, what: &str) {
    if cloud.store.kept(sandbox).is_none() {
        cloud.core.breach("I8", format!("{what} for {sandbox}, and no record would survive"));
    }
}

/// Something of a sandbox is ended.
pub(crate) fn ends(core: &Core, sandbox: &str, what: &str) {
    if core.is_promised(sandbox) {
        core.breach("R2", format!("{sandbox} runs and has no reason to end, but {what}"));
    }
}

/// A record goes: the cloud must have said that nothing is left of its VM.
pub(crate) fn forgotten(cloud: &Cloud, sandbox: &str) {
    let state = lock(&cloud.state);
    let machines = state.machines.live_of(sandbox).len();
    let of = |r: &&crate::machines::Part| r.resource.vm.sandbox == sandbox;
    let parts = state.machines.parts.iter().filter(of).count();
    if machines + parts > 0 && !state.told_gone.contains(sandbox) {
        let what =
            format!("the record of {sandbox} goes, {machines} VMs and {parts} parts are there");
        cloud.core.breach("I1", format!("{what}, and nobody was told that they had gone"));
    }
}

/// A delete is sent: what is in no record must be as old as the grace.
pub(crate) fn swept(cloud: &Cloud, vm: &VmRef) {
    let known = cloud.store.sandboxes().contains(&vm.sandbox);
    let state = lock(&cloud.state);
    let live = state.machines.live_of(&vm.sandbox);
    let young = live.first().filter(|m| m.made.elapsed() < Duration::from_secs(GRACE));
    if let (false, Some(machine)) = (known || cloud.core.is_clock_wrong(), young) {
        let (id, age) = (&machine.id, machine.made.elapsed());
        cloud.core.breach("I1", format!("{id} is in no record and swept after {age:?} already"));
    }
}

/// Whether what stands at an address may be used for a sandbox.
fn belongs(cloud: &Cloud, sandbox: &str, address: std::net::IpAddr) -> bool {
    let state = lock(&cloud.state);
    state.machines.at(address).is_none_or(|m| !m.foreign && m.spec.sandbox == sandbox)
}

pub(crate) fn attach(cloud: &Cloud, kernel: &Kernel, tunnel: &Tunnel) {
    let sandbox = &tunnel.sandbox;
    effect(cloud, sandbox, "a tunnel is made");
    if !belongs(cloud, sandbox, tunnel.vm) {
        cloud.core.breach("I6", format!("{sandbox} gets a tunnel to {}: not its VM", tunnel.vm));
    }
    let state = lock(&kernel.state);
    let other = state.tunnels.values().find(|t| t.vni == tunnel.vni && t.sandbox != *sandbox);
    if other.is_some() || tunnel.vni == FOREIGN_VNI {
        let what = format!("{sandbox} gets VXLAN id {}, which is in use", tunnel.vni);
        cloud.core.breach("I6", what);
    }
}

pub(crate) fn connect(cloud: &Cloud, sandbox: &str, target: SocketAddr) {
    effect(cloud, sandbox, "a link is made");
    if !belongs(cloud, sandbox, target.ip()) {
        cloud.core.breach("I6", format!("{sandbox} gets a link to {target}: not its VM"));
    }
}

/// A shim is answered. `steady` is how long it waited if a daemon was there all the time.
pub(crate) fn answer(
    relay: &Relay,
    sandbox: &str,
    call: &Call,
    answer: &Result<(), Failure>,
    steady: Option<Duration>,
) {
    let (core, store) = (&relay.core, &relay.cloud.store);
    let method = call.method();
    if let Err(failure) = answer {
        if failure.message.contains(SECRET) {
            core.breach("I7", format!("{method} of {sandbox} answers {failure}"));
        }
        if !core.is_excused(sandbox) {
            let what = format!("{method} of {sandbox} fails without a reason: {failure}");
            core.breach("R2", what);
        }
        return;
    }
    let kept = store.kept(sandbox);
    match (call, kept.as_ref().map(|r| &r.phase)) {
        (Call::Create(_), None) => {
            core.breach("I8", format!("CreateVM of {sandbox} is answered before its record lasts"));
        }
        (Call::Create(_), Some(_)) => {}
        (Call::Start(_), Some(Phase::Running { .. })) => started(relay, sandbox),
        // It was stopped in this very moment; a shim does not ask twice.
        (Call::Start(_), Some(Phase::Deleting { .. })) if core.is_excused(sandbox) => {}
        (Call::Start(_), phase) => {
            let says = phase.map_or("nothing", Phase::name);
            core.breach("I8", format!("StartVM of {sandbox} is answered; the disk says {says}"));
        }
        (Call::Stop, None | Some(Phase::Deleting { .. })) => {}
        (Call::Stop, Some(phase)) => {
            if store.trouble(sandbox).is_none() {
                let says = phase.name();
                core.breach("I8", format!("StopVM of {sandbox} is answered; the disk says {says}"));
            }
        }
    }
    if matches!(call, Call::Stop) && steady.is_some_and(|took| took > STOP) {
        core.breach("R2", format!("StopVM of {sandbox} took {steady:?}"));
    }
}

fn started(relay: &Relay, sandbox: &str) {
    let core = &relay.core;
    core.promise(sandbox);
    let text = relay.cloud.store.seen(sandbox).map(|(_, text)| text).unwrap_or_default();
    if text.contains(SECRET) {
        core.breach("I7", format!("{sandbox} runs, and its record still has the VM's key"));
    }
    let linked = lock(&relay.state).sockets.get(sandbox).is_some_and(|s| s.target.is_some());
    if !linked && !core.is_excused(sandbox) {
        core.breach("R2", format!("StartVM of {sandbox} is answered, and the relay has no link"));
    }
}

/// Waits until all is as it should be; what is not by then is a breach.
pub(crate) async fn converge(site: &Site) {
    let begin = Instant::now();
    let mut unknown: BTreeMap<String, Instant> = BTreeMap::new();
    // What was late is there by then.
    sleep(seconds(130)).await;
    loop {
        for name in unknown_machines(site, &mut unknown) {
            site.core.breach("I1", format!("{name} is in no record and still there"));
        }
        let left = left_over(site);
        if left.is_empty() && unknown.is_empty() {
            break;
        }
        if begin.elapsed() >= CONVERGE {
            for (invariant, what) in left {
                site.core.breach(invariant, format!("{what}, {CONVERGE:?} after the last fault"));
            }
            return;
        }
        sleep(seconds(5)).await;
    }
    sleep(seconds(2 * INTERVAL)).await;
    for (invariant, what) in left_over(site) {
        site.core.breach(invariant, format!("{what}, when all had been well"));
    }
    foreigners_are_there(site);
    statuses_hold_no_secret(site);
}

/// Since when machines of ours have been in no record; those of which that is too long.
fn unknown_machines(site: &Site, unknown: &mut BTreeMap<String, Instant>) -> Vec<String> {
    let ours = site.cloud.ours();
    let is_known = |sandbox: &str| {
        site.store.seen(sandbox).is_some() || site.relay.has(sandbox) || site.is_newer(sandbox)
    };
    let names: Vec<String> = ours
        .iter()
        .filter(|r| !is_known(&r.vm.sandbox))
        .map(|r| format!("{:?} {}", r.kind, r.vm.name))
        .collect();
    unknown.retain(|name, _| names.contains(name));
    for name in names {
        unknown.entry(name).or_insert_with(Instant::now);
    }
    let late = unknown.iter().filter(|(_, since)| since.elapsed() > UNKNOWN);
    late.map(|(name, _)| name.clone()).collect()
}

/// What should not be there, or should be and is not.
fn left_over(site: &Site) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let kept = site.kept_pods();
    let may_stay = |sandbox: &str| kept.contains(sandbox) || site.is_newer(sandbox);
    for sandbox in site.store.sandboxes().iter().filter(|s| !may_stay(s)) {
        let phase = site.store.seen(sandbox).map(|(r, _)| format!("{:?}", r.phase));
        let phase = phase.unwrap_or_default();
        wrong.push(("I3", format!("the record of {sandbox} stays: {phase}")));
    }
    for resource in site.cloud.ours().iter().filter(|r| !may_stay(&r.vm.sandbox)) {
        wrong.push(("I1", format!("{:?} {} stays", resource.kind, resource.vm.name)));
    }
    let kernel = lock(&site.kernel.state);
    for sandbox in kernel.tunnels.keys().chain(&kernel.halves).filter(|s| !may_stay(s)) {
        wrong.push(("I5", format!("the tunnel of {sandbox} stays")));
    }
    for sandbox in lock(&site.relay.state).sockets.keys().filter(|s| !may_stay(s)) {
        wrong.push(("I5", format!("the socket of {sandbox} stays")));
    }
    for sandbox in kept.iter().filter(|s| site.core.is_promised(s)) {
        if !kernel.tunnels.contains_key(sandbox) {
            wrong.push(("R2", format!("{sandbox} runs without a tunnel")));
        }
        if lock(&site.cloud.state).machines.live_of(sandbox).is_empty() {
            wrong.push(("R2", format!("{sandbox} runs without a VM")));
        }
        let linked =
            lock(&site.relay.state).sockets.get(sandbox).is_some_and(|s| s.target.is_some());
        if !linked {
            wrong.push(("R2", format!("{sandbox} runs without a link")));
        }
        let running = |r: &peerpodd::pod::record::Record| matches!(r.phase, Phase::Running { .. });
        if !site.store.seen(sandbox).is_some_and(|(r, _)| running(&r)) {
            wrong.push(("R2", format!("{sandbox} runs, and the disk says something else")));
        }
    }
    wrong
}

fn foreigners_are_there(site: &Site) {
    let state = lock(&site.cloud.state);
    let now = Instant::now();
    for spec in foreigners() {
        let there = state.machines.named(&spec.name).is_some_and(|m| m.foreign && m.runs(now));
        if !there || is_ours(&spec.tags) {
            site.core.breach("I6", format!("{}, which is not ours, is no more", spec.name));
        }
    }
}

fn statuses_hold_no_secret(site: &Site) {
    for status in site.statuses() {
        let text = serde_json::to_string(&status).unwrap_or_default();
        if text.contains(SECRET) {
            site.core.breach("I7", format!("the status of {} holds the VM's key", status.sandbox));
        }
    }
}
