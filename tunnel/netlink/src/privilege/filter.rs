//! The filter of system calls, as a classic BPF program. Written here and not taken from a crate,
//! since the one that is well kept knows no s390x.
//!
//! ```text
//!   foreign architecture? ─▶ kill
//!   number = a listed one? ─▶ (argument as listed?) ─▶ the list's verdict
//!   end of the list        ─▶ the other verdict
//! ```
//! A list of what is allowed answers ENOSYS to everything else: a newer C library then takes the
//! older call. A list of what is forbidden answers EPERM.

use std::fmt;
use std::io;

use nix::libc;

/// One line of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub(super) number: libc::c_long,
    pub(super) only: Only,
}

/// With which argument a call is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Only {
    /// Any.
    Any,
    /// The lower half of that argument is this.
    Is(usize, u32),
    /// The lower half of that argument has all these bits.
    Has(usize, u32),
    /// That argument is the number of the process that installs the filter.
    OwnProcess(usize),
}

impl Call {
    pub(super) const fn any(number: libc::c_long) -> Self {
        Self { number, only: Only::Any }
    }

    pub(super) const fn with(number: libc::c_long, only: Only) -> Self {
        Self { number, only }
    }
}

/// Which system calls a process may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// All of them.
    All,
    /// Only those of these lists.
    Only(&'static [&'static [Call]]),
    /// All but those of these lists.
    AllBut(&'static [&'static [Call]]),
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(lists) => write!(f, "only {}", count(lists)),
            Self::AllBut(lists) => write!(f, "all but {}", count(lists)),
        }
    }
}

fn count(lists: &[&[Call]]) -> usize {
    let mut numbers: Vec<_> = lists.iter().flat_map(|l| l.iter()).map(|c| c.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "s390x")]
const ARCH: u32 = 0x8000_0016;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Offset of the lower half of an argument.
fn argument(n: usize) -> u32 {
    let low = if cfg!(target_endian = "big") { 4 } else { 0 };
    ARGUMENTS + 8 * u32::try_from(n).unwrap_or(0) + low
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { jt, jf, ..statement(libc::BPF_JMP | libc::BPF_K | code, k) }
}

fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(verdict: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, verdict)
}

fn errno(errno: libc::c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | (u32::try_from(errno).unwrap_or(1) & libc::SECCOMP_RET_DATA)
}

/// The program; `None` where nothing is to be filtered.
pub(super) fn program(calls: Calls, own: u32) -> Option<Vec<libc::sock_filter>> {
    let (lists, listed, otherwise) = match calls {
        Calls::All => return None,
        Calls::Only(lists) => (lists, libc::SECCOMP_RET_ALLOW, errno(libc::ENOSYS)),
        Calls::AllBut(lists) => (lists, errno(libc::EPERM), libc::SECCOMP_RET_ALLOW),
    };
    let mut program = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCH, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    for call in lists.iter().flat_map(|list| list.iter()) {
        program.extend(line(call, listed, own));
    }
    program.push(answer(otherwise));
    Some(program)
}

/// One call of a list. Whatever it looks at, the number is in the accumulator again behind it.
fn line(call: &Call, verdict: u32, own: u32) -> Vec<libc::sock_filter> {
    let number = u32::try_from(call.number).unwrap_or(u32::MAX);
    let (position, test) = match call.only {
        Only::Any => return vec![jump(libc::BPF_JEQ, number, 0, 1), answer(verdict)],
        Only::Is(n, value) => (n, vec![jump(libc::BPF_JEQ, value, 0, 1)]),
        Only::OwnProcess(n) => (n, vec![jump(libc::BPF_JEQ, own, 0, 1)]),
        Only::Has(n, bits) => {
            let mask = statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, bits);
            (n, vec![mask, jump(libc::BPF_JEQ, bits, 0, 1)])
        }
    };
    let behind = u8::try_from(test.len() + 3).unwrap_or(0);
    let mut line = vec![jump(libc::BPF_JEQ, number, 0, behind), load(argument(position))];
    line.extend(test);
    line.extend([answer(verdict), load(NUMBER)]);
    line
}

/// Puts the filter before this thread and all that come of it; needs "no new privileges".
pub(super) fn install(calls: Calls) -> io::Result<()> {
    let Some(mut program) = program(calls, std::process::id()) else { return Ok(()) };
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives to the end of this function.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
