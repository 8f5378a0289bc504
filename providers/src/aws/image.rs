//! What an image is, before any VM is made from it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::Image;

use super::client::Class;
use super::create::refuse;
use super::template::Template;
use super::{Shared, id, lock};
use crate::{Error, Kind, VmSpec};

/// How long it is believed that an image of a pod's own is as it was.
const KEPT: Duration = Duration::from_secs(600);

/// Root device by name, and its size in GiB.
pub(super) type Root = (String, u32);

/// What is known of an image; what an empty field says is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// `available`.
    pub(super) state: String,
    /// `x86_64`, `arm64`.
    pub(super) architecture: String,
    /// `uefi`, `uefi-preferred`, `legacy-bios`.
    pub(super) boot: String,
    pub(super) root: Option<Root>,
}

impl Known {
    fn of(image: &Image) -> Self {
        let device = image.root_device_name().unwrap_or_default();
        // The first disk of an image need not be the one that it boots from.
        let mut disks = image.block_device_mappings().iter();
        let root = disks.find(|disk| disk.device_name() == Some(device)).map(|disk| {
            let size = disk.ebs().and_then(|ebs| ebs.volume_size()).unwrap_or(0);
            (device.to_owned(), u32::try_from(size).unwrap_or(0))
        });
        Self {
            state: image.state().map(|s| s.as_str().to_owned()).unwrap_or_default(),
            architecture: image.architecture().map(|a| a.as_str().to_owned()).unwrap_or_default(),
            boot: image.boot_mode().map(|b| b.as_str().to_owned()).unwrap_or_default(),
            root,
        }
    }
}

/// Images that pods have named themselves.
#[derive(Debug, Default)]
pub(super) struct Images(Mutex<BTreeMap<String, (Instant, Root)>>);

impl Shared {
    /// `None` if there is no such image, or it is not for us.
    pub(super) async fn image(
        &self,
        operation: &'static str,
        image: &str,
    ) -> Result<Option<Known>, Error> {
        let client = self.ec2.client(operation).await?;
        let call = client.describe_images().image_ids(image).send();
        let what = format!("DescribeImages {image}");
        match self.ec2.call(Class::Describe, operation, &what, call).await {
            Ok(answer) => Ok(answer.images().first().map(Known::of)),
            Err(e) if e.kind == Kind::Invalid => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The root disk of an image that the pod names itself; `None` if it names none.
    pub(super) async fn own_root(
        &self,
        spec: &VmSpec,
        template: &Template,
    ) -> Result<Option<Root>, Error> {
        let image = spec.image.as_deref().filter(|image| !image.is_empty());
        let Some(image) = image.filter(|image| Some(*image) != template.image.as_deref()) else {
            return Ok(None);
        };
        id::id(image, "ami-").map_err(|e| refuse(format!("image {image:?} {e}")))?;
        if template.launch_template.is_some() {
            return Ok(None);
        }
        let known = lock(&self.images.0).get(image).cloned();
        if let Some((_, root)) = known.filter(|(read, _)| read.elapsed() < KEPT) {
            return Ok(Some(root));
        }
        let found = self.image("create", image).await?;
        let root = match found {
            None => return Err(refuse(format!("image {image:?} is not there"))),
            Some(Known { state, .. }) if state != "available" => {
                return Err(refuse(format!("image {image:?} is {state}")));
            }
            Some(known) => known.root,
        };
        let root = root.ok_or_else(|| refuse(format!("image {image:?} has no root disk")))?;
        let mut all = lock(&self.images.0);
        all.retain(|_, (read, _)| read.elapsed() < KEPT);
        all.insert(image.to_owned(), (Instant::now(), root.clone()));
        Ok(Some(root))
    }
}
