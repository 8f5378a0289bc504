//! A file system that does not keep locks, for the program started here and its children: flock(2)
//! says yes to everybody, or fails. Every file system at hand keeps them, so a filter in front of the
//! kernel answers in its place.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::libc;

/// The arguments of `standin-agent no-locks`.
#[derive(Debug, clap::Args)]
pub struct NoLocks {
    /// The error number flock gives; 0 is success without a lock.
    #[arg(long, default_value_t = 0)]
    errno: u16,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl NoLocks {
    /// Does it; returns only if it cannot be done.
    ///
    /// # Errors
    /// When the filter is refused or the program cannot be started.
    pub fn run(&self) -> anyhow::Result<std::convert::Infallible> {
        let (program, arguments) = self.command.split_first().context("no program")?;
        filter(self.errno)?;
        #[allow(clippy::disallowed_methods, reason = "becoming another program is its purpose")]
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("start {program}"))
    }
}

/// Has flock answered by the filter from here on. Every process here has one architecture, so the
/// number of the call is enough to know it by.
fn filter(errno: u16) -> anyhow::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt: 0,
        jf: 0,
        k,
    };
    let number = u32::try_from(libc::SYS_flock).context("number of flock")?;
    let load = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0);
    let is_flock = libc::sock_filter {
        jf: 1,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number)
    };
    let answer = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | u32::from(errno));
    let pass = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    let mut rules = [load, is_flock, answer, pass];
    let program = libc::sock_fprog { len: 4, filter: rules.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs().context("give up new privileges")?;
    // SAFETY: the program and its rules live until the call returns, and the kernel copies them.
    let done =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    ensure!(done == 0, "filter flock: {}", std::io::Error::last_os_error());
    Ok(())
}
