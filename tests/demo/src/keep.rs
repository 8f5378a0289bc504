//! `--keep`: stay while the pods run, and say how to look around.

use std::sync::atomic::{AtomicBool, Ordering};

use peerpod_standin::lab::isolate;
use tokio::sync::Notify;

use crate::world::World;

static WAITING: AtomicBool = AtomicBool::new(false);
static GO_ON: Notify = Notify::const_new();

/// Takes a Ctrl-C as "go on"; false if nobody waits for one.
pub(crate) fn go_on() -> bool {
    let waiting = WAITING.swap(false, Ordering::SeqCst);
    if waiting {
        GO_ON.notify_one();
    }
    waiting
}

/// Says how to look around and returns at Ctrl-C.
pub(crate) async fn stay(world: &World) {
    WAITING.store(true, Ordering::SeqCst);
    let dir = world.lab.dir().path().display();
    let worker = format!("nsenter --net={dir}/net/worker");
    let peerpodd = world.lab.binaries().peerpodd.display();
    let mut lines = vec![
        ("inside the demo's namespaces; the rest is for there".to_owned(), {
            format!("{} sh", isolate::enter_command())
        }),
        ("sockets, records, VMs".to_owned(), format!("ls -R {dir}/pods {dir}/state {dir}/local")),
        ("the daemon's log".to_owned(), format!("tail -f {dir}/logs/run.log")),
        ("the worker's network".to_owned(), format!("{worker} ip addr")),
        ("what the daemon knows".to_owned(), format!("{worker} {peerpodd} status")),
    ];
    for pod in &world.pods {
        let enter = format!("nsenter --net={dir}/net/pod-{}", pod.net.number);
        let what = format!("the tunnel of {}, {}", pod.name, pod.net.ip);
        lines.push((what, format!("{enter} ip -d -s link show vxlan1")));
    }
    for (what, command) in lines {
        world.timeline.say(&format!("{what}: {command}"));
    }
    world.timeline.say("the pods run; Ctrl-C stops them and goes on");
    GO_ON.notified().await;
}
