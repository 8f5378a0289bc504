//! The machine types of a zone, and what each can be.

use serde_json::Value;

use super::client::{Call, Class};
use super::{Gcp, id, items, number, text};
use crate::{Error, InstanceType};

/// One machine type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Machine {
    pub(super) size: InstanceType,
    /// `X86_64`, `ARM64`; empty is not known.
    pub(super) architecture: String,
    /// `OBSOLETE`, `DELETED`: no VM can be made.
    pub(super) ended: Option<String>,
}

impl Machine {
    fn read(value: &Value) -> Self {
        let accelerators = items(value, "/accelerators");
        let size = InstanceType {
            name: text(value, "/name").to_owned(),
            vcpus: number(value, "guestCpus"),
            memory_mib: u64::from(number(value, "memoryMb")),
            gpus: accelerators.map(|a| number(a, "guestAcceleratorCount")).sum(),
            price: None,
        };
        Self { size, architecture: text(value, "/architecture").to_owned(), ended: ended(value) }
    }
}

/// `deprecated.state` of an image or machine type of which nothing can be made any more.
pub(super) fn ended(value: &Value) -> Option<String> {
    let state = text(value, "/deprecated/state");
    matches!(state, "OBSOLETE" | "DELETED").then(|| state.to_owned())
}

impl Gcp {
    /// All types of a zone; with an accelerator in the settings, those that take it have as many GPUs as
    /// can be attached there.
    pub(super) async fn machines(&self, zone: &str, cards: u32) -> Result<Vec<Machine>, Error> {
        let target = self.path(&format!("zones/{zone}/machineTypes"));
        let call = Call::get("check", Class::List, target, "compute#machineTypeList");
        let pages = self.compute.pages(call).await?;
        let mut all: Vec<Machine> =
            pages.iter().flat_map(|page| items(page, "/items")).map(Machine::read).collect();
        for machine in all.iter_mut().filter(|m| id::takes_accelerators(&m.size.name)) {
            machine.size.gpus += cards;
        }
        Ok(all)
    }
}
