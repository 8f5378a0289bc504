//! A provider whose VMs are there at once: it only puts down what a VM would have been told, where
//! the bench's VMs look for it, and says how long that took. So what is left of a start's time is
//! the daemon's own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use peerpod_providers::{
    Candidate, Deletion, Error, InstanceType, Kind, Provider, Report, Resource, ResourceKind, Vm,
    VmName, VmRef, VmSpec,
};
use podvm::apf::Apf;
use podvm::{cloud_config, contract};
use serde::{Deserialize, Serialize};

use crate::rival::Issued;

/// The provider's name.
pub(crate) const NAME: &str = "instant";
/// Its one instance type.
pub(crate) const TYPE: &str = "instant";

/// What a VM was told, as it lies in the directory; the file's name is the VM's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    sandbox: String,
    tags: BTreeMap<String, String>,
    pub(crate) issued: Issued,
}

/// A line on standard output for each VM that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) name: String,
    /// The provider's own time, nanoseconds.
    pub(crate) took: f64,
}

#[derive(Debug)]
pub(crate) struct Instantly {
    dir: PathBuf,
    /// Every VM has this address and tells itself apart by the name it is asked for.
    address: IpAddr,
}

impl fmt::Display for Instantly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

fn failed(operation: &'static str, reason: impl fmt::Display) -> Error {
    Error::new(NAME, operation, Kind::Other, reason.to_string())
}

/// What the VM of that name was told.
pub(crate) fn told(dir: &Path, name: &str) -> anyhow::Result<Told> {
    Ok(serde_json::from_slice(&std::fs::read(dir.join(name))?)?)
}

impl Instantly {
    pub(crate) fn new(dir: PathBuf, address: IpAddr) -> Self {
        Self { dir, address }
    }

    fn tell(&self, spec: &VmSpec) -> anyhow::Result<()> {
        let parsed = cloud_config::parse(&spec.user_data.0)?;
        let file = parsed.files.iter().find(|f| f.path == contract::APF);
        let apf = Apf::parse(file.map_or("", |f| f.content.as_str()))?;
        let told = Told {
            sandbox: spec.sandbox.clone(),
            tags: spec.tags.clone(),
            issued: Issued {
                cert: apf.tls_server_cert.clone(),
                key: apf.tls_server_key.expose().to_owned(),
                client_ca: apf.tls_client_ca.clone(),
            },
        };
        std::fs::write(self.dir.join(spec.name.as_str()), serde_json::to_vec(&told)?)?;
        Ok(())
    }

    fn resources(&self) -> anyhow::Result<Vec<Resource>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let told = told(&self.dir, &name)?;
            let vm = VmRef {
                native_id: Some(name.clone()),
                name: VmName::from_existing(name),
                sandbox: told.sandbox,
            };
            found.push(Resource {
                created: Some(SystemTime::now()),
                running: Some(true),
                ..Resource::new(ResourceKind::Vm, vm, told.tags)
            });
        }
        Ok(found)
    }
}

#[async_trait]
impl Provider for Instantly {
    async fn check(&self) -> Result<Report, Error> {
        let only = InstanceType {
            name: TYPE.to_owned(),
            vcpus: 2,
            memory_mib: 4096,
            gpus: 0,
            price: None,
        };
        Ok(Report::of_types(vec![only]))
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        let begin = Instant::now();
        self.tell(spec).map_err(|e| failed("create", e))?;
        let took = begin.elapsed().as_nanos() as f64;
        let made = Made { name: spec.name.as_str().to_owned(), took };
        // Read by the bench, one line for each start.
        println!("{}", serde_json::to_string(&made).map_err(|e| failed("create", e))?);
        Ok(Vm {
            native_id: spec.name.as_str().to_owned(),
            name: spec.name.clone(),
            addresses: vec![self.address],
            instance_type: candidate.instance_type.clone(),
            zone: None,
            price_per_hour: None,
        })
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        match std::fs::remove_file(self.dir.join(vm.name.as_str())) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("delete", e)),
            _ => Ok(Deletion::Gone),
        }
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        self.resources().map_err(|e| failed("list", e))
    }
}
