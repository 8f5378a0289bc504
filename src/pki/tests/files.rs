//! What stands on the disk: whose it is, and what is damaged there.

use super::*;

#[test]
fn files_are_for_their_owner_alone() {
    let dir = TempDir::new().expect("dir");
    let pki_dir = dir.path().join("pki");
    open(&pki_dir);
    let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode(&pki_dir), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&pki_dir).expect("list") {
        let path = entry.expect("entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.push(path.file_name().expect("name").to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["ca.key", "ca.pem", "client.key", "client.pem"]);
    fs::set_permissions(&pki_dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    open(&pki_dir);
    assert_eq!(mode(&pki_dir), 0o700, "closed again");
}

#[test]
fn a_key_without_its_certificate_is_a_crash_between_two_writes() {
    let dir = TempDir::new().expect("dir");
    open(dir.path());
    let key = fs::read(dir.path().join("ca.key")).expect("read");
    fs::remove_file(dir.path().join("ca.pem")).expect("remove");
    fs::write(dir.path().join("ca.pem.new"), "half a certif").expect("write");
    open(dir.path());
    assert_eq!(fs::read(dir.path().join("ca.key")).expect("read"), key);
    assert!(dir.path().join("ca.pem").exists() && !dir.path().join("ca.pem.new").exists());
}

#[test]
fn damaged_files_are_named_and_left_alone() {
    type Damage = fn(&Path);
    let truncate: Damage = |path| {
        let text = fs::read_to_string(path).expect("read");
        fs::write(path, &text[..text.len() / 2]).expect("write");
    };
    let empty: Damage = |path| fs::write(path, "").expect("write");
    let binary: Damage = |path| fs::write(path, [0xff, 0xfe, 0]).expect("write");
    let open_to_all: Damage = |path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("chmod");
    };
    let link: Damage = |path| {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).expect("rename");
        symlink(&aside, path).expect("link");
    };
    let directory: Damage = |path| {
        fs::remove_file(path).expect("remove");
        fs::create_dir(path).expect("mkdir");
    };
    let huge: Damage = |path| fs::write(path, "x".repeat(300 << 10)).expect("write");
    let damages = [truncate, empty, binary, open_to_all, link, directory, huge];
    for name in ["ca.pem", "ca.key", "client.pem", "client.key"] {
        for (number, damage) in damages.iter().enumerate() {
            let dir = TempDir::new().expect("dir");
            open(dir.path());
            let path = dir.path().join(name);
            damage(&path);
            let before = fs::read(&path).ok();
            let error = Pki::open(dir.path(), &automatic(), SystemTime::now());
            let error = error.expect_err("damaged").to_string();
            assert!(error.contains(name), "{name}, damage {number}: {error}");
            assert_eq!(fs::read(&path).ok(), before, "{name}, damage {number}");
        }
    }
}

#[test]
fn a_lost_key_and_a_swapped_certificate_are_named() {
    let dir = TempDir::new().expect("dir");
    open(dir.path());
    fs::copy(dir.path().join("client.pem"), dir.path().join("ca.pem")).expect("copy");
    let error = Pki::open(dir.path(), &automatic(), SystemTime::now()).expect_err("swapped");
    assert!(error.to_string().contains("ca.pem: it does not belong"), "{error}");
    fs::remove_file(dir.path().join("ca.key")).expect("remove");
    let error = Pki::open(dir.path(), &automatic(), SystemTime::now()).expect_err("lost");
    assert!(error.to_string().contains("ca.key"), "{error}");
}

#[test]
fn a_directory_that_is_a_link_or_a_file_is_refused() {
    let dir = TempDir::new().expect("dir");
    let (real, link, file) =
        (dir.path().join("real"), dir.path().join("link"), dir.path().join("file"));
    fs::create_dir(&real).expect("mkdir");
    symlink(&real, &link).expect("link");
    fs::write(&file, "").expect("write");
    for path in [link, file] {
        let error = Pki::open(&path, &automatic(), SystemTime::now()).expect_err("refused");
        assert!(matches!(error, PkiError::File { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(&real).expect("list").count(), 0);
}
