//! The sizes of a region and what each can do, from `Microsoft.Compute/skus`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::client::{Class, SKUS};
use super::{Shared, lock, text};
use crate::{Error, InstanceType};

/// The answer is large and changes seldom.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// One size.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sku {
    pub(super) size: InstanceType,
    /// Zones that have it and that this subscription may use.
    pub(super) zones: Vec<String>,
    /// Why this subscription may not use it at all.
    pub(super) refused: Option<String>,
    /// `SNP`, `TDX`.
    pub(super) confidential: Option<String>,
    /// Disks that can be attached.
    pub(super) data_disks: usize,
    /// `x64`, `Arm64`.
    pub(super) architecture: String,
    /// Whether it can be had as spot.
    pub(super) spot: bool,
    /// `standardDCASv5Family`, as quotas name it.
    pub(super) family: String,
}

/// All of a region's.
#[derive(Clone, Debug)]
pub(super) struct Catalogue {
    pub(super) skus: Vec<Sku>,
    read: Instant,
}

impl Catalogue {
    pub(super) fn of(&self, size: &str) -> Option<&Sku> {
        self.skus.iter().find(|sku| sku.size.name.eq_ignore_ascii_case(size))
    }
}

impl Sku {
    fn read(value: &Value, region: &str) -> Option<Self> {
        if text(value, "/resourceType") != "virtualMachines" {
            return None;
        }
        let capabilities = value.get("capabilities").and_then(Value::as_array);
        let has = |name: &str| {
            let mut all = capabilities.into_iter().flatten();
            let found = all.find(|c| text(c, "/name").eq_ignore_ascii_case(name))?;
            found.get("value").and_then(Value::as_str)
        };
        let number = |name: &str| has(name).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        let size = InstanceType {
            name: text(value, "/name").to_owned(),
            vcpus: number("vCPUs") as u32,
            memory_mib: (number("MemoryGB") * 1024.0) as u64,
            gpus: number("GPUs") as u32,
            price: None,
        };
        let (refused, closed) = restrictions(value);
        let places = value.get("locationInfo").and_then(Value::as_array);
        let here = places.into_iter().flatten();
        let here = here.filter(|place| text(place, "/location").eq_ignore_ascii_case(region));
        let zones = here.flat_map(|place| strings(place.get("zones")));
        Some(Self {
            zones: zones.filter(|zone| !closed.contains(zone)).collect(),
            refused,
            confidential: has("ConfidentialComputingType").map(str::to_owned),
            data_disks: number("MaxDataDiskCount") as usize,
            architecture: has("CpuArchitectureType").unwrap_or("x64").to_owned(),
            spot: has("LowPriorityCapable").is_none_or(|s| s.eq_ignore_ascii_case("true")),
            family: text(value, "/family").to_owned(),
            size,
        })
    }
}

/// Why it may not be used at all, and the zones in which it may not.
fn restrictions(value: &Value) -> (Option<String>, Vec<String>) {
    let (mut refused, mut closed) = (None, Vec::new());
    let all = value.get("restrictions").and_then(Value::as_array);
    for restriction in all.into_iter().flatten() {
        match text(restriction, "/type") {
            "Zone" => closed.extend(strings(restriction.pointer("/restrictionInfo/zones"))),
            _ => refused = Some(text(restriction, "/reasonCode").to_owned()),
        }
    }
    (refused, closed)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let all = value.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

impl Shared {
    /// From the cloud once a day.
    pub(super) async fn catalogue(&self) -> Result<std::sync::Arc<Catalogue>, Error> {
        let known = lock(&self.catalogue).clone();
        if let Some(known) = known.filter(|known| known.read.elapsed() < KEPT) {
            return Ok(known);
        }
        let (subscription, region) = (&self.settings.subscription, &self.settings.region);
        let target = format!(
            "/subscriptions/{subscription}/providers/Microsoft.Compute/skus?api-version={SKUS}\
             &$filter=location%20eq%20%27{region}%27"
        );
        let all = self.arm.pages("check", Class::Read, target).await?;
        let skus: Vec<Sku> = all.iter().filter_map(|value| Sku::read(value, region)).collect();
        let catalogue = std::sync::Arc::new(Catalogue { skus, read: Instant::now() });
        if !catalogue.skus.is_empty() {
            *lock(&self.catalogue) = Some(catalogue.clone());
        }
        Ok(catalogue)
    }
}
