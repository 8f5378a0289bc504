//! A wall clock that a test can set while programs run: preloaded (`LD_PRELOAD`), it answers for the C
//! library's `clock_gettime`, `gettimeofday` and `time`, by which a Rust program asks. The file that
//! `STANDIN_CLOCK` names holds how many seconds the clock is ahead (8 bytes in the machine's order,
//! negative: behind); whoever writes there sets the clock of all that have it. Other clocks than the wall's
//! stay as they are. Without such a file all clocks do.

use std::ffi::{c_int, c_void};
use std::mem::transmute;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

use nix::libc::{self, clockid_t, time_t, timespec, timeval};

/// The file's content, null where there is none.
static AHEAD: AtomicPtr<AtomicI64> = AtomicPtr::new(null_mut());
/// The C library's own `clock_gettime`, null until it is looked up.
static REAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

type ClockGettime = unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int;

// Before main, so that no filter of system calls is in its way.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    // SAFETY: no thread has been started, so that nobody changes the environment meanwhile.
    let path = unsafe { libc::getenv(c"STANDIN_CLOCK".as_ptr()) };
    if path.is_null() {
        return;
    }
    // SAFETY: the path ends in a zero; the descriptor is ours and not used once it is closed.
    let mapped = unsafe {
        let file = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
        let length = size_of::<AtomicI64>();
        let mapped = libc::mmap(null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file, 0);
        libc::close(file);
        mapped
    };
    // A test that thinks it has set the clock and has not must not pass.
    if mapped == libc::MAP_FAILED {
        // SAFETY: ends the process.
        unsafe { libc::abort() }
    }
    AHEAD.store(mapped.cast(), Ordering::Release);
}

fn ahead() -> i64 {
    // SAFETY: the mapping stays as long as the process, and begins with such a number.
    unsafe { AHEAD.load(Ordering::Acquire).as_ref() }
        .map_or(0, |ahead| ahead.load(Ordering::Relaxed))
}

/// # Safety
/// As the C library's.
unsafe fn real(clock: clockid_t, time: *mut timespec) -> c_int {
    let mut real = REAL.load(Ordering::Relaxed);
    if real.is_null() {
        // SAFETY: a name that ends in a zero.
        real = unsafe { libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()) };
        REAL.store(real, Ordering::Relaxed);
    }
    // SAFETY: every C library has it, with this signature; the caller promises the rest.
    unsafe { transmute::<*mut c_void, ClockGettime>(real)(clock, time) }
}

/// # Safety
/// As the C library's: `time` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: the caller promises it.
    let done = unsafe { real(clock, time) };
    if done == 0 && matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        // SAFETY: it was written to just now.
        unsafe { (*time).tv_sec += ahead() };
    }
    done
}

/// # Safety
/// As the C library's: `now` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(now: *mut timeval, _zone: *const c_void) -> c_int {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it can be written to.
    let done = unsafe { clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    if done == 0 && !now.is_null() {
        // SAFETY: the caller promises it.
        unsafe { *now = timeval { tv_sec: time.tv_sec, tv_usec: time.tv_nsec / 1000 } };
    }
    done
}

/// # Safety
/// As the C library's: `seconds` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(seconds: *mut time_t) -> time_t {
    let mut now = timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: it can be written to.
    unsafe { gettimeofday(&raw mut now, null()) };
    if !seconds.is_null() {
        // SAFETY: the caller promises it.
        unsafe { *seconds = now.tv_sec };
    }
    now.tv_sec
}
