//! The machines of the fake and what becomes of them as time goes by. Nothing runs in the
//! background: whoever looks first lets happen what was due ([`World::settle`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::time::Instant;

use super::Options;
use crate::{
    Candidate, Deletion, Kind, Market, Resource, ResourceKind, Vm, VmName, VmRef, VmSpec, tags,
};

/// Type, zone and market of a candidate: where there is room or none.
pub(super) type Place = (String, Option<String>, Market);

pub(super) fn place(candidate: &Candidate) -> Place {
    (candidate.instance_type.clone(), candidate.zone.clone(), candidate.market)
}

/// A machine of the fake, as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeVm {
    /// What it was made of.
    pub spec: VmSpec,
    /// Where it was made.
    pub candidate: Candidate,
    /// `fake-1`, `fake-2`, … in the order of creation.
    pub native_id: String,
    /// Its address.
    pub address: IpAddr,
    /// When it was made.
    pub made: Instant,
    /// When it stops by itself, or did.
    pub dies: Option<Instant>,
    /// When a delete that is under way will be done.
    pub gone: Option<Instant>,
}

impl FakeVm {
    /// Whether it runs at that time.
    pub fn runs(&self, now: Instant) -> bool {
        self.gone.is_none() && self.dies.is_none_or(|d| now < d)
    }

    pub(super) fn as_vm(&self) -> Vm {
        Vm {
            native_id: self.native_id.clone(),
            name: self.spec.name.clone(),
            addresses: vec![self.address],
            instance_type: self.candidate.instance_type.clone(),
            zone: self.candidate.zone.clone(),
            price_per_hour: None,
        }
    }
}

/// A disk or interface that no VM has any more.
#[derive(Clone, Debug)]
struct Part {
    kind: ResourceKind,
    vm: VmRef,
    tags: BTreeMap<String, String>,
    made: Instant,
    gone: Option<Instant>,
}

#[derive(Debug)]
enum Late {
    Create(VmSpec, Candidate),
    Delete(VmRef),
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) vms: BTreeMap<VmName, FakeVm>,
    parts: Vec<Part>,
    late: Vec<(Instant, Late)>,
    pub(super) room: BTreeMap<Place, usize>,
    delete_takes: Duration,
    user_data_limit: usize,
    begin: Instant,
    made: u32,
}

impl World {
    pub(super) fn new(options: &Options, now: Instant) -> Self {
        Self {
            vms: BTreeMap::new(),
            parts: Vec::new(),
            late: Vec::new(),
            room: BTreeMap::new(),
            delete_takes: options.delete_takes,
            user_data_limit: options.user_data_limit,
            begin: now,
            made: 0,
        }
    }

    /// Lets everything happen that is due.
    pub(super) fn settle(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.late).into_iter().partition(|l| l.0 <= now);
        self.late = later;
        for (at, late) in due {
            match late {
                // Nobody is left to hear of a failure.
                Late::Create(spec, candidate) => drop(self.create(&spec, &candidate, at)),
                Late::Delete(vm) => drop(self.delete(&vm, at)),
            }
        }
        self.vms.retain(|_, vm| vm.gone.is_none_or(|g| now < g));
        self.parts.retain(|part| part.gone.is_none_or(|g| now < g));
    }

    pub(super) fn create_late(&mut self, at: Instant, spec: &VmSpec, candidate: &Candidate) {
        self.late.push((at, Late::Create(spec.clone(), candidate.clone())));
    }

    pub(super) fn delete_late(&mut self, at: Instant, vm: &VmRef) {
        self.late.push((at, Late::Delete(vm.clone())));
    }

    /// Makes a VM, or finds the one an identical call has made.
    pub(super) fn create(
        &mut self,
        spec: &VmSpec,
        candidate: &Candidate,
        now: Instant,
    ) -> Result<&mut FakeVm, (Kind, String)> {
        let (size, limit) = (spec.user_data.0.len(), self.user_data_limit);
        if size > limit {
            let message = format!("user data have {size} bytes, at most {limit} are possible");
            return Err((Kind::Invalid, message));
        }
        if let Some(there) = self.vms.get(&spec.name) {
            refuse_other(there, spec, candidate)?;
        } else {
            self.refuse_full(candidate)?;
            self.made += 1;
            let vm = FakeVm {
                spec: spec.clone(),
                candidate: candidate.clone(),
                native_id: format!("fake-{}", self.made),
                address: IpAddr::V4(Ipv4Addr::from_bits(0x0a63_0000 + self.made)),
                made: now,
                dies: None,
                gone: None,
            };
            self.vms.insert(spec.name.clone(), vm);
        }
        let lost = || (Kind::Unavailable, format!("VM {} has gone", spec.name));
        self.vms.get_mut(&spec.name).ok_or_else(lost)
    }

    fn refuse_full(&self, candidate: &Candidate) -> Result<(), (Kind, String)> {
        let place = place(candidate);
        let used = self.vms.values().filter(|vm| self::place(&vm.candidate) == place).count();
        match self.room.get(&place) {
            Some(room) if used >= *room => {
                Err((Kind::Capacity, format!("no room for {} there", candidate.instance_type)))
            }
            _ => Ok(()),
        }
    }

    /// Leaves a disk and an interface without a VM.
    pub(super) fn create_partly(&mut self, spec: &VmSpec, now: Instant) {
        let vm = VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None };
        for kind in [ResourceKind::Disk, ResourceKind::Interface] {
            let (vm, tags) = (vm.clone(), spec.tags.clone());
            self.parts.push(Part { kind, vm, tags, made: now, gone: None });
        }
    }

    /// Begins to take away, or goes on; what belongs to another sandbox stays.
    pub(super) fn delete(&mut self, vm: &VmRef, now: Instant) -> Deletion {
        let end = now + self.delete_takes;
        if let Some(found) = self.vms.get_mut(&vm.name).filter(|f| f.spec.sandbox == vm.sandbox) {
            found.gone.get_or_insert(end);
        }
        let same = |part: &Part| part.vm.name == vm.name && part.vm.sandbox == vm.sandbox;
        for part in self.parts.iter_mut().filter(|part| same(part)) {
            part.gone.get_or_insert(end);
        }
        self.settle(now);
        let left = self.vms.get(&vm.name).is_some_and(|f| f.spec.sandbox == vm.sandbox)
            || self.parts.iter().any(same);
        if left { Deletion::Accepted } else { Deletion::Gone }
    }

    /// Everything with the installation's tag.
    pub(super) fn list(&self, options: &Options, now: Instant) -> Vec<Resource> {
        let ours = |tags: &BTreeMap<String, String>| {
            tags.get(tags::INSTALLATION).is_some_and(|i| *i == options.installation)
        };
        let created = |made: Instant| Some(options.began + made.duration_since(self.begin));
        let vms = self.vms.values().filter(|vm| ours(&vm.spec.tags)).map(|vm| {
            let whose = VmRef {
                name: vm.spec.name.clone(),
                sandbox: vm.spec.sandbox.clone(),
                native_id: Some(vm.native_id.clone()),
            };
            Resource {
                created: created(vm.made),
                running: Some(vm.runs(now)),
                instance_type: Some(vm.candidate.instance_type.clone()),
                ..Resource::new(ResourceKind::Vm, whose, vm.spec.tags.clone())
            }
        });
        let parts = self.parts.iter().filter(|part| ours(&part.tags)).map(|part| Resource {
            created: created(part.made),
            ..Resource::new(part.kind, part.vm.clone(), part.tags.clone())
        });
        vms.chain(parts).collect()
    }
}

/// An existing VM is the answer only to the very call that made it.
fn refuse_other(
    there: &FakeVm,
    spec: &VmSpec,
    candidate: &Candidate,
) -> Result<(), (Kind, String)> {
    let name = &spec.name;
    if there.spec.sandbox != spec.sandbox {
        let message = format!("VM {name} is there already and belongs to another sandbox");
        return Err((Kind::Invalid, message));
    }
    if there.spec != *spec || there.candidate != *candidate {
        let message = format!("VM {name} is there already, made by a call with other parameters");
        return Err((Kind::Invalid, message));
    }
    if there.gone.is_some() {
        return Err((Kind::Unavailable, format!("VM {name} is being deleted")));
    }
    Ok(())
}
