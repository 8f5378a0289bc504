//! Another CA takes over, with every crash on the way; and clocks that are wrong.

use super::users::Users;
use super::*;
use crate::pki::rotation::{self, Rotation};

type Step = for<'a> fn(&Rotation<'a>) -> Result<(), PkiError>;
const STEPS: [Step; 3] = [|r| r.keep_key(), |r| r.believe(), |r| r.take_over()];

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("list")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_rotation_that_is_cut_short_anywhere_costs_no_pod_and_is_settled_by_the_next_start() {
    for steps in 0..=STEPS.len() {
        // What a crash in the middle of a write leaves beside the whole files.
        for torn in [None, Some("ca.key.next.new"), Some("ca.pem.new")] {
            let dir = TempDir::new().expect("dir");
            let before = open(dir.path());
            let old = before.issue(VM, SystemTime::now()).expect("issue");
            let store = Store::open(dir.path()).expect("store");
            let rotation = Rotation::new(&store, SystemTime::now()).expect("rotation");
            for step in &STEPS[..steps] {
                step(&rotation).expect("step");
            }
            if let Some(name) = torn {
                fs::write(dir.path().join(name), "half of it").expect("write");
            }
            let after = open(dir.path());
            let case = format!("{steps} steps, {torn:?}");
            let client = after.client(VM).expect("TLS");
            shake(&client, &server(&old)).await.unwrap_or_else(|e| panic!("{case}: {e}"));
            let new = after.issue("podvm-new", SystemTime::now()).expect("issue");
            let client = after.client("podvm-new").expect("TLS");
            shake(&client, &server(&new)).await.unwrap_or_else(|e| panic!("{case}: {e}"));
            let rotated = steps >= 2;
            assert_eq!(after.authorities().len(), if rotated { 2 } else { 1 }, "{case}");
            assert_eq!(old.authority != new.authority, rotated, "{case}");
            assert!(!names(dir.path()).iter().any(|n| n == "ca.key.next"), "{case}");
            // And once more, as if the crash had come while it was being settled.
            assert_eq!(open(dir.path()).authorities(), after.authorities(), "{case}");
        }
    }
}

#[tokio::test]
async fn a_process_that_runs_takes_the_new_ca_up_and_lets_the_old_one_go() {
    let dir = TempDir::new().expect("dir");
    let pki = open(dir.path());
    let copy = pki.clone();
    let now = SystemTime::now();
    assert!(!pki.rotate_if_wanted(now).expect("look"), "nobody asked");
    let old = pki.issue(VM, now).expect("issue");
    let asked = ask_for_rotation(dir.path()).expect("ask");
    assert!(pki.rotate_if_wanted(now).expect("rotate") && !asked.exists());
    let new = copy.issue(VM, now).expect("issue");
    assert_ne!(old.authority, new.authority, "copies are one");
    for issued in [&old, &new] {
        shake(&copy.client(VM).expect("TLS"), &server(issued)).await.expect("both are believed");
    }
    let in_use = BTreeSet::from([old.authority.clone().expect("named")]);
    assert_eq!(pki.retire(&in_use, now).expect("retire"), 0, "a pod needs it");
    assert_eq!(pki.retire(&BTreeSet::new(), now).expect("retire"), 1);
    assert_eq!(pki.authorities(), [new.authority.clone().expect("named")]);
    shake(&copy.client(VM).expect("TLS"), &server(&new)).await.expect("the one that issues stays");
    shake(&copy.client(VM).expect("TLS"), &server(&old))
        .await
        .expect_err("of the CA that has gone");
    assert_eq!(open(dir.path()).authorities(), pki.authorities(), "on disk as well");
}

#[test]
fn nobody_rotates_without_end() {
    let dir = TempDir::new().expect("dir");
    let pki = open(dir.path());
    let store = Store::open(dir.path()).expect("store");
    for _ in 1..rotation::MOST {
        rotation::rotate(&store, SystemTime::now()).expect("rotate");
    }
    let before = names(dir.path());
    ask_for_rotation(dir.path()).expect("ask");
    let refused = pki.rotate_if_wanted(SystemTime::now()).expect_err("too many");
    assert!(refused.to_string().contains("16 CAs"), "{refused}");
    assert_eq!(names(dir.path()).len(), before.len() + 1, "only the wish is new");
    assert_eq!(open(dir.path()).authorities().len(), rotation::MOST);
    let nowhere = TempDir::new().expect("dir");
    let error = ask_for_rotation(nowhere.path()).expect_err("no CA").to_string();
    assert!(error.contains("ca.pem"), "{error}");
}

#[test]
fn keys_of_a_rotation_are_for_their_owner_alone() {
    let dir = TempDir::new().expect("dir");
    open(dir.path());
    let store = Store::open(dir.path()).expect("store");
    Rotation::new(&store, SystemTime::now()).expect("rotation").keep_key().expect("kept");
    for name in names(dir.path()) {
        let mode = fs::metadata(dir.path().join(&name)).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_by_a_day_or_a_year_costs_no_running_pod() {
    let now = SystemTime::now();
    for (when, what) in [
        (now - 400 * DAY, "made when the clock was a year behind: its time is over now"),
        (now + DAY, "made before the clock was set back a day: its time has not begun"),
        (now + 365 * DAY, "made when the clock was a year ahead"),
    ] {
        let dir = TempDir::new().expect("dir");
        open(dir.path());
        let issued = open(dir.path()).issue(VM, when).expect("issue");
        let client = open(dir.path()).client(VM).expect("TLS");
        shake(&client, &server(&issued)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        // All else still counts.
        let other = open(dir.path()).client("podvm-other").expect("TLS");
        shake(&other, &server(&issued)).await.expect_err("another VM's name");
        let strict = ClientTls { any_time: false, ..client };
        let error = shake(&strict, &server(&issued)).await.expect_err("where time counts");
        assert!(error.to_string().contains("certificate"), "{what}: {error}");
    }
}

#[test]
fn a_users_ca_is_believed_at_its_time_only() {
    let (dir, users) = (TempDir::new().expect("dir"), Users::new());
    let source = TlsSource::Files { ca: users.path("ca.crt"), client: None };
    let pki = Pki::open(dir.path(), &source, SystemTime::now()).expect("open");
    assert!(!pki.client(VM).expect("TLS").any_time);
    assert!(pki.authorities().is_empty() && !pki.rotate_if_wanted(SystemTime::now()).expect("no"));
    assert!(open(TempDir::new().expect("dir").path()).client(VM).expect("TLS").any_time);
}

#[tokio::test]
async fn a_client_signed_by_a_clock_that_was_ahead_is_signed_again() {
    let dir = TempDir::new().expect("dir");
    let ahead = SystemTime::now() + 365 * DAY;
    let issued = {
        let pki = Pki::open(dir.path(), &automatic(), ahead).expect("open");
        pki.issue(VM, ahead).expect("issue")
    };
    let pki = open(dir.path());
    let client = pki.client(VM).expect("TLS");
    with_cert(&client.client_cert_pem, |c| assert!(c.validity().is_valid(), "as of now"));
    shake(&client, &server(&issued)).await.expect("the key is the same, so VMs know it");
}

#[tokio::test]
async fn a_clock_that_was_set_back_a_day_changes_no_client_and_shuts_it_out_of_no_vm() {
    let (dir, ahead) = (TempDir::new().expect("dir"), SystemTime::now() + DAY);
    let (before, issued) = {
        let pki = Pki::open(dir.path(), &automatic(), ahead).expect("open");
        (pki.client(VM).expect("TLS"), pki.issue(VM, ahead).expect("issue"))
    };
    shake(&before, &server(&issued)).await.expect("the VM's clock is right already");
    // Upstream's forwarder knows the very certificate.
    let after = open(dir.path()).client(VM).expect("TLS");
    assert_eq!(after.client_cert_pem, before.client_cert_pem, "not signed again");
}
