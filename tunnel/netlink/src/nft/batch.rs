//! What a batch is made of and how it is sent.

use std::io;

use netlink_sys::Socket;

use super::attribute::Attributes;
use super::expression::Rule;
use super::watch::socket_of_ours;
use crate::Error;
use crate::socket::{self, error_code, extended_ack, messages, sequence_of};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet = 1,
    /// Frames of one link, at its ingress.
    Netdev = 5,
}

/// A table, named.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Which packets.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

/// Where a base chain sits.
#[derive(Clone, Copy, Debug)]
pub enum Hook<'a> {
    /// On a link's way in.
    Ingress(&'a str),
    /// Before routing; fragments are still apart.
    Prerouting,
    /// What is for this host, put together again.
    Input,
    /// What this host sends.
    Output,
}

/// A chain to be made.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// Its name.
    pub name: &'a str,
    /// A base chain's place and priority; `None` is a chain to jump to.
    pub hook: Option<(Hook<'a>, i32)>,
    /// What happens to a packet at the end of a base chain.
    pub drop_by_default: bool,
}

impl Chain<'_> {
    /// A base chain's place and policy, as the kernel takes and tells them.
    pub(crate) fn place(&self) -> Attributes {
        let Some((hook, priority)) = self.hook else { return Attributes::default() };
        let number = match hook {
            Hook::Ingress(_) | Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Output => 3,
        };
        let mut place = Attributes::default().u32(1, number).bytes(2, &priority.to_be_bytes());
        if let Hook::Ingress(device) = hook {
            place = place.text(3, device);
        }
        let policy = u32::from(!self.drop_by_default);
        Attributes::default().nested(4, &place).u32(5, policy).text(7, "filter")
    }
}

/// A set of keys to be made.
#[derive(Clone, Copy, Debug)]
pub struct Set<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes of a key, parts padded to 4.
    pub key_length: u32,
    /// Rules put keys in, which leave after a while: so many at a time at most. Otherwise 0.
    pub remembers: u32,
}

impl Set<'_> {
    /// As the kernel tells it: 0x10 for keys that leave after a while, 0x20 for rules that put keys in.
    pub(crate) fn flags(&self) -> u32 {
        if self.remembers > 0 { 0x10 | 0x20 } else { 0 }
    }
}

/// Changes that happen all at once or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
    sets: u32,
    /// Where the last message begins.
    last: usize,
}

/// A batch that holds. What it has deleted, the kernel frees a little later, and closing a netfilter
/// socket of the namespace waits for that, some 10 ms: so does dropping this. With other things to
/// do, keep it meanwhile.
#[derive(Debug)]
pub struct Committed {
    _socket: Socket,
}

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        let mut batch = Self::default();
        batch.mark(0x10);
        batch
    }

    /// Makes a table; there already is success.
    #[must_use]
    pub fn table(mut self, table: Table<'_>) -> Self {
        let body = Attributes::default().text(1, table.name).u32(2, 0);
        self.add(NEW_TABLE, CREATE, table.family, &body);
        self
    }

    /// Deletes a table with all in it; absent fails the batch, so make it first if unsure.
    #[must_use]
    pub fn delete_table(mut self, table: Table<'_>) -> Self {
        let body = Attributes::default().text(1, table.name);
        self.add(DELETE_TABLE, 0, table.family, &body);
        self
    }

    /// Makes a chain; there already is success.
    #[must_use]
    pub fn chain(mut self, table: Table<'_>, chain: Chain<'_>) -> Self {
        let body = Attributes::default().text(1, table.name).text(3, chain.name);
        let body = Attributes([body.0, chain.place().0].concat());
        self.add(NEW_CHAIN, CREATE, table.family, &body);
        self
    }

    /// Makes a set; there already is success.
    #[must_use]
    pub fn set(mut self, table: Table<'_>, set: Set<'_>) -> Self {
        self.sets += 1;
        let mut body = Attributes::default()
            .text(1, table.name)
            .text(2, set.name)
            .u32(3, set.flags())
            .u32(4, 0)
            .u32(5, set.key_length)
            .u32(10, self.sets);
        if set.remembers > 0 {
            body = body.nested(9, &Attributes::default().u32(1, set.remembers));
        }
        self.add(NEW_SET, CREATE, table.family, &body);
        self
    }

    /// Puts a key into a set, with a text beside it; there already is success.
    #[must_use]
    pub fn element(mut self, table: Table<'_>, set: &str, key: &[u8], comment: &str) -> Self {
        // User data of type 0 is a comment, as nft(8) shows it.
        let mut text = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
        text.extend_from_slice(comment.as_bytes());
        text.push(0);
        let element = key_attribute(key).bytes(6, &text);
        self.add(NEW_ELEMENT, CREATE, table.family, &elements(table, set, &element));
        self
    }

    /// Puts many keys into a set.
    #[must_use]
    pub fn keys(mut self, table: Table<'_>, set: &str, keys: &[Vec<u8>]) -> Self {
        // As many as surely fit into one attribute.
        for some in keys.chunks(500) {
            let list = some
                .iter()
                .fold(Attributes::default(), |list, key| list.nested(1, &key_attribute(key)));
            let body = Attributes::default().text(1, table.name).text(2, set).nested(3, &list);
            self.add(NEW_ELEMENT, CREATE, table.family, &body);
        }
        self
    }

    /// Takes a key out of a set; absent fails the batch.
    #[must_use]
    pub fn delete_element(mut self, table: Table<'_>, set: &str, key: &[u8]) -> Self {
        let body = elements(table, set, &key_attribute(key));
        self.add(DELETE_ELEMENT, 0, table.family, &body);
        self
    }

    /// Appends a rule to a chain.
    #[must_use]
    pub fn rule(mut self, table: Table<'_>, chain: &str, rule: &Rule) -> Self {
        let body =
            Attributes::default().text(1, table.name).text(2, chain).nested(4, &rule.expressions);
        self.add(NEW_RULE, CREATE | APPEND, table.family, &body);
        self
    }

    /// The same as [`Batch::table`], but a table of that name fails the batch.
    #[must_use]
    pub fn new_table(mut self, table: Table<'_>) -> Self {
        let body = Attributes::default().text(1, table.name).u32(2, 0);
        self.add(NEW_TABLE, CREATE | EXCLUSIVE, table.family, &body);
        self
    }

    /// Sends the batch to the namespace of the calling thread and waits for the verdict, and until
    /// what it deletes has been freed.
    ///
    /// # Errors
    /// The first refusal; nothing of the batch has happened then.
    pub fn send(self, operation: &str) -> Result<(), Error> {
        self.commit(operation).map(drop)
    }

    /// The same without waiting for anything to be freed.
    ///
    /// # Errors
    /// As [`Batch::send`].
    pub fn commit(self, operation: &str) -> Result<Committed, Error> {
        let socket = socket_of_ours()?;
        let mut over = self.count == 1;
        let bytes = self.finished();
        let _ = socket::room_to_send(&socket, bytes.len());
        let sent = socket.send(&bytes, 0);
        sent.map_err(|e| socket::kernel(operation, e, None))?;
        // Refusals come first, in order; the last message alone is acknowledged.
        while !over {
            let (bytes, _) = socket.recv_from_full().map_err(Error::Socket)?;
            for raw in messages(&bytes) {
                match error_code(raw) {
                    Some(0) => over = true,
                    Some(code) => {
                        let source = io::Error::from_raw_os_error(code.saturating_neg());
                        let step = format!("{operation}, step {}", sequence_of(raw));
                        return Err(socket::kernel(&step, source, extended_ack(raw)));
                    }
                    None => {}
                }
            }
        }
        Ok(Committed { _socket: socket })
    }

    /// As it is sent. Of thousands of acknowledgements a socket's buffer would hold a few hundred.
    pub(crate) fn finished(mut self) -> Vec<u8> {
        if self.count > 1
            && let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8)
            && let Ok(bytes) = <[u8; 2]>::try_from(&*flags)
        {
            flags.copy_from_slice(&(u16::from_ne_bytes(bytes) | ACK).to_ne_bytes());
        }
        self.mark(0x11);
        self.bytes
    }

    fn mark(&mut self, kind: u16) {
        self.put(kind, REQUEST, [0, 0, 0, 10], &[]);
    }

    fn add(&mut self, kind: u16, flags: u16, family: Family, body: &Attributes) {
        let header = [family as u8, 0, 0, 0];
        self.put(SUBSYSTEM | kind, REQUEST | flags, header, &body.0);
    }

    fn put(&mut self, kind: u16, flags: u16, header: [u8; 4], body: &[u8]) {
        let length = u32::try_from(16 + 4 + body.len()).unwrap_or(u32::MAX);
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(body);
        self.count += 1;
    }
}

pub(super) fn key_attribute(key: &[u8]) -> Attributes {
    Attributes::default().nested(1, &Attributes::default().bytes(1, key))
}

pub(super) fn elements(table: Table<'_>, set: &str, element: &Attributes) -> Attributes {
    Attributes::default()
        .text(1, table.name)
        .text(2, set)
        .nested(3, &Attributes::default().nested(1, element))
}
