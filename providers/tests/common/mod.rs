//! Shared by the tests of the local provider and their helper program.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use peerpod_netlink::{Error as Netlink, Handle, NewLink, Route};
use peerpod_providers::local::{Local, Settings};
use peerpod_providers::{
    Candidate, Deletion, Market, Provider, UserData, VmName, VmRef, VmSpec, tags,
};

pub const INSTALLATION: &str = "test";

pub fn spec(n: u32) -> VmSpec {
    let sandbox = format!("{n:08x}{}", "0".repeat(56));
    let name = VmName::first_form(&format!("pod-{n}"), &sandbox);
    VmSpec {
        tags: BTreeMap::from([
            (tags::INSTALLATION.to_owned(), INSTALLATION.to_owned()),
            (tags::SANDBOX.to_owned(), sandbox.clone()),
        ]),
        user_data: UserData(format!("#cloud-config\n# secret of {n}\n")),
        ..VmSpec::new(name, sandbox)
    }
}

pub fn ref_to(spec: &VmSpec) -> VmRef {
    VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None }
}

pub fn here() -> Candidate {
    Candidate { number: 0, instance_type: "local".to_owned(), zone: None, market: Market::OnDemand }
}

/// Settings with everything in one directory, which holds `podvm`, `agent` and `helper`.
pub fn settings(dir: &Path, cidr: &str) -> Settings {
    Settings {
        state_dir: dir.join("state"),
        cidr: cidr.parse().unwrap(),
        podvm: vec![dir.join("podvm").into()],
        agent: vec![dir.join("agent").into()],
        boot_delay: Duration::ZERO,
        markets: vec![peerpod_providers::Market::OnDemand],
        guest_program: vec![dir.join("helper").into(), "local-guest".into()],
    }
}

pub fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// Gives the namespace a primary interface with these addresses and default routes.
pub fn wire(primary: &[&str]) -> Result<(), Netlink> {
    let handle = Handle::here()?;
    handle.set_up("lo", true)?;
    handle.add_link(&NewLink::Bridge { name: "eth0" })?;
    handle.set_up("eth0", true)?;
    for address in primary {
        let address = net(address);
        handle.add_address("eth0", address)?;
        let default = net(if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" });
        handle.add_route(&Route::via(default, None, "eth0"))?;
    }
    Ok(())
}

/// Says a word to a VM's podvm and hears what it answers, as soon as it listens.
pub fn ask(address: IpAddr, word: &str) -> String {
    let end = Instant::now() + Duration::from_secs(30);
    let mut connection = loop {
        match TcpStream::connect_timeout(&(address, 15150).into(), Duration::from_secs(1)) {
            Ok(connection) => break connection,
            Err(e) if Instant::now() > end => panic!("{address} does not listen: {e}"),
            Err(_) => std::thread::yield_now(),
        }
    };
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    connection.write_all(format!("{word}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = connection.read_to_string(&mut answer);
    answer
}

pub fn fact(address: IpAddr, name: &str) -> String {
    let facts = ask(address, "facts");
    let prefix = format!("{name}=");
    facts.lines().find_map(|l| l.strip_prefix(&prefix)).expect("the fact").to_owned()
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A whole life of a VM; for a process that is in namespaces of its own already.
pub fn cycle(dir: &Path) -> ExitCode {
    wire(&["192.0.2.1/24"]).unwrap();
    let provider = Local::new(settings(dir, "172.31.0.0/24"), INSTALLATION);
    runtime().block_on(async {
        let report = provider.check().await.unwrap();
        assert_eq!(report.problems(), None);
        let vm = provider.create(&spec(1), &here()).await.unwrap();
        assert_eq!(fact(vm.addresses[0], "peer"), "192.0.2.1");
        assert_eq!(fact(vm.addresses[0], "init"), "helper");
        assert_eq!(provider.list().await.unwrap().len(), 1);
        assert_eq!(provider.delete(&ref_to(&spec(1))).await.unwrap(), Deletion::Gone);
    });
    println!("a whole life");
    ExitCode::SUCCESS
}

/// Makes a VM and does not live to see it.
pub fn create_and_die(dir: &Path) -> ExitCode {
    let provider = Local::new(settings(dir, "172.31.0.0/24"), INSTALLATION);
    runtime().block_on(provider.create(&spec(1), &here())).unwrap();
    nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL).unwrap();
    ExitCode::FAILURE
}
