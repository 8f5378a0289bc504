//! Files that had no room in the user data come over the link, and the VM is not ready before.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use peerpod_tunnel::link::session::{DeliverError, Link};
use podvm::apf::{Apf, Ours, ToFollow};
use podvm::cloud_config::File;
use podvm::contract::{APF, AUTH, INITDATA};
use podvm::initdata::Initdata;
use tokio::process::Command;

use crate::lab::{Lab, PATIENCE, Podvm};
use crate::session::{KEEP, connect, cut, within};

/// What is measured, larger than any cloud takes.
fn initdata() -> (Initdata, String) {
    let policy: String =
        (0..60_000_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    let text = format!(
        "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"aa.toml\" = \"measured\"\n\
         \"policy.rego\" = \"{policy}\"\n"
    );
    let initdata = Initdata::from_toml(&text).unwrap();
    let wrapped = initdata.encode();
    assert!(wrapped.len() > 256 << 10, "{}", wrapped.len());
    (initdata, wrapped)
}

/// User data that promise these files.
fn promise(lab: &Lab, files: &[(&str, &str)]) {
    let files = files.iter().map(|(path, text)| ToFollow::of(path, text.as_bytes())).collect();
    let mut apf = Apf::parse(&lab.apf(None).content).unwrap();
    apf.peerpod = Some(Ours { files });
    let content = apf.render().unwrap();
    lab.user_data(&[File { path: APF.to_owned(), content }]);
}

/// `podvm run` under a service manager that listens.
async fn run(lab: &Lab) -> (Podvm, UnixDatagram) {
    let path = lab.path("notify");
    let _ = std::fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_podvm"));
    command.arg("run").args(lab.places()).args(lab.serving()).env("NOTIFY_SOCKET", &path);
    let podvm = Podvm::start(command);
    podvm.line("forwarder serves").await;
    (podvm, manager)
}

fn is_told(manager: &UnixDatagram) -> std::io::Result<String> {
    let mut text = [0; 64];
    let count = manager.recv(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..count]).trim().to_owned())
}

/// A worker that delivers over a session of its own.
async fn deliver(lab: &Lab, podvm: &Podvm, files: &[(&str, &str)]) -> Result<(), DeliverError> {
    let link = Link::worker("test", KEEP);
    let connection = connect(podvm.address(), &lab.certs.client(), &link).await;
    let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_bytes())).collect();
    let delivered = within(link.deliver(&files)).await;
    cut(connection).await;
    delivered
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_is_ready_once_all_that_its_user_data_promise_has_come() {
    let lab = Lab::new();
    let (initdata, wrapped) = initdata();
    let files = [(INITDATA, wrapped.as_str()), (AUTH, "{}")];
    promise(&lab, &files);
    let (podvm, manager) = run(&lab).await;
    podvm.line("waiting for what had no room").await;
    manager.set_nonblocking(true).unwrap();
    assert!(is_told(&manager).is_err(), "it is not ready");
    for name in ["initdata", "initdata.digest", "aa.toml", "policy.rego", "auth.json"] {
        assert!(!lab.path("run").join(name).exists(), "{name}");
    }

    // Of the promised length, but something else.
    let other = wrapped.replace('A', "B");
    let refused = deliver(&lab, &podvm, &[(INITDATA, other.as_str()), files[1]]).await;
    let Err(DeliverError::Refused(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("/run/peerpod/initdata: it is not the file"), "{why}");
    assert!(!lab.path("run/initdata").exists() && is_told(&manager).is_err());

    manager.set_nonblocking(false).unwrap();
    assert_eq!(deliver(&lab, &podvm, &files).await, Ok(()));
    assert_eq!(is_told(&manager).unwrap(), "READY=1");
    let read = |name: &str| std::fs::read_to_string(lab.path("run").join(name)).unwrap();
    assert_eq!(read("initdata.digest"), initdata.digest());
    assert_eq!((read("aa.toml").as_str(), read("auth.json").as_str()), ("measured", "{}"));
    assert!(read("policy.rego").len() > 256 << 10);
    // A worker that did not hear it sends them again.
    assert_eq!(deliver(&lab, &podvm, &files).await, Ok(()));

    // Started again it has them, and a worker that has not heard so is told.
    podvm.kill().await;
    let (podvm, manager) = run(&lab).await;
    assert_eq!(is_told(&manager).unwrap(), "READY=1");
    assert_eq!(deliver(&lab, &podvm, &files).await, Ok(()));
    assert_eq!(read("initdata.digest"), initdata.digest());
}

#[tokio::test]
async fn initdata_that_came_over_the_link_and_are_broken_are_refused_by_name() {
    let lab = Lab::new();
    promise(&lab, &[(INITDATA, "%%%")]);
    let (podvm, manager) = run(&lab).await;
    let refused = deliver(&lab, &podvm, &[(INITDATA, "%%%")]).await;
    let Err(DeliverError::Refused(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("initdata: not base64"), "{why}");
    manager.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(is_told(&manager).is_err() && !lab.path("run/aa.toml").exists());
}

#[tokio::test]
async fn user_data_that_promise_what_cannot_come_stop_the_vm() {
    let lab = Lab::new();
    promise(&lab, &[("/etc/shadow", "x")]);
    let mut args = vec!["run".to_owned()];
    args.extend(lab.places());
    args.extend(lab.serving());
    let mut podvm = Podvm::spawn(&args);
    assert!(!podvm.exit().await.success());
    assert!(podvm.log().contains("peerpod.files: \"/etc/shadow\" cannot come"), "{}", podvm.log());
}
