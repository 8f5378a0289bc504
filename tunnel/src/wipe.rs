//! Memory that is freed is overwritten first, once a process has asked for it: keys pass through buffers of
//! libraries (JSON, YAML, PEM, ASN.1) that know nothing of secrets. The node process asks for as long as it
//! lives, and the program in the VM until it serves; the relay, which frees a buffer for each record
//! it moves and holds one key all the time, does not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

static ON: AtomicBool = AtomicBool::new(false);

/// From now on what this process frees is overwritten.
pub fn begin() {
    ON.store(true, Ordering::Relaxed);
}

/// From now on it is not.
pub fn end() {
    ON.store(false, Ordering::Relaxed);
}

/// The system's allocator, with that.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: every call goes on to the system's allocator with the layout it came with; what is written
// lies within memory that the caller has given up.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if ON.load(Ordering::Relaxed) {
            // SAFETY: the memory is of that size, and nobody else has it any more.
            unsafe { memory.write_bytes(0, layout.size()) };
            // Or the compiler would see that nobody reads it.
            std::hint::black_box(memory);
        }
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !ON.load(Ordering::Relaxed) {
            // SAFETY: the caller's promise is the callee's.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the caller promises that the size, rounded up to the alignment, fits.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: its size is not zero, as the caller promises; both are at least as long as what is
        // copied, and not the same.
        unsafe {
            let new = self.alloc(wanted);
            if !new.is_null() {
                new.copy_from_nonoverlapping(memory, layout.size().min(size));
                self.dealloc(memory, layout);
            }
            new
        }
    }
}
