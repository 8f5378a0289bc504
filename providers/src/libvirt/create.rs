//! One attempt to make a VM: goes on from wherever an earlier try of the same attempt has stopped.

use std::net::IpAddr;
use std::time::Duration;

use virt::domain::Domain;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use super::address::look;
use super::check::committed;
use super::client::Host;
use super::delete::take_away;
use super::domain::{self, mac};
use super::error::maybe;
use super::list::{pool, tags_of, whose};
use super::template::Template;
use super::volume::{find, format_of, make, of_pod, upload};
use super::{CHANGE, LOOK, Libvirt, NAME, Parts, iso, mark};
use crate::size::AnySize;
use crate::{Candidate, Error, Kind, Token, Vm, VmRef, VmSpec, tags};

/// Between two looks for the address.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// What a pool must have left besides the disk with the user data, for the root disk to grow into.
const POOL_LEFT: u64 = 256 << 20;

/// One attempt, with all that it takes.
#[derive(Debug)]
struct Attempt {
    spec: VmSpec,
    template: Template,
    token: Token,
    vcpus: u32,
    memory_mib: u64,
    parts: Parts,
    installation: String,
}

impl Libvirt {
    pub(super) async fn create_vm(
        &self,
        spec: &VmSpec,
        candidate: &Candidate,
    ) -> Result<Vm, Error> {
        let invalid = |text: String| Error::new(NAME, "create", Kind::Invalid, text);
        if !spec.name.is_legal() {
            return Err(invalid(format!("the name {:?} is not a VM's", spec.name.as_str())));
        }
        let size = &candidate.instance_type;
        let (vcpus, memory_mib) =
            AnySize::parse(size).filter(|(v, m)| *v > 0 && *m > 0).ok_or_else(|| {
                invalid(format!("size {size:?} is not <vCPUs>x<MiB>; this provider has no types"))
            })?;
        let attempt = Attempt {
            template: Template::read(&spec.template)?,
            token: Token::new(&self.installation, &spec.sandbox, candidate.number),
            vcpus,
            memory_mib,
            parts: self.parts(spec.name.as_str()),
            installation: self.installation.clone(),
            spec: spec.clone(),
        };
        let (uuid, hardware) = (attempt.token.uuid(), mac(&attempt.token));
        let unavailable = |_| Error::new(NAME, "create", Kind::Unavailable, "is being closed");
        {
            let _upload = self.uploads.acquire().await.map_err(unavailable)?;
            let alone = self.alone(spec.name.as_str()).await;
            let job = move |host: &Host<'_>| {
                let _alone = alone;
                attempt.make(host)
            };
            self.client.run("create", CHANGE, job).await?;
        }
        let address = self.wait(&uuid, spec, hardware).await?;
        Ok(Vm {
            native_id: uuid,
            name: spec.name.clone(),
            addresses: vec![address],
            instance_type: size.clone(),
            zone: None,
            price_per_hour: None,
        })
    }

    /// As long as the caller waits and the VM runs.
    async fn wait(&self, uuid: &str, spec: &VmSpec, mac: String) -> Result<IpAddr, Error> {
        loop {
            let (uuid, name, mac) = (uuid.to_owned(), spec.name.to_string(), mac.clone());
            let source = self.settings.source;
            let job = move |host: &Host<'_>| look(host, &uuid, &name, &mac, source);
            if let Some(address) = self.client.run("create", LOOK, job).await? {
                return Ok(address);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Attempt {
    /// Defines and starts the VM. What a refused attempt has made it takes away again; of one whose
    /// effect is unknown everything stays for the next.
    fn make(&self, host: &Host<'_>) -> Result<(), Error> {
        match self.known(host)? {
            Some(domain) if domain.is_active().map_err(|e| self.refuse(host, &e))? => return Ok(()),
            Some(domain) => return self.start(host, &domain),
            None => {}
        }
        let made = self.define(host).and_then(|domain| self.start(host, &domain));
        if let Err(e) = &made
            && e.kind != Kind::Unavailable
        {
            let vm = VmRef {
                name: self.spec.name.clone(),
                sandbox: self.spec.sandbox.clone(),
                native_id: None,
            };
            if let Err(e) = take_away(host, &vm, &self.template.pool, &self.installation) {
                tracing::warn!(vm = %vm.name, "what a failed create has made stays for now: {e}");
            }
        }
        made
    }

    fn refuse(&self, host: &Host<'_>, e: &virt::error::Error) -> Error {
        host.refuse(&format!("VM {}", self.spec.name), e)
    }

    /// The domain of this very attempt, if it is there.
    fn known(&self, host: &Host<'_>) -> Result<Option<Domain>, Error> {
        let refuse = |e| self.refuse(host, &e);
        let name = self.spec.name.as_str();
        let found = maybe(Domain::lookup_by_name(host.connection, name)).map_err(refuse)?;
        let Some(domain) = found else { return Ok(None) };
        let known = tags_of(&domain).map_err(refuse)?.unwrap_or_default();
        let same = |key: &str| known.get(key) == self.spec.tags.get(key);
        let sandbox = known.get(tags::SANDBOX) == Some(&self.spec.sandbox);
        let uuid = domain.get_uuid_string().map_err(refuse)?;
        if sandbox && same(tags::INSTALLATION) && uuid == self.token.uuid() {
            return Ok(Some(domain));
        }
        let whose = if sandbox { "another attempt" } else { "another sandbox" };
        let text = format!("VM {name} is there already and belongs to {whose}");
        Err(Error::new(NAME, "create", Kind::Invalid, text))
    }

    fn start(&self, host: &Host<'_>, domain: &Domain) -> Result<(), Error> {
        host.goes_on()?;
        let started = domain.create().map(drop);
        match started {
            // Another process's start of the same attempt, which has died, may have come to its end.
            Err(e) if domain.is_active().unwrap_or(false) => {
                tracing::debug!("runs already: {e}");
                Ok(())
            }
            started => started.map_err(|e| self.refuse(host, &e)),
        }
    }

    fn define(&self, host: &Host<'_>) -> Result<Domain, Error> {
        let refuse = |e| self.refuse(host, &e);
        self.room(host)?;
        let pool = pool(host, &self.template.pool)?;
        self.theirs(host, &pool)?;
        let base = self.image(host, &pool)?;
        let mut images = vec![base.get_path().map_err(refuse)?];
        if let Ok(image) = find(host, &pool, &self.template.image) {
            images.push(image.get_path().map_err(refuse)?);
        }
        let uuid = self.token.uuid();
        let volumes = of_pod(host, &pool, &self.spec.volumes, &images, &uuid)?;
        let cidata = self.cidata(host, &pool)?;
        let root = self.root(host, &pool, &base)?;
        let (cidata, root) = (cidata.get_path().map_err(refuse)?, root.get_path().map_err(refuse)?);
        let console = match root.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{}", self.parts.console),
            None => String::new(),
        };
        let Template { domain_type, arch, machine, firmware, cpuset, network, .. } = &self.template;
        let xml = domain::Domain {
            name: self.spec.name.as_str(),
            uuid,
            mac: mac(&self.token),
            tags: &self.spec.tags,
            domain_type,
            arch,
            machine,
            firmware,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            cpuset,
            network,
            root: &root,
            cidata: &cidata,
            volumes: &volumes,
            console: &console,
        };
        host.goes_on()?;
        Domain::define_xml(host.connection, &xml.xml()).map_err(refuse)
    }

    fn room(&self, host: &Host<'_>) -> Result<(), Error> {
        let refuse = |e| host.refuse("the host", &e);
        let node = host.connection.get_node_info().map_err(refuse)?;
        let used = committed(host.connection).map_err(refuse)?;
        let (total, want) = (node.memory / 1024, self.memory_mib);
        if want > total || self.vcpus > node.cpus {
            let text = format!(
                "{} vCPUs and {want} MiB are more than the host has ({}, {total} MiB)",
                self.vcpus, node.cpus
            );
            return Err(Error::new(NAME, "create", Kind::Invalid, text));
        }
        if used + want > total {
            let text = format!("{want} MiB, and {used} of the host's {total} MiB are taken");
            return Err(Error::new(NAME, "create", Kind::Capacity, text));
        }
        Ok(())
    }

    /// Volumes of that name may be another sandbox's, whose VM is not defined yet.
    fn theirs(&self, host: &Host<'_>, pool: &StoragePool) -> Result<(), Error> {
        let name = &self.parts.cidata;
        let refuse = |e| host.refuse(&format!("volume {name:?}"), &e);
        let found = maybe(StorageVol::lookup_by_name(pool, name)).map_err(refuse)?;
        let Some(volume) = found else { return Ok(()) };
        let known = maybe(whose(host, &volume)).map_err(refuse)?.flatten().unwrap_or_default();
        let other =
            |key: &str| known.get(key).is_some_and(|known| Some(known) != self.spec.tags.get(key));
        if other(tags::SANDBOX) || other(tags::INSTALLATION) {
            let text = format!("VM {} is being made already, for another sandbox", self.spec.name);
            return Err(host.invalid(text));
        }
        Ok(())
    }

    /// The disk with the user data.
    fn cidata(&self, host: &Host<'_>, pool: &StoragePool) -> Result<StorageVol, Error> {
        let name = &self.parts.cidata;
        let meta =
            format!("instance-id: {}\nlocal-hostname: {}\n", self.token.uuid(), self.spec.name);
        let files: [(&str, &[u8]); 3] = [
            ("user-data", self.spec.user_data.0.as_bytes()),
            ("meta-data", meta.as_bytes()),
            ("vendor-data", b""),
        ];
        let image = zeroize::Zeroizing::new(iso::image(&mark::write(&self.spec.tags), &files));
        let left = pool.get_info().map_err(|e| host.refuse("pool", &e))?.available;
        if left < image.len() as u64 + POOL_LEFT {
            let text = format!("pool {:?} has {} MiB left", self.template.pool, left >> 20);
            return Err(Error::new(NAME, "create", Kind::Capacity, text));
        }
        let volume = make(host, pool, name, &domain::raw_volume(name, image.len()))?;
        upload(host, &volume, name, &image)?;
        Ok(volume)
    }

    fn image(&self, host: &Host<'_>, pool: &StoragePool) -> Result<StorageVol, Error> {
        let own = self.spec.image.as_deref().filter(|image| !image.is_empty());
        let image = own.unwrap_or(&self.template.image);
        // Kept for those who look for it in the log.
        tracing::info!("Choosing {image}");
        find(host, pool, image)
    }

    /// The root disk, on top of the image.
    fn root(
        &self,
        host: &Host<'_>,
        pool: &StoragePool,
        base: &StorageVol,
    ) -> Result<StorageVol, Error> {
        let name = &self.parts.root;
        let refuse = |e| host.refuse("image", &e);
        let info = base.get_info().map_err(refuse)?;
        let capacity = info.capacity.max(u64::from(self.spec.disk_gib) << 30);
        let format = format_of(&base.get_xml_desc(0).map_err(refuse)?);
        let path = base.get_path().map_err(refuse)?;
        make(host, pool, name, &domain::root_volume(name, capacity, &path, &format))
    }
}
