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
    walk(message).collect()
}

/// Takes a message apart field by field, without memory of its own: of a message of the longest
/// kind, [`fields`] would be twenty times as long. Nothing comes after an error.
pub fn walk(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, WireError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= message.len() {
            return None;
        }
        let begin = at;
        let found = field(message, &mut at).ok_or(WireError(begin));
        if found.is_err() {
            at = message.len();
        }
        Some(found)
    })
}

fn field<'a>(message: &'a [u8], at: &mut usize) -> Option<Field<'a>> {
    let begin = *at;
    let tag = varint(message, at)?;
    let number = number(tag)?;
    let mut content = None;
    match tag & 7 {
        0 => drop(varint(message, at)?),
        1 => *at += 8,
        LENGTH_DELIMITED => {
            let length = usize::try_from(varint(message, at)?).ok()?;
            let end = at.checked_add(length)?;
            content = Some(message.get(*at..end)?);
            *at = end;
        }
        5 => *at += 4,
        _ => return None,
    }
    Some(Field { number, content, raw: message.get(begin..*at)? })
}

/// The field that a tag names; protobuf has numbers from 1 to 2^29 - 1.
pub(super) fn number(tag: u64) -> Option<u32> {
    u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n))
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

/// The text of the last occurrence of a field, as protobuf wants it. Occurrences of another type than
/// text do not count: other readers skip them, too.
pub fn text(message: &[u8], number: u32) -> Option<&str> {
    let mut last = None;
    for field in walk(message) {
        let field = field.ok()?;
        last = field.content.filter(|_| field.number == number).or(last);
    }
    std::str::from_utf8(last?).ok()
}

/// The number in the last occurrence of a field of that type; 0, as protobuf has it, without one.
///
/// # Errors
/// When the message is no protobuf.
pub fn number_of(message: &[u8], field: u32) -> Result<u64, WireError> {
    let mut last = 0;
    for found in walk(message) {
        let found = found?;
        if found.number == field && found.content.is_none() {
            let mut at = 0;
            let tag = varint(found.raw, &mut at).unwrap_or_default();
            if tag & 7 == 0 {
                last = varint(found.raw, &mut at).unwrap_or_default();
            }
        }
    }
    Ok(last)
}

/// How often a field of text, bytes or messages occurs.
///
/// # Errors
/// When the message is no protobuf.
pub fn count(message: &[u8], number: u32) -> Result<usize, WireError> {
    let mut count = 0;
    for field in walk(message) {
        let field = field?;
        count += usize::from(field.number == number && field.content.is_some());
    }
    Ok(count)
}

/// Gives every occurrence of a field another content; the rest stays byte for byte, and so does an
/// occurrence whose content stays the same, however its length is written.
///
/// # Errors
/// When the message is no protobuf, or when `change` fails.
pub fn map<E: From<WireError>>(
    message: &[u8],
    number: u32,
    mut change: impl FnMut(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let mut out = Vec::with_capacity(message.len() + 64);
    for field in walk(message) {
        let field = field?;
        let Some(content) = field.content.filter(|_| field.number == number) else {
            out.extend_from_slice(field.raw);
            continue;
        };
        match change(content)? {
            same if same == content => out.extend_from_slice(field.raw),
            other => put(&mut out, number, &other),
        }
    }
    Ok(out)
}

/// Leaves a field out.
///
/// # Errors
/// When the message is no protobuf.
pub fn without(message: &[u8], number: u32) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len());
    for field in walk(message) {
        let field = field?;
        if field.number != number {
            out.extend_from_slice(field.raw);
        }
    }
    Ok(out)
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
        assert_eq!([number_of(message, 1), number_of(message, 9)], [Ok(150), Ok(0)]);
    }

    #[test]
    fn what_is_not_changed_stays_byte_for_byte() {
        // The length of the first is written in four bytes, which readers take for 1.
        let message = b"\x12\x81\x80\x80\x00a\x12\x81\x00b";
        let changed = |c: &[u8]| Ok(if c == b"b" { b"cd".to_vec() } else { c.to_vec() });
        let after = map::<WireError>(message, 2, changed).expect("map");
        assert_eq!(after, b"\x12\x81\x80\x80\x00a\x12\x02cd");
    }

    #[test]
    fn a_field_of_another_type_does_not_hide_the_text_before_it() {
        assert_eq!(text(b"\x12\x03dns\x10\x05", 2), Some("dns"));
        assert_eq!(text(b"\x10\x05", 2), None);
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        for broken in [
            &b"\x12\x05ab"[..],
            b"\x08",
            b"\x0b",
            b"\x00\x00",
            b"\x4d\x01",
            b"\x80\x80\x80\x80\x10\x01",
        ] {
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
