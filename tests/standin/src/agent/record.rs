//! What an agent has seen, for tests to read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use peerpod_tunnel::link::frame::Request;

/// Calls that carry bytes or ask for health: counted, not kept.
const COUNTED_ONLY: [&str; 4] = ["ReadStdout", "ReadStderr", "WriteStdin", "Check"];
/// Most calls that are kept.
const KEPT: usize = 10_000;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Milliseconds since the agent's start.
    pub at_ms: u64,
    /// Which connection, counted from 1.
    pub connection: u64,
    /// ttrpc service.
    pub service: String,
    /// Method.
    pub method: String,
    /// The request's deadline, 0 is none.
    pub timeout_nano: i64,
    /// The request as it came, hexadecimal.
    pub payload: String,
}

impl Call {
    /// The request's bytes.
    pub fn bytes(&self) -> Bytes {
        let digit = |at: usize| self.payload.get(at..at + 2);
        let bytes = (0..self.payload.len()).step_by(2).filter_map(digit);
        bytes.filter_map(|d| u8::from_str_radix(d, 16).ok()).collect()
    }
}

/// What a CreateContainer asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSeen {
    /// Type and path of each namespace entry.
    pub namespaces: Vec<(String, String)>,
    /// OCI annotations.
    pub annotations: BTreeMap<String, String>,
    /// Command line.
    pub args: Vec<String>,
    /// Driver and source of each storage.
    pub storages: Vec<(String, String)>,
    /// Destination, source and type of each mount.
    #[serde(default)]
    pub mounts: Vec<(String, String, String)>,
}

/// A file that CopyFile has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSeen {
    /// Size announced, in bytes.
    pub size: u64,
    /// All of it has come.
    pub complete: bool,
    /// Its bytes as text, where they are text.
    pub text: String,
}

/// All that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// The agent's process id, in its own pid namespace.
    pub pid: u32,
    /// Connections accepted so far.
    pub connections: u64,
    /// Connections that have sent a byte.
    pub spoken: u64,
    /// Every call but the counted ones, in order of arrival.
    pub calls: Vec<Call>,
    /// Calls by method, all of them.
    pub counts: BTreeMap<String, u64>,
    /// `service/method` of what is not known here.
    pub unknown: Vec<String>,
    /// The sandbox, once there is one.
    pub sandbox: Option<String>,
    /// DNS lines of CreateSandbox.
    pub dns: Vec<String>,
    /// The policy, if one was set.
    pub policy: Option<String>,
    /// Containers ever asked for.
    pub containers: BTreeMap<String, ContainerSeen>,
    /// Files by path.
    pub files: BTreeMap<String, FileSeen>,
}

/// Keeps a [`Dump`], and a copy of it in a file.
#[derive(Debug)]
pub(super) struct Record {
    begin: Instant,
    file: Option<PathBuf>,
    dump: Mutex<Dump>,
}

impl Record {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        let dump = Mutex::new(Dump { pid: std::process::id(), ..Dump::default() });
        Self { begin: Instant::now(), file, dump }
    }

    pub(super) fn call(&self, connection: u64, request: &Request) {
        let kept = !COUNTED_ONLY.contains(&request.method.as_str());
        let change = |dump: &mut Dump| {
            *dump.counts.entry(request.method.clone()).or_default() += 1;
            if kept && dump.calls.len() < KEPT {
                dump.calls.push(Call {
                    at_ms: u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX),
                    connection,
                    service: request.service.clone(),
                    method: request.method.clone(),
                    timeout_nano: request.timeout_nano,
                    payload: request.payload.iter().map(|b| format!("{b:02x}")).collect(),
                });
            }
        };
        if kept { self.change(change) } else { self.quietly(change) }
    }

    /// Changes what was seen and writes the file anew.
    pub(super) fn change(&self, change: impl FnOnce(&mut Dump)) {
        let mut dump = self.dump.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut dump);
        let Some(file) = &self.file else { return };
        let partial = file.with_extension("partial");
        let text = serde_json::to_vec(&*dump).unwrap_or_default();
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, file));
        if let Err(error) = written {
            tracing::warn!(%error, file = %file.display(), "record not written");
        }
    }

    fn quietly(&self, change: impl FnOnce(&mut Dump)) {
        change(&mut self.dump.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn dump(&self) -> Dump {
        self.dump.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
