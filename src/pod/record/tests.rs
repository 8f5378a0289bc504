mod steps;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::pod::samples;

fn disk() -> (tempfile::TempDir, Disk) {
    let state = tempfile::tempdir().expect("directory");
    let disk = Disk::open(state.path()).expect("opens");
    (state, disk)
}

#[tokio::test]
async fn a_record_comes_back_as_it_was_written() {
    let (state, disk) = disk();
    let mut record = samples::record("s1");
    disk.save(&record).await.expect("saved");
    assert_eq!(disk.load().await.expect("loads").records, [record.clone()]);
    record.phase = Phase::Launching { candidate: 1, made: Made::Perhaps };
    record.note(5, "tried", Some(2));
    disk.save(&record).await.expect("saved again");
    assert_eq!(disk.load().await.expect("loads").records, [record]);
    // However it came to be open to others.
    fs::set_permissions(state.path().join("pods/s1"), fs::Permissions::from_mode(0o755))
        .expect("set");
    disk.save(&samples::record("s1")).await.expect("saved again");
    let mode = |path: &str| {
        let found = fs::metadata(state.path().join(path)).expect("there");
        found.permissions().mode() & 0o777
    };
    assert_eq!((mode("pods"), mode("pods/s1"), mode("pods/s1/record.json")), (0o700, 0o700, 0o600));
}

#[tokio::test]
async fn a_removed_record_leaves_nothing_and_removing_again_is_fine() {
    let (state, disk) = disk();
    disk.save(&samples::record("s1")).await.expect("saved");
    disk.remove("s1").await.expect("removed");
    disk.remove("s1").await.expect("absent is fine");
    assert_eq!(fs::read_dir(state.path().join("pods")).expect("there").count(), 0);
}

#[tokio::test]
async fn a_record_torn_at_any_byte_is_set_aside_and_stops_no_other() {
    let (state, disk) = disk();
    let whole = serde_json::to_vec(&samples::record("s1")).expect("writes");
    disk.save(&samples::record("s2")).await.expect("saved");
    let directory = state.path().join("pods/s1");
    for length in 0..whole.len() {
        fs::create_dir(&directory).expect("made");
        fs::write(directory.join("record.json"), &whole[..length]).expect("written");
        let loaded = disk.load().await.expect("loads");
        assert_eq!(loaded.records.len(), 1, "torn at {length}");
        let [broken] = &loaded.broken[..] else { panic!("torn at {length}: {loaded:?}") };
        assert!(!broken.newer && broken.path.join("record.json").exists());
        assert!(!broken.reason.contains("PRIVATE"), "{}", broken.reason);
        assert!(!directory.exists());
        fs::remove_dir_all(&broken.path).expect("removed");
    }
}

#[tokio::test]
async fn a_record_with_flipped_bits_is_set_aside_and_never_taken_for_another() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let (state, disk) = disk();
    let record = samples::record("s1");
    disk.save(&record).await.expect("saved");
    let file = state.path().join("pods/s1/record.json");
    let whole = fs::read(&file).expect("there");
    let mut aside = 0;
    for seed in 0..2_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = whole.clone();
        // One anywhere, others behind the word that says that there is a checksum.
        let first = random.random_range(0..bytes.len());
        bytes[first] ^= 1 << random.random_range(0..8);
        for _ in 0..if first < 8 { 0 } else { random.random_range(0..4) } {
            let at = random.random_range(8..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        fs::create_dir_all(file.parent().expect("pod")).expect("made");
        fs::write(&file, &bytes).expect("written");
        let loaded = disk.load().await.expect("loads");
        match (&loaded.records[..], &loaded.broken[..]) {
            // Flipped back, or in that word.
            ([read], []) => assert_eq!(*read, record, "seed {seed}"),
            ([], [broken]) => {
                assert!(!broken.newer, "seed {seed}: {}", broken.reason);
                assert!(!broken.reason.contains("PRIVATE"), "seed {seed}: {}", broken.reason);
                fs::remove_dir_all(&broken.path).expect("kept for people");
                aside += 1;
            }
            _ => panic!("seed {seed}: {loaded:?}"),
        }
    }
    assert!(aside > 1_900, "{aside} of 2000");
}

#[tokio::test]
async fn a_record_without_a_checksum_or_with_one_that_is_not_first_is_read() {
    let (state, disk) = disk();
    let record = samples::record("s1");
    disk.save(&record).await.expect("saved");
    let file = state.path().join("pods/s1/record.json");
    let written = fs::read(&file).expect("there");
    assert!(written.starts_with(b"{\"sum\":\""));
    let mut value: serde_json::Value = serde_json::from_slice(&written).expect("JSON");
    value["link"]["of_a_later_build"] = 1.into();
    // As a build that does not know it puts it back.
    fs::write(&file, serde_json::to_vec(&value).expect("writes")).expect("written");
    assert_eq!(disk.load().await.expect("loads").records, std::slice::from_ref(&record));
    disk.save(&record).await.expect("saved");
    let text = fs::read_to_string(&file).expect("there");
    assert_eq!((text.matches("\"sum\"").count(), text.contains("of_a_later_build")), (1, true));
    assert_eq!(disk.load().await.expect("loads").records, [record]);
}

#[tokio::test]
async fn a_write_that_was_cut_off_leaves_the_record_before_it() {
    let (state, disk) = disk();
    let record = samples::record("s1");
    disk.save(&record).await.expect("saved");
    fs::write(state.path().join("pods/s1/record.json.new"), b"{\"vers").expect("written");
    // And one that was the first of its pod.
    fs::create_dir(state.path().join("pods/s2")).expect("made");
    fs::write(state.path().join("pods/s2/record.json.new"), b"{\"vers").expect("written");
    let loaded = disk.load().await.expect("loads");
    assert_eq!((&loaded.records[..], loaded.broken.len()), (std::slice::from_ref(&record), 0));
    assert!(!state.path().join("pods/s2").exists(), "CreateVM was never answered");
    disk.save(&record).await.expect("saved over the rest");
    disk.remove("s1").await.expect("removed");
}

#[tokio::test]
async fn a_record_of_a_version_that_is_not_read_stays_untouched_where_it_is() {
    for version in [u64::from(VERSION) + 1, u64::from(OLDEST) - 1, u64::MAX] {
        let (state, disk) = disk();
        let path = state.path().join("pods/s1/record.json");
        fs::create_dir(state.path().join("pods/s1")).expect("made");
        let text = format!(r#"{{"version": {version}, "what": "is not known"}}"#);
        fs::write(&path, &text).expect("written");
        for _ in 0..2 {
            let loaded = disk.load().await.expect("loads");
            assert!(loaded.records.is_empty());
            assert!(loaded.broken[0].newer && loaded.broken[0].sandbox == "s1");
            let reason = &loaded.broken[0].reason;
            assert!(reason.contains(&format!("version {version}")), "{reason}");
        }
        assert_eq!(fs::read_to_string(&path).expect("there"), text);
    }
}

#[tokio::test]
async fn symlinks_are_refused_where_a_file_or_directory_is_expected() {
    let (state, disk) = disk();
    let outside = state.path().join("outside");
    fs::create_dir(&outside).expect("made");
    // They would do.
    let text = |sandbox| serde_json::to_vec(&samples::record(sandbox)).expect("writes");
    fs::write(outside.join("record.json"), text("s1")).expect("written");
    fs::write(outside.join("s2.json"), text("s2")).expect("written");
    symlink(&outside, state.path().join("pods/s1")).expect("linked");
    assert!(disk.save(&samples::record("s1")).await.is_err());
    fs::create_dir(state.path().join("pods/s2")).expect("made");
    symlink(outside.join("s2.json"), state.path().join("pods/s2/record.json")).expect("linked");
    assert!(disk.save(&samples::record("s2")).await.is_err());
    let loaded = disk.load().await.expect("loads");
    assert_eq!((loaded.records.len(), loaded.broken.len()), (0, 2));
    assert_eq!(fs::read(outside.join("record.json")).expect("there"), text("s1"));
    assert_eq!(fs::read(outside.join("s2.json")).expect("there"), text("s2"));
}

#[tokio::test]
async fn a_record_longer_than_any_is_set_aside() {
    let (state, disk) = disk();
    let mut text = serde_json::to_vec(&samples::record("s1")).expect("writes");
    text.resize(5 << 20, b' ');
    fs::create_dir(state.path().join("pods/s1")).expect("made");
    fs::write(state.path().join("pods/s1/record.json"), text).expect("written");
    let loaded = disk.load().await.expect("loads");
    assert_eq!((loaded.records.len(), loaded.broken[0].reason.as_str()), (0, "too long"));
}

#[tokio::test]
async fn a_record_under_another_sandboxs_name_is_set_aside() {
    let (state, disk) = disk();
    disk.save(&samples::record("s1")).await.expect("saved");
    fs::rename(state.path().join("pods/s1"), state.path().join("pods/s2")).expect("renamed");
    let loaded = disk.load().await.expect("loads");
    assert!(loaded.records.is_empty());
    assert!(loaded.broken[0].reason.contains("another sandbox"));
}

#[tokio::test]
async fn an_id_that_is_no_plain_name_never_becomes_a_path() {
    let (state, disk) = disk();
    for id in ["", ".", "..", "../s1", "a/b"] {
        let mut record = samples::record("s1");
        record.sandbox = id.to_owned();
        assert!(disk.save(&record).await.is_err(), "{id:?}");
        assert!(disk.remove(id).await.is_err(), "{id:?}");
    }
    assert_eq!(fs::read_dir(state.path().join("pods")).expect("there").count(), 0);
}

#[test]
fn a_full_disk_is_told_apart_and_named() {
    let source = std::io::Error::from(ErrorKind::StorageFull);
    let error = RecordError { action: "write", path: "/var/lib/peerpod/pods".into(), source };
    assert!(error.is_full());
    assert!(error.to_string().contains("/var/lib/peerpod/pods"));
}

#[test]
fn a_wiped_record_holds_no_key() {
    let mut record = samples::record("s1");
    assert!(serde_json::to_string(&record).expect("writes").contains("PRIVATE"));
    assert!(!format!("{record:?}").contains("PRIVATE"));
    record.wipe();
    assert!(!serde_json::to_string(&record).expect("writes").contains("PRIVATE"));
    assert!(record.machine.candidates.is_empty(), "nothing is created any more");
}

#[test]
fn a_timeline_stays_bounded_and_keeps_beginning_and_end() {
    let mut record = samples::record("s1");
    for i in 0..500 {
        record.note(i, "x".repeat(5000), None);
    }
    assert_eq!(record.timeline.len(), TIMELINE);
    assert_eq!((record.timeline[0].at_ms, record.timeline[TIMELINE - 1].at_ms), (0, 499));
    assert!(record.timeline[0].what.len() < 2 * ERROR_TEXT);
}

#[tokio::test]
async fn what_this_build_does_not_know_is_still_there_after_a_save() {
    let (state, disk) = disk();
    disk.save(&samples::record("s1")).await.expect("saved");
    let path = state.path().join("pods/s1/record.json");
    let read = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON")
    };
    let mut later = read();
    let unknown = serde_json::json!({"a": [1, {"b": null}], "c": "d"});
    later["later"] = unknown.clone();
    later["machine"]["spec"]["later"] = unknown.clone();
    fs::write(&path, serde_json::to_vec(&later).expect("writes")).expect("written");
    let mut loaded = disk.load().await.expect("loads");
    let mut record = loaded.records.pop().expect("a later build of this version");
    record.note(5, "tried", None);
    record.wipe();
    disk.save(&record).await.expect("saved");
    let written = read();
    assert_eq!((&written["later"], &written["machine"]["spec"]["later"]), (&unknown, &unknown));
    assert_eq!(written["timeline"][0]["what"], "tried");
    assert!(!written.to_string().contains("PRIVATE"));
    disk.remove("s1").await.expect("removed");
    disk.save(&samples::record("s1")).await.expect("saved");
    assert!(read().get("later").is_none(), "another sandbox of that name has none of it");
}

#[tokio::test]
async fn a_record_of_the_version_before_is_taken_and_written_as_this_one() {
    let (state, disk) = disk();
    disk.save(&samples::record("s1")).await.expect("saved");
    let path = state.path().join("pods/s1/record.json");
    let mut older: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    older["version"] = OLDEST.into();
    let fields = older.as_object_mut().expect("a record");
    // Added within a version, or by the next one: the version before had neither.
    fields.remove("created_boot_ms");
    fields.remove("generation");
    let older = serde_json::to_vec(&older).expect("writes");
    fs::write(&path, &older).expect("written");
    let loaded = disk.load().await.expect("loads");
    let [record] = &loaded.records[..] else { panic!("{loaded:?}") };
    assert_eq!((record.version, record.created_boot_ms), (VERSION, None));
    assert_eq!(fs::read(&path).expect("there"), older, "reading changes nothing");
    disk.save(record).await.expect("saved");
    assert_eq!(&disk.load().await.expect("loads").records, &loaded.records);
}

#[tokio::test]
async fn a_record_that_names_what_is_not_its_own_is_set_aside_and_says_what() {
    let (state, disk) = disk();
    disk.save(&samples::record("s2")).await.expect("saved");
    let mut hostile = samples::record("s1");
    hostile.link.socket = "/run/peerpod/pods/s1/../s2/agent.ttrpc".into();
    disk.save(&hostile).await.expect("saved");
    let loaded = disk.load().await.expect("loads");
    assert_eq!(loaded.records, [samples::record("s2")]);
    assert!(loaded.broken[0].reason.starts_with("link.socket: "), "{}", loaded.broken[0].reason);
    assert!(!loaded.broken[0].newer && !state.path().join("pods/s1").exists());
}
