//! One attempt to make a VM.

use std::net::IpAddr;
use std::time::Duration;

use aws_sdk_ec2::error::SdkError;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesInputBuilder;
use aws_sdk_ec2::types::{Filter, Instance, InstanceLifecycleType, InstanceStateName};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::client::Class;
use super::template::Template;
use super::{Aws, NAME, Shared, USER_DATA_LIMIT, for_all, lock, tags_of};
use crate::{Candidate, Error, Kind, Market, Token, Vm, VmSpec, tags};

/// Between two looks at a VM that is not ready yet, and how long it may take.
const LOOK: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn refuse(text: String) -> Error {
    Error::new(NAME, "create", Kind::Invalid, text)
}

/// The effect of the attempt is not known, or not there yet: to be repeated.
pub(super) fn unsure(text: String) -> Error {
    Error::new(NAME, "create", Kind::Unavailable, text)
}

impl Aws {
    pub(super) async fn create_vm(&self, spec: &VmSpec, at: &Candidate) -> Result<Vm, Error> {
        if !spec.name.is_legal() {
            return Err(refuse(format!("the name {:?} is not a VM's", spec.name.as_str())));
        }
        USER_DATA_LIMIT.refuse(NAME, &spec.user_data)?;
        let template = Template::read(&spec.template)?;
        let here = &self.shared.ec2.made("create").await?.region;
        if template.region != *here {
            // Whatever were made there, no list and no delete would find it here.
            let there = &template.region;
            return Err(refuse(format!("the plan is for region {there}, AWS_REGION is {here}")));
        }
        self.look_at_volumes(spec, at).await?;
        let root = self.shared.own_root(spec, &template).await?;
        let image = spec.image.as_deref().filter(|image| !image.is_empty());
        if let Some(image) = image.or(template.image.as_deref()) {
            // Kept for those who look for it in the log.
            tracing::info!("Choosing {image}");
        }
        let token = Token::new(&self.shared.installation, &spec.sandbox, at.number);
        let request = template.request(spec, at, root.as_ref(), &token)?;
        let instance = self.shared.run(spec, request).await?;
        let id = instance.instance_id().unwrap_or_default().to_owned();
        match self.finish(spec, &template, instance).await {
            // Repeated with the same token, it goes on from here.
            Err(e) if matches!(e.kind, Kind::Unavailable | Kind::Throttled(_)) => Err(e),
            Err(e) => Err(self.tidy(&id, e).await),
            Ok(vm) => Ok(vm),
        }
    }

    /// What there is to do once EC2 has the VM.
    async fn finish(
        &self,
        spec: &VmSpec,
        template: &Template,
        mut instance: Instance,
    ) -> Result<Vm, Error> {
        let id = instance.instance_id().unwrap_or_default().to_owned();
        if !spec.volumes.is_empty() {
            instance = self.wait_for(&id, "run", instance, is_running).await?;
            self.attach_volumes(spec, &id).await?;
        }
        if template.public_ip {
            let has_one = |i: &Instance| Ok(public_address(i).is_some());
            instance = self.wait_for(&id, "get a public address", instance, has_one).await?;
        }
        self.shared.described(spec, template, &instance)
    }

    /// Looks at the VM until it is as `ready` has it; all that wait share one look.
    async fn wait_for(
        &self,
        id: &str,
        what: &str,
        first: Instance,
        ready: impl Fn(&Instance) -> Result<bool, Error>,
    ) -> Result<Instance, Error> {
        let (mut seen, end) = (Some(first), Instant::now() + PATIENCE);
        loop {
            if let Some(instance) = seen {
                if ready(&instance)? {
                    return Ok(instance);
                }
                if is_over(&instance) {
                    return Err(over(id));
                }
            }
            if Instant::now() >= end {
                let seconds = PATIENCE.as_secs();
                return Err(unsure(format!("VM {id} does not {what} within {seconds} s")));
            }
            sleep(LOOK).await;
            // EC2 may not show a VM that it has only just made.
            seen = self.looks.ask(id.to_owned()).await?;
        }
    }

    /// Takes a VM away that could not be finished, and gives back why.
    async fn tidy(&self, id: &str, error: Error) -> Error {
        if let Err(e) = self.terminate.ask(id.to_owned()).await
            && e.kind != Kind::NotFound
        {
            // It has its tags, so whoever deletes the sandbox finds it.
            tracing::warn!(id, "a VM that was not finished is still there: {e}");
        }
        error
    }
}

fn is_running(instance: &Instance) -> Result<bool, Error> {
    Ok(state(instance) == Some(&InstanceStateName::Running))
}

pub(super) fn state(instance: &Instance) -> Option<&InstanceStateName> {
    instance.state().and_then(|state| state.name())
}

/// Whether it is being taken away, or has been.
fn is_over(instance: &Instance) -> bool {
    let over = [InstanceStateName::ShuttingDown, InstanceStateName::Terminated];
    state(instance).is_some_and(|state| over.contains(state))
}

/// The token of an attempt is used up when its VM is gone: on to the next candidate. That says nothing
/// of the room there is.
fn over(id: &str) -> Error {
    let text = format!("VM {id} of this attempt has been terminated");
    Error { scope: None, ..Error::new(NAME, "create", Kind::Capacity, text) }
}

fn public_address(instance: &Instance) -> Option<IpAddr> {
    let of_interface = || instance.network_interfaces().first()?.association()?.public_ip();
    of_interface().or_else(|| instance.public_ip_address())?.parse().ok()
}

fn private_address(instance: &Instance) -> Option<IpAddr> {
    let of_interface = || instance.network_interfaces().first()?.private_ip_address();
    of_interface().or_else(|| instance.private_ip_address())?.parse().ok()
}

pub(super) fn market(instance: &Instance) -> Market {
    match instance.instance_lifecycle() {
        Some(InstanceLifecycleType::Spot) => Market::Spot,
        _ => Market::OnDemand,
    }
}

impl Shared {
    /// Sends the request. What is on its way is not called back when the caller goes, and a delete waits
    /// for it: EC2 would make a VM that nobody has seen.
    async fn run(
        &self,
        spec: &VmSpec,
        request: RunInstancesInputBuilder,
    ) -> Result<Instance, Error> {
        let client = self.ec2.client("create").await?;
        let send = async {
            let over = self.on_its_way(&spec.sandbox);
            let sent = tokio::spawn(async move {
                let answer = request.send_with(&client).await;
                drop(over);
                answer
            });
            match sent.await {
                Ok(answer) => answer,
                Err(e) => Err(SdkError::timeout_error(e)),
            }
        };
        let answer = self.ec2.call(Class::Run, "create", "RunInstances", send).await?;
        let instance = answer.instances.unwrap_or_default().into_iter().next();
        let instance = instance.filter(|i| i.instance_id().is_some_and(|id| !id.is_empty()));
        let instance = instance
            .ok_or_else(|| unsure("RunInstances: the answer has no instance".to_owned()))?;
        let tags = tags_of(instance.tags());
        if tags.get(tags::SANDBOX).is_some_and(|sandbox| *sandbox != spec.sandbox) {
            let id = instance.instance_id().unwrap_or_default();
            return Err(refuse(format!("VM {id} is there already and belongs to another sandbox")));
        }
        if is_over(&instance) {
            return Err(over(instance.instance_id().unwrap_or_default()));
        }
        Ok(instance)
    }

    /// Notes a RunInstances until what comes back is dropped.
    fn on_its_way(&self, sandbox: &str) -> watch::Sender<()> {
        let (over, is_over) = watch::channel(());
        let mut creating = lock(&self.creating);
        creating.retain(|(_, other)| other.has_changed().is_ok());
        creating.push((sandbox.to_owned(), is_over));
        over
    }

    /// Returns when no RunInstances for that sandbox is on its way.
    pub(super) async fn wait_for_creates(&self, sandbox: &str) {
        let all: Vec<_> = lock(&self.creating)
            .iter()
            .filter(|(of, _)| of == sandbox)
            .map(|(_, over)| over.clone())
            .collect();
        for mut over in all {
            // Nothing is ever sent; it ends when its sender is dropped.
            while over.changed().await.is_ok() {}
        }
    }

    fn described(
        &self,
        spec: &VmSpec,
        template: &Template,
        instance: &Instance,
    ) -> Result<Vm, Error> {
        let id = instance.instance_id().unwrap_or_default();
        let address = match template.public_ip {
            true => public_address(instance),
            false => private_address(instance),
        };
        let address = address.ok_or_else(|| unsure(format!("VM {id} has no address yet")))?;
        let instance_type = instance.instance_type().map(|t| t.as_str().to_owned());
        let instance_type = instance_type.unwrap_or_default();
        let price = self.settings.common.prices.of(&instance_type, market(instance));
        Ok(Vm {
            native_id: id.to_owned(),
            name: spec.name.clone(),
            addresses: vec![address],
            instance_type,
            zone: instance.placement().and_then(|p| p.availability_zone()).map(str::to_owned),
            price_per_hour: price.map(|price| price.to_string()),
        })
    }

    /// VMs by id, for all that wait for one. By a filter: an id that EC2 does not show yet would fail the
    /// whole call.
    pub(super) async fn look(&self, ids: Vec<String>) -> Vec<Result<Option<Instance>, Error>> {
        let filter = Filter::builder().name("instance-id").set_values(Some(ids.clone())).build();
        let seen = match self.instances("create", vec![filter]).await {
            Ok(seen) => seen,
            Err(e) => return for_all(ids.len(), Err(e)),
        };
        let one = |id: &String| seen.iter().find(|i| i.instance_id() == Some(id)).cloned();
        ids.iter().map(|id| Ok(one(id))).collect()
    }
}
