//! Disks that were there before the VM and outlive it (providers.md 2.7): EC2 attaches them once the VM
//! runs. The VM knows them by their ids, never by the order of device names.

use std::time::Duration;

use aws_sdk_ec2::types::{Volume as Ec2Volume, VolumeState};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::client::Class;
use super::create::{refuse, unsure};
use super::list::filter;
use super::{Aws, NAME, Shared, for_all, id};
use crate::{Candidate, Error, Kind, VmSpec};

/// Between two looks at a disk that is being attached, and how long that may take.
const LOOK: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
/// `/dev/xvdb` to `/dev/xvdz`, then `/dev/xvdba`: more than any type takes.
const MOST: usize = 25 + 26;

/// The name under which EC2 keeps the n-th disk.
fn device(n: usize) -> String {
    let letter = |n: usize| u8::try_from(n).ok().and_then(|n| b'a'.checked_add(n)).map(char::from);
    match n.checked_sub(25) {
        None => format!("/dev/xvd{}", letter(n + 1).unwrap_or('z')),
        Some(n) => format!("/dev/xvdb{}", letter(n).unwrap_or('z')),
    }
}

impl Aws {
    /// Before anything is made: whether the disks are there, free, and where the VM is to be.
    pub(super) async fn look_at_volumes(&self, spec: &VmSpec, at: &Candidate) -> Result<(), Error> {
        if spec.volumes.is_empty() {
            return Ok(());
        }
        if spec.volumes.len() > MOST {
            let asked = spec.volumes.len();
            return Err(refuse(format!("{asked} volumes are asked for, EC2 takes {MOST}")));
        }
        for volume in &spec.volumes {
            let problem = |e: String| refuse(format!("volume {:?} {e}", volume.disk));
            id::id(&volume.disk, "vol-").map_err(problem)?;
        }
        let ids: Vec<String> = spec.volumes.iter().map(|volume| volume.disk.clone()).collect();
        let client = self.shared.ec2.client("create").await?;
        let call = client.describe_volumes().set_volume_ids(Some(ids)).send();
        let answer = self.shared.ec2.call(Class::Describe, "create", "DescribeVolumes", call);
        for volume in answer.await?.volumes() {
            self.look_at_volume(volume, spec, at).await?;
        }
        Ok(())
    }

    async fn look_at_volume(
        &self,
        volume: &Ec2Volume,
        spec: &VmSpec,
        at: &Candidate,
    ) -> Result<(), Error> {
        let name = volume.volume_id().unwrap_or_default();
        let zone = volume.availability_zone();
        if zone.is_some() && at.zone.is_some() && zone != at.zone.as_deref() {
            // Another candidate may be there; that says nothing of the room in this zone.
            let zone = zone.unwrap_or_default();
            let text = format!("volume {name} is in zone {zone}, this attempt is not");
            return Err(Error { scope: None, ..Error::new(NAME, "create", Kind::Capacity, text) });
        }
        match volume.state() {
            None | Some(VolumeState::Available) => return Ok(()),
            Some(VolumeState::InUse) => {}
            Some(state) => return Err(refuse(format!("volume {name} is {}", state.as_str()))),
        }
        // By an earlier run of this attempt, or by somebody who may be about to give it back.
        let users: Vec<&str> =
            volume.attachments().iter().filter_map(|a| a.instance_id()).collect();
        let ours = self.found.ask(spec.sandbox.clone()).await?.instances;
        match users.iter().all(|user| ours.iter().any(|id| id == user)) {
            true => Ok(()),
            false => Err(unsure(format!("volume {name} is in use by {}", users.join(", ")))),
        }
    }

    /// Attaches all disks to a VM that runs, and waits until EC2 says that they are.
    pub(super) async fn attach_volumes(&self, spec: &VmSpec, instance: &str) -> Result<(), Error> {
        let all = spec.volumes.iter().enumerate();
        let all = all.map(|(n, volume)| self.attach(n, &volume.disk, instance));
        // The first error is told when all are done, so that nothing is under way after it.
        join_all(all).await.into_iter().collect()
    }

    async fn attach(&self, n: usize, volume: &str, instance: &str) -> Result<(), Error> {
        if self.attached.ask(volume.to_owned()).await?.as_deref() == Some(instance) {
            return Ok(());
        }
        let client = self.shared.ec2.client("create").await?;
        let call = client.attach_volume().volume_id(volume).instance_id(instance).device(device(n));
        let what = format!("AttachVolume {volume}");
        self.shared.ec2.call(Class::Attach, "create", &what, call.send()).await?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.attached.ask(volume.to_owned()).await?.as_deref() == Some(instance) {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        let text = format!("volume {volume} is not attached within {} s", PATIENCE.as_secs());
        Err(Error::new(NAME, "create", Kind::Other, text))
    }
}

impl Shared {
    /// To which VM each disk is attached.
    pub(super) async fn attached(&self, ids: Vec<String>) -> Vec<Result<Option<String>, Error>> {
        let client = match self.ec2.client("create").await {
            Ok(client) => client,
            Err(e) => return for_all(ids.len(), Err(e)),
        };
        let wanted = filter("volume-id", ids.clone());
        let ask =
            |next| client.describe_volumes().filters(wanted.clone()).set_next_token(next).send();
        let volumes = self
            .ec2
            .pages("create", "DescribeVolumes", ask, |page| {
                (page.volumes.unwrap_or_default(), page.next_token)
            })
            .await;
        match volumes {
            Err(e) => for_all(ids.len(), Err(e)),
            Ok(volumes) => ids.iter().map(|id| Ok(user(&volumes, id))).collect(),
        }
    }
}

fn user(volumes: &[Ec2Volume], id: &str) -> Option<String> {
    let volume = volumes.iter().find(|volume| volume.volume_id() == Some(id))?;
    let mut attachments = volume.attachments().iter();
    let done = attachments.find(|a| a.state().is_some_and(|s| s.as_str() == "attached"))?;
    done.instance_id().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names_of_their_own() {
        assert_eq!((device(0).as_str(), device(24).as_str()), ("/dev/xvdb", "/dev/xvdz"));
        assert_eq!((device(25).as_str(), device(50).as_str()), ("/dev/xvdba", "/dev/xvdbz"));
        let all: std::collections::BTreeSet<String> = (0..MOST).map(device).collect();
        assert_eq!(all.len(), MOST);
    }
}
