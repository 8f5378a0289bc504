//! The expressions our rules are made of. A slot is a register of 4 bytes; a concatenation lies in
//! consecutive ones, each part padded to 4 bytes.

use super::attribute::Attributes;

/// A list of expressions: one rule.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub(crate) expressions: Attributes,
}

/// Where a payload offset counts from.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// The Ethernet header.
    Link = 0,
    /// The IP header.
    Network = 1,
    /// UDP, TCP, ICMP, …
    Transport = 2,
}

/// How to compare.
#[derive(Clone, Copy, Debug)]
pub enum Compare {
    /// ==
    Equal = 0,
    /// !=
    NotEqual = 1,
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// Gone.
    Drop,
    /// Goes on.
    Accept,
}

/// What a packet carries besides its bytes.
#[derive(Clone, Copy, Debug)]
pub enum Meta {
    /// EtherType of the packet, 2 bytes.
    Protocol = 1,
    /// The kernel's priority of the packet, 4 bytes in the machine's own order.
    Priority = 2,
    /// Netfilter's family of the packet, 1 byte: 2 is IPv4, 10 is IPv6.
    NfProto = 15,
    /// Layer 4 protocol, 1 byte.
    L4Protocol = 16,
}

const EXPRESSION: u16 = 1;
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const GOTO: i32 = -4;

/// The register of a slot, named as the kernel names it when it tells a rule: the first of every four
/// by its 16-byte name, so that what is sent and what comes back are the same bytes.
const fn register(slot: u32) -> u32 {
    if slot.is_multiple_of(4) { 1 + slot / 4 } else { 8 + slot }
}

impl Rule {
    /// An empty rule.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(mut self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::default().text(1, name).nested(2, data);
        self.expressions = self.expressions.nested(EXPRESSION, &expression);
        self
    }

    /// Loads packet bytes into register slot `slot` (0 …).
    #[must_use]
    pub fn payload(self, slot: u32, base: Base, offset: u32, length: u32) -> Self {
        let data = Attributes::default()
            .u32(1, register(slot))
            .u32(2, base as u32)
            .u32(3, offset)
            .u32(4, length);
        self.push("payload", &data)
    }

    /// Loads a property of the packet into register slot `slot`.
    #[must_use]
    pub fn meta(self, slot: u32, key: Meta) -> Self {
        let data = Attributes::default().u32(2, key as u32).u32(1, register(slot));
        self.push("meta", &data)
    }

    /// Goes on only if the slot compares so with `value`.
    #[must_use]
    pub fn compare(self, slot: u32, how: Compare, value: &[u8]) -> Self {
        let data = Attributes::default()
            .u32(1, register(slot))
            .u32(2, how as u32)
            .nested(3, &Attributes::default().bytes(1, value));
        self.push("cmp", &data)
    }

    /// `slot = (slot & mask)`, byte for byte.
    #[must_use]
    pub fn mask(self, slot: u32, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let zero = vec![0; mask.len()];
        let data = Attributes::default()
            .u32(1, register(slot))
            .u32(2, register(slot))
            .u32(3, length)
            .nested(4, &Attributes::default().bytes(1, mask))
            .nested(5, &Attributes::default().bytes(1, &zero));
        self.push("bitwise", &data)
    }

    /// Goes on only if what lies in the slots from `slot` on is in the set (or is not, with
    /// `inverted`).
    #[must_use]
    pub fn lookup(self, slot: u32, set: &str, inverted: bool) -> Self {
        let data =
            Attributes::default().text(1, set).u32(2, register(slot)).u32(5, u32::from(inverted));
        self.push("lookup", &data)
    }

    /// Counts packets and bytes.
    #[must_use]
    pub fn counter(self) -> Self {
        let zero = [0; 8];
        self.push("counter", &Attributes::default().bytes(1, &zero).bytes(2, &zero))
    }

    /// Takes the packet out of connection tracking.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.push("notrack", &Attributes::default())
    }

    /// Sends the packet out of the link with that index, here and now (netdev ingress only).
    #[must_use]
    pub fn forward_to(self, index: u32) -> Self {
        let load = Attributes::default()
            .u32(1, register(0))
            .nested(2, &Attributes::default().bytes(1, &index.to_ne_bytes()));
        self.push("immediate", &load).push("fwd", &Attributes::default().u32(1, register(0)))
    }

    /// Gives the packet a priority of the kernel's.
    #[must_use]
    pub fn prioritise(self, priority: u32) -> Self {
        let load = Attributes::default()
            .u32(1, register(0))
            .nested(2, &Attributes::default().bytes(1, &priority.to_ne_bytes()));
        let data = Attributes::default().u32(2, Meta::Priority as u32).u32(3, register(0));
        self.push("immediate", &load).push("meta", &data)
    }

    /// Loads bytes of an IPv6 extension header, wherever it stands, into a slot; goes on only where
    /// there is one.
    #[must_use]
    pub fn extension(self, slot: u32, header: u8, offset: u32, length: u32) -> Self {
        self.push("exthdr", &extension(slot, header, offset, length, 0))
    }

    /// Goes on only where the packet has that IPv6 extension header.
    #[must_use]
    pub fn has_extension(self, header: u8) -> Self {
        const PRESENT: u32 = 1;
        let data = extension(0, header, 0, 1, PRESENT);
        self.push("exthdr", &data).compare(0, Compare::Equal, &[1])
    }

    /// Puts what lies in the slots from 0 on into a set, for `timeout_ms` from now.
    #[must_use]
    pub fn remember(self, set: &str, timeout_ms: u64) -> Self {
        const UPDATE: u32 = 1;
        let data = Attributes::default()
            .text(1, set)
            .u32(3, UPDATE)
            .u32(4, register(0))
            .bytes(6, &timeout_ms.to_be_bytes());
        self.push("dynset", &data)
    }

    /// Ends the rule.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        let code = match verdict {
            Verdict::Drop => DROP,
            Verdict::Accept => ACCEPT,
        };
        self.ends(&Attributes::default().bytes(1, &code.to_be_bytes()))
    }

    /// Goes on in another chain of the table, for good.
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.ends(&Attributes::default().bytes(1, &GOTO.to_be_bytes()).text(2, chain))
    }

    fn ends(self, verdict: &Attributes) -> Self {
        let data =
            Attributes::default().u32(1, 0).nested(2, &Attributes::default().nested(2, verdict));
        self.push("immediate", &data)
    }
}

fn extension(slot: u32, header: u8, offset: u32, length: u32, flags: u32) -> Attributes {
    Attributes::default()
        .u32(1, register(slot))
        .bytes(2, &[header])
        .u32(3, offset)
        .u32(4, length)
        .u32(5, flags)
}
