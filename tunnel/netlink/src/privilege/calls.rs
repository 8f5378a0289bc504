//! Lists of system calls, by what they are for.

use nix::libc::{self, *};

use super::filter::{Call, Only};

macro_rules! list {
    ($($number:ident),* $(,)?) => { &[$(Call::any(libc::$number)),*] };
}

/// What no process of ours ever needs and what an intruder would like: other processes' memory, the
/// kernel's code, the machine's clock.
pub const NEVER: &[Call] = list![
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_process_madvise,
    SYS_kcmp,
    SYS_pidfd_getfd,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_open_by_handle_at,
    SYS_fanotify_init,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_acct,
    SYS_quotactl,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_clock_adjtime,
    SYS_adjtimex,
    SYS_syslog,
    SYS_vhangup,
];

/// Key rings, rings of requests, another root.
pub const RINGS: &[Call] = list![
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_personality,
    SYS_pivot_root,
    SYS_chroot,
];

/// Mounting, and what names the machine.
pub const MOUNTS: &[Call] = list![
    SYS_mount,
    SYS_umount2,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_sethostname,
    SYS_setdomainname,
];

/// Starting a program.
pub const PROGRAMS: &[Call] = list![SYS_execve, SYS_execveat];

/// All that a process needs that moves bytes between sockets and keeps some files: no program, no other
/// process, no namespace, no mount.
pub const BYTES: &[&[Call]] =
    &[MOVING, WAITING, SOCKETS, DESCRIPTORS, FILES, MEMORY, THREADS, ASKING, NARROW, OLDER];

const MOVING: &[Call] = list![
    SYS_read,
    SYS_write,
    SYS_recvfrom,
    SYS_sendto,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_recvmmsg,
    SYS_sendmmsg,
    SYS_splice,
    SYS_tee,
    SYS_sendfile,
];

const WAITING: &[Call] = list![
    SYS_futex,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_epoll_ctl,
    SYS_epoll_create1,
    SYS_eventfd2,
    SYS_ppoll,
    SYS_pselect6,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_sched_yield,
    SYS_restart_syscall,
];

const SOCKETS: &[Call] = list![
    SYS_socketpair,
    SYS_bind,
    SYS_listen,
    SYS_accept4,
    SYS_connect,
    SYS_shutdown,
    SYS_getsockname,
    SYS_getpeername,
    SYS_getsockopt,
    SYS_setsockopt,
];

const DESCRIPTORS: &[Call] = list![
    SYS_close,
    SYS_close_range,
    SYS_dup,
    SYS_dup3,
    SYS_fcntl,
    SYS_pipe2,
    SYS_lseek,
    SYS_memfd_create,
    SYS_pidfd_open,
];

const FILES: &[Call] = list![
    SYS_openat,
    SYS_openat2,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_fstatfs,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlinkat,
    SYS_getdents64,
    SYS_getcwd,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_linkat,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_flock,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_umask,
];

const MEMORY: &[Call] = list![
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_mincore,
    SYS_mlock,
    SYS_munlock,
    SYS_brk,
    SYS_membarrier,
];

const THREADS: &[Call] = list![
    SYS_set_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_prctl,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_exit,
    SYS_exit_group,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigtimedwait,
    SYS_sigaltstack,
    SYS_signalfd4,
];

const ASKING: &[Call] = list![
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_capget,
    SYS_getcpu,
    SYS_getrandom,
    SYS_getrusage,
    SYS_getpriority,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_uname,
    SYS_sysinfo,
];

/// Position of the flags among the arguments of clone(2).
const CLONE_FLAGS_AT: usize = if cfg!(target_arch = "s390x") { 1 } else { 0 };
const CLONE_THREAD: u32 = 0x0001_0000;

const fn socket(family: u32) -> Call {
    Call::with(SYS_socket, Only::Is(0, family))
}

const fn ioctl(request: u32) -> Call {
    Call::with(SYS_ioctl, Only::Is(1, request))
}

/// A clone is a thread, a signal goes to this process alone, limits are its own, sockets are of unix and
/// of IP; of terminals and devices nothing is asked but what is harmless.
const NARROW: &[Call] = &[
    Call::with(SYS_clone, Only::Has(CLONE_FLAGS_AT, CLONE_THREAD)),
    Call::with(SYS_kill, Only::OwnProcess(0)),
    Call::with(SYS_tgkill, Only::OwnProcess(0)),
    Call::with(SYS_prlimit64, Only::Is(0, 0)),
    socket(1),          // AF_UNIX
    socket(2),          // AF_INET
    socket(10),         // AF_INET6
    ioctl(0x5401),      // TCGETS: is it a terminal?
    ioctl(0x802c_542a), // TCGETS2
    ioctl(0x5421),      // FIONBIO
    ioctl(0x541b),      // FIONREAD
    ioctl(0x5451),      // FIOCLEX
    ioctl(0x5450),      // FIONCLEX
];

/// The same by older numbers, which some architectures never had.
#[cfg(target_arch = "x86_64")]
const OLDER: &[Call] = list![
    SYS_poll,
    SYS_epoll_wait,
    SYS_accept,
    SYS_open,
    SYS_access,
    SYS_stat,
    SYS_lstat,
    SYS_mkdir,
    SYS_rmdir,
    SYS_unlink,
    SYS_rename,
    SYS_link,
    SYS_chmod,
    SYS_readlink,
    SYS_dup2,
    SYS_pipe,
    SYS_time,
    SYS_arch_prctl,
];
/// Its C library asks for sockets by the one call that takes its arguments in memory, where no filter
/// can look: here sockets may be of any family.
#[cfg(target_arch = "s390x")]
const OLDER: &[Call] = list![
    SYS_socketcall,
    SYS_poll,
    SYS_epoll_wait,
    SYS_open,
    SYS_access,
    SYS_stat,
    SYS_lstat,
    SYS_mkdir,
    SYS_rmdir,
    SYS_unlink,
    SYS_rename,
    SYS_link,
    SYS_chmod,
    SYS_readlink,
    SYS_dup2,
    SYS_pipe,
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "s390x")))]
const OLDER: &[Call] = &[];
