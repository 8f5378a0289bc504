//! Whose a VM's volumes are. libvirt's volumes have no tags, so ours stand as JSON in the sectors that
//! ISO 9660 leaves unused at the beginning of the disk with the user data, which is made first and
//! taken away last.

use std::collections::BTreeMap;

use crate::tags;

/// Bytes that there are for it.
pub(super) const ROOM: usize = 16 * 2048;

/// Our own tags, or the least of them where they are too long.
pub(super) fn write(all: &BTreeMap<String, String>) -> Vec<u8> {
    let some = |wanted: &dyn Fn(&str) -> bool| {
        let kept: BTreeMap<_, _> = all.iter().filter(|(key, _)| wanted(key)).collect();
        serde_json::to_vec(&kept).unwrap_or_default()
    };
    let ours = some(&tags::is_reserved);
    // At least one zero says where it ends.
    if ours.len() < ROOM {
        return ours;
    }
    some(&|key| [tags::INSTALLATION, tags::SANDBOX, tags::NODE].contains(&key))
}

/// What stands in a volume that begins with these bytes; `None` if it was not written so far.
pub(super) fn read(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(pod: &str) -> BTreeMap<String, String> {
        let pairs =
            [(tags::INSTALLATION, "i"), (tags::SANDBOX, "s"), (tags::NODE, "n"), (tags::POD, pod)];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn our_tags_come_back_and_what_is_no_mark_is_none() {
        let mut all = tags("web \"ä\0\n");
        let ours = all.clone();
        all.insert("team".to_owned(), "blue".to_owned());
        let mut bytes = write(&all);
        bytes.resize(ROOM, 0);
        assert_eq!(read(&bytes), Some(ours));
        for none in [&[][..], &[0; 64], b"{\"a\":", b"CD001"] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }

    #[test]
    fn where_there_is_no_room_whose_it_is_still_stands_there() {
        let bytes = write(&tags(&"x".repeat(ROOM)));
        assert!(bytes.len() < ROOM);
        let kept = read(&bytes).expect("a mark");
        assert_eq!(
            kept.keys().collect::<Vec<_>>(),
            [tags::INSTALLATION, tags::NODE, tags::SANDBOX]
        );
    }
}
