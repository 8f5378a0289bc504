//! `run`'s two children, played by a script that says that it is there and ends as it is told.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpgid, mkfifo};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::{Instant, advance};
use tokio_util::sync::CancellationToken;

use super::process::Process;
use super::*;
use crate::relay::RelayOptions;
use crate::shutdown::Tracker;

/// Bounds what would hang, in real time: that of a test may stand still.
async fn within<T>(work: impl Future<Output = T>) -> T {
    let (_done, still) = std::sync::mpsc::channel::<()>();
    let (over, bound) = oneshot::channel();
    std::thread::spawn(move || {
        if still.recv_timeout(Duration::from_secs(20))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            let _ = over.send(());
        }
    });
    tokio::select! {
        done = work => done,
        Ok(()) = bound => panic!("it takes too long"),
    }
}

/// Where the children play.
struct Stage {
    dir: tempfile::TempDir,
    says: BufReader<pipe::Receiver>,
    ends: pipe::Sender,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let fifo = |name: &str| {
            let path = dir.path().join(name);
            mkfifo(&path, Mode::S_IRWXU).expect("fifo");
            path
        };
        // Open at both ends, so that neither a child nor a test waits for the other to open it.
        let mut open = pipe::OpenOptions::new();
        open.read_write(true);
        let says = BufReader::new(open.open_receiver(fifo("says")).expect("opened"));
        let ends = open.open_sender(fifo("ends")).expect("opened");
        Self { dir, says, ends }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn children(&self) -> Children {
        Children {
            program: Path::new(env!("CARGO_MANIFEST_DIR")).join("src/run/tests/child.sh"),
            args: vec![self.dir.path().display().to_string()],
            withheld: Vec::new(),
        }
    }

    fn part(&self, role: &'static str, patience: Duration) -> Part {
        Part::new(role, self.socket(), self.children(), patience)
    }

    /// What a child says next.
    async fn says(&mut self) -> String {
        let mut line = String::new();
        within(self.says.read_line(&mut line)).await.expect("read");
        line.trim_end().to_owned()
    }

    /// Waits for a child of that role; its id.
    async fn started(&mut self, role: &str) -> Pid {
        let said = self.says().await;
        let pid = said.strip_prefix(role).and_then(|pid| pid.trim().parse().ok());
        Pid::from_raw(pid.unwrap_or_else(|| panic!("{role} starts, but {said:?}")))
    }

    async fn end_with(&mut self, code: u8) {
        within(self.ends.write_all(format!("{code}\n").as_bytes())).await.expect("written");
    }

    /// A relay of that build, which this process serves.
    async fn relay(&self, build: &str, over: &CancellationToken) {
        let path = |name: &str| self.dir.path().join(name);
        let options = RelayOptions {
            hypervisor_socket: path("hypervisor.sock"),
            pods_dir: path("pods"),
            control_socket: self.socket(),
            relay_socket: path("relay.sock"),
            allowed_uid: nix::unistd::geteuid().as_raw(),
            build: build.to_owned(),
            linger: Duration::ZERO,
            stand_by: false,
            own_process: false,
        };
        let relay = crate::relay::Relay::bind(options).await.expect("bound");
        tokio::spawn(relay.run(Tracker::new(), over.clone()));
    }
}

fn lives(pid: Pid) -> bool {
    kill(pid, None).is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ends_is_missed_the_more_the_longer_it_lived_and_only_2_ends_it_for_good() {
    let mut stage = Stage::new();
    let orders = Orders::default();
    let part = stage.part("node", Duration::ZERO);
    let keeping = tokio::spawn(part.keep(orders.subscribe()));
    stage.started("node").await;
    // How long it lives, how it ends, and the pause after that, in ms.
    for (lived, code, pause) in [
        (0, 1, 100),
        (0, 0, 200),
        (0, 101, 400),
        (0, 1, 800),
        (0, 1, 1_600),
        (0, 1, 3_200),
        (0, 1, 6_400),
        (0, 1, 10_000),
        (249, 1, 10_000),
        (250, 1, 500),
        (0, 1, 1_000),
        (10_000, 0, 0),
        (0, 1, 100),
    ] {
        advance(Duration::from_millis(lived)).await;
        let ended = Instant::now();
        stage.end_with(code).await;
        stage.started("node").await;
        let (took, wanted) = (ended.elapsed(), Duration::from_millis(pause));
        // The clock of timers has milliseconds.
        let most = wanted + Duration::from_millis(2);
        assert!(took >= wanted && took <= most, "{took:?} after {lived} ms and {code}");
    }
    stage.end_with(2).await;
    within(keeping).await.expect("it is given up");
}

#[tokio::test(start_paused = true)]
async fn an_order_to_end_is_heard_while_a_child_is_not_there() {
    let stage = Stage::new();
    let orders = Orders::default();
    let mut children = stage.children();
    children.program = stage.dir.path().join("no-program");
    let part = Part::new("node", stage.socket(), children, Duration::ZERO);
    let begin = Instant::now();
    let keeping = tokio::spawn(part.keep(orders.subscribe()));
    // In the middle of a pause of more than six seconds.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!keeping.is_finished(), "it is tried again");
    orders.give(Order::End);
    within(keeping).await.expect("ended");
    assert_eq!(begin.elapsed().as_secs(), 8, "at once");
}

#[tokio::test]
async fn a_child_is_told_to_end_and_killed_only_if_it_does_not() {
    let mut stage = Stage::new();
    for (stubborn, patience) in [(false, Duration::from_secs(60)), (true, Duration::ZERO)] {
        if stubborn {
            std::fs::write(stage.dir.path().join("stubborn"), "").expect("written");
        }
        let orders = Orders::default();
        let keeping = tokio::spawn(stage.part("node", patience).keep(orders.subscribe()));
        let pid = stage.started("node").await;
        orders.give(Order::End);
        if !stubborn {
            assert_eq!(stage.says().await, "node told");
        }
        within(keeping).await.expect("ended");
        assert!(!lives(pid), "stubborn: {stubborn}");
    }
}

#[tokio::test]
async fn relays_that_ours_has_replaced_end_with_it() {
    let mut stage = Stage::new();
    let old = Process::start(&stage.children(), "relay").expect("started");
    let first = stage.started("relay").await;
    let part = stage.part("relay", Duration::from_secs(60));
    part.replaced.lock().expect("lock").push(old);
    let orders = Orders::default();
    let keeping = tokio::spawn(part.keep(orders.subscribe()));
    let pids = [first, stage.started("relay").await];
    orders.give(Order::End);
    within(keeping).await.expect("ended");
    assert_eq!(pids.map(lives), [false, false]);
}

#[tokio::test]
async fn a_process_of_another_user_is_not_adopted() {
    let name = "a_process_of_another_user_is_not_adopted";
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP run::tests::{name}: needs root");
        return;
    }
    let stage = Stage::new();
    std::fs::set_permissions(stage.dir.path(), Permissions::from_mode(0o777)).expect("chmod");
    let socket = stage.socket();
    let binding = std::thread::spawn(move || {
        // SAFETY: takes three integers; without the C library's wrapper it is this thread only, and
        // the thread ends here.
        let done = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(done, 0, "setresuid");
        std::os::unix::net::UnixListener::bind(socket).expect("bound")
    });
    let _stranger = binding.join().expect("thread");
    let error = stage.part("relay", Duration::ZERO).begin().await.expect_err("not ours");
    assert!(error.to_string().contains("served by a process of user 65534"), "{error}");
}

#[tokio::test]
async fn a_relay_stays_at_the_end_unless_it_says_that_nothing_hangs_on_it() {
    let mut stage = Stage::new();
    // Nobody serves its socket: a relay that is only coming up, or that hangs.
    let orders = Orders::default();
    let part = stage.part("relay", Duration::from_secs(60));
    let keeping = tokio::spawn(part.keep(orders.subscribe()));
    let silent = stage.started("relay").await;
    orders.give(Order::EndIdle);
    within(keeping).await.expect("ended");
    assert!(lives(silent), "it may have pods");
    kill(silent, Signal::SIGKILL).expect("killed");

    let orders = Orders::default();
    let part = stage.part("relay", Duration::from_secs(60));
    let keeping = tokio::spawn(part.keep(orders.subscribe()));
    let idle = stage.started("relay").await;
    let over = CancellationToken::new();
    stage.relay("any", &over).await;
    orders.give(Order::EndIdle);
    assert_eq!(stage.says().await, "relay told");
    within(keeping).await.expect("ended");
    assert!(!lives(idle));
    over.cancel();
}

#[tokio::test]
async fn a_relay_of_our_build_is_adopted_and_one_of_another_is_replaced_if_it_hands_over() {
    let stage = Stage::new();
    let part = stage.part("relay", Duration::ZERO);
    let over = CancellationToken::new();
    stage.relay(&crate::cli::build(), &over).await;
    let ours = part.begin().await.expect("found");
    assert!(matches!(ours, Process::Found(..)), "{ours:?}");

    let mut stage = Stage::new();
    let part = stage.part("relay", Duration::ZERO);
    stage.relay("another", &over).await;
    // The one that is to take over may fail, and then the old one is better than none.
    for _ in 0..3 {
        let mut next = part.begin().await.expect("started");
        assert!(matches!(next, Process::Child(..)), "{next:?}");
        stage.started("relay").await;
        stage.end_with(1).await;
        within(next.ended()).await;
    }
    let old = part.begin().await.expect("found");
    assert!(matches!(old, Process::Found(..)), "{old:?}");
    over.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_does_not_understand_is_asked_to_hand_over_and_one_that_hangs_is_not() {
    let mut stage = Stage::new();
    let listener = UnixListener::bind(stage.socket()).expect("bound");
    let part = stage.part("relay", Duration::ZERO);
    let hangs = part.begin().await.expect("found");
    assert!(matches!(hangs, Process::Found(..)), "{hangs:?}");
    let refusing = tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let mut next = part.begin().await.expect("started");
    assert!(matches!(next, Process::Child(..)), "{next:?}");
    stage.started("relay").await;
    stage.end_with(0).await;
    within(next.ended()).await;
    refusing.abort();
}

/// As it was given to a process.
fn environment(process: &str) -> BTreeSet<Vec<u8>> {
    let bytes = std::fs::read(format!("/proc/{process}/environ")).expect("a process of ours");
    bytes.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn a_child_has_a_process_group_of_its_own_and_the_relay_nothing_of_what_is_withheld() {
    let mut stage = Stage::new();
    let children = Children { withheld: vec!["PATH".to_owned()], ..stage.children() };
    let own = environment("self");
    for role in ["node", "relay"] {
        let mut child = Process::start(&children, role).expect("started");
        let pid = stage.started(role).await;
        // A terminal's Ctrl-C goes to a whole group: it is for the parent alone.
        assert_eq!(getpgid(Some(pid)), Ok(pid), "{role}");
        let has = environment(&pid.to_string());
        let less: Vec<_> = own.difference(&has).map(|v| v.starts_with(b"PATH=")).collect();
        let wanted = if role == "relay" { vec![true] } else { vec![] };
        assert!(less == wanted && has.is_subset(&own), "{role}");
        stage.end_with(0).await;
        assert_eq!(within(child.ended()).await, Some(0));
    }
}
