//! Chance: every fault and every amount comes from the seed, a name and a count, and from nothing
//! else, so that switching one fault off leaves the draws of all others as they are.
//!
//! ```text
//!   seed ─▶ which faults this seed has at all (most have a few) ─▶ fires(fault): name#count, yes or no
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::core::lock;

macro_rules! faults {
    ($($variant:ident $name:literal $per_mille:literal $what:literal;)*) => {
        /// What goes wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $(#[doc = $what] $variant),* }

        impl Fault {
            /// All there are.
            pub const ALL: &[Fault] = &[$(Fault::$variant),*];

            /// The name on the command line and in traces.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$variant => $name),* }
            }

            /// How often it happens where it can, in seeds that have it.
            fn per_mille(self) -> u64 {
                match self { $(Fault::$variant => $per_mille),* }
            }

            /// What it is.
            pub fn what(self) -> &'static str {
                match self { $(Fault::$variant => $what),* }
            }
        }
    };
}

faults! {
    Kill "kill" 12 "the daemon dies at a call to its world: before, while it is under way, or after";
    KillAnyTime "kill-any-time" 350 "the daemon dies at some moment";
    KillOnDisk "kill-on-disk" 25 "the daemon dies between two system calls of a save";
    Restart "restart" 350 "the daemon is told to end and its successor waits for the lock";
    SecondDaemon "second-daemon" 300 "a second daemon is started beside the first";
    PowerLoss "power-loss" 120 "the machine loses power: another boot, nothing that was not synced";
    ClockJump "clock-jump" 300 "the wall clock jumps by up to an hour, forward or back";
    CreateBefore "create-timeout-before" 200 "a create times out before it has an effect";
    CreateLost "create-lost-reply" 200 "a create takes effect and its reply is lost";
    CreateLate "create-late" 150 "a create times out and takes effect some time later";
    CreateTwice "create-twice" 150 "a create is delivered a second time, later";
    CreateThrottled "create-throttled" 250 "a create is throttled, with or without a hint";
    CreateCapacity "create-capacity" 250 "no room in this place";
    CreateParts "create-parts" 200 "no room is found out inside the operation: a disk and an interface stay";
    CreateQuota "create-quota" 120 "an account limit";
    CreateDenied "create-denied" 60 "a policy refuses";
    CreateOther "create-other" 120 "an error that no table maps, with or without an effect";
    CreateNoAddress "create-no-address" 120 "the VM is made, but no address is learnt";
    CreateSlow "create-slow" 200 "a create takes up to a minute";
    NameTaken "name-taken" 120 "somebody else's VM has the name";
    DeleteBefore "delete-timeout-before" 200 "a delete times out before it has an effect";
    DeleteLost "delete-lost-reply" 200 "a delete takes effect and its reply is lost";
    DeleteLate "delete-late" 150 "a delete times out and takes effect some time later";
    DeleteForgotten "delete-forgotten" 150 "a delete is accepted and forgotten";
    DeleteThrottled "delete-throttled" 250 "a delete is throttled, with or without a hint";
    DeleteDenied "delete-denied" 100 "a delete is refused";
    DeleteNotFound "delete-not-found" 150 "a VM of the last minute is not found yet";
    ListFails "list-fails" 250 "a list fails";
    ListTruncated "list-truncated" 150 "a page of the list is missing, and the call fails late";
    ListStale "list-stale" 250 "a list is up to a minute old";
    ListSlow "list-slow" 200 "a list takes up to a minute";
    ListWrongState "list-wrong-state" 200 "a list says of a VM that runs that it does not, or nothing";
    ListUnfiltered "list-unfiltered" 300 "a list has things of others";
    Outage "outage" 250 "the provider answers nothing for a while";
    Expired "credentials-expired" 200 "the provider denies everything for a while";
    VmGone "vm-gone" 250 "somebody deletes a VM behind our back";
    VmNeverBoots "vm-never-boots" 120 "a VM never answers";
    VmDies "vm-dies" 200 "a VM dies some time after its start";
    VmHangs "vm-hangs" 150 "an agent hangs, its connections stay open";
    VmPauses "vm-pauses" 200 "an agent does not answer for some seconds";
    VmGarbage "vm-garbage" 100 "what answers is no agent";
    NetnsGone "netns-gone" 200 "a pod's network namespace vanishes";
    DeviceGone "device-gone" 250 "somebody deletes a tunnel's device";
    AttachFails "attach-fails" 150 "a tunnel cannot be made";
    DetachFails "detach-fails" 200 "a tunnel cannot be taken away";
    InspectFails "inspect-fails" 100 "a namespace cannot be read";
    VnisFail "vnis-fail" 80 "the kernel does not say which ids are in use";
    VerifyFails "verify-fails" 150 "a tunnel cannot be looked at";
    KernelSlow "kernel-slow" 60 "the kernel takes seconds";
    LeftoversFail "leftovers-fail" 150 "left-over devices cannot be looked at";
    RelayKilled "relay-killed" 150 "the relay dies and a new one comes, which holds nothing";
    RelayDropped "relay-dropped" 300 "the connection to the relay breaks and is made again";
    RelayAway "relay-away" 80 "the relay does not answer a call";
    RelayLost "relay-lost-reply" 80 "the relay does what it is asked and its answer is lost";
    RelaySlow "relay-slow" 60 "the relay takes seconds";
    LinkDown "link-down" 300 "the relay tells of a link that is down or up again";
    ConnectFails "connect-fails" 150 "the relay cannot reach the VM yet, or TLS fails";
    DiskFull "disk-full" 60 "a write finds no room and leaves a part";
    DiskSync "disk-sync-fails" 50 "a sync fails, and what it was to keep is gone";
    DiskReadOnly "disk-read-only" 200 "the file system takes no writes for a while";
    DiskSlow "disk-slow" 60 "a save takes seconds";
    DiskCorrupt "disk-corrupt" 150 "a record is unreadable at the next start";
    DiskNewer "disk-newer" 80 "a record is of a newer version at the next start";
    CreateRepeated "call-create-twice" 250 "a shim sends CreateVM twice";
    CreateAbandoned "call-create-abandoned" 120 "a shim gives CreateVM up";
    StartAbandoned "call-start-abandoned" 200 "a shim gives StartVM up";
    StartRepeated "call-start-twice" 250 "a shim sends StartVM twice";
    StartNever "call-start-never" 150 "a shim never sends StartVM";
    StopEarly "call-stop-early" 200 "StopVM comes during StartVM";
    StopThrice "call-stop-thrice" 350 "StopVM comes three times at once, with one second each";
    StopNever "call-stop-never" 250 "a shim is killed and never sends StopVM";
    StopLate "call-stop-late" 200 "StopVM comes again, much later";
    SecondSandbox "second-sandbox" 200 "another sandbox of the same pod comes before the first has gone";
}

/// What a run is told besides its seed.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Only these (`name#count`) happen; `None` lets the seed decide.
    pub only: Option<BTreeSet<String>>,
    /// These never happen.
    pub without: BTreeSet<String>,
}

#[derive(Debug)]
pub(crate) struct Dice {
    seed: u64,
    choice: Choice,
    calm: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<&'static str, u64>,
    draws: BTreeMap<&'static str, u64>,
    fired: Vec<String>,
}

impl Dice {
    pub(crate) fn new(seed: u64, choice: Choice) -> Self {
        Self { seed, choice, calm: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Whether the fault happens here and now; returns its name and count.
    pub(crate) fn fires(&self, fault: Fault) -> Option<String> {
        let mut state = lock(&self.state);
        let count = state.counts.entry(fault.name()).or_default();
        *count += 1;
        let (n, id) = (*count, format!("{}#{}", fault.name(), *count));
        if self.calm.load(Ordering::Relaxed) || self.choice.without.contains(fault.name()) {
            return None;
        }
        let happens = match &self.choice.only {
            Some(only) => only.contains(&id),
            None => self.has(fault) && hash(self.seed, fault.name(), n) % 1000 < fault.per_mille(),
        };
        happens.then(|| {
            state.fired.push(id.clone());
            id
        })
    }

    /// Whether this seed has the fault at all. Every eighth seed has none of them, every fourth only
    /// deaths of the daemon; the others have a part of all, some a small one.
    fn has(&self, fault: Fault) -> bool {
        let share = match hash(self.seed, "share", 0) % 16 {
            0 | 1 => 0,
            2..=5 => {
                let deaths = [Fault::Kill, Fault::KillAnyTime, Fault::KillOnDisk, Fault::Restart];
                return deaths.contains(&fault);
            }
            6..=9 => 80,
            10..=13 => 250,
            _ => 600,
        };
        hash(self.seed, fault.name(), 0) % 1000 < share
    }

    /// A number from `low` to `high`.
    pub(crate) fn amount(&self, what: &'static str, low: u64, high: u64) -> u64 {
        let mut state = lock(&self.state);
        let count = state.draws.entry(what).or_default();
        *count += 1;
        let n = *count;
        drop(state);
        low + hash(self.seed, what, n) % (high - low + 1)
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub(crate) fn fired(&self) -> Vec<String> {
        lock(&self.state).fired.clone()
    }
}

/// FNV over the name, then SplitMix64's finaliser: the same on every machine and in every version.
fn hash(seed: u64, name: &str, n: u64) -> u64 {
    let mut x = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        x = (x ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    x ^= seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..2 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    x
}
