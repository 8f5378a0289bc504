//! The expressions our rules are made of. Registers are the 4-byte ones (8 and up); a
//! concatenation lies in consecutive registers, each part padded to 4 bytes.

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
    /// Back to the caller of this chain.
    Return,
}

/// What a packet carries besides its bytes.
#[derive(Clone, Copy, Debug)]
pub enum Meta {
    /// EtherType of the packet, 2 bytes.
    Protocol = 1,
    /// Netfilter's family of the packet, 1 byte: 2 is IPv4, 10 is IPv6.
    NfProto = 15,
    /// Layer 4 protocol, 1 byte.
    L4Protocol = 16,
}

const FIRST_REGISTER: u32 = 8;
const EXPRESSION: u16 = 1;

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
            .u32(1, FIRST_REGISTER + slot)
            .u32(2, base as u32)
            .u32(3, offset)
            .u32(4, length);
        self.push("payload", &data)
    }

    /// Loads a property of the packet into register slot `slot`.
    #[must_use]
    pub fn meta(self, slot: u32, key: Meta) -> Self {
        let data = Attributes::default().u32(2, key as u32).u32(1, FIRST_REGISTER + slot);
        self.push("meta", &data)
    }

    /// Goes on only if the slot compares so with `value`.
    #[must_use]
    pub fn compare(self, slot: u32, how: Compare, value: &[u8]) -> Self {
        let data = Attributes::default()
            .u32(1, FIRST_REGISTER + slot)
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
            .u32(1, FIRST_REGISTER + slot)
            .u32(2, FIRST_REGISTER + slot)
            .u32(3, length)
            .nested(4, &Attributes::default().bytes(1, mask))
            .nested(5, &Attributes::default().bytes(1, &zero));
        self.push("bitwise", &data)
    }

    /// Goes on only if what lies in the slots from `slot` on is in the set (or is not, with
    /// `inverted`).
    #[must_use]
    pub fn lookup(self, slot: u32, set: &str, inverted: bool) -> Self {
        let data = Attributes::default()
            .text(1, set)
            .u32(2, FIRST_REGISTER + slot)
            .u32(5, u32::from(inverted));
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
            .u32(1, FIRST_REGISTER)
            .nested(2, &Attributes::default().bytes(1, &index.to_ne_bytes()));
        self.push("immediate", &load).push("fwd", &Attributes::default().u32(1, FIRST_REGISTER))
    }

    /// Ends the rule.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        let code: i32 = match verdict {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Return => -5,
        };
        let inner = Attributes::default().bytes(1, &code.to_be_bytes());
        let data =
            Attributes::default().u32(1, 0).nested(2, &Attributes::default().nested(2, &inner));
        self.push("immediate", &data)
    }

    /// Jumps to another chain of the table and comes back.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        let code: i32 = -3;
        let inner = Attributes::default().bytes(1, &code.to_be_bytes()).text(2, chain);
        let data =
            Attributes::default().u32(1, 0).nested(2, &Attributes::default().nested(2, &inner));
        self.push("immediate", &data)
    }
}
