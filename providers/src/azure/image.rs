//! What an image is, before any VM is made from it.

use serde_json::Value;

use super::client::{COMPUTE, Call, Class, GALLERIES};
use super::id::{self, Image};
use super::{Shared, text};
use crate::Error;

/// What is known of an image; what an empty field says is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// GiB.
    pub(super) size: u32,
    /// `Succeeded`.
    pub(super) state: String,
    /// `x64`, `Arm64`.
    pub(super) architecture: String,
    /// Whether confidential VMs can be made from it.
    pub(super) confidential: Option<bool>,
}

impl Shared {
    /// `None` if there is no such image.
    pub(super) async fn image(&self, image: &str) -> Result<Option<Known>, Error> {
        let get = |path: String, version| {
            Call::get("check", Class::Read, format!("{path}?api-version={version}"))
        };
        match id::image_kind(image) {
            Some(Image::Managed) => {
                let found = self.arm.maybe(get(image.to_owned(), COMPUTE)).await?;
                Ok(found.map(|found| Known {
                    size: gib(found.pointer("/properties/storageProfile/osDisk/diskSizeGB")),
                    state: text(&found, "/properties/provisioningState").to_owned(),
                    ..Known::default()
                }))
            }
            Some(Image::Gallery) => self.gallery_image(image).await,
            kind => {
                let segments: Vec<&str> = image.split('/').collect();
                let part = |n: usize| segments.get(n).copied().unwrap_or_default();
                let galleries = if kind == Some(Image::Shared) {
                    "sharedGalleries"
                } else {
                    "communityGalleries"
                };
                let (gallery, name) = (part(2), part(4));
                let path = format!(
                    "/subscriptions/{}/providers/Microsoft.Compute/locations/{}/{galleries}/{gallery}\
                     /images/{name}",
                    self.settings.subscription, self.settings.region
                );
                let found = self.arm.maybe(get(path, GALLERIES)).await?;
                Ok(found.map(|found| definition(&found)))
            }
        }
    }

    /// The definition says what it is for, the version whether it is there.
    async fn gallery_image(&self, image: &str) -> Result<Option<Known>, Error> {
        let at = image.to_ascii_lowercase().find("/versions/").unwrap_or(image.len());
        let (whole, version) = image.split_at(at);
        let target = format!("{whole}?api-version={GALLERIES}");
        let Some(found) = self.arm.maybe(Call::get("check", Class::Read, target)).await? else {
            return Ok(None);
        };
        let known = definition(&found);
        if version.is_empty() || version.eq_ignore_ascii_case("/versions/latest") {
            return Ok(Some(known));
        }
        let target = format!("{image}?api-version={GALLERIES}");
        let version = self.arm.maybe(Call::get("check", Class::Read, target)).await?;
        Ok(version.map(|version| Known {
            size: gib(version.pointer("/properties/storageProfile/osDiskImage/sizeInGB")),
            state: text(&version, "/properties/provisioningState").to_owned(),
            ..known
        }))
    }
}

fn definition(found: &Value) -> Known {
    let features = found.pointer("/properties/features").and_then(Value::as_array);
    let mut features = features.into_iter().flatten();
    let security = features.find(|f| text(f, "/name").eq_ignore_ascii_case("SecurityType"));
    Known {
        size: 0,
        state: text(found, "/properties/provisioningState").to_owned(),
        architecture: text(found, "/properties/architecture").to_owned(),
        confidential: Some(
            security
                .is_some_and(|f| text(f, "/value").to_ascii_lowercase().contains("confidentialvm")),
        ),
    }
}

fn gib(value: Option<&Value>) -> u32 {
    value.and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}
