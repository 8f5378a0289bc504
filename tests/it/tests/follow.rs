//! Initdata that have no room in the user data: the real node sends them into the real VM, over the link,
//! before anything of the pod begins.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use peerpod_it::bed::large_initdata;
use peerpod_it::{Bed, root};
use peerpod_standin::lab::{Binaries, DaemonOptions};
use peerpod_standin::shim::{Profile, Shim};
use podvm::initdata::Initdata;

#[tokio::test(flavor = "multi_thread")]
async fn initdata_without_room_in_the_user_data_are_in_the_vm_when_the_pod_begins() {
    let test = "initdata_without_room_in_the_user_data_are_in_the_vm_when_the_pod_begins";
    if !root(test) {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    for (number, profile) in [(1, Profile::GoLike), (2, Profile::RsLike)] {
        let (_net, mut spec) = bed.pod(number).await.unwrap();
        spec.initdata = large_initdata();
        let (initdata, sandbox) =
            (Initdata::from_toml(&spec.initdata).unwrap(), spec.sandbox.clone());
        let shim = Shim::boot(profile, &bed.lab.dir().socket(), spec).await;
        let shim = shim.map_err(|e| format!("{e:#}\n{}", bed.daemon.log_tail())).unwrap();
        let in_vm = format!("/proc/{}/root/run/peerpod", bed.in_vm("podvm").unwrap());
        let read = |name: &str| std::fs::read_to_string(format!("{in_vm}/{name}")).unwrap();
        assert_eq!(read("initdata.digest"), initdata.digest());
        assert_eq!(read("initdata"), initdata.encode());
        assert!(read("policy.rego").len() > 256 << 10);
        let record = bed.lab.dir().state().join("pods").join(&sandbox).join("record.json");
        let record = std::fs::read_to_string(record).unwrap();
        assert!(record.len() < 64 << 10, "they are of no more use here: {} bytes", record.len());
        assert!(record.contains("it follows over the link"), "{record}");
        shim.stop().await.unwrap();
        bed.until_nothing_left().await.unwrap();
    }
    bed.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_with_a_plain_link_is_refused_such_initdata_by_name_and_goes() {
    let test = "a_vm_with_a_plain_link_is_refused_such_initdata_by_name_and_goes";
    if !root(test) {
        return;
    }
    let podvm = Binaries::find().unwrap().podvm;
    let command = format!("'{}' run --plain-link", podvm.display());
    let environment = vec![("LOCAL_PODVM".to_owned(), command)];
    let options = DaemonOptions { environment, ..DaemonOptions::default() };
    let bed = Bed::with(options).await.unwrap();
    let (_net, mut spec) = bed.pod(1).await.unwrap();
    spec.initdata = large_initdata();
    let sandbox = spec.sandbox.clone();
    let mut shim =
        Shim::create(Profile::GoLike, &bed.lab.dir().socket(), spec).await.expect("created");
    let error = shim.start_vm().await.expect_err("it cannot be sent").to_string();
    assert!(error.contains("no room in the user data"), "{error}");
    assert!(error.contains("speaks no peerpod-link/1"), "{error}");
    shim.hypervisor().stop_vm(&sandbox).await.unwrap();
    bed.end().await.unwrap();
}
