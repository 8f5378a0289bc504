//! One attempt to make a VM.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::client::{Call, Class, NETWORK, malformed};
use super::error::Refusal;
use super::template::Template;
use super::wait::Operation;
use super::{Azure, NAME, Shared, USER_DATA_LIMIT, lock, tags_of, text};
use crate::error::Advice;
use crate::{Candidate, Deletion, Error, Kind, Market, Vm, VmRef, VmSpec};

/// Between two looks at a VM whose operation is not known; Azure permits 12 a minute.
const LOOK: Duration = Duration::from_secs(6);
/// How long a create that failed waits for its left-overs to be gone; the caller's delete goes on.
const TIDY: Duration = Duration::from_secs(240);

fn refuse(text: String) -> Error {
    Error::new(NAME, "create", Kind::Invalid, text)
}

impl Azure {
    pub(super) async fn create_vm(&self, spec: &VmSpec, at: &Candidate) -> Result<Vm, Error> {
        let name = spec.name.as_str();
        if !spec.name.is_legal() {
            return Err(refuse(format!("the name {name:?} is not a VM's")));
        }
        USER_DATA_LIMIT.refuse(NAME, &spec.user_data)?;
        let template = Template::read(&spec.template)?;
        self.shared.refuse_volumes(spec, at)?;
        let body = template.body(spec, at)?;
        match self.shared.put(name, &body).await? {
            Put::Made(operation) => {
                if let Some(operation) = operation {
                    self.finish(spec, &operation).await?;
                }
            }
            Put::There => {}
        }
        self.take(spec, &template, at).await
    }

    /// Waits for the operation that makes the VM; one that failed leaves nothing.
    async fn finish(&self, spec: &VmSpec, operation: &Operation) -> Result<(), Error> {
        let name = spec.name.as_str();
        lock(&self.shared.creating).insert(name.to_owned(), operation.clone());
        let over = operation.wait(&self.shared.arm, "create").await;
        let over = match over {
            // Azure forgets operations; the VM itself is asked then.
            Err(e) if e.kind == Kind::NotFound || e.kind == Kind::Invalid => Ok(()),
            over => over?,
        };
        lock(&self.shared.creating).remove(name);
        match over {
            Ok(()) => Ok(()),
            Err(refusal) => {
                let error = refusal.error("create", &format!("VM {name}"));
                Err(self.tidy(spec, error).await)
            }
        }
    }

    /// There is a VM of that name: ours of this or an earlier attempt, or somebody else's.
    async fn take(&self, spec: &VmSpec, template: &Template, at: &Candidate) -> Result<Vm, Error> {
        let name = spec.name.as_str();
        loop {
            let vm = self.shared.vm("create", name).await?.ok_or_else(|| gone(name))?;
            let tags = tags_of(&vm);
            if !self.shared.is_of(&tags, &spec.sandbox) {
                let text = format!("VM {name} is there already and belongs to another sandbox");
                return Err(refuse(text));
            }
            match text(&vm, "/properties/provisioningState") {
                "Succeeded" => return self.described(spec, template, &vm).await,
                "Failed" | "Canceled" => return Err(self.tidy(spec, failed(&vm, at, name)).await),
                "Deleting" => {
                    let text = format!("VM {name} of an earlier attempt is still being deleted");
                    return Err(Error::new(NAME, "create", Kind::Unavailable, text));
                }
                _ => {}
            }
            let operation = lock(&self.shared.creating).get(name).cloned();
            match operation {
                Some(operation) => self.finish(spec, &operation).await?,
                None => sleep(LOOK).await,
            }
        }
    }

    /// The VM with its address. What was made and has none is taken away.
    async fn described(&self, spec: &VmSpec, template: &Template, vm: &Value) -> Result<Vm, Error> {
        let address = match self.shared.address(template, vm).await {
            Ok(address) => address,
            Err(e) if matches!(e.kind, Kind::Unavailable | Kind::Throttled(_)) => return Err(e),
            Err(e) => return Err(self.tidy(spec, e).await),
        };
        let instance_type = text(vm, "/properties/hardwareProfile/vmSize").to_owned();
        let spot = text(vm, "/properties/priority").eq_ignore_ascii_case("Spot");
        let market = if spot { Market::Spot } else { Market::OnDemand };
        let price = self.shared.settings.common.prices.of(&instance_type, market);
        Ok(Vm {
            native_id: text(vm, "/id").to_owned(),
            name: spec.name.clone(),
            addresses: vec![address],
            instance_type,
            zone: vm.pointer("/zones/0").and_then(Value::as_str).map(str::to_owned),
            price_per_hour: price.map(|price| price.to_string()),
        })
    }

    /// Takes away what a failed attempt has left, and gives back why it failed.
    async fn tidy(&self, spec: &VmSpec, error: Error) -> Error {
        let (name, sandbox) = (spec.name.clone(), spec.sandbox.clone());
        let vm = VmRef { name, sandbox, native_id: None };
        let end = Instant::now() + TIDY;
        let mut pause = Duration::from_millis(50);
        while Instant::now() < end {
            match self.delete_vm(&vm).await {
                Ok(Deletion::Gone) => break,
                Ok(Deletion::Accepted) => {}
                Err(e) => {
                    tracing::warn!(name = %vm.name, "left-overs of a failed create: {e}");
                    if e.kind.advice() == Advice::Stop {
                        break;
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        error
    }
}

enum Put {
    Made(Option<Operation>),
    There,
}

fn gone(name: &str) -> Error {
    let text = format!("VM {name} was there a moment ago and has gone");
    Error::new(NAME, "create", Kind::Unavailable, text)
}

/// Why a VM that was found failed, where it was made for this very candidate; otherwise it says nothing of
/// this one, and the attempt is to be repeated.
fn failed(vm: &Value, at: &Candidate, name: &str) -> Error {
    let zone = vm.pointer("/zones/0").and_then(Value::as_str);
    let spot = text(vm, "/properties/priority").eq_ignore_ascii_case("Spot");
    let same = text(vm, "/properties/hardwareProfile/vmSize")
        .eq_ignore_ascii_case(&at.instance_type)
        && zone == at.zone.as_deref()
        && spot == (at.market == Market::Spot);
    let statuses = vm.pointer("/properties/instanceView/statuses").and_then(Value::as_array);
    let reason = statuses.into_iter().flatten().find_map(|status| {
        let code = text(status, "/code").strip_prefix("ProvisioningState/failed/")?;
        Some((code.to_owned(), text(status, "/message").to_owned()))
    });
    match reason.filter(|_| same) {
        Some((code, message)) => {
            let refusal = Refusal { status: 200, code, message, ..Refusal::default() };
            refusal.error("create", &format!("VM {name}"))
        }
        None => {
            let text = format!("VM {name} of an earlier attempt had failed, and is taken away");
            Error::new(NAME, "create", Kind::Unavailable, text)
        }
    }
}

impl Shared {
    async fn put(&self, name: &str, body: &Value) -> Result<Put, Error> {
        let call = Call {
            operation: "create",
            class: Class::Put,
            method: Method::PUT,
            target: self.vm_path(name),
            body: Some(Bytes::from(body.to_string())),
            only_new: true,
        };
        let answer = self.arm.call(call).await?;
        if answer.status == 412 {
            return Ok(Put::There);
        }
        if let Some(operation) = Operation::of(&answer) {
            return Ok(Put::Made(Some(operation)));
        }
        // Done at once, or not Azure's answer at all.
        super::client::object("create", "PUT", &answer)?;
        Ok(Put::Made(None))
    }

    /// More volumes than the size takes.
    fn refuse_volumes(&self, spec: &VmSpec, at: &Candidate) -> Result<(), Error> {
        let catalogue = lock(&self.catalogue).clone();
        let most = catalogue.and_then(|c| c.of(&at.instance_type).map(|sku| sku.data_disks));
        match most.filter(|most| spec.volumes.len() > *most) {
            Some(most) => {
                let (size, asked) = (&at.instance_type, spec.volumes.len());
                Err(refuse(format!("{asked} volumes are asked for, {size} takes {most}")))
            }
            None => Ok(()),
        }
    }

    /// The VM's address, by the full id of its interface: its name is not ours to guess.
    async fn address(&self, template: &Template, vm: &Value) -> Result<IpAddr, Error> {
        let interfaces = vm.pointer("/properties/networkProfile/networkInterfaces");
        let interface = interfaces.and_then(|list| list.get(0)).map(|i| text(i, "/id").to_owned());
        let missing = |what: &str| malformed("create", text(vm, "/name"), what);
        let interface = interface.ok_or_else(|| missing("the VM has no interface yet"))?;
        let mut target = format!("{interface}?api-version={NETWORK}");
        if template.public_ip {
            target.push_str("&$expand=ipConfigurations/publicIPAddress");
        }
        let nic = self.arm.json(Call::get("create", Class::Read, target)).await?;
        let config = "/properties/ipConfigurations/0/properties";
        if !template.public_ip {
            let address = text(&nic, &format!("{config}/privateIPAddress"));
            return address.parse().map_err(|_| missing("the interface has no address yet"));
        }
        let inline = format!("{config}/publicIPAddress/properties/ipAddress");
        if let Ok(address) = text(&nic, &inline).parse() {
            return Ok(address);
        }
        let public = text(&nic, &format!("{config}/publicIPAddress/id"));
        if public.is_empty() {
            return Err(missing("the interface has no public address yet"));
        }
        let target = format!("{public}?api-version={NETWORK}");
        let public = self.arm.json(Call::get("create", Class::Read, target)).await?;
        let address = text(&public, "/properties/ipAddress");
        address.parse().map_err(|_| missing("the public address is not there yet"))
    }
}
