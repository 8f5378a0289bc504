//! What a VM wrote to its first serial port.

use super::client::{Call, Class};
use super::{Gcp, sandbox, text};
use crate::{Error, VmRef};

/// The last so many bytes; all of it may be a megabyte.
const TAIL: u32 = 64 << 10;

impl Gcp {
    pub(super) async fn last_words(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        let name = vm.name.as_str();
        if !vm.name.is_legal() {
            return Ok(None);
        }
        for zone in self.zones_of(vm) {
            let found = self.vm("console", zone, name).await?;
            if found.is_none_or(|found| sandbox(&found) != vm.sandbox) {
                continue;
            }
            let rest = format!("zones/{zone}/instances/{name}/serialPort?start=-{TAIL}");
            let call =
                Call::get("console", Class::Read, self.path(&rest), "compute#serialPortOutput");
            let output = self.compute.maybe(call).await?;
            let words = output.as_ref().map_or("", |output| text(output, "/contents"));
            return Ok(Some(words.to_owned()).filter(|words| !words.is_empty()));
        }
        Ok(None)
    }
}
