//! Reads the text of one setting. Every refusal is a sentence that goes on after "key = value: ".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use peerpod_tunnel::network::Liberty;
use podvm::initdata::Initdata;
use tracing_subscriber::EnvFilter;

use super::settings::LogFormat;
use crate::labels::{CostTag, label};

/// Longest path of a unix socket, without the closing zero (`sun_path` of unix(7)).
pub(super) const SOCKET_MAX: usize = 107;

/// Targets of our own crates.
const OURS: [&str; 5] =
    ["peerpodd", "peerpod_providers", "peerpod_tunnel", "peerpod_netlink", "podvm"];

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("is not true, 1, false or 0".to_owned()),
    }
}

/// A whole number from `MIN` to `MAX`.
pub(super) fn number<const MIN: i64, const MAX: i64>(text: &str) -> Result<i64, String> {
    let value: Option<i64> = text.parse().ok();
    value
        .filter(|n| (MIN..=MAX).contains(n))
        .ok_or_else(|| format!("is not a whole number from {MIN} to {MAX}"))
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    let port: Option<u16> = text.parse().ok();
    port.filter(|p| *p > 0).ok_or_else(|| "is not a port from 1 to 65535".to_owned())
}

/// A Go duration from `MIN_MS` to `MAX_MS` milliseconds.
pub(super) fn duration<const MIN_MS: u64, const MAX_MS: u64>(
    text: &str,
) -> Result<Duration, String> {
    let (min, max) = (Duration::from_millis(MIN_MS), Duration::from_millis(MAX_MS));
    let value = peerpod_providers::settings::duration(text)?;
    if value < min || value > max {
        return Err(format!("is not between {min:?} and {max:?}"));
    }
    Ok(value)
}

/// `0` is "never".
pub(super) fn interval(text: &str) -> Result<Option<Duration>, String> {
    match peerpod_providers::settings::duration(text)? {
        Duration::ZERO => Ok(None),
        value if value < Duration::from_secs(1) => Err("is shorter than 1s and not 0".to_owned()),
        value => Ok(Some(value)),
    }
}

pub(super) fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Empty is `None`.
pub(super) fn optional(text: &str) -> Result<Option<String>, String> {
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// An absolute path without `..`, so that it means the same whoever reads it.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("is not an absolute path".to_owned());
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err("contains `..`".to_owned());
    }
    Ok(path.components().collect())
}

pub(super) fn socket(text: &str) -> Result<PathBuf, String> {
    let path = directory(text)?;
    let long = path.as_os_str().len();
    if long > SOCKET_MAX {
        return Err(format!("has {long} bytes; the path of a socket has at most {SOCKET_MAX}"));
    }
    Ok(path)
}

/// A directory with sockets below it, whose shortest possible names must fit.
pub(super) fn socket_directory<const BELOW: usize>(text: &str) -> Result<PathBuf, String> {
    let path = directory(text)?;
    let (long, most) = (path.as_os_str().len(), SOCKET_MAX.saturating_sub(BELOW));
    if long > most {
        return Err(format!("has {long} bytes; for the sockets below it at most {most} fit"));
    }
    Ok(path)
}

pub(super) fn file(text: &str) -> Result<Option<PathBuf>, String> {
    if text.is_empty() { Ok(None) } else { directory(text).map(Some) }
}

/// Comma list; parts are trimmed, empty ones and repetitions are dropped.
pub(super) fn list(text: &str) -> Result<Vec<String>, String> {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        if !parts.iter().any(|p| p == part) {
            parts.push(part.to_owned());
        }
    }
    Ok(parts)
}

pub(super) fn directories(text: &str) -> Result<Vec<PathBuf>, String> {
    list(text)?.iter().map(|part| directory(part).map_err(|e| format!("{part:?} {e}"))).collect()
}

pub(super) fn networks(text: &str) -> Result<Vec<IpNetwork>, String> {
    let parse = |part: String| {
        if !part.contains('/') {
            return Err(format!("{part:?} is not a network such as 10.0.0.0/8"));
        }
        part.parse().map_err(|_| format!("{part:?} is not a network such as 10.0.0.0/8"))
    };
    list(text)?.into_iter().map(parse).collect()
}

pub(super) fn liberties(text: &str) -> Result<Vec<Liberty>, String> {
    list(text)?.into_iter().map(|part| part.parse()).collect()
}

pub(super) fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let parse = |part: String| part.parse().map_err(|_| format!("{part:?} is not an IP address"));
    list(text)?.into_iter().map(parse).collect()
}

/// `k=v,k=v`; without `=` a single `:` parts key and value, since users' guides show both.
pub(super) fn tags(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut tags = BTreeMap::new();
    for pair in list(text)? {
        let (key, value) = pair
            .split_once('=')
            .or_else(|| pair.split_once(':').filter(|(_, value)| !value.contains(':')))
            .ok_or_else(|| format!("{pair:?} is not key=value"))?;
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        if key.is_empty() {
            return Err(format!("{pair:?} has no key"));
        }
        if peerpod_providers::tags::is_reserved(&key) {
            return Err(format!("{key:?} begins with peerpodd-, which is kept for our own tags"));
        }
        if tags.insert(key.clone(), value).is_some() {
            return Err(format!("{key:?} is given twice"));
        }
    }
    Ok(tags)
}

/// `label,label=tag`.
pub(super) fn cost_tags(text: &str) -> Result<Vec<CostTag>, String> {
    label::cost_tags(&list(text)?)
}

pub(super) fn tunnel_type(text: &str) -> Result<String, String> {
    match text {
        "vxlan" => Ok(text.to_owned()),
        _ => Err("is not vxlan, the only tunnel there is".to_owned()),
    }
}

/// Kernel interface names: 1 to 15 bytes without slash and space.
pub(super) fn interface(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let legal = text.len() <= 15 && !text.contains(|c: char| c == '/' || c.is_whitespace());
    if legal && text != "." && text != ".." {
        Ok(Some(text.to_owned()))
    } else {
        Err("is not the name of a network interface (1 to 15 bytes)".to_owned())
    }
}

pub(super) fn initdata(text: &str) -> Result<Option<Initdata>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    Initdata::decode(text).map(Some).map_err(|e| e.to_string())
}

/// providers.md 2.1.
pub(super) fn installation_id(text: &str) -> Result<Option<String>, String> {
    match text {
        "" => Ok(None),
        id if is_installation_id(id) => Ok(Some(id.to_owned())),
        _ => Err("is not 1 to 63 characters of a-z, 0-9 and -".to_owned()),
    }
}

pub(super) fn is_installation_id(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

pub(super) fn provider(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text.to_ascii_lowercase().as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is not text or json".to_owned()),
    }
}

/// A level or directives. `fatal` and `panic` are levels of KataConfig that we do not part from
/// `error`.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let filter = match text.to_ascii_lowercase().as_str() {
        "fatal" | "panic" => "error".to_owned(),
        level @ ("error" | "warn" | "info" | "off") => level.to_owned(),
        // Only our own crates: at these levels others print what passes through them.
        level @ ("debug" | "trace") => OURS
            .iter()
            .fold("info".to_owned(), |filter, crate_name| format!("{filter},{crate_name}={level}")),
        // A bare word would be taken for a target and silence everything else.
        word if !word.contains(['=', ',', '[']) => {
            return Err("is not off, error, warn, info, debug or trace".to_owned());
        }
        _ => text.to_owned(),
    };
    EnvFilter::builder().parse(&filter).map_err(|e| format!("is not a log filter: {e}"))?;
    Ok(filter)
}

#[cfg(test)]
mod tests;
