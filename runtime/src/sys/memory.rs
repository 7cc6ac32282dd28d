//! Giving memory back: what a long-lived process keeps after work that is rare, counted per pod.

use std::hint::black_box;

/// What stays of the stack below the caller: more than anything here or in a system call's wrapper uses.
const STACK_KEPT_BYTES: usize = 8 * 1024;

/// How far down the stack is given back: deeper than any of our recursion has gone.
const STACK_REACH_BYTES: usize = 1024 * 1024;

/// The longest heap that is believed to be one.
const MAX_HEAP_BYTES: usize = 64 * 1024 * 1024;

/// Gives the pages of freed memory and of unused stack back to the kernel.
pub(crate) fn trim() {
    // SAFETY: takes no pointers and is safe at any time; only what nobody uses is given back.
    unsafe { libc::malloc_trim(0) };
    discard_unused_stack();
}

/// Waits for ever with next to no memory. Signals do what they do by default; a ptrace or a stop changes nothing.
pub(crate) fn rest() -> ! {
    discard_unused_stack();
    discard_heap();
    loop {
        // SAFETY: takes no pointers. It touches neither the heap nor more stack than was kept.
        unsafe { libc::pause() };
    }
}

fn page_up(address: usize) -> usize {
    address.next_multiple_of(4096)
}

/// Everything far enough below the caller's frame. The kernel keeps the range mapped and gives zeroed pages when it grows again.
fn discard_unused_stack() {
    let here = 0_u8;
    let top = (black_box(&raw const here) as usize).saturating_sub(STACK_KEPT_BYTES);
    let end = page_up(top) - 4096;
    let start = end.saturating_sub(STACK_REACH_BYTES);
    // SAFETY: the range lies below every frame in use, the red zone included, and above it is STACK_KEPT_BYTES for what this call itself
    // needs; nothing but this thread's stack is mapped within reach of it (the kernel keeps a gap as large as the
    // stack's limit). ENOMEM for the part that was never mapped is as good as success.
    unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
}

/// The heap, but for its head, where a static glibc keeps the thread's own block. For a process that never allocates, frees or
/// reads allocated memory again.
fn discard_heap() {
    // SAFETY: has no precondition; the address is that of this thread's errno.
    let thread_block = unsafe { libc::__errno_location() } as usize;
    // SAFETY: sbrk(0) changes nothing.
    let end = unsafe { libc::sbrk(0) } as usize;
    let start = page_up(thread_block + 4096);
    if start >= end || end - start > MAX_HEAP_BYTES {
        return;
    }
    // SAFETY: from the thread's block to the break there is only malloc's heap, which the caller of `rest` never
    // comes back to: no frame above is returned to, and pause(2) allocates nothing.
    unsafe { libc::madvise(start as *mut libc::c_void, end / 4096 * 4096 - start, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trimmed_process_goes_on() {
        // Deep enough that pages below are given back, and used again after.
        fn deep(levels: usize) -> usize {
            let frame = black_box([levels; 512]);
            if levels == 0 { frame[0] } else { frame[1] + deep(levels - 1) }
        }
        let before = vec![7_u8; 100_000];
        for _ in 0..3 {
            assert_eq!(deep(50), 50 * 51 / 2);
            trim();
        }
        assert!(before.iter().all(|byte| *byte == 7));
    }
}
