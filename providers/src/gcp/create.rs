//! One attempt to make a VM.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::client::{Call, Class, object};
use super::list::{has_stopped, market};
use super::template::Template;
use super::{Gcp, NAME, USER_DATA_LIMIT, id, lock, native_id, sandbox, text};
use crate::error::Advice;
use crate::{Candidate, Deletion, Error, Kind, Market, Token, Vm, VmRef, VmSpec};

/// How long a create that failed waits for its left-overs to be gone; the caller's delete goes on.
const TIDY: Duration = Duration::from_secs(120);

fn refuse(text: String) -> Error {
    Error::new(NAME, "create", Kind::Invalid, text)
}

fn problem(kind: Kind, name: &str, text: &str) -> Error {
    Error::new(NAME, "create", kind, format!("VM {name} {text}"))
}

/// What a create names and is not there (image, network, machine type) can never work.
fn never(error: Error) -> Error {
    match error.kind {
        Kind::NotFound => Error { kind: Kind::Invalid, ..error },
        _ => error,
    }
}

/// What came of the request.
enum Insert {
    /// Under way, or over.
    Operation(Value),
    /// There is something of that name already.
    There,
}

impl Gcp {
    pub(super) async fn create_vm(&self, spec: &VmSpec, at: &Candidate) -> Result<Vm, Error> {
        let name = spec.name.as_str();
        if !spec.name.is_legal() {
            return Err(refuse(format!("the name {name:?} is not a VM's")));
        }
        USER_DATA_LIMIT.refuse(NAME, &spec.user_data)?;
        let template = Template::read(&spec.template)?;
        let zone = at.zone.as_deref().or(self.settings.zones.first().map(String::as_str));
        let zone = zone.filter(|zone| id::is_zone(zone));
        let zone = zone.ok_or_else(|| refuse(format!("the candidate's zone is {:?}", at.zone)))?;
        let body = template.body(spec, at, zone)?;
        // What is known of an earlier VM's end says nothing of this one.
        lock(&self.deleting).remove(name);
        let insert = self.insert(spec, at, zone, &body).await.map_err(never)?;
        let Insert::Operation(operation) = insert else {
            return self.take(spec, &template, zone, false).await;
        };
        let what = format!("VM {name} in {zone}");
        match self.wait(zone, operation, &what).await {
            Ok(()) => self.take(spec, &template, zone, true).await,
            Err(e) => Err(self.tidy(spec, zone, never(e)).await),
        }
    }

    async fn insert(
        &self,
        spec: &VmSpec,
        at: &Candidate,
        zone: &str,
        body: &Value,
    ) -> Result<Insert, Error> {
        let request = Token::new(&self.installation, &spec.sandbox, at.number).uuid();
        let kind = "compute#operation";
        let target = self.path(&format!("zones/{zone}/instances?requestId={request}"));
        let call = Call {
            method: Method::POST,
            body: Some(Bytes::from(body.to_string())),
            only_new: true,
            ..Call::get("create", Class::Insert, target, kind)
        };
        let answer = self.compute.call(call).await?;
        if answer.status == 409 {
            return Ok(Insert::There);
        }
        object("create", kind, &format!("VM {}", spec.name), &answer).map(Insert::Operation)
    }

    /// There is something of that name: ours, or somebody else's. `made`: it was made for this attempt.
    async fn take(
        &self,
        spec: &VmSpec,
        template: &Template,
        zone: &str,
        made: bool,
    ) -> Result<Vm, Error> {
        let name = spec.name.as_str();
        // The same request again does not make again what it has made.
        let kind = if made { Kind::Other } else { Kind::Unavailable };
        let lost = |text: &str| problem(kind, name, text);
        let Some(vm) = self.vm("create", zone, name).await? else {
            // A disk of that name is in the way, or whatever it was has gone.
            let disk = self.disk("create", zone, name).await?;
            if disk.is_some_and(|disk| sandbox(&disk) != spec.sandbox) {
                let text = format!("a disk {name} is there already and belongs to another sandbox");
                return Err(refuse(text));
            }
            self.take_away(spec, zone).await;
            return Err(lost("has gone, or its disk that was in the way"));
        };
        if sandbox(&vm) != spec.sandbox {
            let text = format!("VM {name} is there already and belongs to another sandbox");
            return Err(refuse(text));
        }
        let status = text(&vm, "/status");
        if has_stopped(status) {
            let text = format!("of this sandbox is {status}, and is taken away");
            self.take_away(spec, zone).await;
            // Whoever took it back has no room for it.
            let spot = market(&vm) == Market::Spot;
            return Err(if spot { problem(Kind::Capacity, name, &text) } else { lost(&text) });
        }
        self.found(spec, template, zone, &vm)
    }

    fn found(
        &self,
        spec: &VmSpec,
        template: &Template,
        zone: &str,
        vm: &Value,
    ) -> Result<Vm, Error> {
        let missing = |text| problem(Kind::Unavailable, spec.name.as_str(), text);
        let pointer = match template.public_ip {
            true => "/networkInterfaces/0/accessConfigs/0/natIP",
            false => "/networkInterfaces/0/networkIP",
        };
        let address: IpAddr =
            text(vm, pointer).parse().map_err(|_| missing("has no address yet"))?;
        let instance_type = id::last(text(vm, "/machineType")).to_owned();
        let price = self.settings.common.prices.of(&instance_type, market(vm));
        Ok(Vm {
            native_id: native_id(vm, "instances").ok_or_else(|| missing("has no number"))?,
            name: spec.name.clone(),
            addresses: vec![address],
            instance_type,
            zone: Some(zone.to_owned()),
            price_per_hour: price.map(|price| price.to_string()),
        })
    }

    /// Takes away what a failed attempt has left, and gives back why it failed.
    async fn tidy(&self, spec: &VmSpec, zone: &str, error: Error) -> Error {
        // Otherwise the effect is unknown: the caller repeats or deletes.
        let over = !matches!(error.kind, Kind::Unavailable | Kind::Throttled(_) | Kind::Other);
        if over {
            self.take_away(spec, zone).await;
        }
        error
    }

    /// Deletes what there is of that VM, and waits a while for its end.
    async fn take_away(&self, spec: &VmSpec, zone: &str) {
        let native_id = None;
        let vm = VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id };
        let end = Instant::now() + TIDY;
        while Instant::now() < end {
            match self.delete_by_name(&vm, &[zone]).await {
                Ok(Deletion::Gone) => return,
                Ok(Deletion::Accepted) => {}
                Err(e) => {
                    tracing::warn!(name = %vm.name, "left-overs of a failed create: {e}");
                    if e.kind.advice() == Advice::Stop {
                        return;
                    }
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}
