//! What an image is, before any VM is made from it.

use serde_json::Value;

use super::catalogue::ended;
use super::client::{Call, Class};
use super::settings::IMAGE;
use super::{Gcp, id, items, number, text};
use crate::Finding;

/// What is known of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// GiB; 0 is not known.
    pub(super) size: u32,
    /// `X86_64`, `ARM64`; empty is not known.
    pub(super) architecture: String,
}

impl Gcp {
    pub(super) async fn look_at_image(&self, findings: &mut Vec<Finding>) -> Known {
        let path = &self.settings.image;
        let Some((project, name)) = id::image_parts(path) else { return Known::default() };
        let target = format!("/compute/v1/projects/{project}/global/images/{name}");
        let call = Call::get("check", Class::Read, target, "compute#image");
        match self.compute.maybe(call).await {
            Err(e) => {
                let text = format!("could not be looked at: {}", e.message);
                findings.push(Finding::warning("image", text));
                Known::default()
            }
            Ok(None) => {
                let text = format!("{} {path:?} is not there", IMAGE.env);
                let remedy = format!("gcloud compute images list --project={project}");
                findings.push(Finding::problem("image", text).remedy(remedy));
                Known::default()
            }
            Ok(Some(image)) => {
                findings.push(self.judge_image(&image));
                let architecture = text(&image, "/architecture").to_owned();
                Known { size: number(&image, "diskSizeGb"), architecture }
            }
        }
    }

    fn judge_image(&self, image: &Value) -> Finding {
        let path = &self.settings.image;
        let problem =
            |text: String| Finding::problem("image", format!("{} {path:?} {text}", IMAGE.env));
        let status = text(image, "/status");
        if status != "READY" {
            return problem(format!("is {status}, not READY"));
        }
        if let Some(state) = ended(image) {
            return problem(format!("is {state}"));
        }
        if let Some(kind) = &self.settings.confidential {
            let wanted = match kind.as_str() {
                "SEV" => "SEV_CAPABLE",
                "SEV_SNP" => "SEV_SNP_CAPABLE",
                _ => "TDX_CAPABLE",
            };
            if !items(image, "/guestOsFeatures").any(|f| text(f, "/type") == wanted) {
                return problem(format!("is not marked {wanted}, which {kind} needs"))
                    .remedy("DISABLECVM=true, or another image");
            }
        }
        Finding::fine("image", path.clone())
    }
}
