//! The programs that tests of the local provider need, in one executable that goes by its name: as
//! `podvm` and `agent` it runs inside the VM, else its first argument says what it is.
#![allow(clippy::expect_used, missing_docs, reason = "part of the tests")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

#[path = "../common/mod.rs"]
mod common;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_owned();
    match name.to_str() {
        Some("podvm") => podvm(),
        Some("agent") => agent(),
        _ => by_argument(args.next(), args.collect()),
    }
}

fn by_argument(what: Option<OsString>, rest: Vec<OsString>) -> ExitCode {
    let dir = || rest.first().map(Path::new).expect("a directory");
    match what.as_ref().and_then(|w| w.to_str()) {
        Some("local-guest") => peerpod_providers::local::guest_main(rest),
        Some("cycle") => common::cycle(dir()),
        Some("create-and-die") => common::create_and_die(dir()),
        _ => ExitCode::from(2),
    }
}

/// Answers one word per connection with facts about the VM.
fn podvm() -> ExitCode {
    println!("podvm says hello");
    let listener = TcpListener::bind("[::]:15150").expect("a port of the VM's own");
    for connection in listener.incoming() {
        let mut connection = connection.expect("a connection");
        let mut word = String::new();
        BufReader::new(&connection).read_line(&mut word).expect("a word");
        if word.trim() == "exit" {
            return ExitCode::from(3);
        }
        let facts = facts(&connection);
        let _ = connection.write_all(facts.as_bytes());
    }
    ExitCode::SUCCESS
}

fn facts(connection: &TcpStream) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let peer = connection.peer_addr().expect("a peer").ip().to_canonical();
    let user_data = "/media/cidata/user-data";
    let mode = std::fs::metadata(user_data).expect("user data").permissions().mode();
    let writable = std::fs::write("/media/cidata/more", "").is_ok();
    let parent = std::os::unix::process::parent_id();
    let stat = read("/proc/self/stat");
    let links = read("/proc/net/dev");
    let links: Vec<&str> =
        links.lines().filter_map(|l| Some(l.split_once(':')?.0.trim())).collect();
    format!(
        "peer={peer}\nhost={}\nmode={:o}\nuser-data={}\nwritable={writable}\nparent={parent}\n\
         links={}\nagent={}\nstat={stat}\ninit={}\n",
        read("/proc/sys/kernel/hostname").trim(),
        mode & 0o7777,
        read(user_data).trim().replace('\n', "\\n"),
        links.join(","),
        read("/run/kata-containers/agent.pid"),
        read("/proc/1/comm").trim(),
    )
}

/// Stands where a kata-agent would: listens, and leaves its pid.
fn agent() -> ExitCode {
    let at = std::env::vars().find(|(k, _)| k == "KATA_AGENT_SERVER_ADDR").expect("an address").1;
    let path = at.strip_prefix("unix://").expect("a unix socket");
    let listener = std::os::unix::net::UnixListener::bind(path).expect("no stale socket");
    std::fs::write("/run/kata-containers/agent.pid", std::process::id().to_string())
        .expect("own /run");
    for connection in listener.incoming() {
        drop(connection);
    }
    ExitCode::SUCCESS
}
