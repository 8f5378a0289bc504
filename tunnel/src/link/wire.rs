//! Protobuf on the wire, just enough to look at one field and to change one field while every other
//! byte, known or not, stays as it came.

/// A message that does not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a protobuf message: broken at byte {0}")]
pub struct WireError(pub usize);

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its number.
    pub number: u32,
    /// What it holds, if it is a string, bytes or a message.
    pub content: Option<&'a [u8]>,
    /// All of its bytes, tag included.
    pub raw: &'a [u8],
}

pub(super) const LENGTH_DELIMITED: u64 = 2;

/// Takes a message apart.
///
/// # Errors
/// Where it breaks off or is no protobuf.
pub fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, WireError> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < message.len() {
        let begin = at;
        let broken = WireError(begin);
        let tag = varint(message, &mut at).ok_or(broken)?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0).ok_or(broken)?;
        let mut content = None;
        match tag & 7 {
            0 => drop(varint(message, &mut at).ok_or(broken)?),
            1 => at += 8,
            LENGTH_DELIMITED => {
                let length = varint(message, &mut at).and_then(|l| usize::try_from(l).ok());
                let end = length.and_then(|l| at.checked_add(l)).ok_or(broken)?;
                content = Some(message.get(at..end).ok_or(broken)?);
                at = end;
            }
            5 => at += 4,
            _ => return Err(broken),
        }
        found.push(Field { number, content, raw: message.get(begin..at).ok_or(broken)? });
    }
    Ok(found)
}

pub(super) fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a string, bytes or message field.
pub fn put(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    put_varint(out, (u64::from(number) << 3) | LENGTH_DELIMITED);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// The text of the last occurrence of a field, as protobuf wants it.
pub fn text(message: &[u8], number: u32) -> Option<&str> {
    let all = fields(message).ok()?;
    let content = all.iter().rev().find(|f| f.number == number)?.content?;
    std::str::from_utf8(content).ok()
}

/// Gives every occurrence of a field another content; the rest stays byte for byte.
///
/// # Errors
/// When the message is no protobuf, or when `change` fails.
pub fn map<E: From<WireError>>(
    message: &[u8],
    number: u32,
    mut change: impl FnMut(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let mut out = Vec::with_capacity(message.len() + 64);
    for field in fields(message)? {
        match field.content {
            Some(content) if field.number == number => put(&mut out, number, &change(content)?),
            _ => out.extend_from_slice(field.raw),
        }
    }
    Ok(out)
}

/// Leaves a field out.
///
/// # Errors
/// When the message is no protobuf.
pub fn without(message: &[u8], number: u32) -> Result<Vec<u8>, WireError> {
    let all = fields(message)?;
    Ok(all.iter().filter(|f| f.number != number).flat_map(|f| f.raw).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn changes_one_field_and_keeps_the_rest() {
        // 1: varint 150, 2: "dns", 9: fixed32, 2: "more"
        let message = b"\x08\x96\x01\x12\x03dns\x4d\x01\x02\x03\x04\x12\x04more";
        assert_eq!(without(message, 2).expect("parse"), b"\x08\x96\x01\x4d\x01\x02\x03\x04");
        let changed = map::<WireError>(message, 2, |c| Ok(c.to_ascii_uppercase())).expect("map");
        assert_eq!(changed, b"\x08\x96\x01\x12\x03DNS\x4d\x01\x02\x03\x04\x12\x04MORE");
        assert_eq!(text(message, 2), Some("more"));
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        for broken in [&b"\x12\x05ab"[..], b"\x08", b"\x0b", b"\x00\x00", b"\x4d\x01"] {
            assert!(fields(broken).is_err(), "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_what_parses_is_kept(bytes: Vec<u8>) {
            if let Ok(all) = fields(&bytes) {
                let again: Vec<u8> = all.iter().flat_map(|f| f.raw).copied().collect();
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
