//! The filter's program runs here against calls that are never made; what the kernel makes of it is
//! seen from outside, in tests/it.

use nix::libc;
use proptest::prelude::*;

use super::calls::{BYTES, MOUNTS, NEVER};
use super::filter::program;
use super::*;

const OWN: u32 = 77;

/// What the kernel hands to the program.
fn data(arch: u32, number: libc::c_long, arguments: [u64; 6]) -> Vec<u8> {
    let mut data = Vec::new();
    data.extend(i32::try_from(number).expect("number").to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    arguments.iter().for_each(|a| data.extend(a.to_ne_bytes()));
    data
}

/// The few instructions that are used, as the kernel runs them.
fn run(program: &[libc::sock_filter], data: &[u8]) -> u32 {
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let step = program[at];
        at += 1;
        match u32::from(step.code) {
            0x20 => {
                let k = usize::try_from(step.k).expect("offset");
                let bytes = data[k..k + 4].try_into().expect("four bytes");
                accumulator = u32::from_ne_bytes(bytes);
            }
            0x54 => accumulator &= step.k,
            0x15 => at += usize::from(if accumulator == step.k { step.jt } else { step.jf }),
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0x8000_0016 };

fn asked(calls: Calls, number: libc::c_long, arguments: [u64; 6]) -> u32 {
    run(&program(calls, OWN).expect("a program"), &data(ARCH, number, arguments))
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const NO: u32 = libc::SECCOMP_RET_ERRNO;

#[test]
fn what_is_not_on_a_list_of_the_allowed_does_not_exist() {
    let calls = Calls::Only(BYTES);
    let enosys = NO | u32::try_from(libc::ENOSYS).expect("errno");
    for number in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_clone3, libc::SYS_setns, 100_000] {
        assert_eq!(asked(calls, number, [0; 6]), enosys, "{number}");
    }
    for number in [libc::SYS_read, libc::SYS_futex, libc::SYS_exit_group, libc::SYS_sendmsg] {
        assert_eq!(asked(calls, number, [0; 6]), ALLOWED, "{number}");
    }
}

#[test]
fn what_is_on_a_list_of_the_forbidden_is_not_permitted() {
    let calls = Calls::AllBut(&[NEVER, MOUNTS]);
    let eperm = NO | u32::try_from(libc::EPERM).expect("errno");
    for number in [libc::SYS_ptrace, libc::SYS_vhangup, libc::SYS_mount, libc::SYS_setdomainname] {
        assert_eq!(asked(calls, number, [0; 6]), eperm, "{number}");
    }
    assert_eq!(asked(calls, libc::SYS_execve, [0; 6]), ALLOWED);
}

#[test]
fn arguments_decide_where_a_call_is_allowed_only_in_part() {
    let calls = Calls::Only(BYTES);
    let yes = |number, arguments| asked(calls, number, arguments) == ALLOWED;
    let first = |value: u64| [value, 0, 0, 0, 0, 0];
    assert!(yes(libc::SYS_kill, first(OWN.into())) && !yes(libc::SYS_kill, first(1)));
    assert!(yes(libc::SYS_socket, first(2)) && !yes(libc::SYS_socket, first(16)), "no netlink");
    assert!(yes(libc::SYS_ioctl, [0, 0x5421, 0, 0, 0, 0]), "non-blocking");
    assert!(!yes(libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]), "typing into a terminal");
    let thread = u64::from(u32::try_from(libc::CLONE_THREAD | libc::CLONE_VM).expect("flags"));
    let flags = |f| if cfg!(target_arch = "s390x") { [0, f, 0, 0, 0, 0] } else { first(f) };
    assert!(yes(libc::SYS_clone, flags(thread)) && !yes(libc::SYS_clone, flags(17)), "no fork");
    // A line that did not fit leaves the number where the next line finds it.
    assert!(yes(libc::SYS_read, [0; 6]));
}

#[test]
fn another_architectures_numbers_mean_death() {
    let program = program(Calls::Only(BYTES), OWN).expect("a program");
    let i386 = data(0x4000_0003, libc::SYS_read, [0; 6]);
    assert_eq!(run(&program, &i386), libc::SECCOMP_RET_KILL_PROCESS);
    assert!(super::filter::program(Calls::All, OWN).is_none());
}

#[test]
fn names_are_those_of_the_manual() {
    let two = Capabilities::NET_ADMIN | Capabilities::SYS_ADMIN;
    assert_eq!(names(two), "CAP_NET_ADMIN,CAP_SYS_ADMIN");
    assert_eq!(names(Capabilities::empty()), "none");
    assert_eq!(names(Capabilities::from_bits_retain(1 << 60)), "0x1000000000000000");
}

#[test]
fn nothing_is_given_up_beside_other_threads() {
    // The harness has at least the thread that runs this and the one that waits for it.
    let keep =
        Keep { acts: Capabilities::empty(), passes: Capabilities::empty(), calls: Calls::All };
    let error = give_up(&keep).expect_err("threads").to_string();
    assert!(error.contains("count threads"), "{error}");
}

proptest! {
    #[test]
    fn every_call_gets_one_of_three_answers(number in 0i64..600, arguments: [u64; 6]) {
        for calls in [Calls::Only(BYTES), Calls::AllBut(&[NEVER])] {
            let answer = asked(calls, number, arguments);
            prop_assert!(answer == ALLOWED || answer & 0xffff_0000 == NO);
        }
    }
}
