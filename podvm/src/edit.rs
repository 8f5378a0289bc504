//! The calls that are looked at on their way to the agent. The agent judges by its policy what arrives
//! there, so these edits are part of what policy authors rely on: they are written down in
//! podvm/README.md and stay as they are.
//!
//! ```text
//!   CreateContainer  OCI.Linux.Namespaces: the entry of type "network" gets the pod's namespace as its
//!                    path; without such an entry one is added to the last Linux part
//!                    OCI.Mounts of volumes: another source, and bind as their type
//!   CreateSandbox    dns goes, so that the VM keeps its own resolver
//!   DestroySandbox   passes as it came, once the volumes are away
//! ```

use std::collections::BTreeMap;

use peerpod_tunnel::link::frame::MAX_PAYLOAD;
use peerpod_tunnel::link::wire::{self, WireError};

const SERVICE: &[u8] = b"grpc.AgentService";
const CREATE_CONTAINER: &[u8] = b"CreateContainer";
const CREATE_SANDBOX: &[u8] = b"CreateSandbox";
const DESTROY_SANDBOX: &[u8] = b"DestroySandbox";

/// Fields of ttrpc's Request.
const METHOD: u32 = 2;
const PAYLOAD: u32 = 3;
/// CreateSandboxRequest.dns.
const DNS: u32 = 2;
/// CreateContainerRequest.OCI, Spec.Linux, Linux.Namespaces.
const OCI: u32 = 6;
const LINUX: u32 = 8;
const NAMESPACES: u32 = 6;
/// LinuxNamespace.
const TYPE: u32 = 1;
const PATH: u32 = 2;
/// Request.timeout_nano.
const TIMEOUT: u32 = 4;
/// Spec.Mounts, Spec.Annotations and what is in them.
const MOUNTS: u32 = 5;
const DESTINATION: u32 = 1;
const SOURCE: u32 = 2;
const MOUNT_TYPE: u32 = 3;
const ANNOTATIONS: u32 = 7;
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// Whether calls of this method are held and looked at.
pub fn wanted(service: &[u8], method: &[u8]) -> bool {
    service == SERVICE && [CREATE_CONTAINER, CREATE_SANDBOX, DESTROY_SANDBOX].contains(&method)
}

/// What of a held call has to do with the VM's file systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Nothing.
    Other,
    /// A container is to be made.
    Container(Container),
    /// The pod is at its end.
    Destroy,
}

/// What of a CreateContainer has to do with the VM's file systems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// How long the caller will wait, in nanoseconds; 0 is for ever.
    pub timeout_nano: u64,
    /// OCI annotations.
    pub annotations: BTreeMap<String, String>,
    /// OCI mounts.
    pub mounts: Vec<Mount>,
}

/// One OCI mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where in the container.
    pub destination: String,
    /// What.
    pub source: String,
    /// Type of file system, or bind.
    pub kind: String,
}

impl Mount {
    fn read(mount: &[u8]) -> Self {
        let text = |number| wire::text(mount, number).unwrap_or_default().to_owned();
        Self { destination: text(DESTINATION), source: text(SOURCE), kind: text(MOUNT_TYPE) }
    }
}

/// Looks at a held ttrpc request.
///
/// # Errors
/// When it is no protobuf, down to the mounts of a container.
pub fn call(request: &[u8]) -> Result<Call, WireError> {
    wire::walk(request).try_for_each(|field| field.map(drop))?;
    match wire::text(request, METHOD).unwrap_or_default().as_bytes() {
        DESTROY_SANDBOX => Ok(Call::Destroy),
        CREATE_CONTAINER => container(request).map(Call::Container),
        _ => Ok(Call::Other),
    }
}

fn container(request: &[u8]) -> Result<Container, WireError> {
    let mut found =
        Container { timeout_nano: wire::number_of(request, TIMEOUT)?, ..Container::default() };
    each(request, PAYLOAD, |payload| {
        each(payload, OCI, |spec| {
            each(spec, ANNOTATIONS, |entry| {
                let text = |number| wire::text(entry, number).unwrap_or_default().to_owned();
                found.annotations.insert(text(KEY), text(VALUE));
                Ok(())
            })?;
            each(spec, MOUNTS, |mount| {
                // Whole, so that it can be bound later.
                wire::walk(mount).try_for_each(|field| field.map(drop))?;
                found.mounts.push(Mount::read(mount));
                Ok(())
            })
        })
    })?;
    Ok(found)
}

/// Gives mounts of a held CreateContainer another source and the type bind; `source` says which. All
/// else stays byte for byte.
///
/// # Errors
/// When the request is no protobuf.
pub fn bind(
    request: &[u8],
    source: impl Fn(&Mount) -> Option<String>,
) -> Result<Vec<u8>, WireError> {
    wire::map(request, PAYLOAD, |payload| {
        wire::map(payload, OCI, |spec| {
            wire::map(spec, MOUNTS, |mount| {
                let Some(new) = source(&Mount::read(mount)) else { return Ok(mount.to_vec()) };
                let mut mount = wire::without(&wire::without(mount, SOURCE)?, MOUNT_TYPE)?;
                wire::put(&mut mount, SOURCE, new.as_bytes());
                wire::put(&mut mount, MOUNT_TYPE, b"bind");
                Ok::<_, WireError>(mount)
            })
        })
    })
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Edited {
    /// It passes as it came.
    Same,
    /// This is sent in its place.
    Other(Vec<u8>),
    /// It is answered here: google.rpc code and words.
    Refused(i32, String),
}

const INVALID_ARGUMENT: i32 = 3;
const RESOURCE_EXHAUSTED: i32 = 8;

/// Edits requests.
#[derive(Debug)]
pub struct Edits {
    podns: String,
}

impl Edits {
    /// Containers get the network namespace `podns`.
    pub fn new(podns: String) -> Self {
        Self { podns }
    }

    /// Edits a ttrpc request of a wanted method.
    pub fn apply(&self, request: &[u8]) -> Edited {
        match self.edit(request) {
            // What cannot be read here might be read there, unedited; so it does not pass.
            Err(error) => Edited::Refused(INVALID_ARGUMENT, format!("request: {error}")),
            Ok(edited) if edited == request => Edited::Same,
            Ok(edited) if edited.len() > MAX_PAYLOAD => Edited::Refused(
                RESOURCE_EXHAUSTED,
                format!(
                    "request of {} bytes: with the VM's additions it is {} bytes, more than the \
                     {MAX_PAYLOAD} of ttrpc",
                    request.len(),
                    edited.len()
                ),
            ),
            Ok(edited) => Edited::Other(edited),
        }
    }

    fn edit(&self, request: &[u8]) -> Result<Vec<u8>, WireError> {
        // The whole of it, before any part is looked at.
        wire::walk(request).try_for_each(|field| field.map(drop))?;
        match wire::text(request, METHOD).unwrap_or_default().as_bytes() {
            CREATE_SANDBOX => wire::map(request, PAYLOAD, |payload| wire::without(payload, DNS)),
            DESTROY_SANDBOX => Ok(request.to_vec()),
            _ => wire::map(request, PAYLOAD, |payload| self.create_container(payload)),
        }
    }

    fn create_container(&self, payload: &[u8]) -> Result<Vec<u8>, WireError> {
        let found = look(payload)?;
        let mut parts = 0;
        wire::map(payload, OCI, |spec| {
            wire::map(spec, LINUX, |linux| {
                parts += 1;
                if found.network {
                    return wire::map(linux, NAMESPACES, |entry| self.set_path(entry));
                }
                let mut linux = linux.to_vec();
                if parts == found.linux_parts {
                    wire::put(&mut linux, NAMESPACES, &self.entry());
                }
                Ok(linux)
            })
        })
    }

    fn entry(&self) -> Vec<u8> {
        let mut entry = Vec::new();
        wire::put(&mut entry, TYPE, b"network");
        wire::put(&mut entry, PATH, self.podns.as_bytes());
        entry
    }

    fn set_path(&self, entry: &[u8]) -> Result<Vec<u8>, WireError> {
        if !is_network(entry)? {
            return Ok(entry.to_vec());
        }
        let mut entry = wire::without(entry, PATH)?;
        wire::put(&mut entry, PATH, self.podns.as_bytes());
        Ok(entry)
    }
}

struct Found {
    /// How often a Linux part occurs; protobuf merges them.
    linux_parts: usize,
    /// Whether one of them names a network namespace.
    network: bool,
}

fn look(payload: &[u8]) -> Result<Found, WireError> {
    let mut found = Found { linux_parts: 0, network: false };
    each(payload, OCI, |spec| {
        each(spec, LINUX, |linux| {
            found.linux_parts += 1;
            each(linux, NAMESPACES, |entry| {
                found.network |= is_network(entry)?;
                Ok(())
            })
        })
    })?;
    Ok(found)
}

fn each<'a>(
    message: &'a [u8],
    number: u32,
    mut look: impl FnMut(&'a [u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    for field in wire::walk(message) {
        let field = field?;
        if let Some(content) = field.content.filter(|_| field.number == number) {
            look(content)?;
        }
    }
    Ok(())
}

fn is_network(entry: &[u8]) -> Result<bool, WireError> {
    // As protobuf has it, the last one counts.
    let mut last = None;
    each(entry, TYPE, |content| {
        last = Some(content);
        Ok(())
    })?;
    Ok(last == Some(b"network"))
}

#[cfg(test)]
mod tests;
