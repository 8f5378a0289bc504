//! The checksum in front of a record: a bit that a disk has turned must not make a pod another one's.
//!
//! ```text
//!   {"sum":"<SHA-256 of the record without this field, as hex>", … the record's own fields … }
//! ```
//! Only one that stands first is looked at. So a record written by hand has none; nor has one that a
//! build wrote which did not know the field and put it back in its place among the others.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Its name.
pub(super) const FIELD: &str = "sum";
const BEGIN: &[u8] = b"{\"sum\":\"";
const END: &[u8] = b"\",";
const HEX: usize = 64;

/// Puts the checksum in front of an object with at least one field.
pub(super) fn seal(object: &[u8]) -> Zeroizing<Vec<u8>> {
    let fields = object.get(1..).unwrap_or_default();
    // With all its room from the start: a key would stay behind in what a growing one leaves.
    let mut sealed = Vec::with_capacity(BEGIN.len() + HEX + END.len() + fields.len());
    for part in [BEGIN, hash(fields).as_bytes(), END, fields] {
        sealed.extend_from_slice(part);
    }
    Zeroizing::new(sealed)
}

/// Whether the file is what was written, as far as it tells.
pub(super) fn holds(file: &[u8]) -> bool {
    let Some(rest) = file.strip_prefix(BEGIN) else { return true };
    let Some((sum, rest)) = rest.split_at_checked(HEX) else { return false };
    rest.strip_prefix(END).is_some_and(|fields| hash(fields).as_bytes() == sum)
}

fn hash(fields: &[u8]) -> String {
    let digest = Sha256::new().chain_update(b"{").chain_update(fields).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
