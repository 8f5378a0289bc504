//! What the local provider is told.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::Market;
use crate::common;
use crate::settings::{Key, Reader, SettingsError, Values, duration};

const STATE_DIR: Key = Key::plain(
    "local-state-dir",
    "LOCAL_STATE_DIR",
    "/run/peerpod/local",
    "directory of the local VMs; should not survive a reboot, since they do not",
);
pub(super) const CIDR: Key = Key::plain(
    "local-cidr",
    "LOCAL_CIDR",
    "172.31.0.0/24",
    "network of the local VMs; its first address is the machine's own",
);
const PODVM: Key = Key::plain(
    "local-podvm",
    "LOCAL_PODVM",
    "",
    "podvm command of a local VM, with its arguments; default: the file podvm beside this program",
);
const AGENT: Key = Key::plain(
    "local-agent",
    "LOCAL_AGENT",
    "",
    "agent command of a local VM, with its arguments; default: standin-agent beside this program, \
     else kata-agent from PATH",
);
const BOOT_DELAY: Key =
    Key::plain("local-boot-delay", "LOCAL_BOOT_DELAY", "0", "how long a local VM pretends to boot");
const MODE: Key = Key::plain(
    "local-mode",
    "LOCAL_MODE",
    "namespace",
    "what a local VM is made of; there is only namespace",
);
const KEYS: [Key; 7] = [STATE_DIR, CIDR, PODVM, AGENT, BOOT_DELAY, MODE, common::SPOT];

/// The settings of this provider.
pub fn keys() -> &'static [Key] {
    &KEYS
}

/// Checked settings. See [`keys`] for where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// One directory per VM lives here.
    pub state_dir: PathBuf,
    /// The VMs' network; the first address is the bridge's.
    pub cidr: IpNetwork,
    /// The real podvm program, with its arguments.
    pub podvm: Vec<OsString>,
    /// The agent behind it, with its arguments.
    pub agent: Vec<OsString>,
    /// How long a VM pretends to boot.
    pub boot_delay: Duration,
    /// Markets in the order of preference. A VM is the same whatever it is.
    pub markets: Vec<Market>,
    /// The command that runs [`super::guest_main`]; the VM's directory is its standard input.
    pub guest_program: Vec<OsString>,
}

impl Settings {
    /// Reads the settings. `program` is the daemon's own executable, beside which the VM's programs
    /// are looked for; `search` is the value of PATH.
    ///
    /// # Errors
    /// All that is wrong, each with its key.
    pub fn from_values(
        values: &Values,
        program: &Path,
        search: &str,
    ) -> Result<Self, SettingsError> {
        let mut reader = Reader::new(values);
        reader.parsed(&MODE, mode);
        let state_dir = reader.parsed(&STATE_DIR, absolute);
        let cidr = reader.parsed(&CIDR, network);
        let boot_delay = reader.parsed(&BOOT_DELAY, duration);
        let common = common::read(&mut reader, &KEYS);
        let podvm = match reader.text(&PODVM) {
            Some(_) => reader.parsed(&PODVM, absolute_command),
            None => Some(vec![beside(program, "podvm").into()]),
        };
        let agent = match reader.text(&AGENT) {
            Some(_) => reader.parsed(&AGENT, |text| command(text, search)),
            None => Some(vec![default_agent(program, search).into()]),
        };
        let settings = (|| {
            Some(Self {
                state_dir: state_dir?,
                cidr: cidr?,
                podvm: podvm?,
                agent: agent?,
                boot_delay: boot_delay?,
                markets: common?.markets,
                guest_program: vec![program.into(), "local-guest".into()],
            })
        })();
        reader.finish(settings)
    }

    /// The machine's own address in the VMs' network.
    pub fn gateway(&self) -> IpAddr {
        nth(self.cidr, 1)
    }

    /// The addresses VMs may have, lowest first: all but the network's own, the gateway and, in
    /// IPv4, the broadcast address. Never more than a million.
    pub fn vm_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let cidr = self.cidr;
        let host_bits = if cidr.is_ipv4() { 32 - cidr.prefix() } else { 128 - cidr.prefix() };
        let all = 1_u32 << host_bits.min(20);
        let last = if cidr.is_ipv4() { all - 1 } else { all };
        (2..last).map(move |n| nth(cidr, n))
    }
}

/// The n-th address of a network.
fn nth(cidr: IpNetwork, n: u32) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(a) => IpAddr::V4((a.to_bits() | n).into()),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() | u128::from(n)).into()),
    }
}

fn mode(text: &str) -> Result<(), &'static str> {
    match text {
        "namespace" => Ok(()),
        "qemu" => Err("is not in this build; a local VM is made of namespaces (namespace)"),
        _ => Err("is not known; there is only namespace"),
    }
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("is not an absolute path") }
}

/// A command whose program is named by its absolute path.
fn absolute_command(text: &str) -> Result<Vec<OsString>, &'static str> {
    let words = words(text)?;
    match words.first() {
        Some(program) if Path::new(program).is_absolute() => Ok(words),
        _ => Err("is not an absolute path"),
    }
}

fn network(text: &str) -> Result<IpNetwork, String> {
    let cidr: IpNetwork =
        text.parse().map_err(|_| "is not a network such as 172.31.0.0/24".to_owned())?;
    if cidr.ip() != cidr.network() {
        return Err(format!(
            "has host bits set; the network is {}/{}",
            cidr.network(),
            cidr.prefix()
        ));
    }
    let (least, most) = if cidr.is_ipv4() { (8, 29) } else { (32, 125) };
    if !(least..=most).contains(&cidr.prefix()) {
        return Err(format!("has a prefix outside /{least} to /{most}"));
    }
    let first = cidr.network();
    if first.is_multicast() || first.is_loopback() || first.is_unspecified() {
        return Err("is no network that machines can have".to_owned());
    }
    Ok(cidr)
}

/// Splits a command as a shell would: blanks part words, both quotes and the backslash keep them
/// together. Nothing is expanded.
fn words(text: &str) -> Result<Vec<OsString>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => {
                let next = chars.next().ok_or("ends in a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take().map(OsString::from)),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("has a quote that is not closed");
    }
    words.extend(word.map(OsString::from));
    if words.is_empty() { Err("names no program") } else { Ok(words) }
}

fn beside(program: &Path, name: &str) -> PathBuf {
    program.parent().unwrap_or(Path::new("/")).join(name)
}

/// A command whose program is named by path, or stands in PATH. One that stands nowhere is kept as it
/// is, and `check` misses it.
fn command(text: &str, search: &str) -> Result<Vec<OsString>, &'static str> {
    let mut words = words(text)?;
    if let Some(program) = words.first_mut()
        && !program.as_encoded_bytes().contains(&b'/')
        && let Some(found) = in_path(program, search)
    {
        *program = found.into();
    }
    Ok(words)
}

/// The path of the agent; if there is none at all, the first choice, which `check` then misses.
fn default_agent(program: &Path, search: &str) -> PathBuf {
    let standin = beside(program, "standin-agent");
    if standin.is_file() {
        return standin;
    }
    in_path("kata-agent".as_ref(), search).unwrap_or(standin)
}

fn in_path(program: &OsStr, search: &str) -> Option<PathBuf> {
    let mut found = search.split(':').map(|dir| Path::new(dir).join(program));
    found.find(|path| path.is_absolute() && path.is_file())
}

#[cfg(test)]
mod tests;
