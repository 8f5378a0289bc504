//! Processes as /proc shows them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in this pid namespace.
    pub pid: i32,
    /// Its parent's number.
    pub parent: i32,
    /// Its command line.
    pub command: Vec<String>,
}

impl Process {
    /// Whether it is one of the daemon's own (`peerpodd run`, `node` or `relay`).
    pub fn is_daemon(&self) -> bool {
        let program = self.command.first().map(|c| Path::new(c).file_name());
        program.flatten().is_some_and(|n| n == "peerpodd") && !self.has("local-guest")
    }

    /// Whether a word stands in its command line.
    pub fn has(&self, word: &str) -> bool {
        self.command.iter().any(|c| c == word)
    }
}

/// All that live; zombies do not.
pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| read(e.file_name().to_str()?.parse().ok()?)).collect()
}

fn read(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (name) state parent …; the name may hold anything, so look behind its end.
    let mut rest = stat.rsplit_once(") ")?.1.split(' ');
    let state = rest.next()?;
    let parent = rest.next()?.parse().ok()?;
    if state == "Z" || state == "X" {
        return None;
    }
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = command.split(|b| *b == 0).filter(|w| !w.is_empty());
    let command = words.map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    Some(Process { pid, parent, command })
}

/// The children of a process.
pub fn children(of: i32) -> Vec<Process> {
    all().into_iter().filter(|p| p.parent == of).collect()
}

/// Processes that have something to do with a directory: in their command line, environment, open
/// files, root or working directory. This process and its ancestors are left out, and so are copies
/// of these that were forked just now and are about to become something else: they still hold all
/// that their parent has open.
pub fn using(dir: &Path) -> Vec<Process> {
    let all = all();
    let mut skipped = Vec::new();
    let mut next = i32::try_from(std::process::id()).unwrap_or_default();
    while next > 0 && !skipped.contains(&next) {
        skipped.push(next);
        next = all.iter().find(|p| p.pid == next).map_or(0, |p| p.parent);
    }
    let own: Vec<&Process> = all.iter().filter(|p| skipped.contains(&p.pid)).collect();
    let is_copy = |p: &Process| own.iter().any(|o| o.pid == p.parent && o.command == p.command);
    let strange = |p: &&Process| !skipped.contains(&p.pid) && !is_copy(p) && touches(p, dir);
    all.iter().filter(strange).cloned().collect()
}

fn touches(process: &Process, dir: &Path) -> bool {
    let text = dir.to_string_lossy();
    if process.command.iter().any(|c| c.contains(&*text)) {
        return true;
    }
    let proc = PathBuf::from(format!("/proc/{}", process.pid));
    let environ = std::fs::read(proc.join("environ")).unwrap_or_default();
    if String::from_utf8_lossy(&environ).contains(&*text) {
        return true;
    }
    let files = std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
    let links = ["cwd", "root", "exe"].map(|l| proc.join(l)).into_iter();
    let mut links = links.chain(files.map(|f| f.path()));
    links.any(|l| std::fs::read_link(l).is_ok_and(|to| to.starts_with(dir)))
}

/// Kills them and waits until they are gone, at most for some seconds.
pub fn kill_all(processes: &[Process]) {
    for process in processes {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    for process in processes {
        gone_within(process.pid, Duration::from_secs(5));
    }
}

/// Whether the process is gone, or a zombie, in time.
#[allow(clippy::disallowed_methods, reason = "also used in Drop, where nothing can be awaited")]
pub fn gone_within(pid: i32, limit: Duration) -> bool {
    let begin = std::time::Instant::now();
    while read(pid).is_some() {
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}
