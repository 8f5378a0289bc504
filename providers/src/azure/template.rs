//! The body of a create (providers.md 4.3): a VM with its interface, disk and address in one request, so
//! that they are made, and deleted, together.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::id::{self, Image};
use super::{NAME, settings};
use crate::common::DISK_MIN;
use crate::{Candidate, Error, Kind, Market, VmSpec, tags};

/// Version of `Microsoft.Network` by which the interface is described.
const NETWORK_API: &str = "2022-11-01";

/// The settings as far as they are part of a create request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Template {
    pub(super) region: String,
    pub(super) subnet: String,
    pub(super) nsg: Option<String>,
    pub(super) image: String,
    /// Size of the image's disk; 0 is unknown.
    pub(super) image_gib: u32,
    pub(super) ssh_key: String,
    pub(super) ssh_user: String,
    pub(super) confidential: bool,
    pub(super) secure_boot: bool,
    pub(super) public_ip: bool,
}

impl Template {
    /// As it stands in a plan.
    pub(super) fn read(text: &str) -> Result<Self, Error> {
        let template: Self = serde_json::from_str(text).map_err(|e| {
            // The column says nothing of the content, which may be anything.
            let text = format!("the plan's template is not one of Azure's (line {})", e.line());
            Error::new(NAME, "create", Kind::Invalid, text)
        })?;
        let fields = [
            ("region", id::region(&template.region).map(drop)),
            ("subnet", id::subnet(&template.subnet).map(drop)),
            ("nsg", template.nsg.as_deref().map_or(Ok(()), |nsg| id::nsg(nsg).map(drop))),
            ("image", id::image(&template.image).map(drop)),
        ];
        match fields.into_iter().find_map(|(field, result)| Some((field, result.err()?))) {
            Some((field, problem)) => {
                let text = format!("the plan's template: {field} {problem}");
                Err(Error::new(NAME, "create", Kind::Invalid, text))
            }
            None => Ok(template),
        }
    }

    /// The body of the request.
    pub(super) fn body(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Value, Error> {
        let name = spec.name.as_str();
        let tags = tags::fit(&spec.tags, &settings::TAGS);
        let mut properties = json!({
            "hardwareProfile": {"vmSize": candidate.instance_type},
            "storageProfile": self.storage(spec)?,
            "osProfile": {
                "adminUsername": self.ssh_user,
                "computerName": name,
                "linuxConfiguration": {
                    "disablePasswordAuthentication": true,
                    "ssh": {"publicKeys": [{
                        "path": format!("/home/{}/.ssh/authorized_keys", self.ssh_user),
                        "keyData": self.ssh_key,
                    }]},
                },
            },
            "networkProfile": {
                "networkApiVersion": NETWORK_API,
                "networkInterfaceConfigurations": [self.interface(name, &tags)],
            },
            "diagnosticsProfile": {"bootDiagnostics": {"enabled": true}},
            "userData": STANDARD.encode(&spec.user_data.0),
        });
        if self.confidential {
            let uefi = json!({"secureBootEnabled": self.secure_boot, "vTpmEnabled": true});
            properties["securityProfile"] =
                json!({"securityType": "ConfidentialVM", "uefiSettings": uefi});
        }
        if candidate.market == Market::Spot {
            properties["priority"] = json!("Spot");
            properties["evictionPolicy"] = json!("Delete");
            properties["billingProfile"] = json!({"maxPrice": -1.0});
        }
        let mut body = json!({"location": self.region, "tags": tags, "properties": properties});
        if let Some(zone) = &candidate.zone {
            body["zones"] = json!([zone]);
        }
        Ok(body)
    }

    fn storage(&self, spec: &VmSpec) -> Result<Value, Error> {
        let image = spec.image.as_deref().filter(|image| !image.is_empty());
        let (image, image_gib) =
            image.map_or((self.image.as_str(), self.image_gib), |own| (own, 0));
        let kind = id::image_kind(image).ok_or_else(|| {
            let problem = id::image(image).err().unwrap_or_default();
            Error::new(NAME, "create", Kind::Invalid, format!("image {image:?} {problem}"))
        })?;
        // Kept for those who look for it in the log.
        tracing::info!("Choosing {image}");
        let key = match kind {
            Image::Community => "communityGalleryImageId",
            Image::Shared => "sharedGalleryImageId",
            Image::Gallery | Image::Managed => "id",
        };
        let mut managed = json!({"storageAccountType": "Premium_LRS"});
        if self.confidential {
            managed["securityProfile"] = json!({"securityEncryptionType": "VMGuestStateOnly"});
        }
        let mut disk = json!({
            "name": super::disk_name(spec.name.as_str()),
            "createOption": "FromImage",
            "caching": "ReadWrite",
            "deleteOption": "Delete",
            "managedDisk": managed,
        });
        // Azure refuses a disk smaller than the image. Of an image whose size is not known, only a size
        // that somebody has asked for is sent.
        let least = if image_gib > 0 { image_gib } else { DISK_MIN };
        if spec.disk_gib > least {
            disk["diskSizeGB"] = json!(spec.disk_gib);
        }
        let mut storage = json!({"imageReference": {key: image}, "osDisk": disk});
        if !spec.volumes.is_empty() {
            storage["dataDisks"] = volumes(spec)?;
        }
        Ok(storage)
    }

    fn interface(&self, name: &str, tags: &BTreeMap<String, String>) -> Value {
        let mut address = json!({"subnet": {"id": self.subnet}});
        if self.public_ip {
            address["publicIPAddressConfiguration"] = json!({
                "name": format!("{name}-ip"),
                "sku": {"name": "Standard"},
                "tags": tags,
                "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
            });
        }
        let mut properties = json!({
            "primary": true,
            "deleteOption": "Delete",
            "ipConfigurations": [{"name": "ip-config", "properties": address}],
        });
        if let Some(nsg) = &self.nsg {
            properties["networkSecurityGroup"] = json!({"id": nsg});
        }
        json!({"name": format!("{name}-net"), "tags": tags, "properties": properties})
    }
}

/// Disks that were there before and outlive the VM.
fn volumes(spec: &VmSpec) -> Result<Value, Error> {
    let mut luns = std::collections::BTreeSet::new();
    let mut disks = Vec::new();
    for volume in &spec.volumes {
        let refuse = |problem: &str| {
            let text = format!("volume {:?} {problem}", volume.disk);
            Error::new(NAME, "create", Kind::Invalid, text)
        };
        let disk = id::disk(&volume.disk).map_err(refuse)?;
        if volume.lun > 63 || !luns.insert(volume.lun) {
            return Err(refuse(&format!("has LUN {}, which is taken or above 63", volume.lun)));
        }
        disks.push(json!({
            "lun": volume.lun,
            "createOption": "Attach",
            "deleteOption": "Detach",
            "managedDisk": {"id": disk},
        }));
    }
    Ok(Value::Array(disks))
}

#[cfg(test)]
mod tests;
