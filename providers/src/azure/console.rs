//! The serial console of a VM, as Azure's boot diagnostics keep it.

use hyper::Method;

use super::client::{COMPUTE, Call, Class};
use super::{Shared, tags_of, text};
use crate::{Error, Kind, VmRef};

/// The last so many bytes; all of it may be a megabyte.
const TAIL: usize = 64 << 10;

impl Shared {
    pub(super) async fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        let name = vm.name.as_str();
        let found = if vm.name.is_legal() { self.vm("console", name).await? } else { None };
        let Some(found) = found.filter(|found| self.is_of(&tags_of(found), &vm.sandbox)) else {
            return Ok(None);
        };
        let id = text(&found, "/id");
        let target = format!(
            "{id}/retrieveBootDiagnosticsData?api-version={COMPUTE}&sasUriExpirationTimeInMinutes=5"
        );
        let call = Call { method: Method::POST, ..Call::get("console", Class::Read, target) };
        let links = match self.arm.maybe(call).await {
            Ok(Some(links)) => links,
            Ok(None) => return Ok(None),
            // Nothing has been written yet.
            Err(e) if e.kind == Kind::Other => return Ok(None),
            Err(e) => return Err(e),
        };
        let link = text(&links, "/serialConsoleLogBlobUri");
        if link.is_empty() {
            return Ok(None);
        }
        let log = self.arm.blob("console", link).await?;
        let tail = log.len().saturating_sub(TAIL);
        Ok(log.get(tail..).map(|tail| String::from_utf8_lossy(tail).into_owned()))
    }
}
