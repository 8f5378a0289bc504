//! Reading back: which tables, rules, counters and set elements are there.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::attribute::{find, text, u64_be, walk};
use super::batch::{Family, Table, elements, key_attribute};
use crate::Error;
use crate::socket::{self, error_code, messages, type_of};

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Counter {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// Looks at the tables of the calling thread's namespace.
#[derive(Clone, Copy, Debug)]
pub struct Nft;

pub(super) const GET_TABLE: u16 = 0x0a01;
pub(super) const GET_CHAIN: u16 = 0x0a04;
pub(super) const GET_RULE: u16 = 0x0a07;
pub(super) const GET_SET: u16 = 0x0a0a;
const GET_ELEMENT: u16 = 0x0a0d;
const DONE: u16 = 3;
/// A request for one thing, acknowledged.
const ONE: u16 = 0x1 | 0x4;
/// A request for all things.
const ALL: u16 = 0x1 | 0x300;

impl Nft {
    /// Names of the tables of a family.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn tables(family: Family) -> Result<Vec<String>, Error> {
        let answer = dump("list tables", GET_TABLE, family, &[])?;
        Ok(answer.iter().filter_map(|m| find(m, 1)).map(text).collect())
    }

    /// The counters of a chain's rules, in order; 0 for a rule without a counter.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn counters(table: Table<'_>, chain: &str) -> Result<Vec<Counter>, Error> {
        let body = super::attribute::Attributes::default().text(1, table.name).text(2, chain);
        let answer = dump("list rules", GET_RULE, table.family, &body.0)?;
        let ours = answer.iter().filter(|m| {
            find(m, 1).map(text).as_deref() == Some(table.name)
                && find(m, 2).map(text).as_deref() == Some(chain)
        });
        Ok(ours.map(|m| counter_of(m)).collect())
    }

    /// Whether a set holds a key. An absent set holds none.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn holds(table: Table<'_>, set: &str, key: &[u8]) -> Result<bool, Error> {
        let body = elements(table, set, &key_attribute(key));
        let request = Request { kind: GET_ELEMENT, how: ONE, family: table.family };
        match ask("look for a key", request, &body.0, |_| false) {
            Err(e) if e.is_absent() => Ok(false),
            other => other.map(|found| !found.is_empty()),
        }
    }

    /// The keys of a set, each with its comment. An absent set is empty.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn elements(table: Table<'_>, set: &str) -> Result<Vec<(Vec<u8>, String)>, Error> {
        let body = super::attribute::Attributes::default().text(1, table.name).text(2, set);
        match dump("list elements", GET_ELEMENT, table.family, &body.0) {
            Err(e) if e.is_absent() => Ok(Vec::new()),
            answer => Ok(answer?.iter().flat_map(|m| elements_of(m)).collect()),
        }
    }

    /// Whether a set holds another key than that; of thousands only the first are read.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn holds_another(table: Table<'_>, set: &str, key: &[u8]) -> Result<bool, Error> {
        let body = super::attribute::Attributes::default().text(1, table.name).text(2, set);
        let another = |all: &[Vec<u8>]| {
            all.iter().flat_map(|m| elements_of(m)).any(|(have, _)| have.as_slice() != key)
        };
        let request = Request { kind: GET_ELEMENT, how: ALL, family: table.family };
        match ask("look for other keys", request, &body.0, another) {
            Err(e) if e.is_absent() => Ok(false),
            answer => Ok(another(&answer?)),
        }
    }
}

fn elements_of(message: &[u8]) -> impl Iterator<Item = (Vec<u8>, String)> {
    let list = find(message, 3).unwrap_or_default();
    walk(list).filter_map(|(_, element)| element_of(element))
}

pub(crate) fn element_of(element: &[u8]) -> Option<(Vec<u8>, String)> {
    let key = find(find(element, 1)?, 1)?.to_vec();
    let comment = find(element, 6).and_then(|data| data.get(2..)).map(text).unwrap_or_default();
    Some((key, comment))
}

pub(crate) fn counter_of(rule: &[u8]) -> Counter {
    let expressions = find(rule, 4).unwrap_or_default();
    walk(expressions)
        .find(|(_, e)| find(e, 1).map(text).as_deref() == Some("counter"))
        .and_then(|(_, e)| {
            let data = find(e, 2)?;
            Some(Counter {
                bytes: find(data, 1).and_then(u64_be)?,
                packets: find(data, 2).and_then(u64_be)?,
            })
        })
        .unwrap_or_default()
}

/// Sends a dump request and gives the attributes of every answer.
pub(super) fn dump(
    what: &str,
    kind: u16,
    family: Family,
    body: &[u8],
) -> Result<Vec<Vec<u8>>, Error> {
    ask(what, Request { kind, how: ALL, family }, body, |_| false)
}

struct Request {
    kind: u16,
    how: u16,
    family: Family,
}

/// Sends a request and gives the attributes of every answer, up to where it is enough.
fn ask(
    what: &str,
    Request { kind, how, family }: Request,
    body: &[u8],
    enough: impl Fn(&[Vec<u8>]) -> bool,
) -> Result<Vec<Vec<u8>>, Error> {
    let socket = socket::open(NETLINK_NETFILTER)?;
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(20 + body.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&how.to_ne_bytes());
    bytes.extend_from_slice(&1u32.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&[family as u8, 0, 0, 0]);
    bytes.extend_from_slice(body);
    socket.send(&bytes, 0).map_err(|e| socket::kernel(what, e, None))?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().map_err(Error::Socket)?;
        if take(what, &bytes, &mut found)? || enough(&found) {
            return Ok(found);
        }
    }
}

/// Takes what one datagram of a dump says; true when that was all.
pub(crate) fn take(what: &str, bytes: &[u8], found: &mut Vec<Vec<u8>>) -> Result<bool, Error> {
    for raw in messages(bytes) {
        if let Some(code) = error_code(raw) {
            let source = std::io::Error::from_raw_os_error(code.saturating_neg());
            return match code {
                0 => Ok(true),
                _ => Err(socket::kernel(what, source, socket::extended_ack(raw))),
            };
        }
        if type_of(raw) == DONE {
            return Ok(true);
        }
        found.push(raw.get(20..).unwrap_or_default().to_vec());
    }
    Ok(false)
}
