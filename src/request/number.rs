//! Numbers in annotations. The Go shim prints whole ones, the Rust shim decimals (`1.5`).

use super::{RequestError, short};

/// More CPUs than any cloud's largest machine has.
pub(super) const VCPUS_MAX: u32 = 4096;
/// 64 TiB, in MiB.
pub(super) const MEMORY_MAX: u64 = 64 << 20;
/// More GPUs than any cloud's largest machine has.
pub(super) const GPUS_MAX: u64 = 256;

/// A whole number; empty and 0 are not asked for.
pub(super) fn integer(
    key: &'static str,
    text: &str,
    max: u64,
) -> Result<Option<u64>, RequestError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |reason| RequestError::Value { key, value: short(text), reason };
    if !digits(text) {
        return Err(wrong("is not a whole number"));
    }
    // Only digits: what does not parse has too many of them.
    let value = text.parse().ok().filter(|v| *v <= max).ok_or_else(|| wrong("is too large"))?;
    Ok((value > 0).then_some(value))
}

/// A decimal number of CPUs, rounded up to whole ones; empty and 0 are not asked for.
pub(super) fn vcpus(key: &'static str, text: &str) -> Result<Option<u32>, RequestError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |reason| RequestError::Value { key, value: short(text), reason };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !digits(whole) || !digits(fraction) {
        return Err(wrong("is not a decimal number"));
    }
    let part = u32::from(fraction.bytes().any(|b| b != b'0'));
    let value = whole.parse::<u32>().ok().and_then(|w| w.checked_add(part));
    let value = value.filter(|v| *v <= VCPUS_MAX).ok_or_else(|| wrong("is too large"))?;
    Ok((value > 0).then_some(value))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}
