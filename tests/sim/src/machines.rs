//! What stands in the cloud: machines and parts, ours and other people's, and what becomes of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use peerpod_providers::{Candidate, Resource, ResourceKind, Vm, VmName, VmRef, VmSpec, tags};
use peerpod_tunnel::link::Secret;
use peerpodd::plan::FollowFile;
use tokio::time::Instant;

use crate::check::SECRET;

/// How a machine behaves once it is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mood {
    /// From then on something refuses connections; before, there is silence.
    pub(crate) up: Option<Instant>,
    /// From then on the agent answers; `None` is never.
    pub(crate) answers: Option<Instant>,
    /// From then on the machine is off.
    pub(crate) dies: Option<Instant>,
    /// From then on, for that long, whoever asks waits.
    pub(crate) hangs: Option<(Instant, Duration)>,
    /// Answers nonsense.
    pub(crate) garbage: bool,
}

/// A machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) spec: VmSpec,
    pub(crate) candidate: Candidate,
    pub(crate) address: IpAddr,
    pub(crate) made: Instant,
    pub(crate) made_ms: u64,
    /// When a delete that is under way is done.
    pub(crate) gone: Option<Instant>,
    pub(crate) foreign: bool,
    /// What had no room in its user data is there.
    took: bool,
    pub(crate) mood: Mood,
}

impl Machine {
    /// Whether its user data promise files that are not there yet.
    pub(crate) fn waits(&self) -> bool {
        !self.took && self.spec.user_data.0.ends_with(FOLLOWS)
    }

    pub(crate) fn runs(&self, now: Instant) -> bool {
        self.gone.is_none() && self.mood.dies.is_none_or(|d| now < d)
    }

    pub(crate) fn as_vm(&self) -> Vm {
        Vm {
            native_id: self.id.clone(),
            name: self.spec.name.clone(),
            addresses: vec![self.address],
            instance_type: self.candidate.instance_type.clone(),
            zone: self.candidate.zone.clone(),
            price_per_hour: None,
        }
    }

    fn is_of(&self, vm: &VmRef) -> bool {
        self.spec.name == vm.name && self.spec.sandbox == vm.sandbox
    }

    fn as_resource(&self, now: Instant) -> Resource {
        let vm = VmRef {
            name: self.spec.name.clone(),
            sandbox: self.spec.sandbox.clone(),
            native_id: Some(self.id.clone()),
        };
        Resource {
            created: Some(std::time::UNIX_EPOCH + Duration::from_millis(self.made_ms)),
            running: Some(self.runs(now)),
            ..Resource::new(ResourceKind::Vm, vm, self.spec.tags.clone())
        }
    }
}

/// A disk or an interface without a machine.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) resource: Resource,
    pub(crate) gone: Option<Instant>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Machines {
    pub(crate) all: Vec<Machine>,
    pub(crate) parts: Vec<Part>,
    made: u32,
}

/// Whether something carries the tags of this installation and node.
pub(crate) fn is_ours(tags: &BTreeMap<String, String>) -> bool {
    let tag = |key: &str| tags.get(key).map(String::as_str);
    tag(tags::INSTALLATION) == Some(INSTALLATION) && tag(tags::NODE) == Some(NODE)
}

/// The end of user data that promise files.
pub(crate) const FOLLOWS: &str = ", more follows";

/// What has no room in the user data: of every third sandbox or so something.
pub(crate) fn follow(sandbox: &str) -> Vec<FollowFile> {
    let sum: u32 = sandbox.bytes().map(u32::from).sum();
    let content = Secret::new(format!("{SECRET} for {sandbox}"));
    let file = FollowFile { path: "/run/peerpod/initdata".to_owned(), content };
    if sum.is_multiple_of(3) { vec![file] } else { Vec::new() }
}

pub(crate) const INSTALLATION: &str = "sim";
pub(crate) const NODE: &str = "node-1";

impl Machines {
    /// Lets go what is due.
    pub(crate) fn settle(&mut self) {
        let now = Instant::now();
        self.all.retain(|m| m.gone.is_none_or(|g| now < g));
        self.parts.retain(|p| p.gone.is_none_or(|g| now < g));
    }

    pub(crate) fn add(&mut self, spec: &VmSpec, candidate: &Candidate, mood: Mood) -> Machine {
        self.made += 1;
        let now = Instant::now();
        let machine = Machine {
            id: format!("vm-{}", self.made),
            spec: spec.clone(),
            candidate: candidate.clone(),
            address: IpAddr::V4(Ipv4Addr::from_bits(0x0a63_0000 + self.made)),
            made: now,
            made_ms: 0,
            gone: None,
            foreign: false,
            took: false,
            mood,
        };
        self.all.push(machine.clone());
        machine
    }

    /// The live machine of that name that an equal call made; `Err` holds who has the name instead.
    pub(crate) fn made_by(
        &self,
        spec: &VmSpec,
        candidate: &Candidate,
        unique_names: bool,
    ) -> Result<Option<Machine>, String> {
        let live = |m: &&Machine| m.spec.name == spec.name;
        for machine in self.all.iter().filter(live) {
            if machine.spec == *spec && machine.candidate == *candidate && !machine.foreign {
                return Ok(Some(machine.clone()));
            }
            if unique_names || machine.foreign {
                let (name, id) = (&spec.name, &machine.id);
                return Err(format!("VM {name} is there already, made by another call: {id}"));
            }
        }
        Ok(None)
    }

    pub(crate) fn live_of(&self, sandbox: &str) -> Vec<&Machine> {
        let now = Instant::now();
        let of = |m: &&Machine| !m.foreign && m.spec.sandbox == sandbox && m.runs(now);
        self.all.iter().filter(of).collect()
    }

    pub(crate) fn at(&self, address: IpAddr) -> Option<&Machine> {
        self.all.iter().find(|m| m.address == address)
    }

    /// Files come to an address; the error says whose they are.
    pub(crate) fn take_files(
        &mut self,
        address: IpAddr,
        files: &[FollowFile],
    ) -> Result<(), String> {
        let Some(machine) = self.all.iter_mut().find(|m| m.address == address) else {
            return Ok(());
        };
        machine.took = true;
        let wanted = follow(&machine.spec.sandbox);
        if machine.spec.user_data.0.ends_with(FOLLOWS) && files == wanted {
            return Ok(());
        }
        Err(format!("{} gets files that are not its own", machine.spec.name))
    }

    pub(crate) fn named(&self, name: &VmName) -> Option<&Machine> {
        self.all.iter().find(|m| m.spec.name == *name)
    }

    /// Begins to take away; whether anything is left, and the ids of other people's that this hits.
    pub(crate) fn delete(&mut self, vm: &VmRef, takes: Duration) -> (bool, Vec<String>) {
        let end = Instant::now() + takes;
        let mut foreign = Vec::new();
        for machine in self.all.iter_mut().filter(|m| m.is_of(vm)) {
            if machine.foreign {
                foreign.push(machine.id.clone());
                continue;
            }
            machine.gone.get_or_insert(end);
        }
        let of = |p: &Part| p.resource.vm.name == vm.name && p.resource.vm.sandbox == vm.sandbox;
        for part in self.parts.iter_mut().filter(|p| of(p)) {
            part.gone.get_or_insert(end);
        }
        self.settle();
        let left = self.all.iter().any(|m| m.is_of(vm)) || self.parts.iter().any(of);
        (left, foreign)
    }

    /// What was found out to have no room inside the operation leaves this.
    pub(crate) fn add_parts(&mut self, spec: &VmSpec, made_ms: u64) {
        for kind in [ResourceKind::Disk, ResourceKind::Interface] {
            let vm =
                VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None };
            let resource = Resource {
                created: Some(std::time::UNIX_EPOCH + Duration::from_millis(made_ms)),
                ..Resource::new(kind, vm, spec.tags.clone())
            };
            self.parts.push(Part { resource, gone: None });
        }
    }

    /// What a list gives: what carries the installation's tag, or, unfiltered, everything.
    pub(crate) fn list(&self, unfiltered: bool) -> Vec<Resource> {
        let now = Instant::now();
        let machines = self.all.iter().map(|m| m.as_resource(now));
        let all = machines.chain(self.parts.iter().map(|p| p.resource.clone()));
        let ours = |r: &Resource| {
            r.tags.get(tags::INSTALLATION).is_some_and(|i| i == INSTALLATION) || unfiltered
        };
        all.filter(ours).collect()
    }
}

/// Other people's machines; none of them may ever be touched.
pub(crate) fn foreigners() -> Vec<VmSpec> {
    let spec = |name: &str, sandbox: &str, tags: &[(&str, &str)]| VmSpec {
        tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..VmSpec::new(VmName::from_existing(name), sandbox)
    };
    let long = "f0".repeat(32);
    vec![
        spec(
            "podvm-other-node",
            &long,
            &[(tags::INSTALLATION, INSTALLATION), (tags::NODE, "node-2")],
        ),
        spec("podvm-other-cluster", "e1e1", &[(tags::INSTALLATION, "other"), (tags::NODE, NODE)]),
        spec("podvm-looks-like-ours", "d2d2", &[]),
        spec("database", "", &[("owner", "somebody")]),
    ]
}
