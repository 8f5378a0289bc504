//! Netlink attributes of nftables: numbers in network byte order, nesting, names.

/// A growing list of attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(pub(crate) Vec<u8>);

const NESTED: u16 = 0x8000;

impl Attributes {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Walks attributes that the kernel sent; stops at the first that does not fit.
pub(crate) fn walk(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    walk(attributes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

pub(crate) fn u64_be(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*value.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_the_kernel_sends_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = walk(&bytes).count();
        }

        #[test]
        fn what_was_written_is_found(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            let list = Attributes::default().u32(1, 7).bytes(2, &value).text(3, "x");
            prop_assert_eq!(find(&list.0, 2), Some(&value[..]));
        }
    }
}
