//! What a VM has written to its serial console.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Aws;
use super::client::Class;
use crate::error::Advice;
use crate::{Error, VmRef};

/// The last so many bytes; EC2 keeps 64 KB.
const TAIL: usize = 64 << 10;

impl Aws {
    pub(super) async fn console_of(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        // By the sandbox's tag: an id alone does not say whose it is.
        let found = self.found.ask(vm.sandbox.clone()).await?;
        let Some(id) = found.instances.first() else { return Ok(None) };
        let text = match self.shared.output(id, true).await {
            Ok(text) => text,
            Err(e) if e.kind.advice() == Advice::Stop => self.shared.output(id, false).await?,
            Err(e) => return Err(e),
        };
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        let bytes = STANDARD.decode(text.trim()).unwrap_or_else(|_| text.into_bytes());
        let tail = bytes.len().saturating_sub(TAIL);
        Ok(bytes.get(tail..).map(|tail| String::from_utf8_lossy(tail).into_owned()))
    }
}

impl super::Shared {
    /// In base64. Only VMs of the newer kind tell the `latest`; the others what there was at boot.
    async fn output(&self, id: &str, latest: bool) -> Result<Option<String>, Error> {
        let client = self.ec2.client("console").await?;
        let call = client.get_console_output().instance_id(id);
        let call = call.set_latest(latest.then_some(true)).send();
        let answer = self.ec2.call(Class::Describe, "console", "GetConsoleOutput", call).await?;
        Ok(answer.output)
    }
}
